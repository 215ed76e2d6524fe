"""What a program computes in a type that is narrower than its arguments is rounded as that type rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_a_user, every_time

from reference.checks.gradient import check_gradient
from reference.checks.rule import check_vjp
from reference.tolerance.formats import Format, unit_roundoff
from reference.tolerance.rounding import measure

RNG = np.random.default_rng(3)
X, W, V, LONG = (RNG.normal(size=shape).astype("float32") for shape in ((7, 5), (5, 6), (6, 3), (60,)))
QUICK = {"dtype": "float32", "transforms": "eager"}
BF16, F16 = jnp.bfloat16, jnp.float16


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings."""
    with as_a_user():
        yield


def in_a_scan(x):
    return jax.lax.scan(lambda h, row: (jnp.tanh(h + row), h), jnp.zeros(5, BF16), x.astype(BF16))


SOME = [
    (lambda W, V, x: jnp.tanh(x.astype(BF16) @ W.astype(BF16)) @ V.astype(BF16), (W, V, X)),
    (lambda x: jnp.cumsum(x.astype(BF16)), (LONG,)),
    (lambda x: jnp.sin(jax.lax.reduce_precision(jnp.sin(3 * x), 5, 10)), (X,)),
    (lambda x: (x.astype(jnp.float8_e4m3fn).astype(BF16) * 3).astype(jnp.float32), (X,)),
]
MORE = [
    (lambda W, x: jnp.mean(jnp.square((x.astype(F16) @ W.astype(F16)).astype(jnp.float32))), (W, X)),
    (lambda W, x: jax.lax.dot(x.astype(F16), W.astype(F16), preferred_element_type=jnp.float32), (W, X)),
    (lambda x: jax.nn.softmax(x.astype(BF16)).astype(jnp.float32), (X,)),
    (lambda x: jax.nn.logsumexp(x.astype(F16)), (LONG,)),
    (lambda x: jnp.sum(x.astype(BF16)), (LONG,)),
    (lambda x: jnp.where(x > 0, jnp.exp(x.astype(BF16)), x.astype(BF16)), (X,)),
    (lambda x: jax.lax.reduce_precision(x, 8, 7), (X,)),
    (in_a_scan, (X,)),
]


@pytest.mark.parametrize(("function", "args"), [*SOME, *every_time(MORE)])
def test_mixed_precision_is_no_fault(function, args):
    report = check_vjp(function, *args, raw=function, **QUICK)
    assert report.passed, report.summary()


def sine(x):
    return jnp.sin(x.astype(BF16)).astype(jnp.float32)


def ruled(function, slope, forward=None):
    f = jax.custom_vjp(function)
    f.defvjp(lambda x: ((forward or function)(x), x), lambda x, g: (g * slope(x),))
    return f


def test_a_fault_above_the_narrow_rounding_fails_and_a_rule_may_be_more_precise():
    assert check_vjp(ruled(sine, jnp.cos), X, **QUICK).passed
    assert not check_vjp(ruled(sine, lambda x: 1.1 * jnp.cos(x)), X, **QUICK).passed
    assert not check_vjp(ruled(jnp.sin, jnp.cos, forward=sine), X, **QUICK).passed  # it is the rule that is narrow
    notes = check_vjp(ruled(sine, jnp.cos), X, transforms="eager").notes
    assert any(note.startswith("not repeated in float64: the rule computes in bfloat16") for note in notes), notes
    assert any(note.startswith("the plain function computes in bfloat16 inside") for note in notes), notes


def test_a_gradient_too():
    loss = lambda x: jnp.sum(sine(x) ** 2)  # noqa: E731
    report = check_gradient(loss, lambda x: 2 * jnp.sin(x) * jnp.cos(x), X)
    assert report.passed, report.summary()
    assert not check_gradient(loss, lambda x: 2.2 * jnp.sin(x) * jnp.cos(x), X).passed
    report = check_gradient(loss, jax.grad(loss), X, witnesses="all")
    assert report.passed and any("witnesses are left out" in note for note in report.notes), report


def test_a_cast_errs_by_at_most_half_a_unit_of_its_type():
    for narrow, u in ((BF16, 2.0**-8), (F16, 2.0**-11), (jnp.float8_e5m2, 2.0**-3)):
        rounded = measure(lambda x, narrow=narrow: x.astype(narrow).astype(x.dtype), X, dtype="float32")
        ratio = rounded.tolerance / np.abs(X) / u
        assert 2 * u == float(jnp.finfo(narrow).eps) and 2.5 < np.median(ratio) < 5, narrow
        np.testing.assert_array_equal(rounded.value, X.astype("float64"))


def test_a_cast_to_the_precision_under_test_or_a_wider_one_is_exact():
    with jax.enable_x64(True):
        x = X.astype("float64")
        both = lambda x: x.astype(jnp.float32).astype(x.dtype)  # noqa: E731
        assert not measure(both, x, dtype="float32").tolerance.any()
        assert not measure(both, X, dtype="bfloat16").tolerance.any()
        assert measure(both, x, dtype="float64").tolerance.min() > 2 * unit_roundoff("float32") * np.abs(x).min()


def test_a_count_in_a_narrow_type_is_exact():
    count = measure(lambda x: jnp.sum(x > 0).astype(BF16).astype(x.dtype), X, dtype="float32")
    assert not count.tolerance.any()


@pytest.mark.parametrize(("narrow", "bits"), [(BF16, (8, 7)), (F16, (5, 10)), (jnp.float32, (8, 23))])
def test_the_format_of_reduced_precision_is_that_of_the_type_with_its_bits(narrow, bits):
    reduced, info = Format.of_bits(*bits), jnp.finfo(narrow)
    assert (reduced.u, reduced.largest, reduced.eta) == (float(info.eps) / 2, float(info.max), float(info.tiny))


def test_a_vector_is_scaled_by_what_the_narrowest_type_inside_can_hold():
    paths = [row.path for row in check_vjp(sine, X, raw=sine, **QUICK).rows]
    assert "for 32 times the cotangent: x" in paths and not any("1024" in path for path in paths)
