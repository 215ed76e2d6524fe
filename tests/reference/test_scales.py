"""Where a rule and JAX differ, the function's values are asked at its own scale: picofarads, dates, next to a bend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reference.checks.arbiter import Sides
from reference.checks.gradient import check_gradient
from reference.checks.rule import check_jvp, check_vjp


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def ruled(function, slope):
    f = jax.custom_vjp(function)
    f.defvjp(lambda x: (function(x), x), lambda x, g: (g * slope(x),))
    return f


def by_numpy(function, x):
    kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda v: function(np.asarray(v)).astype(v.dtype), kind, x, vmap_method="broadcast_all")


SMALL = {  # (function, a slope, arguments, whether the slope is right)
    "steep": (lambda x: jnp.tanh(x * 1e12), lambda x: 0 * x, [1e-12, -2e-12], False),
    "rounded corner": (lambda x: jnp.sqrt(x * x + 1e-20), jnp.sign, [1e-10, -3e-11], False),
    "right of a bend": (lambda x: jnp.maximum(x, 0), lambda x: 1.0 * (x > 1e-8), [1e-9, 2], False),
    "at a bend and beside it": (lambda x: jnp.maximum(x, 0), lambda x: 1.0 * (x >= 0), [1e-9, 2, 0], True),
    "narrow": (lambda x: jnp.exp(-((x / 1e-10) ** 2)), lambda x: 0 * x, [1e-10, 2e-11], False),
    "difference of large numbers": (lambda x: (1 + x) ** 3 - 1, lambda x: 3 * (1 + x) ** 2, [1e-12, 1e-5, 0.3], True),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_arguments(name):
    function, slope, x, right = SMALL[name]
    x = np.asarray(x, "float32")
    report = check_gradient(lambda x: jnp.sum(function(x)), lambda x: slope(x).astype(x.dtype), x)
    assert report.verdict == ("pass" if right else "fail"), report.summary()


@pytest.mark.parametrize("size", [1e-5, 1e-11])
def test_a_function_that_jax_cannot_differentiate_in_small_units(size):
    x = np.asarray([size, 4.7 * size], "float32")
    for factor, verdict in ((1.0, "pass"), (1.01, "fail")):
        f = ruled(jax.jit(lambda x: by_numpy(lambda v: 1 / v, x)), lambda x, c=factor: -c / x**2)
        assert check_vjp(f, x, transforms="eager", dtype="float32").verdict == verdict


def test_a_date_in_seconds():
    with jax.enable_x64(True):
        start, t = 1.7e9, 1.7e9 + np.asarray([0.3, -0.5, 1.0])
        for slope, verdict in ((jax.nn.sigmoid, "pass"), (lambda x: 1.0 * (x > 0), "fail")):
            f = ruled(lambda t: jax.nn.softplus(t - start), lambda t, slope=slope: slope(t - start))
            assert check_vjp(f, t, transforms="eager").verdict == verdict


def test_a_large_argument_does_not_hide_the_others_from_a_pushforward():
    def function(x, n):
        return lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, jnp.tanh(s[1])), (0, x))[1]

    def verdict(factor):
        f = jax.custom_jvp(function)
        f.defjvp(lambda p, t: (function(*p), factor * (1 - jnp.tanh(p[0]) ** 2) * t[0]))
        x = np.asarray([0.3, -0.5, 1], "float32")
        return check_jvp(f, x, np.float32(1e10), transforms="eager", dtype="float32").verdict

    assert (verdict(1.0), verdict(0.0)) == ("pass", "fail")


def test_a_slope_of_a_large_error_says_nothing():
    one, error = np.ones(1), np.asarray([5.0])
    right, told = Sides(one, one, error).rule_on(1.5 * one, one, 0.01 * one)
    assert not right[0] and told[0] == "the function's values show no clear slope there"
    right, told = Sides(one, one, 1e-6 * one).rule_on(1.5 * one, one, 0.01 * one)
    assert not right[0] and told[0] == "the function's values have the slope 1 there, as JAX says"


def test_where_jax_has_no_number_its_name_is_not_on_one():
    report = check_gradient(jnp.linalg.norm, jax.grad(jnp.linalg.norm), np.zeros(3, "float32"), dtype="float32")
    (row, *_) = report.failures
    assert row.witness == "the function's values, since JAX's derivative is not finite"
    assert "by jax.grad" not in row.explain() and "a kink of the function" in row.explain()


def test_with_jit_disabled_the_rows_are_those_of_the_function_itself():
    with jax.disable_jit():
        assert check_vjp(ruled(jnp.sin, jnp.cos), np.linspace(0.5, 1.5, 4), dtype="float32").passed


def test_a_mutable_reference_is_refused_by_name():
    def doubled(x):
        box = jax.new_ref(x)
        box[...] = 2 * box[...]
        return jnp.sum(box[...])

    with pytest.raises(Exception, match=r"a mutable reference \(jax.new_ref\) is not evaluated"):
        check_gradient(doubled, jax.grad(doubled), np.ones(4, "float32"))


def test_the_rounding_of_the_values_is_measured():
    """Of x + 1e6 - 1e6 the values are a staircase in steps of 1e-10, which is flat between two of them."""

    @jax.jit
    def function(x):
        return lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, (s[1] + 1e6) - 1e6), (0, x))[1]

    with jax.enable_x64(True):
        for slope, verdict in ((1.0, "pass"), (0.0, "fail")):
            f = ruled(function, lambda x, c=slope: c * jnp.ones_like(x))
            assert check_vjp(f, np.asarray([1e-5, 3e-6]), transforms="eager").verdict == verdict
