"""Tolerances: what is measured is what rounding does, what is derived bounds it, neither looser than need be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem

import manual_backprop as mb
import reference
from benchmarks import evidence
from reference import model
from reference.checks.step import by_hand, prepare
from reference.compare import BLIND, compare_leaf
from reference.equations import bounds
from reference.equations.rows import equations
from reference.report import InconclusiveCheck
from reference.tolerance.formats import unit_roundoff
from reference.tolerance.rounding import measure

LOW = ("float32", "bfloat16", "float16")


def rounded(leaf, dtype):
    return np.asarray(leaf).astype(jnp.dtype(dtype)).astype(np.float64)


@pytest.mark.parametrize("dtype", [*LOW, "float64"])
def test_a_single_rounding_is_measured_at_its_size(dtype):
    x = rounded(np.random.default_rng(0).normal(size=200), dtype)
    y = rounded(np.random.default_rng(1).normal(size=200), dtype)
    measured = measure(lambda x, y: x * y, x, y, dtype=dtype)
    np.testing.assert_array_equal(measured.value, x * y)
    relative = measured.tolerance / (unit_roundoff(dtype) * np.abs(x * y))
    assert 1 < np.median(relative) < 20
    if dtype != "float64":
        low = np.asarray(jnp.asarray(x, dtype) * jnp.asarray(y, dtype)).astype(np.float64)
        assert np.all(np.abs(low - measured.value) <= measured.tolerance)


def test_a_library_function_may_err_by_a_few_roundings():
    """Libraries compute tanh and exp to a few units in the last place; a product is rounded once."""
    x = rounded(np.random.default_rng(0).uniform(0.5, 2, 400), "float32")
    sizes = {}
    for name, function in (("product", lambda x: x * 1.25), ("tanh", jnp.tanh), ("exp", jnp.exp)):
        measured = measure(function, x, dtype="float32")
        sizes[name] = np.median(measured.tolerance / np.abs(measured.value))
    assert 3 < sizes["tanh"] / sizes["product"] < 5
    assert 3 < sizes["exp"] / sizes["product"] < 5


def program(kind):
    """The same chain of sums and products, wrapped in each of JAX's ways to hold a program within a program."""

    def step(a, w):
        return jnp.tanh(w * a + 0.1), a

    def plain(a, w):
        for i in range(4):
            a, _ = step(a, w[i])
        return a

    @jax.custom_vjp
    def ruled(a, w):
        return plain(a, w)

    ruled.defvjp(lambda a, w: (ruled(a, w), None), lambda _, g: (g, g))

    @jax.custom_jvp
    def tangent(a, w):
        return plain(a, w)

    tangent.defjvp(lambda p, t: (tangent(*p), t[0]))
    return {
        "plain": plain,
        "jit": jax.jit(plain),
        "remat": jax.checkpoint(plain),
        "custom_vjp": ruled,
        "custom_jvp": tangent,
        "scan": lambda a, w: jax.lax.scan(step, a, w)[0],
        "while": lambda a, w: jax.lax.while_loop(
            lambda s: s[0] < 4, lambda s: (s[0] + 1, step(s[1], w[s[0]])[0]), (0, a)
        )[1],
        "cond": lambda a, w: jax.lax.cond(a[0] > -9.0, plain, lambda a, w: a, a, w),
        "vmap": lambda a, w: jax.vmap(plain, in_axes=(0, None))(a, w),
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "jit", "remat", "custom_vjp", "custom_jvp", "scan", "while", "cond", "vmap"])
def test_a_program_within_a_program_is_measured_too(kind):
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=50), rng.normal(size=4)
    plain = measure(program("plain"), a, w, dtype="float32")
    measured = measure(program(kind), a, w, dtype="float32")
    np.testing.assert_allclose(measured.value, plain.value, rtol=1e-14)
    ratio = np.median(measured.tolerance / plain.tolerance)
    assert 0.5 < ratio < 2


