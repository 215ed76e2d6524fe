"""Where a rule and jax.grad differ, the function's values are asked: a kink is no fault, nor is what jax.grad errs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import every_time
from jax import lax

from reference.checks.arbiter import Arbiter
from reference.checks.gradient import check_gradient
from reference.checks.rule import check_jvp, check_vjp
from reference.reports.formats import write_reports
from reference.reports.run import NetworkResult, Run
from reference.tolerance.rounding import Measured

X = np.asarray([0.0, -0.5, 0.3, 0.0, 1.5], "float32")
QUICK = {"dtype": "float32", "transforms": "eager"}


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def ruled(function, backward):
    f = jax.custom_vjp(function)
    f.defvjp(lambda *args: (function(*args), args), backward)
    return f


def at_zero(slope):
    """Relu by maximum, whose jax.grad at 0 is 1/2, with another slope there."""
    return ruled(
        lambda x: jnp.maximum(x, 0),
        lambda saved, g: (g * jnp.where(saved[0] == 0, slope, saved[0] > 0),),
    )


RIGHT = {
    "abs": (ruled(jnp.abs, lambda saved, g: (jnp.where(saved[0] >= 0, g, -g),)), (X,)),
    "tie of max": (
        ruled(lambda x: jnp.max(x), lambda saved, g: (g * jax.nn.one_hot(jnp.argmax(saved[0]), 5, dtype=g.dtype),)),
        (np.asarray([1, 2, 2, 0, -1], "float32"),),
    ),
    "edges of clip": (
        ruled(lambda x: jnp.clip(x, -1, 1), lambda saved, g: (jnp.where(jnp.abs(saved[0]) < 1, g, 0),)),
        (np.asarray([1, -1, 0.5, 2], "float32"),),
    ),
    "norm at 0": (
        ruled(
            lambda x: jnp.linalg.norm(x),
            lambda saved, g: (g * saved[0] / jnp.maximum(jnp.linalg.norm(saved[0]), 1e-30),),
        ),
        (np.zeros(3, "float32"),),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_slope_between_the_two_sides_passes_with_a_note(name):
    rule, args = RIGHT[name]
    report = check_vjp(rule, *args, **QUICK)
    assert report.passed, report.summary()
    if name != "abs":  # there jax.grad has the same convention
        assert any("a kink of the function, with the one-sided derivatives" in note for note in report.notes)


@pytest.mark.parametrize(
    ("slope", "verdict"), [(0.0, "pass"), (1.0, "pass"), (0.3, "pass"), (-1.0, "fail"), (1.1, "fail")]
)
def test_at_a_kink_what_lies_outside_fails_and_is_told_what_the_sides_are(slope, verdict):
    report = check_vjp(at_zero(slope), X, **({} if slope == 0.3 else QUICK))  # once in every way it may be called
    assert report.verdict == verdict, report.summary()
    if verdict == "fail":
        assert "a kink of the function, with the one-sided derivatives" in report.summary()
        assert "(max at test_who_is_right.py:" in report.summary()


def test_a_wrong_entry_beside_kinks_is_still_found():
    wrong = ruled(lambda x: jnp.maximum(x, 0), lambda saved, g: (g * jnp.where(saved[0] > 1, 1.001, saved[0] > 0),))
    report = check_vjp(wrong, X, **QUICK)
    assert (report.verdict, report.failures[0].where[1:]) == ("fail", (4,))
    assert "as JAX says" in report.summary()


def test_a_kink_of_the_program_that_the_function_has_not_is_jax_grads_fault():
    """3 x, written by where: at 0 the branch taken is a constant, so jax.grad says 0."""
    function = lambda x: 3 * jnp.where(x == 0, 0, x)  # noqa: E731
    report = check_vjp(ruled(function, lambda saved, g: (3 * g,)), X)
    assert report.passed, report.summary()
    assert any("JAX's derivative of the plain function, 0, is the odd one out" in note for note in report.notes)
    neither = ruled(function, lambda saved, g: (g * jnp.where(saved[0] == 0, 2.9, 3),))
    report = check_vjp(neither, X, **QUICK)
    assert report.verdict == "fail" and "which is neither" in report.summary()


def test_gradients_and_tangents_are_settled_too():
    weights = jnp.arange(1.0, 6.0)
    loss = lambda x: jnp.sum(jnp.maximum(x, 0) * weights)  # noqa: E731
    for gradient in (lambda x: jnp.where(x > 0, weights, 0), lambda x: np.where(x > 0, weights, 0).astype(x.dtype)):
        report = check_gradient(loss, gradient, X)
        assert report.passed and any("a kink" in note for note in report.notes), report.summary()
    assert check_gradient(loss, lambda x: jnp.where(x > 0, weights, -1), X, **QUICK).verdict == "fail"
    norm = lambda x: jnp.sqrt(jnp.sum(x**2))  # noqa: E731
    assert check_gradient(norm, lambda x: 0 * x, np.zeros(3, "float32"), **QUICK).passed
    assert check_gradient(norm, lambda x: 0 * x + 2, np.zeros(3, "float32"), **QUICK).verdict == "fail"
    for slope, verdict in ((0, "pass"), (2, "fail")):
        relu = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
        relu.defjvp(lambda p, t, s=slope: (jnp.maximum(p[0], 0), jnp.where(p[0] == 0, s, p[0] > 0) * t[0]))
        assert check_jvp(relu, X, **QUICK).verdict == verdict


def test_where_neither_is_finite_there_is_no_point_to_check_at():
    root = ruled(jnp.sqrt, lambda saved, g: (g / (2 * jnp.sqrt(saved[0])),))
    with pytest.raises(ValueError, match=r"the reference is inf in x\[0\]"):
        check_vjp(root, np.zeros(2, "float32"), **QUICK)


def test_slopes_are_those_of_the_program_in_float64():
    """Of x |x| + 3 max(x, y): at (0, 0) by x from the left 0, from the right 3; by y likewise."""
    function = lambda moving, data: [moving[0] * jnp.abs(moving[0]) + 3 * jnp.maximum(*moving)]  # noqa: E731
    arbiter = Arbiter.of(function, [np.zeros(2, "float32"), np.asarray([0, -1], "float32")], [])
    ((entries, sides),) = arbiter.by_entries(0, np.arange(2), [[np.asarray([1.0, 10.0])]])
    assert list(entries) == [0, 1]
    np.testing.assert_allclose(sides.left, [[0, 30]], atol=1e-9)
    np.testing.assert_allclose(sides.right, [[3, 30]], atol=1e-9)
    assert "max at test_who_is_right.py" in arbiter.kinks()


@jax.jit
def iterated(a):
    """The square root by four steps of Newton's method."""
    return lax.scan(lambda s, _: ((s + a / s) / 2, None), jnp.ones_like(a), None, length=4)[0]


