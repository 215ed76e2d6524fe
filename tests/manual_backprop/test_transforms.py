"""The hand-written step under JAX's transformations, in every dtype, with x64 on and off."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, OPTIMISED, assert_close, batch, generic, in_its_own_process, problem, sizes, targets

import manual_backprop as mb
import reference
from reference.checks.step import by_hand, prepare

DTYPES = ("float64", "float32", "bfloat16", "float16")


@pytest.mark.parametrize("name", NETWORKS)
def test_jit(name):
    objective, *args = problem(name)
    assert_close(jax.jit(mb.value_and_grad(objective))(*args), mb.value_and_grad(objective)(*args), 1e-14)
    assert_close(jax.jit(partial(mb.backprop, objective))(*args), mb.backprop(objective, *args), 1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_vmap_over_networks(name):
    objective, _, x, y = problem(name)
    several = [generic(objective.net, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    ours = jax.jit(jax.vmap(mb.value_and_grad(objective), (0, None, None)))(stacked, x, y)
    one_by_one = [mb.value_and_grad(objective)(params, x, y) for params in several]
    assert_close(ours, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), 1e-13)


@pytest.mark.parametrize("name", ["mlp", "nested"])
def test_vmap_over_examples_gives_per_example_gradients(name):
    objective, params, x, y = problem(name)

    def one(x, y):
        return mb.value_and_grad(objective)(params, x[None], y[None])[1]

    witness = jax.vmap(lambda x, y: reference.value_and_grad(objective)(params, x[None], y[None])[1])
    assert_close(jax.jit(jax.vmap(one))(x, y), jax.jit(witness)(x, y), 1e-13)


def test_a_sweep_over_lambda_compiles_once():
    """lam traced at the call: one trace for ten values, each equal to the static one."""
    objective, params, x, y = problem("mlp")
    traces = []

    @jax.jit
    def sweep(lams):
        traces.append(1)
        return jax.vmap(lambda lam: mb.value_and_grad(objective)(params, x, y, lam=lam))(lams)

    lams = jnp.linspace(0.0, 1.0, 10)
    values, gradients = sweep(lams)
    sweep(lams + 0.5)
    assert len(traces) == 1
    for i in (0, 4, 9):
        static = mb.Objective(objective.net, objective.loss, mb.Frobenius(float(lams[i])))
        J, g = mb.value_and_grad(static)(params, x, y)
        assert_close((values[i], jax.tree.map(lambda leaf, i=i: leaf[i], gradients)), (J, g), 1e-13)


def test_scan_over_steps():
    objective, params, x, y = problem("nested")

    def descend(p, _):
        J, g = mb.value_and_grad(objective)(p, x, y)
        return jax.tree.map(lambda p, g: p - 0.05 * g, p, g), J

    scanned, values = jax.lax.scan(descend, params, None, length=4)
    for J in values:
        params, by_loop = descend(params, None)
        assert_close(J, by_loop, 1e-13)
    assert_close(scanned, params, 1e-13)
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["mlp", "nested", "kept"])
def test_jvp_of_the_gradient_is_the_hessian_vector_product(name):
    objective, params, x, y = problem(name)
    v = generic(objective.net, seed=5)
    ours, witness = (
        jax.jit(lambda p, v, f=f: jax.jvp(lambda p: f(objective)(p, x, y)[1], (p,), (v,))[1])(params, v)
        for f in (mb.value_and_grad, reference.value_and_grad)
    )
    assert_close(ours, witness, 1e-11)


@pytest.mark.parametrize("activation", mb.activations.TABLE)
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["forward", "reverse"])
def test_derivatives_of_the_hand_written_gradient_equal_jax_hessian(activation, mode):
    net = mb.mlp((3, 3, 2), activation)
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(3), targets(objective.loss, 2)
    ours = jax.jit(mode(lambda p: mb.value_and_grad(objective)(p, x, y)[1]))(params)
    witness = jax.jit(jax.hessian(lambda p: reference.value_and_grad(objective)(p, x, y)[0]))(params)
    assert_close(ours, witness, 1e-10)


def test_jax_grad_of_the_gradient_with_respect_to_a_traced_lambda():
    """d(dJ/dW)/dlam = W (B6)."""
    objective, params, x, y = problem("mlp")

    def weight_gradient(lam):
        return mb.value_and_grad(objective)(params, x, y, lam=lam)[1][0].W

    assert_close(jax.jacobian(weight_gradient)(jnp.asarray(0.3)), params[0].W, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_dtype_keeps_itself_and_is_right(name, dtype):
    """Gradients and deltas in the parameters' dtype, sums in float32 or wider; checked in that precision."""
    net = NETWORKS[name]
    d_in, d_out = sizes(net)
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params, x = generic(net, dtype=dtype, scale=0.5), batch(d_in, dtype=dtype)
    y = targets(objective.loss, d_out, dtype=dtype)
    step = jax.jit(partial(mb.backprop, objective))(params, x, y)
    for leaf in jax.tree.leaves((step.trace, step.deltas, step.gradients, step.d_x)):
        assert leaf.dtype == jnp.dtype(dtype)
    assert step.value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    reference.check(objective, params, x, y, dtype=dtype).raise_if_failed()


@pytest.mark.parametrize("dtype", DTYPES)
def test_optimised_programs_keep_within_the_same_tolerances(dtype):
    """Every other test compiles quickly; fusion and contraction round otherwise."""
    objective, *args = problem("mlp", mb.softmax_cross_entropy)
    judge = prepare(objective, *args, dtype=dtype)
    judge.report(*by_hand(judge, compiler_options=OPTIMISED)).raise_if_failed()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_example(name):
    """N = 1, where 1/N cannot show but shapes can go wrong."""
    reference.check(*problem(name, n=1)).raise_if_failed()


def test_eager_and_numpy_inputs():
    objective, params, x, y = problem("mlp")
    plain = jax.tree.map(np.asarray, (params, x, y))
    with_numpy = mb.value_and_grad(objective)
    before = jax.tree.map(np.copy, plain)
    assert_close(jax.jit(with_numpy)(*plain), with_numpy(params, x, y), 1e-14)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_the_caller_changes_at_once_is_not_read(without_hook):
    """JAX may return before it has read a NumPy array; without a copy of ours a few trials in ten go wrong."""
    layer, params = mb.Dense(1024, 2), mb.Affine(jnp.ones((2, 1024)), jnp.zeros(2))
    for _ in range(40):
        x = np.ones((1024, 1024))
        output, _ = mb.forward(layer, params, x)
        x[:] = 2
        np.testing.assert_array_equal(output, np.full((1024, 2), 1024.0))


WITHOUT_X64 = """
import warnings; warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
import manual_backprop as mb, reference
assert not jax.config.jax_enable_x64
net = mb.mlp((4, 5, 5, 3), ("gelu", "selu"))
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
params = net.init(jax.random.key(0))
x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.arange(7) % 3
J, g = mb.value_and_grad(objective)(params, x, y)
assert J.dtype == jnp.float32 and g[0].W.dtype == jnp.float32
report = reference.check(objective, params, x, y)
assert report.passed and report.dtype == "float64", report
assert reference.check(objective, params, x, y, dtype="float32").passed
assert not jax.config.jax_enable_x64
try:
    mb.value_and_grad(objective)(params, np.asarray(x, np.float64), y)
except TypeError as error:
    assert "x is float64, which JAX would make float32 while x64 is off" in str(error), error
else:
    raise SystemExit("a float64 batch was cast without a word")
"""


def test_with_x64_off_in_a_fresh_process():
    done = in_its_own_process(WITHOUT_X64)
    assert done.returncode == 0, done.stderr
