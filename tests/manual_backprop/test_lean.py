"""The sweep that shows nobody its trace: where the weights enter, and which form of f' it takes."""

from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import assert_close, batch, generic, problem, targets

import manual_backprop as mb
from manual_backprop import rules
from manual_backprop.activations import TABLE, flat

SHORT = [row for row in TABLE.values() if row.short is not None]
BENT = [row for row in TABLE.values() if row.bend is not None]
SATURATED = {"sigmoid": 20.0, "tanh": 10.0, "softsign": 1e6}  # z where a rounds to 1, or nearly, in float32


def slope_in_the_sweep(row: mb.Activation, z: float, dtype: str) -> float:
    """f'(z) of one neuron, as `value_and_grad` applies it: dJ/db of J = a."""

    @dataclass(frozen=True)
    class Output(mb.Loss):
        def value(self, o, y):
            return o[:, 0]

        def derivative(self, o, y):
            return jnp.ones_like(o)

    net = mb.Serial((mb.Dense(1, 1, row),))
    params = (mb.Affine(jnp.ones((1, 1), dtype), jnp.zeros(1, dtype)),)
    x = jnp.full((1, 1), z, dtype)
    return float(mb.value_and_grad(mb.Objective(net, Output()))(params, x, jnp.zeros((1, 1), dtype))[1][0].b[0])


