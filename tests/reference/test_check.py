"""The check itself: wrong steps must fail, at the right place, with the right probable cause."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N, problem

import manual_backprop as mb
import reference
from reference.checks.step import by_hand, prepare
from reference.compare import compare_leaf
from reference.report import GradientMismatch, InconclusiveCheck, Report

LAM = 0.1


@cache
def judge(dtype="float64"):
    """The reference's side and the right step, computed once for all faults."""
    objective, *args = problem("mlp", lam=LAM)
    found = prepare(objective, *args, dtype=dtype)
    return found, jax.tree.map(jnp.asarray, by_hand(found)[0]), args


def with_layer(step, index, **fields):
    layers = list(step.gradients)
    layers[index] = replace(layers[index], **fields)
    return replace(step, gradients=tuple(layers))


def with_delta(step, index, value):
    deltas = list(step.deltas)
    deltas[index] = value
    return replace(step, deltas=tuple(deltas))


def with_trace(step, index, **fields):
    trace = list(step.trace)
    trace[index] = replace(trace[index], **fields)
    return replace(step, trace=tuple(trace))


# name: (change of a step, first row that must fail, words in its probable cause)
FAULTS = {
    "sum for mean in dW": (
        lambda s, p, x: with_layer(s, 0, W=N * (s.gradients[0].W - LAM * p[0].W) + LAM * p[0].W),
        "gradients[0].W",
        "1/N missing",
    ),
    "sum for mean in db": (
        lambda s, p, x: with_layer(s, 1, b=N * s.gradients[1].b),
        "gradients[1].b",
        "1/N missing",
    ),
    "1/N twice": (lambda s, p, x: with_layer(s, 1, b=s.gradients[1].b / N), "gradients[1].b", "1/N twice"),
    "sign of db": (lambda s, p, x: with_layer(s, 2, b=-s.gradients[2].b), "gradients[2].b", "sign"),
    "sign of dW": (lambda s, p, x: with_layer(s, 2, W=-s.gradients[2].W), "gradients[2].W", "sign"),
    "dW transposed": (lambda s, p, x: with_layer(s, 1, W=s.gradients[1].W.T), "gradients[1].W", "transposed"),
    "lam W missing": (
        lambda s, p, x: with_layer(s, 1, W=s.gradients[1].W - LAM * p[1].W),
        "gradients[1].W",
        "lam W missing",
    ),
    "lam W twice": (
        lambda s, p, x: with_layer(s, 1, W=s.gradients[1].W + LAM * p[1].W),
        "gradients[1].W",
        "lam W counted twice",
    ),
    "lam W / N": (
        lambda s, p, x: with_layer(s, 1, W=s.gradients[1].W - LAM * p[1].W * (1 - 1 / N)),
        "gradients[1].W",
        "lam W / N",
    ),
    "bias penalised": (
        lambda s, p, x: with_layer(s, 1, b=s.gradients[1].b + LAM * p[1].b),
        "gradients[1].b",
        "the bias is penalised",
    ),
    "dW zero": (
        lambda s, p, x: with_layer(s, 0, W=0 * s.gradients[0].W),
        "gradients[0].W",
        "identically zero",
    ),
    "dW nan": (
        lambda s, p, x: with_layer(s, 0, W=s.gradients[0].W.at[1, 2].set(jnp.nan)),
        "gradients[0].W",
        "1 of 30 entries are nan",
    ),
    "delta without f'": (
        lambda s, p, x: with_delta(s, 0, s.deltas[0] / (1 - s.trace[0].a ** 2)),
        "deltas[0]",
        "",
    ),
    "delta scaled by 1/N": (lambda s, p, x: with_delta(s, 1, s.deltas[1] / N), "deltas[1]", "1/N twice"),
    "delta of another layer": (lambda s, p, x: with_delta(s, 1, s.deltas[0]), "deltas[1]", ""),
    "one element of delta": (
        lambda s, p, x: with_delta(s, 2, s.deltas[2].at[3, 1].mul(1.001)),
        "deltas[2]",
        "",
    ),
    "z without its bias": (
        lambda s, p, x: with_trace(s, 1, z=s.trace[1].z - p[1].b[None]),
        "trace[1].z",
        "",
    ),
    "a not activated": (lambda s, p, x: with_trace(s, 0, a=s.trace[0].z), "trace[0].a", ""),
    "penalty of lam/(2N)": (lambda s, p, x: replace(s, penalty=s.penalty / N), "penalty", "1/N twice"),
    "value without penalty": (lambda s, p, x: replace(s, value=s.loss), "value", ""),
    "d_x scaled": (lambda s, p, x: replace(s, d_x=s.d_x / N), "d_x", "1/N twice"),
    "d_lam doubled": (lambda s, p, x: replace(s, d_lam=2 * s.d_lam), "d_lam", "a constant factor of 2"),
    "a millionth": (lambda s, p, x: with_layer(s, 2, b=s.gradients[2].b * (1 + 1e-6)), "gradients[2].b", ""),
    "one element by 1e-10": (
        lambda s, p, x: with_layer(s, 0, W=s.gradients[0].W.at[2, 3].add(1e-10)),
        "gradients[0].W",
        "",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_where_it_is(fault):
    change, first, cause = FAULTS[fault]
    found, step, (params, x, _) = judge()
    report = found.report(change(step, params, x))
    assert report.verdict == "fail"
    assert report.failures[0].path == first
    assert report.failures[0].kind == "equation"
    assert cause in report.failures[0].cause
    assert first in report.summary()
    with pytest.raises(GradientMismatch, match="DIFFERS"):
        report.raise_if_failed()
    if "a millionth" not in fault:  # an equation sees it in its own value; end to end it shows there too
        assert first.partition("[")[0] in {
            row.path.partition("[")[0] for row in report.failures if row.kind == "end to end"
        }


def test_a_wrong_value_and_grad_is_found():
    objective, params, x, y = problem("mlp", lam=LAM)

    def value_and_grad(objective):
        return lambda *args, **given: jax.tree.map(lambda leaf: 2 * leaf, mb.value_and_grad(objective)(*args, **given))

    report = reference.check(objective, params, x, y, value_and_grad=value_and_grad)
    assert report.failures[0].path == "value_and_grad.value"
    assert all(row.path.startswith("value_and_grad") for row in report.failures)
    assert "a constant factor of 2" in report.failures[0].cause


def test_wrong_derivatives_in_the_library_are_found(monkeypatch):
    """A df that is off by a tenth of a percent shows at the delta of its layer, not at the activations."""
    tanh = mb.activations.tanh
    wrong = replace(tanh, df=lambda z, a: 1.001 * tanh.df(z, a))
    objective = mb.Objective(mb.mlp((6, 5, 5, 4), (tanh, wrong)), mb.squared_error, mb.Frobenius(LAM))
    _, params, x, y = problem("mlp")
    report = reference.check(objective, params, x, y)
    assert report.failures[0].path == "deltas[1]"
    assert "1.001" in report.failures[0].cause
    assert report.failures[0].equation == "(B2)"
    assert report.failures[0].layer == 2


def test_a_forward_formula_that_is_wrong_on_one_side_shows():
    """The two programs share no formula: an f that is not jax.nn's of that name differs at a."""
    wrong = replace(mb.activations.tanh, f=lambda z: z - z**3 / 3)
    objective = mb.Objective(mb.mlp((6, 5, 5, 4), wrong), mb.squared_error, mb.Frobenius(LAM))
    report = reference.check(objective, *problem("mlp")[1:])
    assert report.failures[0].path == "trace[0].a"


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [
        ("sign of db", "float32"),
        ("sum for mean in dW", "bfloat16"),
        ("delta of another layer", "float16"),
        ("dW transposed", "bfloat16"),
    ],
)
def test_planted_faults_are_found_in_working_precision(fault, dtype):
    change, first, _ = FAULTS[fault]
    found, step, (params, x, _) = judge(dtype)
    wide = jax.tree.map(lambda leaf: leaf.astype("float64"), step)
    report = found.report(jax.tree.map(lambda leaf: leaf.astype(dtype), change(wide, params, x)))
    assert first in [row.path for row in report.failures]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_rounding_that_crosses_a_kink_is_no_fault(dtype):
    """relu nets in low precision, many seeds: an equation is checked where the step was, the end where it may be."""
    net = mb.mlp((20, 20, 20, 3), "relu")
    objective = mb.Objective(net, mb.huber)
    run = jax.jit(partial(mb.backprop, objective))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda s, rng=rng: rng.normal(0, 0.3, s.shape), jax.eval_shape(net.init, jax.random.key(0))
        )
        found = prepare(objective, params, rng.normal(size=(64, 20)), rng.normal(size=(64, 3)), dtype=dtype)
        report = found.report(jax.device_get(run(*found.inputs)))
        assert not report.failures, report.summary()
        assert {row.verdict for row in report.rows if row.kind == "equation"} == {"pass"}