def test_an_implicit_derivative_passes_where_its_author_says_how_far_it_may_be_off():
    implicit = ruled(iterated, lambda saved, g: (g / (2 * iterated(saved[0])),))
    a = np.linspace(1.5, 3, 5)
    with jax.enable_x64(True):
        strict, loose, tight = (
            check_vjp(implicit, a, transforms="eager", approximation=share) for share in (0.0, 1e-3, 1e-9)
        )
        assert [report.verdict for report in (strict, loose, tight)] == ["fail", "pass", "fail"]
        assert "say so by approximation=1e-" in strict.summary()
        assert any("approximation: beyond rounding, 0.001 of the largest entry" in note for note in loose.notes)
        assert "approximation=0.001" in loose.reproduce
        assert max(row.power for row in loose.rows) > 1e-4  # what would show is computed with it
        twice = ruled(iterated, lambda saved, g: (1.01 * g / (2 * iterated(saved[0])),))
        assert check_vjp(twice, a, transforms="eager", approximation=1e-3).verdict == "fail"
        loss, gradient = lambda a: jnp.sum(iterated(a)), lambda a: 1 / (2 * iterated(a))
        assert check_gradient(loss, gradient, a).verdict == "fail"
        assert check_gradient(loss, gradient, a, approximation=1e-3).passed