def exact_slope(name: str, z: float) -> float:
    z = mpmath.mpf(z)
    of = {
        "sigmoid": lambda: 1 / ((1 + mpmath.exp(-z)) * (1 + mpmath.exp(z))),
        "tanh": lambda: mpmath.sech(z) ** 2,
        "softsign": lambda: 1 / (1 + abs(z)) ** 2,
    }
    return float(of[name]())


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_exact_keeps_in_the_sweep_the_tail_that_the_short_form_loses(row):
    """As jax.grad loses it, at the same z."""
    z = SATURATED[row.name]
    truth = exact_slope(row.name, z)
    assert slope_in_the_sweep(row.exact, z, "float32") == pytest.approx(truth, rel=1e-5)
    assert abs(slope_in_the_sweep(row, z, "float32") / truth - 1) > 0.01


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_a_pushforward_keeps_the_tail_with_any_row(row):
    """It has nothing to keep for a way back, so nothing would be saved."""
    z = SATURATED[row.name]
    net = mb.Serial((mb.Dense(1, 1, row),))
    one, zero = jnp.ones((1, 1), "float32"), jnp.zeros(1, "float32")
    params, still = (mb.Affine(one, zero),), (mb.Affine(0 * one, zero),)
    _, moved = mb.pushforward(net, params, z * one, still, one)
    assert float(moved[0, 0]) == pytest.approx(exact_slope(row.name, z), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_16_bits_keep_the_exact_form_in_every_sweep(row, dtype):
    """1 - a**2 from a bfloat16 a would be a fifth off at z = 3, and 0 where a saturates; float16 ends before that."""
    for z in (3.0, SATURATED[row.name])[: 1 if dtype == "float16" else 2]:
        z = float(jnp.asarray(z, dtype))
        truth = exact_slope(row.name, z)
        assert slope_in_the_sweep(row, z, dtype) == pytest.approx(truth, rel=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_short_forms_need_a_alone_and_agree_where_a_is_not_at_its_limit(row):
    z = jnp.linspace(-2, 2, 41)
    a, unknown = row.f(z), jnp.full_like(z, jnp.nan)
    for of in ("df", "d2f", "bend"):
        np.testing.assert_allclose(getattr(row.short, of)(unknown, a), getattr(row, of)(z, a), rtol=0, atol=1e-14)
    assert row.short.f is not row.f  # a row of its own, for who wants that form in every sweep
    np.testing.assert_array_equal(row.short.f(z), a)


def test_rows_say_which_form_they_are():
    tanh = mb.activations.tanh
    assert [repr(row) for row in (tanh, tanh.exact, tanh.short)] == [
        "activations.tanh", "activations.tanh.exact", "activations.tanh.short",
    ]  # fmt: skip
    assert mb.activations.relu.exact == mb.activations.relu
    assert mb.Dense(2, 2, tanh.exact) != mb.Dense(2, 2, tanh)


def test_a_copy_of_a_row_with_another_derivative_is_used_as_it_says():
    """In the sweep that shows no trace and in Hessian-vector products too, whatever the row had beside it."""
    tanh = mb.activations.tanh
    doubled = replace(tanh, df=lambda z, a: 2 * tanh.df(z, a))
    assert slope_in_the_sweep(doubled, 0.5, "float32") == pytest.approx(2 * exact_slope("tanh", 0.5), rel=1e-5)
    z = jnp.linspace(-1, 1, 5)
    a, bent = tanh.f(z), replace(tanh, d2f=lambda z, a: 7 * jnp.ones_like(z))
    np.testing.assert_allclose(bent.slope_change(z, a, 3 * jnp.ones_like(z), z), 21)
    for row in (tanh, tanh.exact, tanh.short):
        np.testing.assert_array_equal(row.slope_change(z, a, jnp.full_like(z, jnp.nan), z), z * -2 * a)


@cache
def bends():
    """Of every row that has one: the change of f' from R{a} = f', without R{z}; and f'' by JAX."""
    z = np.delete(np.linspace(-3, 3, 61), 30)  # not at 0, where f'' may jump

    @jax.jit
    def run(z):
        found = {}
        for row in BENT:
            a, unknown = row.f(z), jnp.full_like(z, jnp.nan)
            by_jax = jax.vmap(jax.grad(jax.grad(lambda z, row=row: row.f(z))))(z)
            found[row.name] = row.slope_change(z, a, unknown, row.df(z, a)), by_jax
        return found

    return run(z)


@pytest.mark.parametrize("row", BENT, ids=lambda row: row.name)
def test_the_bend_is_the_second_derivative_by_the_first(row):
    change, by_jax = bends()[row.name]
    assert (change is None) == (row.bend is flat)
    np.testing.assert_allclose(np.zeros(60) if change is None else change, by_jax, rtol=0, atol=1e-13)


def both_sweeps(objective):
    """The gradients of the lean sweep and of the step that shows everything, in one program."""

    def both(*at, **told):
        lean = mb.value_and_grad(objective)(*at, **told)[1]
        return lean, mb.backprop(objective, *at, **told).gradients

    return jax.jit(both)


def test_rules_that_are_not_linear_keep_the_weights_at_the_sums():
    """Clipping delta / N at a bound is not clipping delta at it."""
    objective, params, x, y = problem("mlp")
    rule = rules.on_delta(lambda site: jnp.clip(site.delta, -0.05, 0.05))
    weights = jnp.linspace(0.1, 3, len(x))
    for given in (None, weights):
        assert_close(*both_sweeps(objective)(params, x, y, rule=rule, weights=given), 1e-13)


def test_a_rule_of_ones_own_is_not_taken_to_be_linear_unless_it_says_so():
    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Signs(rules.Rule):
        def delta(self, layer, carried, trace, d_a):
            return jnp.sign(layer.error_term(trace, d_a))

    @dataclass(frozen=True)
    class Halved(rules.FeedbackAlignment):
        linear = True

    assert not Signs.linear and Halved.linear and not rules.OnDelta.linear
    linear = rules.Rule, rules.FeedbackAlignment, rules.KolenPollack, rules.SignSymmetry, rules.DirectFeedbackAlignment
    assert all(rule.linear for rule in linear)
    objective, params, x, y = problem("mlp")
    assert_close(*both_sweeps(objective)(params, x, y, rule=Signs()), 1e-13)


def test_direct_feedback_alignment_is_linear_in_the_output_error():
    objective, params, x, y = problem("mlp")
    rule = rules.DirectFeedbackAlignment(rules.direct_feedback(objective.net, jax.random.key(3)))
    weights = jnp.linspace(0.1, 3, len(x))
    assert_close(*both_sweeps(objective)(params, x, y, rule=rule, weights=weights), 1e-13)


def test_float16_does_not_lose_what_one_over_n_would_underflow():
    """Errors of 1e-4 over N = 4096 are below float16's subnormals; their sum over the examples is not."""
    n = 4096
    errors = 1e-4 * (1 + np.arange(n)[:, None] % 3)

    @dataclass(frozen=True)
    class Small(mb.Loss):
        def value(self, o, y):
            return jnp.sum(y * o, axis=1)

        def derivative(self, o, y):
            return y

    net = mb.Serial((mb.Dense(3, 3, "tanh"), mb.Dense(3, 1)))
    params, x, y = generic(net, dtype="float16"), batch(3, n, dtype="float16"), jnp.asarray(errors, "float16")
    gradient = mb.value_and_grad(mb.Objective(net, Small()))(params, x, y)[1]
    params, x, y = jax.tree.map(lambda leaf: leaf.astype("float64"), (params, x, y))

    @jax.jit
    def exact(params, x, y):
        _, trace = mb.forward(net, params, x)
        return mb.gradients(net, trace, mb.backward(net, params, trace, y)[1])

    truth = exact(params, x, y)
    assert_close(jax.tree.map(lambda leaf: leaf.astype("float64"), gradient), truth, 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_total_is_summed_in_float32_or_wider(dtype):
    """3000 ones and a little more: a sum in bfloat16 would stop at 256."""
    factor = mb.layers.OuterProduct(jnp.ones((1000, 3, 2), dtype), jnp.full((1000, 3, 4), 1.0, dtype))
    total = factor.total()
    assert total.W.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(total.W, "float64"), 3000, rtol=float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(np.asarray(total.b, "float64"), 3000, rtol=float(jnp.finfo(dtype).eps))


def test_a_lean_gradient_stays_one_under_jax_transformations():
    """Of a chain of every activation that has a short form: the sweep with it, differentiated in reverse."""
    net = mb.mlp((3, *(3,) * len(SHORT), 2), tuple(SHORT))
    objective = mb.Objective(net, mb.softmax_cross_entropy)
    params, x, y = generic(net, scale=0.5), batch(3), targets(objective.loss, 2)
    loss = partial(jax.tree.reduce, lambda total, leaf: total + jnp.sum(jnp.cos(leaf)), initializer=0.0)

    def twice(params, exact):
        rows = mb.Serial(tuple(mb.Dense(n.d_in, n.d_out, n.f.exact if exact else n.f) for n in net.nodes))
        return loss(mb.value_and_grad(mb.Objective(rows, objective.loss))(params, x, y)[1])

    both = jax.jit(lambda params: [jax.grad(partial(twice, exact=exact))(params) for exact in (False, True)])
    assert_close(*both(params), 1e-11)
