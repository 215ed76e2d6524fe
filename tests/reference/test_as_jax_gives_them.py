"""A check calls a rule with what JAX itself would give it: arrays, defaults, weak types, buffers of its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.checks.gradient import check_gradient
from reference.checks.rule import check_jvp, check_vjp

X = np.random.default_rng(7).normal(size=(4, 3)).astype("float32")
QUICK = {"dtype": "float32", "transforms": "eager"}


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings, as most users have them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def ruled(function, backward, forward=None, **options):
    f = jax.custom_vjp(function, **options)
    f.defvjp(forward or (lambda *args: (function(*args), args)), backward)
    return f


def scaled_log(w, x, eps=1e-3):
    return w * jnp.log(x * x + eps)


def scaled_log_backward(saved, g):
    w, x, eps = saved
    return g * jnp.log(x**2 + eps), g * w * 2 * x / (x**2 + eps), jnp.sum(g * w / (x**2 + eps))


SCALED_LOG = ruled(scaled_log, scaled_log_backward)
CUMSUM = ruled(
    lambda x, axis=0, scale=2.0: scale * jnp.cumsum(x, axis),
    lambda axis, scale, _, g: (scale * jnp.flip(jnp.cumsum(jnp.flip(g, axis), axis), axis),),
    lambda x, axis, scale: (scale * jnp.cumsum(x, axis), None),
    nondiff_argnums=(1, 2),
)
SINE = ruled(
    jnp.sin,
    lambda x, g: (g.at[0].multiply(1) * jnp.cos(x),),
    lambda x: (jnp.sin(x.at[0].add(0)), x),
)


@pytest.mark.parametrize(
    ("rule", "args"),
    [
        (SINE, (X,)),
        (CUMSUM, (X,)),
        (CUMSUM, (X, 1)),
        (partial(CUMSUM, axis=1), (X,)),
        (SCALED_LOG, (X + 1, X)),
        (partial(SCALED_LOG, X + 1), (X,)),
        (partial(SCALED_LOG, eps=0.1), (X + 1, X)),
        (SCALED_LOG, (X + 1, X, 1e-3)),
        (SCALED_LOG, (X + 1, X, np.float64(1e-3))),
    ],
    ids=[
        "g.at",
        "defaults",
        "one default",
        "partial",
        "float default",
        "bound",
        "keyword",
        "python float",
        "np.float64",
    ],
)
def test_a_right_rule_passes_however_it_is_called(rule, args):
    report = check_vjp(rule, *args, **QUICK)
    assert report.passed, report.summary()


def test_a_wrong_rule_inside_a_partial_fails_with_its_argument_named_as_the_function_names_it():
    wrong = ruled(scaled_log, lambda saved, g: tuple(2 * d for d in scaled_log_backward(saved, g)))
    report = check_vjp(partial(wrong, X + 1), X, **QUICK)
    assert report.failures[0].path == "x"
    assert (
        "to see this again: check_vjp(scaled_log, x, transforms=('eager',), dtype='float32', seed=0)"
        in report.summary()
    )
    wide = check_vjp(partial(wrong, X + 1), X, transforms="eager")
    assert (
        "to see this again: check_vjp(scaled_log, x, transforms=('eager',), seed=0)" in wide.summary()
    )  # as it was called


def test_what_is_left_at_its_default_is_not_proven_and_that_is_said():
    deaf = ruled(scaled_log, lambda saved, g: (*scaled_log_backward(saved, g)[:2], jnp.float32(7)))
    report = check_vjp(deaf, X + 1, X, **QUICK)
    assert report.passed
    assert report.notes == ("not differentiated: eps; give by position what has a default, to check it",)
    assert check_vjp(deaf, X + 1, X, 1e-3, **QUICK).failures[0].path == "eps"
    assert check_vjp(CUMSUM, X, **QUICK).notes == ()  # declared so


def test_a_keyword_only_argument_that_has_a_default():
    def scaled(x, *, scale=2.0):
        return scale * jnp.sin(x)

    rule = ruled(scaled, lambda saved, g: (2 * g * jnp.cos(saved[0]),), lambda x: (scaled(x), (x,)))
    assert check_vjp(rule, X, **QUICK).passed


def test_a_jvp_rule_with_a_default_and_one_inside_a_partial():
    power = jax.custom_jvp(lambda x, k=2: x**k, nondiff_argnums=(1,))
    power.defjvp(lambda k, primals, tangents: (primals[0] ** k, k * primals[0] ** (k - 1) * tangents[0]))
    for rule in (power, partial(power, k=3)):
        assert check_jvp(rule, X, **QUICK).passed


def test_a_python_float_beside_16_bits_stays_weak():
    product = ruled(lambda x, s: x * s, lambda saved, g: (g * saved[1], jnp.sum(g * saved[0]).astype("float32")))
    report = check_vjp(product, jnp.asarray(X, "bfloat16"), 0.3, transforms=("eager", "vmap"))
    assert report.passed and report.dtype == "bfloat16", report.summary()


@pytest.mark.parametrize("given", [np.float64(3), np.full(3, 3.0)])
def test_float64_data_beside_float32_is_what_jax_makes_of_it(given):
    report = check_gradient(lambda x, s: jnp.sum(s * x**2), lambda x, s: 2 * s * x, X, given)
    assert report.passed and report.dtype == "float32", report.summary()


def test_donated_buffers_are_copies():
    donating = jax.jit(SINE, donate_argnums=0)
    assert check_vjp(donating, jnp.asarray(X), **QUICK).passed
    gradient = jax.jit(lambda x: jnp.cos(x), donate_argnums=0)
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x)), gradient, jnp.asarray(X), **QUICK).passed


def test_what_is_complex_is_refused_in_a_sentence():
    turned = ruled(lambda x: (jnp.exp(1j * x), jnp.sin(x)), lambda saved, g: (g[1],))
    with pytest.raises(TypeError, match=r"primal\[0\] is complex: check a function that returns its real"):
        check_vjp(turned, X)


def test_a_point_that_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"v\[1\] is nan: give a finite point"):
        check_gradient(lambda v: jnp.sum(v**3), lambda v: 3 * v**2, np.asarray([1, np.nan]))
    with pytest.raises(ValueError, match=r"p\['w'\] is inf"):
        check_vjp(ruled(lambda p: p["w"] ** 2, lambda p, g: ({"w": 2 * g * p[0]["w"]},)), {"w": np.float32(np.inf)})


def cube(x):
    return jnp.sum(x**3)


def slope(x):
    return 3 * x**2


@pytest.mark.parametrize(
    "check", [lambda x: check_gradient(cube, slope, x), lambda x: check_vjp(jnp.sin, x, raw=jnp.sin)]
)
def test_a_check_moves_numbers_where_jax_guards_that_and_refuses_what_is_traced(check):
    with jax.transfer_guard("disallow"):
        assert check(X[0]).passed
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jnp.asarray(X[0])  # the guard is as it was
    with pytest.raises(TypeError, match=r"^x is traced: a check compares numbers, so call it outside jax\.jit"):
        jax.jit(lambda x: check(x).passed)(X[0])
