"""Careless arguments, such as a network for an objective, are refused at once and in words that say what to do."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, generic

import manual_backprop as mb
import reference
from manual_backprop import training

pytestmark = pytest.mark.usefixtures("without_hook")
NET = mb.mlp((6, 5, 5, 4))
NETWORK = r"expected a layer or composite .*, got Objective for the network; its network is objective.net"
OBJECTIVE = r"expected an Objective, got Serial; with a loss a network becomes one, mb.Objective\(net, loss\)"
OBJECT = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
ONE_LOGIT = mb.Objective(mb.Dense(6, 1), mb.softmax_cross_entropy)
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
X = np.ones((7, 6))
PAIR = (mb.Dense(2, 2), mb.Dense(2, 2))


def arguments(**changed):
    given = {"params": generic(NET), "x": batch(6), "y": jnp.zeros((7, 4))} | changed
    return given["params"], given["x"], given["y"]


@cache
def at():
    """(params, x, y, trace, deltas) of NET, the last two of zeros, so that nothing is compiled."""
    step = jax.eval_shape(partial(mb.backprop, OBJECT), *arguments())
    return *arguments(), *jax.tree.map(lambda leaf: np.zeros(leaf.shape), (step.trace, step.deltas))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: mb.mlp((4, 5, 3), activation=jnp.tanh), TypeError, "got the function tanh; write 'tanh'"),
        (lambda: mb.mlp((4, 5, 3), [jnp.sin]), TypeError, r"function sin; .* a row, mb.Activation\(name, f, df\)"),
        (lambda: mb.mlp((4, 3), "nonsense"), ValueError, "no activation is called 'nonsense'"),
        (lambda: mb.mlp((4, 3), mb.Activation), TypeError, "got the class Activation"),
        (lambda: mb.mlp(4, 5, 3), TypeError, r"sizes are one sequence .*, as in mlp\(\(4, 5, 3\)\), got int 4"),
        (lambda: mb.mlp("453"), TypeError, "got str '453'"),
        (lambda: mb.Serial(*PAIR), TypeError, r"write Serial\(\(first, second\)\), got Dense, Dense"),
        (lambda: mb.Parallel(*PAIR), TypeError, r"write Parallel\(\(first, second\)\)"),
        (lambda: mb.Serial(PAIR[0]), TypeError, r"one tuple, Serial\(\(first, second\)\), got Dense"),
        (lambda: mb.Serial(nodes=3), TypeError, "got int 3"),
        (lambda: mb.Serial([mb.Dense]), TypeError, "made of layers and composites, got the class Dense"),
        (lambda: mb.Residual(PAIR), TypeError, r"several in turn are one node, Serial\(\(first, second\)\)"),
        (lambda: mb.Repeat(PAIR[0], 2, "no"), TypeError, "recompute must be True or False, got str 'no'"),
        (lambda: mb.Repeat(PAIR[0], 2, segments=True), TypeError, "segments must be an int or None, got bool True"),
        (lambda: mb.Repeat(PAIR[0], 2, segments=1.0), TypeError, "segments must be an int or None, got float 1.0"),
        (lambda: mb.Repeat(PAIR[0], 2, segments=0), ValueError, "segments must be from 1 to n = 2, got 0"),
        (lambda: mb.Repeat(PAIR[0], 2, segments=3), ValueError, "segments must be from 1 to n = 2, got 3"),
        (lambda: mb.Activation(jnp.tanh, jnp.cos, "tanh"), TypeError, r"the order is Activation\(name, f, df\)"),
        (lambda: mb.Activation("own", "tanh", jnp.cos), TypeError, "Activation f must be a function, got str 'tanh'"),
        (lambda: mb.Objective(at()[0], mb.squared_error), TypeError, "net must be a network, .*, got tuple"),
        (lambda: mb.Objective(mb.Dense, mb.squared_error), TypeError, "got the class Dense"),
        (lambda: mb.Objective(NET, "mse"), TypeError, r"got str 'mse'; .*\(there are squared_error, huber, .*\)"),
        (lambda: mb.Objective(NET, optax.l2_loss), TypeError, "got the function l2_loss"),
        (lambda: mb.Frobenius("0.1"), TypeError, "Frobenius lam must be a number, got str '0.1'"),
        (lambda: mb.Huber("1"), TypeError, "Huber threshold must be a number, got str '1'"),
        (lambda: mb.edits.Noise("1"), TypeError, "Noise scale must be a number"),
        (lambda: mb.edits.StraightThrough(None), TypeError, "limit must be a number, got None"),
        (lambda: training.private_noise("1", 1.0, KEY), TypeError, "max_norm must be a number"),
        (lambda: mb.diagnose(NET, *at()[3:], threshold="x"), TypeError, "threshold must be a number"),
        (lambda: NET.init(0), TypeError, r"key must be a JAX key, such as jax.random.key\(0\), got int 0"),
        (lambda: mb.rules.direct_feedback(NET, 0), TypeError, "key must be a JAX key"),
        (lambda: mb.value_and_grad(OBJECT, None), TypeError, "argnums must be an int or .*, got None"),
        (lambda: mb.value_and_grad(OBJECT, True), TypeError, "argnums must be an int or .*, got True"),
        (lambda: training.make_step(OBJECT, optax.sgd), TypeError, r"such as optax.sgd\(0.1\), got the function sgd"),
        (lambda: training.make_epoch(OBJECT, 4, SGD), TypeError, "optax transformation, .*, got int 4"),
        (lambda: training.make_epoch(OBJECT, SGD, 4.0), TypeError, "batch_size must be an int, got float 4.0"),
        (lambda: OBJECT(*arguments(x=())), ValueError, "x is an empty tuple"),
        (lambda: OBJECT(*arguments(y=np.array(["a"] * 7))), TypeError, "y must hold numbers, got <U1"),
        (lambda: ONE_LOGIT(generic(ONE_LOGIT.net), X, jnp.zeros(7, int)), ValueError, "softmax over one logit is 1"),
        (lambda: OBJECT(*arguments(), lam="0.1"), TypeError, "lam must be a number, or a scalar array, got str '0.1'"),
        (lambda: OBJECT(*arguments(), lam=True), TypeError, "got bool True"),
        (lambda: OBJECT(*arguments(), weights="mean"), TypeError, "weights must be an array, got str 'mean'"),
        (lambda: OBJECT(*arguments(x=np.ma.masked_less(X, 0))), TypeError, "x has a mask, which JAX would drop"),
        (lambda: mb.clip_weights([1.0], 1.0), TypeError, "squared must be an array, got list"),
        (lambda: mb.factors(NET, *at()[:2]), TypeError, "the trace holds ArrayImpl; readings take"),
        (lambda: mb.backward(NET, at()[0], at()[3], [1.0]), TypeError, "d_output must be an array, got list"),
        (lambda: mb.backward(NET, at()[0], at()[3][:1], at()[2]), ValueError, "of another network than .*Dense"),
        (lambda: mb.backward(NET, at()[0], (at()[2], at()[3]), at()[2]), TypeError, "the trace as from forward"),
        (lambda: reference.check_layer(NET, *at()[:2]), TypeError, "got Serial; a network is proven by"),
        (lambda: reference.check(OBJECT, *at()[:3], dtype="int32"), ValueError, "floating-point .*, got 'int32'"),
        (lambda: reference.check(OBJECT, *at()[:3], dtype="float8"), ValueError, "got 'float8'"),
        (lambda: reference.check_gradient(jnp.sum, jnp.ones_like), ValueError, "give them, the point to check at"),
        (lambda: reference.check_gradient(jnp.sum, jnp.ones_like, X, dtype="float8"), ValueError, "got 'float8'"),
        (lambda: reference.check_gradient(jnp.sum, jnp.ones_like, X, witnesses=True), ValueError, "got True"),
        (lambda: reference.check_gradient(jnp.vdot, jax.value_and_grad(jnp.vdot), X, X), ValueError, "say value=True"),
        (lambda: reference.check(OBJECT, *at()[:3], lam="x"), TypeError, "lam must be a number"),
        (lambda: reference.check(OBJECT, *at()[:3], weights=[1.0] * 7), TypeError, "must be an array, got list"),
    ],
)  # fmt: skip
def test_careless_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda net: mb.backprop(net, *at()[:3]),
        mb.value_and_grad,
        lambda net: mb.hessian_vector_product(net, *at()[:3], at()[0]),
        lambda net: mb.gauss_newton_vector_product(net, *at()[:3], at()[0]),
        lambda net: mb.gauss_newton_diagonal(net, *at()[:3]),
        lambda net: mb.fisher_deltas(net, *at()[:3]),
        lambda net: mb.fisher_diagonal(net, *at()[:3]),
        lambda net: mb.forward_mode.directional_derivative(net, *at()[:3], at()[0]),
        lambda net: mb.forward_mode.gradient_by_forward_propagation(net, *at()[:3]),
        lambda net: training.make_step(net, SGD),
        lambda net: training.make_epoch(net, SGD, 4),
        lambda net: training.make_kolen_pollack_step(net, SGD),
        lambda net: reference.check(net, *at()[:3]),
        lambda net: reference.prepare(net, *at()[:3]),
        reference.value_and_grad,
        lambda net: reference.backprop(net, *at()[:3]),
        lambda net: reference.deltas(net, *at()[:3]),
        lambda net: reference.d_x(net, *at()[:3]),
        lambda net: reference.d_lam(net, at()[0]),
        lambda net: reference.per_example_gradients(net, *at()[:3]),
        lambda net: reference.hessian_vector_product(net, *at()[:3], at()[0]),
        lambda net: reference.gauss_newton_vector_product(net, *at()[:3], at()[0]),
    ],
)
def test_a_network_for_an_objective(call):
    with pytest.raises(TypeError, match=OBJECTIVE):
        call(NET)


@pytest.mark.parametrize(
    "call",
    [
        lambda net: mb.forward(net, *at()[:2]),
        lambda net: mb.backward(net, at()[0], at()[3], at()[2]),
        lambda net: mb.factors(net, *at()[3:]),
        lambda net: mb.gradients(net, *at()[3:]),
        lambda net: mb.pushforward(net, *at()[:2], *at()[:2]),
        lambda net: mb.rules.direct_feedback(net, KEY),
    ],
)
def test_an_objective_for_a_network(call):
    with pytest.raises(TypeError, match=NETWORK):
        call(OBJECT)


@pytest.mark.parametrize("samples", [0, -1, "16", True])
@pytest.mark.parametrize(
    "call",
    [
        lambda n: mb.fisher_deltas(OBJECT, *at()[:3], labels="sampled", key=KEY, samples=n),
        lambda n: reference.check(OBJECT, *at()[:3], samples=n),
        lambda n: reference.check_gradient(jnp.sum, jnp.ones_like, at()[1], samples=n),
        lambda n: reference.check_vjp(jnp.sin, at()[1], raw=jnp.sin, samples=n),
        lambda n: reference.check_jvp(jnp.sin, at()[1], raw=jnp.sin, samples=n),
        lambda n: reference.measure(jnp.sin, at()[1], dtype="float32", samples=n),
    ],
)
def test_a_number_of_samples_that_is_none(call, samples):
    with pytest.raises(ValueError, match=f"samples must be an int >= 1, got {samples!r}"):
        call(samples)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda site: None, r"the edit returned None; it must return the new delta, an array float64\[7, 4\]"),
        (lambda site: 0.0, "the edit returned float 0.0"),
        (lambda site: [site.delta], "the edit returned list"),
        (mb.edits.TopK, r"such as edits.TopK\(3\), got the class TopK"),
    ],
)
def test_an_edit_that_gives_no_delta(edit, says):
    with pytest.raises(TypeError, match=says):
        mb.backprop(OBJECT, *at()[:3], rule=mb.rules.on_delta(edit))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"key": 0}, "key must be a JAX key"),
        ({"key": mb.rules.SignSymmetry()}, "the rule to edit is given by name, beneath=rule"),
        ({"beneath": mb.rules.SignSymmetry}, "got the class SignSymmetry"),
    ],
)
def test_a_rule_of_edits_with_something_else_in_it(given, says):
    with pytest.raises(TypeError, match=says):
        mb.backprop(OBJECT, *at()[:3], rule=mb.rules.on_delta(mb.edits.freeze, **given))


@dataclass(frozen=True)
class Own(mb.Loss):
    """A loss of one's own, with the results that are given."""

    result: Any = lambda o, y: 0.5 * jnp.sum((o - y) ** 2, axis=1)
    slope: Any = lambda o, y: o - y
    curved: Any = lambda o, y, d_o: d_o

    def value(self, o, y):
        return self.result(o, y)

    def derivative(self, o, y):
        return self.slope(o, y)

    def hessian_product(self, o, y, d_o):
        return self.curved(o, y, d_o)