def test_cancellation_is_measured_and_not_assumed():
    x = np.asarray([1.0, 1e4, 1e6])
    lost = measure(lambda x: (1 + x) - x, x, dtype="float32")
    assert lost.tolerance[2] > 1e-3
    kept = measure(lambda x: 1 + 0 * x, x, dtype="float32")
    assert kept.tolerance[2] < 1e-6
    low = np.asarray((1 + jnp.asarray(x, "float32")) - jnp.asarray(x, "float32"), np.float64)
    assert np.all(np.abs(low - lost.value) <= lost.tolerance)


@pytest.mark.parametrize("dtype", LOW)
def test_a_long_sum_errs_like_its_terms(dtype):
    rng = np.random.default_rng(0)
    A, x = rounded(rng.normal(size=(64, 4096)), dtype), rounded(rng.normal(size=4096), dtype)
    measured = measure(lambda A, x: A @ x, A, x, dtype=dtype)
    low = np.asarray(jnp.asarray(A, dtype) @ jnp.asarray(x, dtype)).astype(np.float64)
    used = np.abs(low - measured.value) / measured.tolerance
    assert used.max() < 1
    u_sum = min(unit_roundoff(dtype), unit_roundoff("float32"))
    sure = 4096 * u_sum * np.abs(A) @ np.abs(x) + unit_roundoff(dtype) * np.abs(measured.value)
    assert np.median(measured.tolerance / sure) < 1  # tighter than the worst case


def test_overflow_is_unknown_and_underflow_is_rounding():
    measured = measure(lambda x: x * x, np.asarray([300.0, 2.0, 1e-4, 0.0]), dtype="float16")
    assert np.isinf(measured.tolerance[0])
    assert np.isfinite(measured.tolerance[1:]).all()
    assert measured.overflows
    assert measured.tolerance[2] >= 1e-8  # 1e-8 is 0 in float16
    assert not measure(lambda x: x + x, np.asarray([300.0]), dtype="float16").overflows


def test_a_kink_that_rounding_may_cross_is_seen_by_few_samples():
    """z within rounding of 0: its slope may be 0 or 1, and both must be within the tolerance."""
    near = np.asarray([1.0, 1.0 + 2**-22, 2.0])

    def slope(x):
        z = (x + 3e7) - (1 + 3e7)
        return jax.grad(lambda z: jax.nn.relu(z).sum())(z)

    measured = measure(slope, near, dtype="float32")
    assert measured.tolerance[0] >= 1
    far = measure(lambda x: jax.grad(lambda z: jax.nn.relu(z).sum())(x - 1.5), near, dtype="float32")
    assert far.tolerance.max() < 1e-6


