"""Where a fault cannot show: parameters that hide it are moved, batches that hide it are named, the rest is refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch, generic, targets

import manual_backprop as mb
import reference
from reference.catalogue import published
from reference.checks import blind_spots

LAM = 0.1
NET = mb.mlp((3, 3, 2))
OBJECTIVE = mb.Objective(NET, mb.squared_error, mb.Frobenius(LAM))
PARAMS, X, Y = generic(NET), batch(3, 3), targets(mb.squared_error, 2, 3)
check = partial(reference.check, samples=4)


def penalises_biases(objective, params, x, y, **given):
    step = mb.backprop(objective, params, x, y, **given)
    wrong = tuple(replace(g, b=g.b + LAM * p.b) for g, p in zip(step.gradients, params, strict=True))
    return replace(step, gradients=wrong)


def sums(objective, params, x, y, **given):
    """The step without 1/N."""
    step = mb.backprop(objective, params, x, y, **given, weights=jnp.ones(len(x)))
    return replace(step, d_x=mb.backprop(objective, params, x, y, **given).d_x)


def weighs_in_another_order(objective, params, x, y, *, weights):
    step = mb.backprop(objective, params, x, y, weights=weights)
    return replace(step, gradients=mb.backprop(objective, params, x, y, weights=weights[::-1]).gradients)


def drops_the_penalty(objective, params, x, y, **given):
    step = mb.backprop(objective, params, x, y, **given)
    return replace(step, gradients=mb.backprop(replace(objective, regularizer=None), params, x, y).gradients)


class Untransposed(mb.Dense):
    """W delta in the place of W^T delta."""

    def transport(self, params, saved, delta):
        return delta @ params.W.T


def test_a_penalised_bias_shows_at_the_zero_biases_of_init():
    args = OBJECTIVE, NET.init(jax.random.key(0), jnp.float64), X, Y
    blind = check(*args, backprop=penalises_biases, generic=False)
    assert blind.passed
    both = "params[0].b and params[1].b are all zeros, where a fault that multiplies them cannot show"
    assert blind.notes == (f"{both}; generic=True checks at seeded values near them",)
    seen = check(*args, backprop=penalises_biases)
    assert seen.failures[0].path == "gradients[0].b"
    assert "the bias is penalised" in seen.failures[0].cause
    assert seen.notes == (f"{both}: checked at seeded values near them; generic=False keeps yours",)
    assert seen.notes[0] in str(seen)
    assert check(*args, dtype="float32").passed


def test_a_forgotten_transpose_shows_at_symmetric_weights():
    objective = mb.Objective(mb.Serial((mb.Dense(3, 3, "tanh"), Untransposed(3, 3))), mb.squared_error)
    params = (mb.Affine(PARAMS[0].W, jnp.asarray([0.1, 0.2, 0.3])), mb.Affine(jnp.eye(3), jnp.asarray([0.3, 0.2, 0.1])))
    blind, seen = (check(objective, params, X, batch(3, 3, seed=2), generic=generic) for generic in (False, True))
    assert blind.passed
    assert (seen.failures[0].equation, seen.failures[0].path) == ("(B2)", "deltas[0]")
    assert seen.notes[0].startswith("params[1].W is its own transpose, where a transpose missing or too many cannot")


def test_parameters_that_hide_nothing_stay_and_there_is_nothing_to_note():
    judge = reference.prepare(OBJECTIVE, PARAMS, X, Y, generic=True)
    assert jax.tree.all(jax.tree.map(np.array_equal, judge.inputs[0], PARAMS))
    step = mb.backprop(OBJECTIVE, PARAMS, X, Y)
    assert judge.report(step).notes == ()


def test_a_judge_keeps_the_parameters_of_its_callers_steps():
    params = NET.init(jax.random.key(0), jnp.float64)
    report = reference.prepare(OBJECTIVE, params, X, Y, samples=4).report(mb.backprop(OBJECTIVE, params, X, Y))
    assert report.passed
    assert "generic=True checks at seeded values" in report.notes[0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_what_is_moved_stays_near_and_keeps_its_sign(dtype):
    given = {
        "zeros": np.zeros(4),
        "ones": np.ones(4),
        "a positive scale": np.full(50, 1e-3),
        "a negative scale": np.full((2, 50), -3.0),
        "symmetric": np.eye(3),
        "a wide zero": np.zeros((2, 5000)),
        "one number": np.full(1, 0.3),
        "generic": np.arange(1.0, 5.0),
        "nothing": np.zeros((0, 3)),
    }
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), given)
    moved = blind_spots.moved(params, 0)
    found = blind_spots.degenerate_leaves(params)
    assert set(found) == {f"params['{name}']" for name in given if name not in ("one number", "generic", "nothing")}
    assert not blind_spots.degenerate_leaves(moved)
    for name, leaf in moved.items():
        before, after = np.asarray(params[name], np.float64), np.asarray(leaf, np.float64)
        assert leaf.dtype == jnp.dtype(dtype)
        assert (before == after).all() == (f"params['{name}']" not in found), name
        assert (before * after >= 0).all(), name
        assert (np.abs(after - before) <= np.where(before == 0, 0.5, 0.51 * np.abs(before))).all(), name
    assert np.abs(np.asarray(moved["a wide zero"], np.float64)).std() < 0.02
    again, other = blind_spots.moved(params, 0), blind_spots.moved(params, 1)
    assert (np.asarray(again["zeros"]) == np.asarray(moved["zeros"])).all()
    assert (np.asarray(other["zeros"]) != np.asarray(moved["zeros"])).any()


def test_a_note_names_a_few_leaves_and_counts_the_others():
    found = blind_spots.degenerate_leaves(tuple(np.zeros(2) for _ in range(6)))
    (note,) = blind_spots.of_parameters(found, generic=False)
    assert note.startswith("params[0], params[1], params[2] and 3 others are all zeros, where a fault that")


@pytest.mark.parametrize(
    ("n", "weights", "lam", "fault", "says"),
    [
        (1, None, LAM, sums, "N = 1: a missing or wrong 1/N cannot show; check with two examples or more"),
        (3, np.full(3, 0.2), None, weighs_in_another_order, "the weights are all equal: a weight of another example"),
        (3, np.full(3, 1 / 3), None, weighs_in_another_order, "example and weights that are ignored cannot show"),
        (1, np.full(1, 0.2), None, weighs_in_another_order, "check with two examples or more whose weights differ"),
        (3, None, 0.0, drops_the_penalty, "lam = 0: a fault in the regulariser's part of the gradients cannot show"),
    ],
)
def test_what_the_batch_hides_is_said(n, weights, lam, fault, says):
    """The verdict stays: published examples have N = 1, and what they do show is right."""
    objective = mb.Objective(NET, mb.squared_error, None if lam is None else mb.Frobenius(lam))
    report = check(objective, PARAMS, X[:n], Y[:n], weights=weights, backprop=fault)
    assert report.passed
    assert len(report.notes) == 1 and says in report.notes[0]


@pytest.mark.parametrize(
    ("weights", "lam", "fault"),
    [(None, LAM, sums), (np.asarray([0.1, 0.2, 0.3]), None, weighs_in_another_order), (None, LAM, drops_the_penalty)],
)
def test_the_same_faults_show_where_nothing_hides_them(weights, lam, fault):
    objective = mb.Objective(NET, mb.squared_error, None if lam is None else mb.Frobenius(lam))
    report = check(objective, PARAMS, X, Y, weights=weights, backprop=fault)
    assert report.verdict == "fail"
    assert report.notes == ()


def test_a_published_example_of_one_example_is_proven_and_says_what_it_leaves_open():
    example = published.examples()[0]
    report = check(example.objective, example.params, example.x, example.y, generic=False)
    assert report.passed
    assert [note.partition(",")[0] for note in report.notes] == [
        "params[0].b and params[1].b have equal entries",
        "N = 1: a missing or wrong 1/N cannot show; check with two examples or more",
    ]


def spoilt(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"params": (PARAMS[0], mb.Affine(spoilt(PARAMS[1].W, (1, 2), np.nan), PARAMS[1].b))},
            r"params\[1\]\.W\[1, 2\] is nan: 1 of 6 entries are not finite; check at finite values",
        ),
        ({"x": spoilt(X, (0, 1), np.inf)}, r"x\[0, 1\] is inf: 1 of 9 entries are not finite"),
        ({"x": spoilt(X, 2, -np.inf)}, r"x\[2, 0\] is -inf: 3 of 9 entries are not finite"),
        ({"y": spoilt(Y, (2, 1), np.nan)}, r"y\[2, 1\] is nan: 1 of 6 entries are not finite"),
        ({"weights": np.asarray([1.0, np.inf, 1.0])}, r"weights\[1\] is inf: 1 of 3 entries are not finite"),
        ({"lam": np.nan}, "lam must be finite and >= 0, got nan"),
        ({"x": spoilt(X, (1, 0), -1e5), "dtype": "float16"}, r"x\[1, 0\] is -100000, which is -inf in float16: 1 of 9"),
    ],
)
def test_what_is_not_finite_is_named_before_anything_runs(changed, says):
    def never(*args, **given):
        raise AssertionError("it ran")

    given = {"params": PARAMS, "x": X, "y": Y} | changed
    with pytest.raises(ValueError, match=says):
        check(OBJECTIVE, **given, backprop=never)


def test_a_part_of_several_inputs_is_named():
    net = mb.Serial((mb.Parallel((mb.Dense(3, 2), mb.Dense(3, 2))), mb.Product()))
    with pytest.raises(ValueError, match=r"x\[1\]\[0, 2\] is nan"):
        check(mb.Objective(net, mb.squared_error), generic(net), (X, spoilt(X, (0, 2), np.nan)), Y)


@pytest.mark.parametrize(
    ("x", "y", "weights", "says"),
    [
        (np.zeros((0, 3)), np.zeros((0, 2)), None, r"x is \[0, 3\]: a batch needs at least one example"),
        (np.zeros((3, 0, 3)), np.zeros((3, 0, 2)), None, r"x is \[3, 0, 3\]: it has no entries, so nothing can be"),
        (X, Y, np.zeros(3), "the weights are all zero: no example counts"),
    ],
)
def test_a_batch_in_which_nothing_counts_is_refused(x, y, weights, says):
    with pytest.raises(ValueError, match=says):
        check(OBJECTIVE, PARAMS, x, y, weights=weights, backprop=sums)
