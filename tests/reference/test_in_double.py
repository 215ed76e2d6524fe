"""Programs in float64: how their own numbers, branches and functions are rounded, and who is right where JAX errs."""

import re

import jax
import jax.extend
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax
from jax.interpreters import ad, batching

import reference
from benchmarks import functions
from reference.tolerance.monte_carlo import exact
from reference.tolerance.rounding import measure


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings, with which its users call it, but in 64 bits."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        yield


def tolerance(f, *args, dtype="float64"):
    """The largest tolerance of the results, relative to them."""
    measured = measure(f, *args, dtype=dtype)
    return float(np.max(measured.tolerance / np.abs(measured.value)))


def test_the_times_of_a_solver_are_its_own_so_that_noise_adds_no_step():
    def grown(x):
        forward = jnp.where(jnp.asarray(0.0) < 1.0, 1, -1)  # as solvers that run either way have it
        step, end = 0.2 * forward, 1.0 * forward
        almost = end
        for _ in range(100):
            almost = jnp.nextafter(almost, 0.0)

        def turn(state):
            t, y = state
            after = t + step
            return jnp.where(after > almost, end, after), 1.1 * y

        return lax.while_loop(lambda state: state[0] < end, turn, (0.0 * step, x))[1]

    assert tolerance(grown, np.asarray(0.7)) < 1e-14


@pytest.mark.parametrize(
    ("f", "number", "free"),
    [
        (jnp.multiply, 1.0, True),
        (jnp.divide, -1.0, True),
        (jnp.subtract, 0.0, True),
        (jnp.add, 0.0, True),
        (jnp.multiply, 1.5, False),
        (jnp.add, 1.0, False),
        (lambda x, one: one / x, 1.0, False),
    ],
)
def test_times_one_and_plus_zero_are_not_rounded(f, number, free):
    x = np.asarray([0.7, 1.3])
    assert (measure(f, x, np.asarray(number), dtype="float64").tolerance.max() == 0) == free
    assert measure(f, x, np.full(2, number), dtype="float64").tolerance.max() > 0  # data that happen to be so


