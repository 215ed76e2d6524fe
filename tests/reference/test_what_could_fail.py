"""PROVEN is said only where something could have failed, and what is easily missed is looked at."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_a_user
from jax import lax

from reference.checks import ahead, culprit
from reference.checks.gradient import check_gradient
from reference.checks.near import near_points
from reference.checks.rule import check_jvp, check_vjp

THIS = re.escape(Path(__file__).name)
RNG = np.random.default_rng(11)
X, Y = RNG.normal(size=(2, 6)).astype("float32")
M = RNG.normal(size=(4, 3)).astype("float32")
QUICK = {"dtype": "float32", "transforms": "eager"}


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings."""
    with as_a_user():
        yield


def ruled(function, backward, forward=None):
    f = jax.custom_vjp(function)
    f.defvjp(forward or (lambda *args: (function(*args), args)), backward)
    return f


def test_a_derivative_that_is_zero_at_this_point_alone_proves_nothing():
    cube, wrong = lambda v: v**3, lambda v: 99 * v**2
    for report in (
        check_gradient(lambda v: jnp.sum(cube(v)), wrong, jnp.zeros(3)),
        check_vjp(ruled(cube, lambda saved, g: (g * wrong(saved[0]),)), jnp.zeros(3), **QUICK),
    ):
        assert report.verdict == "inconclusive"
        assert "zero at this point and not beside it, so a wrong factor cannot show" in report.summary()


def test_a_derivative_that_is_zero_everywhere_passes_with_a_note():
    report = check_vjp(ruled(lambda v, w: 2 * v, lambda saved, g: (2 * g, 0 * saved[1])), X, Y, **QUICK)
    assert report.passed, report.summary()
    assert any(note.startswith("w is zero here and at 3 points beside") for note in report.notes)


def test_an_empty_batch_proves_nothing():
    wrong = ruled(lambda x, w: x @ w, lambda saved, g: (g @ saved[1].T, 7 * saved[0].T @ g))
    for report in (
        check_gradient(lambda v: jnp.sum(v**3), lambda v: 99 * v**2, jnp.zeros((0, 3))),
        check_vjp(wrong, jnp.zeros((0, 3)), jnp.ones((3, 2)), **QUICK),
    ):
        assert report.verdict == "inconclusive" and "there are no entries" in report.summary()


def test_an_entry_that_is_small_beside_the_others_is_looked_at_alone():
    x = np.asarray([0, -25, 1], "float32")
    wrong = ruled(jnp.exp, lambda saved, g: (g * jnp.exp(saved[0]) * jnp.where(saved[0] < -20, 3, 1),))
    report = check_vjp(wrong, x, **QUICK)
    assert [row.path for row in report.failures] == ["from single outputs: x"]
    assert check_vjp(ruled(jnp.exp, lambda saved, g: (g * jnp.exp(saved[0]),)), x, **QUICK).notes == ()
    total = ruled(lambda x: jnp.sum(jnp.exp(x)), lambda saved, g: (g * jnp.exp(saved[0]),))
    (note,) = check_vjp(total, x, **QUICK).notes  # one output is all there is to look at
    assert note.startswith("x: 1 of 3 entries are so small beside their tolerance")


def test_the_second_point_stays_in_the_domain():
    inverse = ruled(jnp.arccosh, lambda saved, g: (g / jnp.sqrt((saved[0] - 1) * (saved[0] + 1)),))
    report = check_vjp(inverse, np.asarray([1.001, 2], "float32"), dtype="float32")
    assert report.passed, report.summary()
    first, smaller, larger, *_, last = near_points([X], 0)
    assert (np.abs(smaller[0]) < np.abs(X)).all() and (np.abs(larger[0]) > np.abs(X)).all()
    assert not np.array_equal(first[0], X) and np.array_equal(last[0], X)


def test_a_function_that_refuses_the_second_point_is_not_called_there_as_it_stands():
    def strict(A):
        if not isinstance(A, jax.core.Tracer) and not np.array_equal(A, A.T):
            raise ValueError("not symmetric")
        return A @ A

    rule = ruled(strict, lambda saved, g: (g @ saved[0].T + saved[0].T @ g,))
    report = check_vjp(rule, M[:3] + M[:3].T, dtype="float32")
    assert report.passed, report.summary()
    assert any(note.startswith("no two pullbacks in turns: called at a second point") for note in report.notes)


def test_what_leaves_no_tolerance_says_so_and_what_helps():
    """An exponential that overflows in the branch that is not taken."""
    function = lambda x: jnp.where(x > 5, x, jnp.log(jnp.exp(x) + 1))  # noqa: E731
    rule = ruled(function, lambda saved, g: (g * jnp.where(saved[0] > 5, 1, jax.nn.sigmoid(saved[0])),))
    report = check_vjp(rule, np.asarray([100, 1], "float32"), **QUICK)
    assert report.verdict == "inconclusive"
    named = rf"mul at \S*{THIS}:\d+\S* \(.* from an inf of exp at \S*{THIS}\S* \(.*\), in their computation"
    said = r" or its derivative, overflows or leaves its domain \(it may be in a branch that is not selected\)"
    first = r"no tolerance is known for 2 of 4 entries, first \[0\] for cotangent 0: "
    assert re.search(first + named + said, report.summary()), report.summary()


