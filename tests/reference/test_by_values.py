"""Rules around what JAX cannot differentiate: the function is only called."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from reference import CallFailed, check_gradient, check_jvp, check_vjp
from reference.checks import by_values

X = jnp.linspace(0.1, 1.0, 4, dtype="float32")


@pytest.fixture(autouse=True)
def defaults():
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


def elsewhere(function: Any, x: Any, dtype: Any = None) -> Any:
    """Computed outside of JAX, in the type of x or in one that the other code has."""
    kind = jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
    return jax.pure_callback(lambda v: function(np.asarray(v)).astype(kind.dtype), kind, x, vmap_method="expand_dims")


def ruled(value: Any, slope: Any) -> Any:
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, g: (g * slope(x),))
    return f


@jax.jit
def sine(x: Any) -> Any:
    return elsewhere(np.sin, x)


def test_a_rule_around_code_outside_of_jax_is_proven_by_the_functions_values() -> None:
    report = check_vjp(ruled(sine, jnp.cos), X)
    assert report.verdict == "pass"
    (note,) = report.notes
    assert note.startswith("JAX cannot differentiate the plain function (ValueError: Pure callbacks do not support JVP")
    assert note.endswith("the rule is held against the slopes of its values")
    (row,) = (row for row in report.rows if row.path == "in float64: x")
    assert row.witness == "the slopes of the plain function's values" and row.power < 1e-9
    assert {"under jit: x", "under vmap: x"} <= {row.path for row in report.rows}


@pytest.mark.parametrize("factor", [1 + 1e-8, 1.01, -1.0])
def test_a_fault_in_it_is_found(factor: float) -> None:
    report = check_vjp(ruled(sine, lambda x: factor * jnp.cos(x)), X, transforms="eager")
    assert report.verdict == "fail" and "by the slopes of the plain function's values" in str(report)


def test_code_that_knows_one_precision_is_measured_as_far_as_that_goes() -> None:
    single = jax.jit(lambda x: elsewhere(np.sin, x, np.float32))
    right, wrong = (check_vjp(ruled(single, lambda x, c=c: c * jnp.cos(x)), X, transforms="eager") for c in (1, 1.01))
    assert (right.verdict, wrong.verdict) == ("pass", "fail")
    assert any("float32 inside" in note for note in right.notes)
    (row,) = (row for row in right.rows if row.path == "x")
    assert 1e-6 < row.power < 1e-2


def test_a_primitive_without_a_derivative() -> None:
    primitive = jax.extend.core.Primitive("twice")
    primitive.def_impl(lambda x: 2 * x)
    primitive.def_abstract_eval(lambda x: x)
    double = lambda x: primitive.bind(x) * x  # noqa: E731
    assert check_vjp(ruled(double, lambda x: 4 * x), X, transforms="eager").verdict == "pass"
    assert check_vjp(ruled(double, lambda x: 2 * x), X, transforms="eager").verdict == "fail"
    with pytest.raises(CallFailed, match="Differentiation rule for 'twice' not implemented"):
        check_vjp(double, X, raw=double)


def test_at_a_kink_any_slope_between_the_two_sides_passes() -> None:
    ramp = jax.jit(lambda x: elsewhere(lambda v: np.maximum(v, 0), x))
    x = jnp.asarray([-1.0, 0.0, 1.0], "float32")
    for at_zero, verdict in ((0.0, "pass"), (0.5, "pass"), (1.0, "pass"), (1.5, "fail")):
        slope = lambda x, c=at_zero: jnp.where(x > 0, 1.0, jnp.where(x < 0, 0.0, c))  # noqa: E731
        assert check_vjp(ruled(ramp, slope), x, transforms="eager").verdict == verdict


def test_a_rule_that_is_right_here_alone_is_found_at_the_second_point() -> None:
    here = lambda x: jnp.where(jnp.isin(x, X), 1.0, 1.1) * jnp.cos(x)  # noqa: E731
    failed = [row.path for row in check_vjp(ruled(sine, here), X).failures]
    assert "under vmap: x" in failed and "x" not in failed


def test_tangents_and_gradients_too() -> None:
    for factor, verdict in ((1.0, "pass"), (1.001, "fail")):
        f = jax.custom_jvp(sine)
        f.defjvp(lambda p, t, c=factor: (sine(p[0]), c * jnp.cos(p[0]) * t[0]))
        assert check_jvp(f, X, transforms="eager").verdict == verdict
        gradient = check_gradient(lambda x: jnp.sum(sine(x)), lambda x, c=factor: c * jnp.cos(x), X)
        assert gradient.verdict == verdict
        assert any(note.startswith("JAX cannot differentiate fun (") for note in gradient.notes)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (1.01, "fail")])
def test_a_gradient_that_is_other_code_too(factor: float, verdict: str) -> None:
    report = check_gradient(lambda x: jnp.sum(sine(x)), lambda x: factor * np.cos(np.asarray(x)), X)
    assert report.verdict == verdict
    assert any(note.startswith("not checked under jit") for note in report.notes)


def test_further_witnesses_are_left_out_with_a_note() -> None:
    report = check_gradient(lambda x: jnp.sum(sine(x)), jnp.cos, X, witnesses="all")
    assert report.verdict == "pass" and any(note.startswith("witnesses are left out") for note in report.notes)


def test_a_function_that_oscillates_faster_than_the_steps_is_not_judged_by_an_alias() -> None:
    fast = ruled(jax.jit(lambda x: elsewhere(lambda v: np.sin(1e6 * v), x)), lambda x: 1e6 * jnp.cos(1e6 * x))
    with jax.enable_x64(True):
        report = check_vjp(fast, jnp.asarray([-1.2, 0.4, 2.3]), transforms="eager")
    assert report.verdict == "pass"


def test_a_rule_under_a_vmap_is_not_taken_for_the_rule() -> None:
    right = jax.vmap(ruled(sine, jnp.cos))
    with pytest.raises(TypeError, match="it wraps one: check that by itself, or give raw="):
        check_vjp(right, X)
    assert check_vjp(right, X, raw=jnp.sin, transforms="eager").verdict == "pass"


def test_what_was_not_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_values, "MOST", 3)
    report = check_vjp(ruled(sine, jnp.cos), X, transforms="eager")
    assert report.verdict == "pass"
    assert "x: the function's values show the slope of 3 of 4 entries; the rest is unseen" in report.notes