def test_an_approximation_is_added_to_the_tolerance_relative_to_the_largest_entry():
    measured = Measured([np.asarray([1.0, -4.0]), np.asarray(3)], [np.asarray([0.1, 0.2]), np.asarray(0.0)])
    loose = measured.loosened(0.01)
    np.testing.assert_allclose(loose.tolerance[0], [0.14, 0.24])
    assert loose.tolerance[1] == 0  # an integer is exact


@pytest.mark.parametrize("share", [-1e-3, 1.0, "1e-8", True])
def test_an_approximation_is_a_share(share, without_hook):
    with pytest.raises(ValueError, match="approximation is how far the derivative may be off"):
        check_gradient(jnp.sum, jnp.ones_like, X, approximation=share)


def test_every_format_of_a_report_says_kink_and_approximation(tmp_path):
    report = check_vjp(at_zero(0.0), X, approximation=1e-9, **QUICK)
    run = Run("rules", (NetworkResult("relu", report, 0.1),))
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "markdown", "html")}
    write_reports(run, **files)
    for file in files.values():
        text = file.read_text()
        assert "a kink of the function" in text and "approximation: beyond rounding" in text, file.name


def test_where_jax_is_told_to_stop_a_right_gradient_passes_with_its_own_rounding_and_a_wrong_one_fails():
    """JAX's derivative there is exactly 0, so it has no rounding that could be allowed."""
    rng = np.random.default_rng(0)
    p = {name: rng.normal(size=shape).astype("float32") for name, shape in (("W", (16, 3)), ("b", 3), ("c", 3))}
    x = rng.normal(size=(64, 16)).astype("float32")

    def loss(p, x):
        h = jnp.tanh(jnp.matmul(x, p["W"]) + p["b"][None])
        return jnp.mean(jnp.square(jax.lax.stop_gradient(h) @ p["c"]))

    def gradient(p, x, off=1.0):
        h = jnp.tanh(x @ p["W"] + p["b"][None])
        d = 2 * (h @ p["c"]) / len(x)
        d_z = d[:, None] * p["c"][None] * (1 - h * h)
        return {"W": off * (x.T @ d_z), "b": d_z.sum(0), "c": h.T @ d}

    report = check_gradient(loss, gradient, p, x)
    assert report.passed, report.summary()
    assert any("JAX's derivative of the plain function, 0, is the odd one out" in note for note in report.notes)
    assert not any("is zero here" in note for note in report.notes)
    wrong = check_gradient(loss, lambda p, x: gradient(p, x, 1 + 1e-4), p, x, transforms="eager")
    assert [row.path for row in wrong.failures] == ["p['W']"] and "which is neither" in wrong.summary()

    f = jax.custom_vjp(lambda p, x: loss(p, x))
    f.defvjp(
        lambda p, x: (loss(p, x), (p, x)),
        lambda saved, g: (jax.tree.map(lambda leaf: leaf * g, gradient(*saved)), None),
    )
    assert check_vjp(f, p, x, argnums=0).passed