def test_report_says_what_was_compared():
    report = reference.check(*problem("mlp", lam=LAM))
    paths = [row.path for row in report.rows]
    assert paths[:2] == ["trace[0].z", "trace[0].a"]
    assert {
        "loss",
        "penalty",
        "value",
        "deltas[2]",
        "gradients[0].W",
        "gradients[2].b",
        "d_x",
        "d_lam",
    } <= set(paths)
    by_equation, end_to_end = (row for row in report.rows if row.path == "gradients[0].W")
    assert (by_equation.kind, by_equation.equation, by_equation.layer) == ("equation", "(B4)", 1)
    assert end_to_end.kind == "end to end"
    for row in (by_equation, end_to_end):
        assert row.shape == (5, 6)
        assert row.relative < 1e-14
        assert row.power < 1e-12
    assert "gradients[0].W" in str(report)
    assert "PROVEN: " in str(report)
    assert report.as_dict()["rows"][0]["path"] == "trace[0].z"
    assert report.as_dict()["passed"] is True


def test_what_is_undecided_or_cut_short_raises_too():
    noisy = compare_leaf("g", np.asarray([1.0, 2.0]), np.asarray([1.1, 2.0]), 3.0)
    right = compare_leaf("g", np.ones(2), np.ones(2), 1e-9)
    wrong = compare_leaf("g", np.ones(2), np.zeros(2), 1e-9)
    Report((right,), "float32", "right").raise_if_failed()
    with pytest.raises(InconclusiveCheck, match="rounding could hide a fault in 1 of 2 comparisons"):
        Report((right, noisy), "float32", "noisy").raise_if_failed()
    with pytest.raises(InconclusiveCheck, match="interrupted after 1 comparisons"):
        Report((right,), "float32", "cut", partial=True).raise_if_failed()
    with pytest.raises(InconclusiveCheck, match="interrupted after 0 comparisons"):
        Report((), "float32", "empty").raise_if_failed()
    with pytest.raises(GradientMismatch):
        Report((noisy, wrong), "float32", "wrong").raise_if_failed()


