"""Other ways to differentiate: each is right where the answer is known, honest about its error, and votes."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from reference import model
from reference.witnesses import points
from reference.witnesses.derivatives import complex_step, forward_mode
from reference.witnesses.differences import LINE, difference_curve, finite_differences, taylor
from reference.witnesses.points import MOST, PROJECTIONS, batches, gathered, seeded
from reference.witnesses.voting import panel
from tests.helpers import batch, generic, targets

WAYS = (forward_mode, complex_step, finite_differences)
NET = mb.Serial((mb.Dense(4, 5, "tanh"), mb.Dense(5, 5, "sigmoid"), mb.Dense(5, 3)))
OBJECTIVE = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
PARAMS, X, Y = generic(NET), batch(4), targets(mb.squared_error, 3)


def J(params: Any, x: Any, y: Any) -> Any:
    return model.value(OBJECTIVE, params, x, y)


@cache
def by_hand() -> Any:
    return jax.jit(mb.value_and_grad(OBJECTIVE))(PARAMS, X, Y)[1]


def by_grad(fun: Any, *args: Any) -> Any:
    return jax.jit(jax.grad(fun))(*args)


def within(witness: Any, exact: Any, largest: float) -> None:
    """Every entry differs from the truth by no more than its own error bar, which is at most `largest`."""
    for value, error, truth in zip(*map(jax.tree.leaves, (witness.value, witness.error, exact)), strict=True):
        assert value.dtype == np.float64
        assert np.all(np.abs(value - np.asarray(truth)) <= error), witness.name
        assert np.all(error <= largest), error.max()


@pytest.mark.parametrize("way", WAYS)
def test_a_polynomial_whose_gradient_is_known_in_whole_numbers(way: Any) -> None:
    x = {"a": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "n": jnp.asarray([3, 4]), "b": jnp.asarray(-4.0)}

    def fun(scale: Any, x: Any) -> Any:
        return scale * jnp.sum(x["a"] ** 3) * x["b"] + jnp.sum(x["n"].astype("float64"))

    witness = way(fun, 2.0, x, argnum=1)
    assert witness.available
    assert witness.value["n"].dtype == jax.dtypes.float0
    del witness.value["n"], witness.error["n"]
    cubes = 1.0 - 8.0 + 27.0 + 0.125
    within(witness, {"a": -24 * np.asarray(x["a"]) ** 2, "b": 2 * cubes}, 1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_every_element_of_a_network_within_the_error_bars(way: Any) -> None:
    witness = way(J, PARAMS, X, Y)
    within(witness, by_hand(), 1e-10 if way is finite_differences else 1e-13)
    assert jax.tree.structure(witness.value) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("way", WAYS)
def test_above_the_limit_slopes_along_seeded_directions_are_taken_and_handed_back(way: Any) -> None:
    witness = way(J, PARAMS, X, Y, most=20, seed=3)
    assert witness.directions.shape[0] == PROJECTIONS
    gradient = jax.tree.leaves(by_hand())
    within(witness, witness.directions @ np.concatenate([leaf.ravel() for leaf in gradient]), 1e-10)
    one, other = (way(lambda x: jnp.sum(jnp.sin(x)), jnp.arange(30.0), most=20, seed=seed) for seed in (3, 4))
    assert not np.allclose(other.value, one.value)


@pytest.mark.parametrize("directions", [None, seeded(7, 5, 0)], ids=["every element", "seeded"])
def test_several_batches_give_what_one_gives(directions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.eye(7) if directions is None else directions

    def slopes(d: Any) -> Any:
        return d, d @ jnp.arange(1.0, 8.0)

    for budget, largest in ((2**21, len(every)), (2 * 3 * 7, 2), (1, 1)):  # two directions do not divide 7 or 5
        monkeypatch.setattr(points, "_BUDGET", budget)
        assert {len(rows) for rows, _ in batches(directions, 7, 3)} == {largest}
        for found, expected in zip(
            gathered(slopes, directions, 7, 3), (every, every @ np.arange(1.0, 8.0)), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_batch_of_points_has_16_mebibytes() -> None:
    rows, _ = next(batches(None, MOST, points_each=8))
    assert 8 * rows.nbytes == 16 * 2**20


ANALYTIC = {n: getattr(jnp, n) for n in ("exp", "exp2", "sin", "cos", "tan", "sinh", "cosh", "tanh", "expm1", "arctan")}
ANALYTIC |= {n: getattr(jnp, n) for n in ("arcsinh", "log", "log1p", "sqrt", "square", "reciprocal")}
ANALYTIC |= {"rsqrt": jax.lax.rsqrt, "logistic": jax.nn.sigmoid, "power": lambda x: x**x, "cube": lambda x: x**3}
ANALYTIC |= {"cumprod": jnp.cumprod, "cumsum": jnp.cumsum, "prod": jnp.prod, "gather": lambda x: x[jnp.arange(2)]}
ANALYTIC |= {"scan": lambda x: jax.lax.scan(lambda c, v: (c * v, c), 1.0, x)[0]}


def test_complex_step_of_every_function_that_it_claims() -> None:
    """Each of a row of its own, so that what is wrong with one of them shows in that row alone."""
    x = jnp.tile(jnp.asarray([0.3, 1.7, 0.9]), (len(ANALYTIC), 1))

    def fun(x: Any, scale: Any) -> Any:
        return jnp.sum(scale) * sum(jnp.sum(h(row)) ** 2 for h, row in zip(ANALYTIC.values(), x, strict=True))

    witness = complex_step(fun, x, jnp.asarray([1.0, -2.0]))
    assert witness.available, witness.why
    exact = by_grad(fun, x, jnp.asarray([1.0, -2.0]))
    for name, *row in zip(ANALYTIC, witness.value, witness.error, exact, strict=True):
        value, error, truth = map(np.asarray, row)
        assert (np.abs(value - truth) <= error).all() and (error <= 1e-9).all(), name


@pytest.mark.parametrize(
    ("fun", "why"),
    [
        (lambda x: jnp.sum(jnp.abs(x)), "not analytic: abs at test_witnesses.py:"),
        (lambda x: jnp.sum(jnp.maximum(x, 0.0)), "not analytic: max at test_witnesses.py:"),
        (lambda x: jnp.sum(jax.nn.relu(x)), "not analytic: max at test_witnesses.py:"),
        (lambda x: jnp.max(x), "not analytic: reduce_max at"),
        (lambda x: jnp.sum(jnp.where(x > 0, x, 2 * x)), "not analytic: gt at"),
        (lambda x: jnp.sum(jnp.sign(x) * x), "not analytic: sign at"),
        (lambda x: jnp.sum(jnp.floor(x)), "not analytic: floor at"),
        (lambda x: jnp.sum(x.astype("int32").astype("float64") * x), "not analytic: conversion to int32 at"),
        (lambda x: jnp.sum(jnp.real(jax.lax.complex(x, x)) ** 2), "not analytic: complex at"),
        (lambda x: jnp.sum(jax.scipy.special.erf(x)), "not available: erf at test_witnesses.py:"),
        (lambda x: jnp.sum(jnp.convolve(x, x) ** 2), "not available: conv_general_dilated at"),
        (lambda x: jax.lax.while_loop(lambda c: c[0] < 9.0, lambda c: 2 * c, x)[0], "not available: while at"),
        (lambda x: jax.lax.scan(lambda c, v: (c + jnp.abs(v), None), 0.0, x)[0], "not analytic: abs at"),
    ],
)
def test_complex_step_refuses_by_name_and_line(fun: Any, why: str) -> None:
    witness = complex_step(fun, jnp.asarray([0.3, -1.7]))
    assert not witness.available
    assert witness.value is None
    assert why in witness.why


def test_complex_step_minds_only_what_depends_on_the_argument() -> None:
    x, mask = jnp.asarray([0.3, -1.7]), jnp.asarray([1.0, -1.0])

    def fun(x: Any, mask: Any) -> Any:
        largest = jax.lax.stop_gradient(jnp.max(x))
        return jnp.sum(jnp.where(mask > 0, jnp.exp(x - largest), jnp.abs(mask) * x**2)) * jnp.exp(largest)

    witness = complex_step(fun, x, mask)
    assert witness.available, witness.why
    within(witness, by_grad(fun, x, mask), 1e-12)


def test_differences_of_an_absolute_step_would_fail_here() -> None:
    x = jnp.asarray([1e6, 1e-3, -0.7])
    witness = finite_differences(lambda x: jnp.sin(x[0] * 1e-6) + jnp.exp(x[1]) + jnp.log(1 + x[2]), x)
    within(witness, np.asarray([1e-6 * np.cos(1.0), np.exp(1e-3), 1 / 0.3]), 1e-6)


def test_differences_outside_the_domain_say_nothing_rather_than_nan() -> None:
    witness = finite_differences(lambda x: jnp.sum(jnp.log(x)), jnp.asarray([2.0, 1e-2, 1e-6]))
    assert np.isinf(witness.error[2:]).all()
    assert np.all(np.abs(witness.value[:2] - [0.5, 100.0]) <= witness.error[:2])
    assert np.all(witness.error[:2] < 1e-3)


def test_the_error_bar_of_the_differences_grows_with_the_noise_of_the_function() -> None:
    x = jnp.asarray([0.3, 0.4])
    quiet = finite_differences(lambda x: jnp.sum(jnp.sin(x)), x)
    loud = finite_differences(lambda x: jax.lax.reduce_precision(jnp.sum(jnp.sin(x)), 11, 35), x)
    within(loud, np.cos(x), 1e-4)
    assert loud.error.min() > 1e3 * quiet.error.max()


def test_rounding_that_the_function_magnifies_is_in_the_bar_of_the_exact_ways() -> None:
    x = jnp.asarray([1.0, 1.0 + 1e-9])

    def fun(x: Any) -> Any:
        return jnp.log(x[1] - x[0])

    assert forward_mode(fun, x).error.max() > 1e-9 / 1e-9 * 1e1  # the slopes are 1e9, and known to seven digits
    within(complex_step(fun, x), by_grad(fun, x), 1e6)


def fault(size: float) -> Any:
    gradient = by_hand()
    return (mb.Affine(gradient[0].W, (1 + size) * gradient[0].b), *gradient[1:])


def test_taylor_slopes_and_the_difference_curve_tell_right_from_wrong() -> None:
    right = taylor(J, PARAMS, X, Y, gradient=fault(0.0))
    assert abs(right.slope - 2) < 0.05
    assert str(right) == f"slope {right.slope:.3g} (right)"
    for size in (0.03, 1e-4):
        wrong = taylor(J, PARAMS, X, Y, gradient=fault(size))
        assert wrong.verdict == "wrong"
        assert wrong.slope < 1.2
    good, bad = (difference_curve(J, PARAMS, X, Y, gradient=fault(size)).errors for size in (0.0, 1e-4))
    foot = np.argmin(good)
    assert 1e-7 < LINE[foot] < 1e-2
    assert good[foot] < 1e-9 < bad.min()
    assert good[0] > 1e3 * good[foot] < good[-1]
    np.testing.assert_allclose(np.log2(good[4] / good[6]), 4, atol=0.1)  # an error of h**2


def test_taylor_takes_the_slope_at_the_small_end() -> None:
    at_zero = taylor(lambda x: jnp.sum(x**2) + 1e6 * jnp.sum(x**4), jnp.zeros(2), gradient=np.zeros(2))
    assert abs(at_zero.slope - 2) < 0.05  # the long steps show the fourth power


def test_taylor_names_linear_functions_and_noise() -> None:
    w = jnp.asarray([0.3, -1.1, 2.0])
    assert str(taylor(lambda x: jnp.vdot(x, w), jnp.ones(3), gradient=w)).startswith("exact")
    assert taylor(lambda x: jnp.vdot(x, w), jnp.ones(3), gradient=1.001 * w).verdict == "wrong"
    faint = taylor(lambda x: jnp.vdot(x, w) + 1e-13 * jnp.sum(x**2), jnp.ones(3), gradient=w + 2e-13)
    assert faint.verdict in {"no window", "exact"}
    steps = taylor(lambda x: jnp.vdot(x, w) + 1e-9 * jnp.sum(jnp.sin(1e8 * x)), jnp.ones(3), gradient=w)
    assert steps.verdict in {"no window", "wrong"}


def test_what_cannot_be_differentiated_is_refused() -> None:
    for fun, args, text in (
        (lambda x: x, (jnp.ones(2),), "must return a scalar float"),
        (lambda x: x[0], (jnp.ones(2, int),), "holds no floats"),
    ):
        with pytest.raises(ValueError, match=text):
            forward_mode(fun, *args)
    with pytest.raises(ValueError, match="there are 1 arguments"):
        forward_mode(jnp.sum, jnp.ones(2), argnum=1)
    with pytest.raises(ValueError, match="expected a leaf of shape"):
        taylor(jnp.sum, jnp.ones(2), gradient=np.ones(3))
    with pytest.raises(ValueError, match="expected a tree like"):
        panel(jnp.sum, jnp.ones(2), manual=(np.ones(2),))