WRONG_VALUES = {
    "float64\\[\\]": lambda o, y: jnp.mean((o - y) ** 2),
    "float64\\[7, 1\\]": lambda o, y: jnp.sum((o - y) ** 2, axis=1, keepdims=True),
    "float64\\[7, 4\\]": lambda o, y: (o - y) ** 2,
}


@pytest.mark.parametrize("came", WRONG_VALUES)
def test_a_loss_of_ones_own_that_is_not_one_number_for_each_example(came):
    """A mean, or a product with weights, would take each of them and give a wrong J."""
    objective = mb.Objective(NET, Own(WRONG_VALUES[came]))
    says = rf"Own.value returned {came}, expected floats\[7\]: one number for each example"
    with pytest.raises(ValueError, match=says):
        objective.terms(at()[0], at()[2], at()[2], None, None)
    with pytest.raises(ValueError, match=says):
        reference.check(objective, *at()[:3])
    weighted = partial(objective, weights=jnp.ones(7))
    for call in (objective, weighted, mb.value_and_grad(objective), reference.value_and_grad(objective)):
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(call, *at()[:3])


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (Own(lambda o, y: 0.5), TypeError, r"Own.value must return an array floats\[7\], got float 0.5"),
        (Own(lambda o, y: None), TypeError, "Own.value must return an array .*, got None"),
        (Own(lambda o, y: jnp.ones(7, int)), TypeError, r"Own.value returned int64\[7\], .*; convert it"),
        (Own(slope=lambda o, y: (o - y)[:, 0]), ValueError, r"Own.derivative returned float64\[7\], expected .*7, 4"),
        (Own(slope=lambda o, y: jnp.mean(o - y, axis=0)), ValueError, "Own.derivative .* with no 1/N in it"),
        (Own(slope=lambda o, y: (o - y).astype("float32")), TypeError, r"Own.derivative returned float32\[7, 4\]"),
        (Own(slope=lambda o, y: None), TypeError, "Own.derivative must return an array .*, got None"),
    ],
)
def test_a_loss_of_ones_own_whose_results_do_not_fit(loss, error, says):
    objective = mb.Objective(NET, loss)
    for call in (partial(mb.backprop, objective), jax.grad(mb.as_custom_vjp(objective))):
        with pytest.raises(error, match=says):
            jax.eval_shape(call, *at()[:3])


