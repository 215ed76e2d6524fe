"""The hand-written step under JAX's transformations, in every dtype, with x64 on and off."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMISED, assert_close, batch, every_time, generic, in_its_own_process, problem, targets

import manual_backprop as mb
import reference
from reference.checks.step import by_hand, prepare

DTYPES = ("float64", "float32", "bfloat16", "float16")


def test_jit():
    """Operation by operation, each with a program of its own, it is the same in every composite."""
    block = mb.Residual(mb.Dense(5, 5, "gelu"))
    net = mb.Serial((block, mb.Repeat(block, 2), mb.Tied(block, 2), mb.Dense(5, 5, "silu")))
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    args = generic(net), batch(5), batch(5, seed=2)
    assert_close(jax.jit(partial(mb.backprop, objective))(*args), mb.backprop(objective, *args), 1e-14)


@pytest.mark.parametrize("name", ["mlp", "kept"])
def test_vmap_over_networks(name):
    objective, _, x, y = problem(name)
    several = [generic(objective.net, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    ours = jax.jit(jax.vmap(mb.value_and_grad(objective), (0, None, None)))(stacked, x, y)
    alone = jax.jit(mb.value_and_grad(objective))
    one_by_one = [alone(params, x, y) for params in several]
    assert_close(ours, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one), 1e-13)


def test_vmap_over_examples_gives_per_example_gradients():
    objective, params, x, y = problem("kept")

    def both(x, y):
        return [f(objective)(params, x[None], y[None])[1] for f in (mb.value_and_grad, reference.value_and_grad)]

    assert_close(*jax.jit(jax.vmap(both))(x, y), 1e-13)


def test_a_sweep_over_lambda_compiles_once():
    """lam traced at the call: one trace for ten values, each equal to the static one."""
    objective, params, x, y = problem("mlp")
    traces = []

    @jax.jit
    def sweep(lams):
        traces.append(1)
        return jax.vmap(lambda lam: mb.value_and_grad(objective)(params, x, y, lam=lam))(lams)

    lams = np.linspace(0.0, 1.0, 10)
    values, gradients = sweep(lams)
    sweep(lams + 0.5)
    assert len(traces) == 1
    chosen = (0, 4, 9)

    @jax.jit
    def static():
        objectives = [mb.Objective(objective.net, objective.loss, mb.Frobenius(float(lams[i]))) for i in chosen]
        return [mb.value_and_grad(each)(params, x, y) for each in objectives]

    for i, alone in zip(chosen, static(), strict=True):
        assert_close((values[i], jax.tree.map(lambda leaf, i=i: leaf[i], gradients)), alone, 1e-13)


def test_scan_over_steps():
    objective, params, x, y = problem("kept")

    def descend(p, _):
        J, g = mb.value_and_grad(objective)(p, x, y)
        return jax.tree.map(lambda p, g: p - 0.05 * g, p, g), J

    scanned, values = jax.jit(lambda p: jax.lax.scan(descend, p, None, length=4))(params)
    step = jax.jit(descend)
    for J in values:
        params, by_loop = step(params, None)
        assert_close(J, by_loop, 1e-13)
    assert_close(scanned, params, 1e-13)
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["nested", "kept"])
def test_jvp_of_the_gradient_is_the_hessian_vector_product(name):
    objective, params, x, y = problem(name)

    @jax.jit
    def both(p, v):
        ways = mb.value_and_grad, reference.value_and_grad
        return [jax.jvp(lambda p, f=f: f(objective)(p, x, y)[1], (p,), (v,))[1] for f in ways]

    assert_close(*both(params, generic(objective.net, seed=5)), 1e-11)


def test_derivatives_of_the_hand_written_gradient_equal_jax_hessian():
    """Forward and in reverse, in a chain of all activations; each block is held to its own largest entry."""
    net = mb.mlp((3, *(3,) * len(mb.activations.TABLE), 2), tuple(mb.activations.TABLE))
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    params, x, y = generic(net, scale=2.0), batch(3), targets(objective.loss, 2)

    @jax.jit
    def products(v):
        by_hand, by_jax = (
            lambda p, f=f: f(objective)(p, x, y)[1] for f in (mb.value_and_grad, reference.value_and_grad)
        )
        forward, witness = (jax.jvp(gradient, (params,), (v,))[1] for gradient in (by_hand, by_jax))
        return forward, jax.vjp(by_hand, params)[1](v)[0], witness

    leaves, tree = jax.tree.flatten(generic(net, seed=5))
    for i in range(len(leaves)):  # the Hessian's blocks of one leaf
        v = tree.unflatten([leaf if i == j else np.zeros_like(leaf) for j, leaf in enumerate(leaves)])
        forward, reverse, witness = products(v)
        assert all(np.any(block) for block in jax.tree.leaves(witness))
        assert_close(forward, witness, 1e-10)
        assert_close(reverse, witness, 1e-10)


def test_jax_grad_of_the_gradient_with_respect_to_a_traced_lambda():
    """d(dJ/dW)/dlam = W (B6)."""
    objective, params, x, y = problem("mlp")

    def weight_gradient(lam):
        return mb.value_and_grad(objective)(params, x, y, lam=lam)[1][0].W

    assert_close(jax.jit(jax.jacobian(weight_gradient))(0.3), params[0].W, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["per layer", "nested", "kept", "leaf"])
def test_every_dtype_keeps_itself(name, dtype):
    """Gradients and deltas in the parameters' dtype, sums in float32 or wider; `test_sweep` proves them right."""
    objective, *args = problem(name)
    args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), args)
    step = jax.eval_shape(partial(mb.backprop, objective), *args)
    for leaf in jax.tree.leaves((step.trace, step.deltas, step.gradients, step.d_x)):
        assert leaf.dtype == jnp.dtype(dtype)
    assert step.value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)


@pytest.mark.parametrize("dtype", every_time(DTYPES, "float64", "bfloat16"))
def test_optimised_programs_keep_within_the_same_tolerances(dtype):
    """Every other test compiles quickly; fusion and contraction round otherwise."""
    net = mb.mlp((6, 5, 4))
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    judge = prepare(objective, generic(net), batch(6), targets(objective.loss, 4), dtype=dtype)
    judge.report(*by_hand(judge, compiler_options=OPTIMISED)).raise_if_failed()


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
net = mb.mlp((4, 5, 3), ("gelu",), "selu")
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
params = net.init(jax.random.key(0))
x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.arange(7) % 3
J, g = jax.jit(mb.value_and_grad(objective))(params, x, y)
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


@pytest.mark.evidence
def test_with_x64_off_in_a_fresh_process():
    done = in_its_own_process(WITHOUT_X64)
    assert done.returncode == 0, done.stderr