def lost_in(function, *args):
    """The operation that rounding in float32 takes over the edge."""
    return culprit.first_lost(function, *args, dtype="float32", samples=16, seed=0)


def test_what_is_lost_is_the_first_operation_whatever_it_stands_in():
    """Beyond float32's largest number, or out of a domain in some of the samples that rounding moves."""
    near = np.asarray([1e-9, 1.0], "float32")
    assert lost_in(jnp.exp, near) == ""
    assert lost_in(lambda x: jnp.exp(jnp.where(x < 1, x, -jnp.inf)), near) == ""  # an inf that is written there
    assert lost_in(lambda x: jnp.log((x + 1) - 1 - 1e-9), near).startswith(f"log at {__file__}:")
    assert lost_in(lambda x: jnp.sqrt(1e38 * x) * 1e38 * x, np.float32(3)).startswith(f"mul at {__file__}:")

    def in_a_loop(x):
        return jax.lax.while_loop(lambda state: state[0] < 9, lambda state: (state[0] + 1, state[1] ** 2), (0, x))[1]

    def in_a_scan(x):
        return jax.lax.scan(lambda x, _: (jnp.exp(x), None), x, length=3)[0]

    def in_a_branch(x):
        return jax.lax.cond(x > 1, lambda x: jnp.sinh(jnp.exp(x)), jnp.negative, x)

    assert lost_in(in_a_loop, np.float32(10)).startswith(f"integer_pow at {__file__}:")
    assert lost_in(in_a_scan, np.float32(5)).startswith(f"exp at {__file__}:")
    assert lost_in(in_a_branch, np.float32(30)).startswith(f"sinh at {__file__}:")
    assert lost_in(in_a_branch, np.float32(-30)) == ""


def test_a_comparison_that_rounding_decides_is_named():
    """-inf for probabilities that do not sum to one, which all of numpyro's distributions on the simplex do."""

    def checked(x):
        p = jax.nn.softmax(x)
        total = jnp.sum(p)
        return jnp.where((total < 1 + 3e-7) & (total > 1 - 3e-7), jnp.sum(jnp.log(p)), -jnp.inf)

    report = check_vjp(checked, X, raw=checked, **QUICK)
    assert report.verdict == "inconclusive"
    said = rf"rounding decides lt at \S*{THIS}:\d+\S* \(.*checked\); check where it is clear, or in a wider precision"
    assert re.search(said, report.summary()), report.summary()
    clear = lambda x: jnp.where(jnp.sum(x) < 100, jnp.sum(jnp.log(jnp.abs(x))), -jnp.inf)  # noqa: E731
    assert check_vjp(clear, X, raw=clear, **QUICK).passed


@pytest.mark.parametrize("way", ["check_gradient", "check_jvp"])
def test_a_gradient_and_a_rule_of_tangents_name_it_too(way):
    """log(1 + e^x) at 100, of which float32 knows no e^x."""
    function = lambda x: jnp.sum(jnp.where(x > 5, x, jnp.log(jnp.exp(x) + 1)))  # noqa: E731
    slope = lambda x: jnp.where(x > 5, 1, jax.nn.sigmoid(x))  # noqa: E731
    x = np.asarray([100, 1], "float32")
    if way == "check_gradient":
        report = check_gradient(function, slope, x)
    else:
        rule = jax.custom_jvp(function)
        rule.defjvp(lambda primals, tangents: (rule(*primals), jnp.sum(slope(primals[0]) * tangents[0])))
        report = check_jvp(rule, x, **QUICK)
    assert report.verdict == "inconclusive"
    assert re.search(rf"exp at \S*{THIS}:.*, in their computation", report.summary()), report.summary()


kept = {}


def in_a_global(x):
    kept["x"] = x
    return jnp.sin(x), None


def summed_over_the_batch(saved, g):
    """Right for one example; two examples that share w get each other's part of it."""
    x, w = saved
    return g * w, jnp.sum(g * x)