def test_a_leaf_of_zeros_must_be_zero():
    zero = np.zeros((2, 2))
    assert compare_leaf("g", zero, zero, 0.0).verdict == "pass"
    assert compare_leaf("g", zero + 1e-300, zero, 0.0).verdict == "fail"
    assert compare_leaf("g", np.asarray([np.nan]), np.asarray([1.0]), 1e-3).verdict == "fail"
    assert compare_leaf("g", np.asarray([np.inf]), np.asarray([1.0]), 1e-3).verdict == "fail"


def test_shapes_that_differ_are_an_error_and_not_a_broadcast():
    found, step, _ = judge()
    with pytest.raises(ValueError, match=r"d_x is \[1, 6\] by hand but \[7, 6\]"):
        found.report(replace(step, d_x=step.d_x[:1]))


def test_a_layer_that_the_reference_does_not_know_is_named():
    class Odd(mb.Product):
        pass

    assert reference.model.apply(Odd(), (), (jnp.ones(2), jnp.ones(2))).shape == (2,)  # as what it is a kind of
    with pytest.raises(TypeError, match="no forward for object; register one on reference.model.apply"):
        reference.model.apply(object(), (), jnp.zeros((1, 1)))
    with pytest.raises(TypeError, match="does not know how object is joined; register it on reference.model.through"):
        reference.model.through(object(), reference.model.unprobed, jnp.zeros((1, 1)), ())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_examples_that_cancel_are_no_fault_in_working_precision(dtype):
    """db is the mean of deltas of about 1 that leave 1e-4: their rounding is not relative to what is left."""
    net = mb.mlp((3, 1))
    params = (mb.Affine(jnp.zeros((1, 3)), jnp.zeros(1)),)
    y = jnp.asarray([[1.0], [-1.0], [0.7], [-0.7003], [0.3], [-0.3]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    objective = mb.Objective(net, mb.squared_error)
    reference.check(objective, params, x, y, dtype=dtype, generic=False).raise_if_failed()