def test_a_product_with_the_hessian_that_would_broadcast():
    objective = mb.Objective(NET, Own(curved=lambda o, y, d_o: d_o[:, :1]))
    with pytest.raises(ValueError, match=r"Own.hessian_product returned float64\[7, 1\], expected float64\[7, 4\]"):
        jax.eval_shape(partial(mb.hessian_vector_product, objective), *at()[:3], at()[0])


def test_the_checks_of_a_loss_add_no_operation():
    o, y = jnp.ones((7, 4)), jnp.zeros((7, 4))
    for plain, checked in ((Own().value, Own().checked_value), (Own().derivative, Own().checked_derivative)):
        assert str(jax.make_jaxpr(checked)(o, y)) == str(jax.make_jaxpr(plain)(o, y))


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ({"f": lambda z: jnp.sum(z, 1, keepdims=True)}, ValueError, r"f\(z\) is float64\[7, 1\] but z is .*\[7, 4\]"),
        ({"f": lambda z: z.astype("float32")}, TypeError, r"f\(z\) is float32\[7, 4\] but z is float64"),
        ({"f": lambda z: None}, TypeError, r"f\(z\) must be an array like z, got None"),
        ({"df": lambda z, a: z[:, :1]}, ValueError, r"df\(z, a\) is float64\[7, 1\] .* it must be elementwise"),
        ({"df": lambda z, a: 1.0}, TypeError, r"df\(z, a\) must be an array like z, got float 1.0"),
        ({"df": lambda z: z}, TypeError, r"activation 'own' is called as df\(z, a\), got a function of others"),
        ({"d2f": lambda z, a: z[:1]}, ValueError, r"d2f\(z, a\) is float64\[1, 4\] but z is"),
    ],
)
def test_an_activation_of_ones_own_that_is_not_elementwise(row, error, says):
    """A column, or a row, would be broadcast and give a wrong J or gradient."""
    same = mb.activations.tanh
    own = mb.Activation("own", row.get("f", same.f), row.get("df", same.df), d2f=row.get("d2f", same.d2f))
    objective = mb.Objective(mb.Dense(6, 4, own), mb.squared_error)
    params = generic(objective.net)
    with pytest.raises(error, match=says):
        jax.eval_shape(partial(mb.hessian_vector_product, objective), params, X, at()[2], params)


def test_an_error_term_of_another_dtype_is_not_said_to_have_another_shape():
    params, x, _, trace, _ = at()
    with pytest.raises(ValueError, match=r"dL/da is float32\[7, 4\] but z is float64\[7, 4\]; it must have z's dtype"):
        mb.backward(NET, params, trace, jnp.ones((7, 4), "float32"))