def test_a_branch_that_only_noise_takes_may_raise():
    def refuse(x):
        raise ValueError("not here")

    def f(x, most):
        def refused(x):
            return jax.pure_callback(refuse, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

        return lax.cond(x / 3 * 3 > most, refused, jnp.sin, x)

    x = np.asarray(0.75)
    assert 0 < tolerance(f, x, x) < 1e-14
    with pytest.raises(Exception, match="not here"):
        measure(f, x, x / 2, dtype="float64")
    with pytest.raises(Exception, match="not here"):  # of several points, none stands for another
        exact(jax.make_jaxpr(f)(x, x), [np.asarray([0.3, 0.9]), np.asarray([0.75])])


def test_of_several_points_an_error_in_one_is_an_error_of_a_callback_too():
    def small(x):
        if x > 1:
            raise ValueError("too large")
        return x

    def f(x):
        return jax.pure_callback(small, jax.ShapeDtypeStruct(x.shape, x.dtype), 1 * x)

    closed = jax.make_jaxpr(f)(np.asarray(0.5))
    assert exact(closed, [np.asarray([0.5, 0.9])])[0].tolist() == [0.5, 0.9]
    with pytest.raises(ValueError, match="too large"):
        exact(closed, [np.asarray([0.5, 1.5])])


def test_a_primitive_of_a_whole_batch_is_asked_about_every_sample_alone():
    """Equinox's: under vmap it says whether any example is in error, but a sample is no example."""
    some = jax.extend.core.Primitive("unvmap_any")
    some.def_impl(jnp.any)
    some.def_abstract_eval(lambda x: jax.core.ShapedArray((), np.dtype(bool)))
    batching.primitive_batchers[some] = lambda inputs, axes: (some.bind(*inputs), None)

    def f(x, most):
        return jnp.where(some.bind(x / 3 * 3 > most), 0.0, x)

    x = np.asarray(0.75)
    measured = measure(f, x, x, dtype="float64")
    assert measured.value == 0.75
    differ = measure(lambda x, most: jnp.where(x / 3 * 3 > most, 0.0, x), x, x, dtype="float64")
    assert measured.tolerance == differ.tolerance


def test_a_primitive_that_knows_its_types_by_heart_is_evaluated_in_them():
    """As lineax's solve does, whose parameters hold the types of the operator; the reference says so."""
    twice = jax.extend.core.Primitive("twice")

    @twice.def_impl
    def doubled(x):
        if x.dtype != "float32":
            raise ValueError("not the type that I was made for")
        return 2 * x

    twice.def_abstract_eval(lambda x: x)
    ad.deflinear2(twice, lambda cotangent, x: [twice.bind(cotangent)])

    def plain(x):
        return jnp.sin(twice.bind(x / 3))

    def ruled(factor):
        f = jax.custom_vjp(plain)
        f.defvjp(lambda x: (plain(x), x), lambda x, g: (g * jnp.cos(2 * x / 3) * factor,))
        return f

    x = jnp.asarray([0.7, 1.3], "float32")
    right, wrong = (reference.check_vjp(ruled(c), x, dtype="float32", transforms="eager") for c in (2 / 3, 0.667))
    assert (right.verdict, wrong.verdict) == ("pass", "fail")
    by_hand = reference.check_gradient(
        lambda x: plain(x).sum(), lambda x: 2 / 3 * jnp.cos(2 * x / 3), x, dtype="float32"
    )
    for report in (right, by_hand):
        assert "the reference has the rounding of twice, which knows its types by heart" in report.notes
    assert 1e-8 < tolerance(plain, x, dtype="float32") < 1e-5
    assert not measure(jnp.sin, x, dtype="float32").notes


def test_a_choice_of_equinox_is_not_rounded():
    choice = jax.extend.core.Primitive("select_if_vmap")
    choice.def_impl(lambda which, yes, no: yes)
    choice.def_abstract_eval(lambda which, yes, no: yes)
    batching.primitive_batchers[choice] = lambda inputs, axes: (choice.bind(*inputs), axes[1])
    x = np.asarray([0.7, 1.3])
    assert measure(lambda x: choice.bind(True, x, -x), x, dtype="float64").tolerance.max() == 0


def test_numbers_of_the_program_alone_are_added_as_it_adds_them():
    """Ten times 0.1 is 0.9999999999999999, so there are eleven turns, and noise in the time would make them ten."""

    def grown(x):
        return lax.while_loop(lambda state: state[0] < 1.0, lambda state: (state[0] + 0.1, 1.1 * state[1]), (0.0, x))[1]

    x = np.asarray(0.7)
    assert measure(grown, x, dtype="float64").value == pytest.approx(0.7 * 1.1**11)
    assert tolerance(grown, x) < 1e-14


def test_log1p_is_as_far_off_as_xla_s_is():
    """XLA's is 240 roundings off at -0.414, where its rational function ends, and right by log(1 + x) at -0.42."""
    near, apart = np.asarray([-0.4141, -0.405, -0.39]), np.asarray([-0.42, -0.2, 0.4])
    assert reference.check_vjp(jnp.log1p, jnp.asarray(near), raw=jnp.log1p, dtype="float64").verdict == "pass"
    assert tolerance(jnp.log1p, apart) < 5e-15 < tolerance(jnp.log1p, near) < 1e-13


@pytest.mark.parametrize("name", ["atanh", "erf_inv", "expm1", "lgamma", "log1p", "zeta"])
def test_the_table_covers_what_functions_err_in_double(name):
    assert functions.errors(name, "float64", points=200).max() < functions.TOLERANCE


def test_a_sum_of_complex_numbers_into_places_has_a_tolerance():
    def f(x):
        return jnp.abs(jnp.zeros(2, complex).at[jnp.asarray([0, 1, 0])].add(x * (1 + 2j)))

    assert 0 < tolerance(f, np.asarray([0.3, 0.4, 0.5])) < 1e-14


def test_a_derivative_that_is_nan_for_jax_as_well_is_held_against_the_values():
    """JAX's gradient of spence is nan above 1, where d/dx spence(x) = log(x) / (1 - x)."""
    x = jnp.linspace(1.2, 1.9, 11)
    report = reference.check_vjp(jax.scipy.special.spence, x, raw=jax.scipy.special.spence, transforms="eager")
    assert report.verdict == "fail"
    told = next(row for row in report.rows if row.path == "x").explain()
    slopes = [float(re.search(r"the slope (\S+) there", row.explain())[1]) for row in report.rows if row.path == "x"]
    assert np.isfinite(slopes).all()
    assert "stands here for JAX's derivative of the plain function, since that is nan" in told


@pytest.mark.evidence
def test_a_right_derivative_passes_where_jax_cancels():
    """At 0.66 JAX's derivative of this hypergeometric function is 6e-14 off; the rule is mpmath's."""
    a, b, c, x = -1.11, 3.53, 0.42, jnp.asarray([0.5, 0.66])

    def by_mpmath(x):
        each = [a * b / c * mpmath.hyp2f1(a + 1, b + 1, c + 1, float(t)) for t in np.ravel(x)]
        return np.asarray(each, float).reshape(np.shape(x))

    def plain(x):
        return jax.scipy.special.hyp2f1(a, b, c, x)

    def derivative(x):
        return jax.pure_callback(by_mpmath, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")

    f = jax.custom_vjp(plain)
    f.defvjp(lambda x: (plain(x), x), lambda x, g: (g * derivative(x),))
    off = np.abs(jax.grad(lambda x: plain(x).sum())(x) / by_mpmath(x) - 1)
    assert off.max() > 3e-14
    assert reference.check_vjp(f, x, raw=plain, dtype="float64", transforms="eager").verdict == "pass"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_index_made_of_a_count_is_exact(dtype):
    """The median of seven is the entry at 0.5 * (7 - 1), which no noise may take for the one before it."""
    x = np.random.default_rng(5).normal(size=7).astype(dtype)
    report = reference.check_vjp(jnp.nanmedian, x, raw=jnp.nanmedian, dtype=dtype, transforms="eager")
    assert report.passed, report.summary()