def test_the_noise_is_drawn_from_the_seed():
    x = np.arange(1.0, 9.0)
    same = [measure(jnp.sin, x, dtype="float32", seed=seed).tolerance for seed in (0, 0, 1)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@pytest.mark.parametrize("name", list(mb.activations.TABLE))
def test_every_activation_keeps_within_its_bound_over_the_whole_range(name):
    row = mb.activations.get(name)
    rng = np.random.default_rng(0)
    z = np.concatenate([s * 10 ** rng.uniform(-8, 2, 4000) for s in (1, -1)])
    points = {dtype: z.astype(dtype) for dtype in ("float32", "float64")}
    computed = jax.jit(lambda points: {dtype: (row.f(z), row.df(z, row.f(z))) for dtype, z in points.items()})(points)
    for dtype, (a, df) in computed.items():
        of, wide = bounds.Arithmetic.of(dtype), points[dtype].astype(np.float64)
        at = bounds.curve(model.ACTIVATIONS[name], wide, np.zeros_like(wide))
        one = bounds.Known.exactly(np.ones_like(wide))
        for got, known in ((a, bounds.activated(of, at)), (df, bounds.error_term(of, at, one))):
            used = np.abs(np.asarray(got, np.float64) - known.value) / known.bound
            assert used.max() < 1, dtype


@pytest.mark.parametrize("dtype", ["float64", *LOW])
def test_the_stated_power_is_true(dtype):
    """Every row that passes: its leaf times 1 + power fails, and so does 1 - power; a hundredth of it does not."""
    objective, *args = problem("mlp")
    judge = prepare(objective, *args, dtype=dtype)
    ours, pair = by_hand(judge)
    report = judge.report(ours, pair)
    assert report.verdict == "pass", report.summary()
    values = {path: leaf for path, leaf in named(judge.measured.value)}
    allowed = {path: leaf for path, leaf in named(judge.measured.tolerance)}
    beyond = 1.5 if dtype == "float64" else 1.001  # 1 + power is itself rounded
    checked = 0
    for path, leaf in named(ours):
        leaf = np.asarray(leaf).astype(np.float64)
        row = compare_leaf(path, leaf, values[path], allowed[path])
        assert 0 < row.power < BLIND
        for factor in (1 + beyond * row.power, 1 - beyond * row.power):
            assert compare_leaf(path, factor * leaf, values[path], allowed[path]).verdict == "fail"
        assert compare_leaf(path, (1 + 0.01 * row.power) * leaf, values[path], allowed[path]).verdict == "pass"
        checked += 1
    assert checked > 10


def named(step):
    tree = (step.gradients, step.deltas, step.loss, step.d_x)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_too_noisy_to_tell_is_its_own_verdict():
    row = compare_leaf("g", np.asarray([1.0, 2.0]), np.asarray([1.1, 2.0]), np.asarray([3.0, 3.0]))
    assert row.verdict == "inconclusive"
    assert row.power > BLIND
    assert compare_leaf("g", np.asarray([9.0]), np.asarray([1.0]), 3.0).verdict == "fail"
    assert compare_leaf("g", np.asarray([np.inf]), np.asarray([1.0]), 0.1, overflows=True).verdict == "inconclusive"
    assert (
        compare_leaf("g", np.asarray([1.0, 5.0]), np.asarray([1.0, 5.0]), np.asarray([np.inf, 0.1])).verdict
        == "inconclusive"
    )


def test_a_network_that_vanishes_in_float16_is_inconclusive_and_not_a_pass():
    net = mb.mlp((4, 4, 4, 4, 4, 1), "sigmoid")
    params = tuple(mb.Affine(np.full((o, 4), 2e-3) + 1e-4 * np.eye(o, 4), np.full(o, 0.1)) for o in (4, 4, 4, 4, 1))
    x, y = np.random.default_rng(0).normal(size=(4, 4)), np.zeros((4, 1))
    assert reference.check(mb.Objective(net, mb.squared_error), params, x, y).verdict == "pass"
    report = reference.check(mb.Objective(net, mb.squared_error), params, x, y, dtype="float16")
    assert report.verdict == "inconclusive"
    with pytest.raises(InconclusiveCheck, match="rounding could hide a fault"):
        report.raise_if_failed()


@pytest.mark.parametrize("dtype", LOW)
def test_jax_grad_itself_keeps_within_what_is_measured(dtype):
    """The check is of no use if the best known answer fails it: jax.grad in the working precision."""
    rng = np.random.default_rng(0)
    W = [rng.normal(0, 0.3, (16, 16)) for _ in range(4)]
    x = rng.normal(size=(32, 16))

    def J(W, x):
        for w in W:
            x = jnp.tanh(x @ w.T)
        return jnp.mean(jnp.square(x))

    W, x = jax.tree.map(lambda leaf: rounded(leaf, dtype), (W, x))
    measured = measure(jax.grad(J), W, x, dtype=dtype)
    low = jax.jit(jax.grad(J))(*jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (W, x)))
    for ours, value, allowed in zip(low, measured.value, measured.tolerance, strict=True):
        assert np.all(np.abs(np.asarray(ours).astype(np.float64) - value) <= allowed)


