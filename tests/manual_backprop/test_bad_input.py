"""What does not fit is refused at the edge: what was expected, what came, what to do. Nothing is broadcast."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch, generic, problem

import manual_backprop as mb
import reference

pytestmark = pytest.mark.usefixtures("without_hook")
NET = mb.mlp((6, 5, 5, 4))
DOORS = {
    "objective": lambda objective, *args, **given: objective(*args, **given),
    "backprop": mb.backprop,
    "value_and_grad": lambda objective, *args, **given: mb.value_and_grad(objective)(*args, **given),
    "check": lambda objective, *args, **given: reference.check(objective, *args, **given),
    "jit": lambda objective, *args, **given: jax.jit(mb.value_and_grad(objective))(*args, **given),
}


def arguments(**changed):
    given = {"params": generic(NET), "x": batch(6), "y": jnp.zeros((7, 4))} | changed
    return given["params"], given["x"], given["y"]


@pytest.fixture(params=DOORS.values(), ids=DOORS)
def door(request):
    objective = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
    return lambda *args, **given: request.param(objective, *args, **given)


def test_x_of_another_width(door):
    with pytest.raises(ValueError, match=r"takes 6 features on the last axis, got an example of shape \(5,\)"):
        door(*arguments(x=batch(5)))


def test_x_without_a_batch_axis(door):
    with pytest.raises(ValueError, match=r"x is \[6\], expected a batch .*; one example is x\[None\]"):
        door(*arguments(x=batch(6)[0], y=jnp.zeros(4)))


def test_an_empty_batch(door):
    with pytest.raises(ValueError, match="a batch needs at least one example"):
        door(*arguments(x=jnp.zeros((0, 6)), y=jnp.zeros((0, 4))))


def test_integer_x(door):
    with pytest.raises(TypeError, match="x must hold floats, got int64"):
        door(*arguments(x=jnp.ones((7, 6), int)))


def test_targets_of_another_number(door):
    with pytest.raises(ValueError, match=r"y is \[6, 4\] but x has 7 examples"):
        door(*arguments(y=jnp.zeros((6, 4))))


def test_targets_that_would_broadcast(door):
    """(N, 1) against (N, 4): the classic silent bug."""
    with pytest.raises(ValueError, match=r"y is \[7, 1\] but the outputs are \[7, 4\].*nothing is broadcast"):
        door(*arguments(y=jnp.zeros((7, 1))))


def test_parameters_of_another_structure(door):
    with pytest.raises(ValueError, match=r"(?s)params has structure.*but the network's init has"):
        door(*arguments(params=generic(NET)[:2]))


def test_a_transposed_weight_matrix(door):
    params = generic(NET)
    flax_like = (mb.Affine(params[0].W.T, params[0].b), *params[1:])
    with pytest.raises(ValueError, match=r"params\[0\].W is \[6, 5\], expected \[5, 6\].*W has one row an output"):
        door(*arguments(params=flax_like))


def test_a_bias_that_is_missing(door):
    params = generic(NET)
    with pytest.raises(ValueError, match=r"params\[1\].b is None, but the network's init has an array .*\[5\]"):
        door(*arguments(params=(params[0], mb.Affine(params[1].W), params[2])))


def test_a_bias_that_the_layer_does_not_have():
    """Of the parameters, and of all that has their form."""
    net = mb.Serial((mb.Dense(6, 5, "tanh"), mb.Repeat(mb.Dense(5, 5, bias=False), 2), mb.Dense(5, 4, bias=False)))
    right = generic(net)
    wrong = (*right[:2], mb.Affine(right[2].W, jnp.zeros(4)))
    objective, (_, x, y) = mb.Objective(net, mb.squared_error), arguments()
    says = r"\[2\].b is an array float64\[4\], but {} None there; the b of a layer with bias=False is None"
    with pytest.raises(ValueError, match="params" + says.format("the network's init has")):
        mb.backprop(objective, wrong, x, y)
    with pytest.raises(ValueError, match="v" + says.format("params has")):
        mb.hessian_vector_product(objective, right, x, y, wrong)
    repeated = (right[0], mb.Affine(right[1].W, jnp.zeros((2, 5))), right[2])
    with pytest.raises(ValueError, match=r"params\[1\].b is an array float64\[2, 5\], but"):
        mb.forward(net, repeated, x)


def test_a_bias_that_would_broadcast(door):
    params = generic(NET)
    with pytest.raises(ValueError, match=r"params\[1\].b is \[1\], expected \[5\]"):
        door(*arguments(params=(params[0], mb.Affine(params[1].W, jnp.zeros(1)), params[2])))


def test_weights_of_another_shape(door):
    with pytest.raises(ValueError, match=r"weights are \[6\], expected \[7\]"):
        door(*arguments(), weights=jnp.ones(6))
    with pytest.raises(ValueError, match=r"weights are \[7, 1\], expected \[7\]"):
        door(*arguments(), weights=jnp.ones((7, 1)))


def test_lambda_that_is_no_coefficient(door):
    with pytest.raises(ValueError, match=r"lam is \[3\], expected a scalar; sweep over several with jax.vmap"):
        door(*arguments(), lam=jnp.ones(3))


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf")])
def test_lambda_out_of_range(lam):
    objective = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
    for value in (lam, jnp.asarray(lam)):
        with pytest.raises(ValueError, match="lam must be finite and >= 0"):
            objective(*arguments(), lam=value)
    with pytest.raises(ValueError, match="Frobenius lam must be finite and >= 0"):
        mb.Frobenius(lam)


def test_dtypes_that_differ():
    objective = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
    with pytest.raises(TypeError, match="x is float32 but params are float64; convert one of them"):
        objective(*arguments(x=batch(6, dtype="float32")))
    with pytest.raises(TypeError, match="y is float32 but the outputs are float64"):
        objective(*arguments(y=jnp.zeros((7, 4), "float32")))
    mixed = (*generic(NET)[:2], generic(NET, dtype="float32")[2])
    with pytest.raises(TypeError, match=r"params mix the dtypes \['float32', 'float64'\]"):
        objective(*arguments(params=mixed))
    with pytest.raises(TypeError, match="lam is float32, expected float64"):
        objective(*arguments(), lam=jnp.float32(0.1))
    with pytest.raises(TypeError, match="weights are float32 but x is float64"):
        objective(*arguments(), weights=jnp.ones(7, "float32"))


def test_things_that_are_not_arrays():
    objective = mb.Objective(NET, mb.squared_error)
    with pytest.raises(TypeError, match="x must be an array, got list; wrap it in jnp.asarray"):
        objective(*arguments(x=[[1.0] * 6]))
    with pytest.raises(TypeError, match=r"params\[0\].b must be an array, got float"):
        params = generic(NET)
        objective(*arguments(params=(mb.Affine(params[0].W, 0.0), *params[1:])))


def test_lambda_without_a_regulariser():
    with pytest.raises(ValueError, match=r"no regularizer; give it Frobenius\(0.0\)"):
        mb.Objective(NET, mb.squared_error)(*arguments(), lam=0.1)


def test_a_traced_lambda_in_the_description():
    with pytest.raises(TypeError, match=r"must be a Python number.*objective\(params, x, y, lam=...\)"):
        mb.Frobenius(jnp.asarray(0.1))


@pytest.mark.parametrize(
    ("y", "error", "says"),
    [
        (jnp.full(7, 4), ValueError, r"labels for 4 logits must lie in 0..3, got 4 to 4"),
        (jnp.full(7, -1), ValueError, r"must lie in 0..3, got -1 to -1"),
        (
            jnp.zeros((7, 1), int),
            ValueError,
            r"integer labels must be \[7\] for logits \[7, 4\], got \[7, 1\]",
        ),
        (jnp.zeros((7, 4), int), ValueError, r"target distributions must be floats like the logits"),
        (jnp.zeros(7), TypeError, r"labels must be integers, got float64; convert y with .astype\(int\)"),
        (jnp.full((7, 4), 255.0), ValueError, r"target distributions must lie in 0..1, got 255.0 to 255.0"),
        (jnp.full((7, 4), jnp.nan), ValueError, r"must lie in 0..1, got nan to nan"),
    ],
)
def test_targets_of_softmax_cross_entropy(y, error, says):
    with pytest.raises(error, match=says):
        mb.Objective(NET, mb.softmax_cross_entropy)(*arguments(y=y))


@pytest.mark.parametrize("loss", [mb.sigmoid_binary_cross_entropy, mb.binary_cross_entropy])
def test_targets_of_binary_cross_entropy(loss):
    with pytest.raises(ValueError, match=r"targets must lie in 0..1, got 2.0 to 2.0"):
        mb.Objective(mb.mlp((6, 4), output_activation="sigmoid"), loss)(
            generic(mb.mlp((6, 4))), batch(6), jnp.full((7, 4), 2.0)
        )


def test_sweep_doors():
    objective, params, x, y = problem("mlp")
    net = objective.net
    output, trace = jax.jit(partial(mb.forward, net))(params, x)
    with pytest.raises(ValueError, match=r"dL/da is float64\[3, 4\] but z is float64\[7, 4\]"):
        mb.backward(net, params, trace, output[:3])
    with pytest.raises(ValueError, match=r"dL/da is float32\[7, 4\] but z is float64"):
        mb.backward(net, params, trace, output.astype("float32"))
    deltas = jax.tree.map(lambda at: at.z, trace, is_leaf=lambda at: hasattr(at, "z"))  # of the right shapes
    with pytest.raises(ValueError, match=r"weights are \[3\], expected \[7\]"):
        mb.gradients(net, trace, deltas, weights=jnp.ones(3))


def test_descriptions_that_describe_nothing():
    with pytest.raises(ValueError, match="at least inputs and outputs"):
        mb.mlp((3,))
    with pytest.raises(ValueError, match="has 1 hidden layers, got 2 activations"):
        mb.mlp((3, 4, 5), ("tanh", "relu"))
    with pytest.raises(ValueError, match="Dense d_out must be an int >= 1, got 0"):
        mb.mlp((3, 0))
    with pytest.raises(ValueError, match="Dense d_in must be an int >= 1, got 2.5"):
        mb.Dense(2.5, 3)
    with pytest.raises(ValueError, match="no initializer 'orthogonal'"):
        mb.Dense(2, 3, initializer="orthogonal")
    with pytest.raises(ValueError, match="at least one node"):
        mb.Serial(())
    with pytest.raises(TypeError, match="made of layers and composites, got str"):
        mb.Serial(("tanh",))
    with pytest.raises(ValueError, match="Repeat n must be an int >= 1, got 0"):
        mb.Repeat(mb.Dense(2, 2), 0)
    with pytest.raises(ValueError, match="Huber threshold must be > 0"):
        mb.Huber(0.0)
    with pytest.raises(TypeError, match="a loss is an instance, such as mb.squared_error"):
        mb.Objective(NET, type(mb.squared_error))
    with pytest.raises(TypeError, match="regularizer must be Frobenius"):
        mb.Objective(NET, mb.squared_error, 0.1)


@pytest.mark.parametrize("wrap", [mb.Residual, lambda block: mb.Repeat(block, 2)])
def test_a_block_that_changes_the_shape(wrap):
    net = wrap(mb.Dense(6, 4))
    with pytest.raises(ValueError, match=r"needs a block that keeps the shape, but .* maps \(6,\) to \(4,\)"):
        mb.forward(net, generic(net), batch(6))


@pytest.mark.parametrize(
    ("argnums", "error"), [(2, ValueError), ((), ValueError), ((0, 3), ValueError), (("W",), TypeError)]
)
def test_argnums(argnums, error):
    with pytest.raises(error, match="argnums"):
        mb.value_and_grad(mb.Objective(NET, mb.squared_error), argnums)


def test_nan_in_x_reaches_the_value_and_is_not_hidden():
    objective, params, x, y = problem("mlp")
    x = np.asarray(x).copy()
    x[0, 0] = np.nan
    J, gradients = jax.jit(mb.value_and_grad(objective))(params, x, y)
    assert np.isnan(J)
    assert np.isnan(gradients[0].W).any()