UNSEEN = {
    "two pullbacks in turns": (ruled(jnp.sin, lambda _, g: (g * jnp.cos(kept["x"]),), in_a_global), (X,), {}),
    "for 1024 times the cotangent": (ruled(jnp.sin, lambda s, g: (jnp.clip(g, -5, 5) * jnp.cos(s[0]),)), (X,), {}),
    "for 1/1024 of the cotangent": (
        ruled(jnp.sin, lambda s, g: (jnp.where(jnp.abs(g) > 4e-4, g, 0) * jnp.cos(s[0]),)),
        (X,),
        {},
    ),
    "differentiated again": (
        ruled(jnp.sin, lambda s, g: (g * jnp.cos(lax.stop_gradient(s[0])),)),
        (X,),
        {"thorough": True},
    ),
    "at 16 times the arguments": (
        ruled(lambda x: x**2, lambda s, g: (2 * g * jnp.clip(s[0], -5, 5),)),
        (X,),
        {"thorough": True},
    ),
    "in float64": (
        ruled(lambda x: jnp.log(x**2 + 1), lambda s, g: (2 * g * s[0] / (s[0] ** 2 + 1 + 1e-9),)),
        (X,),
        {"dtype": None},
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_easily_missed_is_seen(name):
    rule, args, options = UNSEEN[name]
    report = check_vjp(rule, *args, **QUICK | options)
    assert [row.path.partition(":")[0] for row in report.failures] == [name], report.summary()


def test_a_right_rule_passes_the_thorough_check_and_one_that_is_float32_inside_is_not_held_to_float64():
    sine = ruled(jnp.sin, lambda saved, g: (g * jnp.cos(saved[0]),))
    assert check_vjp(sine, X, thorough=True, transforms="eager").passed
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x)), jnp.cos, X, thorough=True).passed
    narrow = ruled(jnp.sin, lambda saved, g: (g * jnp.cos(saved[0].astype("float32")).astype(g.dtype),))
    report = check_vjp(narrow, X, transforms="eager")
    assert report.passed and any("computes in float32 inside" in note for note in report.notes)


def test_the_second_derivative_of_a_gradient_is_looked_at_where_jax_can():
    """Of all entries, or of what is projected; NumPy's code is not differentiated."""

    def loss(x):
        return jnp.sum(jnp.sin(x))

    options = {"thorough": True, "transforms": "eager"}
    stopped = check_gradient(loss, lambda x: jnp.cos(jax.lax.stop_gradient(x)), X, **options)
    assert [row.path for row in stopped.failures] == ["differentiated again: x"]
    projected = check_gradient(loss, jnp.cos, X, max_elements=2, **options)
    assert projected.passed and projected.rows[-1].path == "differentiated again: x projected"
    in_numpy = check_gradient(loss, lambda x: np.cos(np.asarray(x)), X, **options)
    assert in_numpy.passed and in_numpy.notes[-1].startswith("the second derivative is left out: TracerArrayConversion")


def test_a_root_is_left_out_where_its_argument_is_negative():
    root = ruled(jnp.sqrt, lambda saved, g: (g / (2 * jnp.sqrt(saved[0])),))
    report = check_vjp(root, np.abs(X), thorough=True, **QUICK)
    assert report.passed, report.summary()
    assert any(note.startswith("at -1 times the arguments: left out") for note in report.notes)


def batched(wrong_axis):
    """A rule that is wrong under vmap alone: its batching rule is that of a sum over the wrong axis."""

    @jax.custom_batching.custom_vmap
    def back(g, x, w):
        return g * w

    @back.def_vmap
    def _(size, which, g, x, w):
        g, x, w = (v if has else jnp.broadcast_to(v, (size, *v.shape)) for v, has in zip((g, x, w), which, strict=True))
        shared = wrong_axis and which[0] and which[1] and not which[2]
        return g * w * (2 if shared else 1), True

    return ruled(lambda x, w: x * w, lambda saved, g: (back(g, *saved), g * saved[0]))


@pytest.mark.parametrize("large", [ahead.LARGE, 0], ids=["batches together", "batches apart"])
def test_an_argument_that_is_shared_under_vmap_is_seen(large, monkeypatch):
    monkeypatch.setattr(ahead, "LARGE", large)
    report = check_vjp(batched(True), X, Y, dtype="float32")
    assert [row.path for row in report.rows if row.path.startswith("under vmap")][::2] == [
        f"under vmap{how}: x"
        for how in ("", ", a batch of one", " over cotangents alone", " over x alone", " over w alone")
    ]
    assert {row.path for row in report.failures} == {"under vmap over x alone: x"}, report.summary()
    assert check_vjp(batched(False), X, Y, dtype="float32").passed


def test_a_batch_of_one_is_seen():
    @jax.custom_batching.custom_vmap
    def back(g, x):
        return g * jnp.cos(x)

    @back.def_vmap
    def _(size, which, g, x):
        return g * jnp.cos(x) * (1 if size > 1 else 0.5), True

    report = check_vjp(ruled(jnp.sin, lambda saved, g: (back(g, *saved),)), X, dtype="float32")
    assert {row.path for row in report.failures} == {"under vmap, a batch of one: x"}, report.summary()


@pytest.mark.parametrize(
    ("rule", "args", "cause"),
    [
        (ruled(jnp.sin, lambda saved, g: (jnp.cos(saved[0]),)), (X,), "it does not depend on the cotangent"),
        (
            ruled(lambda x: (jnp.sin(x), x**2), lambda saved, g: (g[0] * jnp.cos(saved[0]),)),
            (X,),
            "the cotangent of primal[1] is left out",
        ),
        (ruled(lambda a, b: a @ b, lambda saved, g: (saved[1] @ g.T, saved[0].T @ g)), (M[:3], M[1:]), "transposed"),
        (ruled(lambda x, b: x + b, lambda saved, g: (g, g)), (M, M[0]), "[3] was broadcast to [4, 3]"),
    ],
)
def test_mistakes_of_a_whole_rule_are_named(rule, args, cause):
    report = check_vjp(rule, *args, **QUICK)
    assert cause in report.failures[0].cause, report.summary()