@pytest.mark.parametrize("dtype", every_time(["float32", "float64"], "float32"))
def test_a_kink_at_zero_is_one_at_the_second_point_of_vmap_too(dtype):
    x, every = np.asarray([-1, 0, 2], dtype), ("eager", "jit", "vmap")
    sums = {"relu": jax.nn.relu, "abs": jnp.abs, "max": lambda x: jnp.maximum(x, 0)}
    slopes = {"relu": lambda x: 1.0 * (x >= 0), "abs": jnp.sign, "max": lambda x: 1.0 * (x >= 0)}
    for name, function in sums.items():
        loss, gradient = (lambda x, f=function: jnp.sum(f(x))), (lambda x, g=slopes[name]: g(x).astype(x.dtype))
        report = check_gradient(loss, gradient, x, dtype=dtype, transforms=every)
        assert report.passed, report.summary()
        assert len([note for note in report.notes if "a kink" in note]) == 1
    steep = lambda x: jnp.where(x == 0, 1.5, x > 0).astype(x.dtype)  # noqa: E731
    wrong = check_gradient(lambda x: jnp.sum(jax.nn.relu(x)), steep, x, dtype=dtype, transforms=every)
    assert [row.path for row in wrong.failures] == ["x", "under jit: x", "under vmap: x"]


def test_numbers_that_the_program_rounds_to_its_precision_accuse_nobody():
    """A fifth, in the mean of five: in the derivative of the float32 program it is that of float32."""
    x = np.linspace(0.3, 1.1, 5).astype("float32")
    loss, gradient = lambda x: jnp.mean(jnp.sin(x) ** 2), lambda x: 2 * jnp.sin(x) * jnp.cos(x) / 5
    right = check_gradient(loss, gradient, x, witnesses="all")
    assert right.notes == ("manual, jax.grad, forward mode, complex step and differences agree",)
    wrong = check_gradient(loss, lambda x: 1.01 * gradient(x), x, witnesses="all")
    assert "as JAX says" in wrong.summary() and "neither" not in wrong.summary()
    (alone,) = (note for note in wrong.notes if "alone" in note)
    assert alone.startswith("x: manual stands alone") and "(x[" in alone


def test_witnesses_give_a_function_its_data_in_float64_too():
    """Where promotion is strict, arguments in float64 do not go with data in float32."""
    data = jnp.linspace(0.5, 1.5, 3, dtype="float32")
    with jax.numpy_dtype_promotion("strict"):
        report = check_gradient(lambda x, y: jnp.sum(x * y), lambda x, y: y, X[:3], data, witnesses="all")
    assert report.verdict == "pass", report.summary()
    assert {row.witness for row in report.rows if row.kind == "witness"} == {
        "forward mode",
        "complex step",
        "differences",
    }


def test_what_the_values_say_is_of_the_number_that_the_row_shows():
    """A row for 1024 times the cotangent shows another number, of which nothing was asked."""
    f = ruled(jnp.sin, lambda saved, g: (g * jnp.sin(saved[0]),))
    report = check_vjp(f, X[1:3], dtype="float32")
    told = {row.path: row.judged for row in report.failures}
    assert "the function's values have the slope" in told["x"]
    assert told["under jit: x"] == told["x"]
    assert not told["for 1024 times the cotangent: x"]


def test_a_solver_is_suspected_where_it_may_be_one():
    """A factor is none; an absolute tolerance bends the derivative of a small cotangent, and is told so."""
    a = np.linspace(1.5, 3, 5)
    with jax.enable_x64(True):
        wrong = ruled(iterated, lambda saved, g: (1.001 * jax.vjp(iterated, saved[0])[1](g)[0],))
        assert "approximation=" not in check_vjp(wrong, a, transforms="eager").summary()

        def absolute(saved, g):
            slope = 1 / (2 * jnp.sqrt(saved[0]))
            stopped = lax.while_loop(
                lambda s: jnp.max(jnp.abs(s - g * slope)) > 1e-4, lambda s: (s + g * slope) / 2, jnp.zeros_like(g)
            )
            return (stopped,)

        report = check_vjp(ruled(iterated, absolute), a, transforms="eager", approximation=3e-3)
        (bent, *_) = (row for row in report.failures if row.path.startswith("for 1/1024"))
        assert "thresholded" in bent.cause and "relative to the size of its right side" in bent.cause
        assert "approximation=" not in bent.judged