def test_errors_that_cancel_in_one_right_program_need_not_in_another():
    """(1 - o) cancels from 1 / (1 - o) times o (1 - o) where both take the same o; f' may be taken from z instead."""
    z = np.asarray([5.0])

    def delta(z):
        o = jax.nn.sigmoid(z)
        return (1 / (1 - o)) * (o * (1 - o))

    measured = measure(delta, z, dtype="bfloat16")
    u, o = unit_roundoff("bfloat16"), 1 / (1 + np.exp(-5.0))
    assert measured.tolerance[0] > u * o / (1 - o)


def test_a_value_may_be_used_on_with_other_roundings_than_it_is_stored_with():
    """Layers of one neuron, compiled: z = w a + b is formed again, in one rounding, by whoever uses it."""
    rng = np.random.default_rng(32)
    objective, n = evidence.architecture(rng), 5
    run = evidence._runner(objective)
    worst = 0.0
    with jax.enable_x64(True):
        for seed in (16, 89, 11, 93):  # of 100, the first two fail without it, the next two nearly fail
            drawn = evidence.draw(objective, n, np.random.default_rng(seed))
            inputs = jax.tree.map(lambda leaf: evidence._rounded(leaf, "float32"), drawn)
            found = equations(objective, *inputs, run(*inputs), bounds.Arithmetic.of("float32"))
            worst = max(worst, *(compare_leaf(e.path, e.manual, e.known.value, e.known.bound).used for e in found))
    assert worst <= 1


def test_a_reduction_by_a_function_of_ones_own_is_one_operation():
    """`lax.reduce` holds a jaxpr for two of its entries, which says nothing of the whole."""
    measured = measure(
        lambda x: jax.lax.reduce(x, 1.0, lambda a, b: a * b + 0 * a, (0,)), np.arange(1, 5.0), dtype="float32"
    )
    assert measured.value == 24
    assert 0 < measured.tolerance < 1e-4


def test_functions_with_a_batching_rule_and_composites_are_measured_inside():
    @jax.custom_batching.custom_vmap
    def batched(x):
        return jnp.tanh(x * x) * 3.0

    batched.def_vmap(lambda size, given, x: (batched(x), True))
    named = jax.lax.composite(lambda x: jnp.tanh(x * x) * 3.0, name="tests.named")
    x = np.linspace(0.1, 1, 50)
    plain = measure(lambda x: jnp.tanh(x * x) * 3.0, x, dtype="float32")
    for function in (batched, named):
        np.testing.assert_array_equal(measure(function, x, dtype="float32").tolerance, plain.tolerance)


@pytest.mark.parametrize(("dtype", "percents"), [("float32", (45.0, 80.0)), ("float64", (87.0, 94.0))])
def test_a_quotient_of_the_programs_own_numbers_may_become_a_product(dtype, percents):
    """XLA multiplies by 1 / 100, so 30 percent are 0.29999998 eagerly and 0.3 in a program that has it from tracing."""
    with jax.enable_x64(dtype == "float64"):
        x = jax.random.normal(jax.random.key(21), (21,), dtype)
        for percent in percents:
            f = lambda x, q=percent: jnp.percentile(x, q)  # noqa: E731
            measured = measure(f, x, dtype=dtype)
            assert abs(np.asarray(f(x), float) - measured.value) < measured.tolerance
            assert abs(np.asarray(jax.jit(f)(x), float) - measured.value) < measured.tolerance
        half = measure(lambda x: jnp.percentile(x, 50.0), x, dtype=dtype)
        assert half.tolerance < 20 * np.finfo(dtype).eps


def test_the_points_of_a_linspace_are_quotients_that_may_be_products():
    """So the distance of two is off by more than a rounding of it."""

    def apart(x):
        points = jnp.linspace(0, 1, 8, dtype=x.dtype)
        return x * (points[6] - points[5])

    x = np.ones((), "float32")
    measured = measure(apart, x, dtype="float32")
    exact = np.float64(1) / 7
    assert abs(measured.value - exact) < measured.tolerance
    assert 10 * 2**-24 < measured.tolerance / exact < 200 * 2**-24
