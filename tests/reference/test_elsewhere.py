"""Code that nobody here wrote: what is right passes, and what the table of libraries allows is what they err."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import every_time
from jax import lax

import reference
from benchmarks import functions
from benchmarks.elsewhere.cases import square
from benchmarks.elsewhere.functions import CASES
from benchmarks.elsewhere.judging import judged
from reference.checks.linear_rows import drawn
from reference.tolerance import libraries

# One of each kind, and as evidence every fourteenth; `python -m benchmarks.elsewhere` has them all.
QUICK = (
    "bernoulli",
    "bitcast_convert_type",
    "dtype",
    "fori_loop",
    "pure_callback",
    "vmap of a while",
    "cumsum",
    "gather",
    "scatter max",
    "tile",
    "sort",
    "digamma",
    "erf_inv",
    "fft",
    "qr",
    "solve, condition 1e4",
)
WIDE_ONLY = {"qr", "solve, condition 1e4", "fft"}  # no LAPACK or FFT in 16 bits
SLOW = "vmap of a while"
EXCEPT = {"spence, above 1"}  # JAX's gradient is nan


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings, which its own functions are written for: promotion of dtypes and ranks, 32 bits."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def report(name, dtype, f=None):
    case = CASES[name]
    given = {"raw": case.function, "dtype": dtype, "transforms": "eager"}
    return reference.check_vjp(f or case.function, *case.point(), **given)


@pytest.mark.parametrize("name", [name for name in QUICK if name != SLOW])
def test_jax_passes_against_itself(name):
    assert report(name, "float32").verdict == "pass"


@pytest.mark.evidence
@pytest.mark.parametrize("name", [name for name in QUICK if name not in {*WIDE_ONLY, SLOW}])
def test_jax_does_not_fail_against_itself_in_16_bits(name):
    assert report(name, "bfloat16").failures == ()


@pytest.mark.evidence
@pytest.mark.parametrize("name", [name for name in list(CASES)[::14] if name not in EXCEPT])
def test_every_function_passes_against_itself_under_jit_and_vmap_too(name):
    outcome = judged(CASES[name])
    assert (outcome.verdict, outcome.reason) == ("pass", "")


def broken(function, scale):
    """The function with a backward rule that is off by a factor."""
    ruled = jax.custom_vjp(lambda x: function(x))

    @jax.jit
    def backward(x, g):
        pulled = jax.vjp(function, x)[1](g)[0]
        return (pulled * jnp.asarray(scale, pulled.dtype),)

    ruled.defvjp(lambda x: (function(x), x), backward)
    return ruled


@pytest.mark.parametrize("name", ["bernoulli", "digamma", "fft", "qr"])
def test_a_rule_that_is_a_thousandth_off_still_fails(name):
    """What lets right code pass does not let wrong code pass."""
    found = report(name, "float32", broken(CASES[name].function, 1.001))
    assert {row.path.rpartition(": ")[2] for row in found.failures} == {"x"}


def test_conjugate_gradients_that_run_on_after_they_converged_pass_against_themselves():
    """What a linear solve iterates is rounded turn by turn, and so differs by more than its result's last digit."""
    outcome = judged(CASES["sparse.linalg.cg"])
    assert (outcome.verdict, outcome.reason) == ("pass", "")


def as_parts(function):
    return lambda x: (lambda y: jnp.stack([y.real, y.imag]))(function(x))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_fft_passes_against_itself(seed):
    """Its error grows with the number of its stages."""
    f, x = as_parts(jnp.fft.fft), np.random.default_rng([seed, 3]).normal(size=4096).astype("float32")
    assert reference.check_vjp(f, x, raw=f, seed=seed, transforms="eager").verdict == "pass"


def test_both_parts_of_a_complex_number_are_rounded():
    x = np.full(200, 0.5, "float32")
    measured = reference.measure(as_parts(lambda x: jnp.exp(lax.complex(x, 2 * x))), x, dtype="float32")
    real, imaginary = measured.tolerance.mean(1)
    assert 0.8 < real / imaginary < 1.25


def test_a_solver_that_has_ended_in_the_function_itself_leaves_no_nan_to_its_samples():
    """A loop goes on for some samples when the first has left it, and what that one then gives is read by nobody."""

    def f(x):
        inverse = lambda state: (state[0] * 0.5, jnp.sum(1 / (state[0] - 0.5) * 1e-3) + state[1], state[2] + 1)  # noqa: E731
        going = lambda state: (state[2] < 4) & (state[0][0] != 0.5)  # noqa: E731
        return lax.while_loop(going, inverse, (x, jnp.float32(0), 0))[1]

    measured = reference.measure(f, np.array([4.0, 4.0], "float32"), dtype="float32")
    assert np.isfinite(measured.tolerance).all()


def test_the_rule_that_is_off_is_right_but_for_its_factor():
    assert report("digamma", "float32", broken(CASES["digamma"].function, 1.0)).verdict == "pass"


def test_another_draw_is_another_function():
    case, other = CASES["bernoulli"], jax.random.key(1)
    wrong = jax.custom_vjp(case.function)
    wrong.defvjp(
        lambda x: (case.function(x), x),
        lambda x, g: (2 * g * x * jnp.where(jax.random.bernoulli(other, 0.7, x.shape), 1 / 0.7, 0),),
    )
    assert report("bernoulli", "float32", wrong).verdict == "fail"


def test_a_draw_is_the_same_to_the_bit_and_has_no_tolerance():
    key = jax.random.key(3)
    drawn = lambda x: 0 * x + jnp.where(jax.random.uniform(key, x.shape, x.dtype) < 0.5, 1.0, 0.0)  # noqa: E731
    x = np.ones(4000, "float32")
    measured = reference.measure(drawn, x, dtype="float32")
    np.testing.assert_array_equal(measured.value, drawn(x))
    assert measured.tolerance.max() < 1e-5


def test_a_draw_in_16_bits_next_to_its_threshold_is_not_turned_by_rounding():
    """Of 4000 draws in bfloat16 many are a rounding away from 0.5; in another program they are the same draws."""
    key = jax.random.key(3)
    kept = lambda x: 0 * x + jnp.where(jax.random.uniform(key, x.shape, x.dtype) < 0.5, 1, 0).astype(x.dtype)  # noqa: E731
    measured = reference.measure(kept, np.ones(4000, jnp.bfloat16), dtype="bfloat16")
    assert measured.tolerance.max() < 0.1


def test_a_sampler_with_a_parameter_draws_what_the_program_draws():
    f = lambda x: jax.random.gamma(jax.random.key(0), x, dtype=x.dtype)  # noqa: E731
    x = np.linspace(0.8, 2, 8, dtype="float32")
    np.testing.assert_allclose(reference.measure(f, x, dtype="float32").value, f(x), rtol=1e-5)


def test_what_counts_is_exact():
    """An exponent made of iota, and a counter that is asked whether it is zero: rounding moves neither."""
    x = np.asarray([-1.3, 0.5], "float32")
    assert np.isfinite(reference.measure(lambda x: jnp.vander(x, 3), x, dtype="float32").tolerance).all()

    def turn(i, total):
        away = i.astype(x.dtype) - 1
        return total + jnp.where(away != 0, x / away, 0)

    assert np.isfinite(reference.measure(lambda x: lax.fori_loop(0, 3, turn, x), x, dtype="float32").tolerance).all()


def test_a_comparison_of_what_is_equal_is_that_of_the_function_itself():
    p = np.random.default_rng(3).uniform(1, 2, 500).astype("float32")
    f = lambda p: jnp.where(p * 2 / 2 > p, 3 * p, p)  # noqa: E731
    np.testing.assert_array_equal(reference.measure(f, p, dtype="float32").value, p)


@pytest.mark.parametrize("power", [7, 12, -6, -12])
def test_an_integer_power_errs_as_its_products_do(power):
    x = np.random.default_rng(4).uniform(0.5, 2, 3000).astype("float32")
    measured = reference.measure(lambda x: x**power, x, dtype="float32")
    used = np.abs(np.asarray(jax.jit(lambda x: x**power)(x), float) - measured.value) / measured.tolerance
    assert 0.02 < used.max() < 0.9


def test_cotangents_are_not_the_first_numbers_of_their_seed():
    """So are the arguments of many a test, and g x and x x would be one."""
    (first, *_), x = drawn([np.zeros(5)], 0), np.random.default_rng(0).normal(size=5)
    assert not np.isclose(first[0], x).any()


class Unbatched:
    """A primitive that JAX cannot vmap, as some libraries have."""

    def __init__(self):
        self.primitive = jax.extend.core.Primitive("unbatched")
        self.primitive.def_impl(lambda x: 2 * x)
        self.primitive.def_abstract_eval(lambda x: x)


def test_a_primitive_without_batching_is_evaluated_sample_by_sample():
    primitive = Unbatched().primitive
    x = np.linspace(1, 2, 4).astype("float32")
    measured = reference.measure(lambda x: primitive.bind(jnp.sin(x)) * x, x, dtype="float32")
    np.testing.assert_allclose(measured.value, 2 * np.sin(np.asarray(x, float)) * x, rtol=1e-7)
    assert (measured.tolerance > 0).all()


def test_a_callback_that_objects_to_rounding_does_not_end_a_check():
    def strict(v):
        if not np.array_equal(v, v.astype("float32")):
            raise ValueError("not of the format")
        return v

    f = lambda x: x * jax.pure_callback(strict, jax.typeof(x), x / 3) + x  # noqa: E731
    x = np.linspace(1, 2, 4).astype("float32")
    assert np.isfinite(reference.measure(f, x, dtype="float32").value).all()


SOME = ("bessel_i1e", "digamma", "erf_inv", "exp", "lgamma", "tanh")


@pytest.mark.parametrize("name", every_time(functions.FUNCTIONS, *SOME))
def test_the_table_of_libraries_covers_what_they_err(name):
    assert name in libraries.FACTORS
    assert functions.errors(name, points=2000, seed=1).max() < functions.TOLERANCE


def test_linear_algebra_errs_with_its_condition_and_sums_do_not():
    """The tolerance of a solution grows as the condition number does; that of a product stays."""
    sizes = []
    for condition in ("1e1", "1e4"):
        (A,) = square(jnp.linalg.inv, condition).point()
        solved, product = (reference.measure(f, A, dtype="float32") for f in (jnp.linalg.inv, lambda A: A @ A))
        sizes.append([np.median(m.tolerance) / np.abs(m.value).max() for m in (solved, product)])
    (solved, product), (solved_ill, product_ill) = sizes
    assert 30 < solved_ill / solved < 30_000
    assert 0.1 < product_ill / product < 10


def test_running_sums_accumulate_in_the_format_and_other_sums_in_float32():
    x = np.asarray(np.random.default_rng(0).uniform(1, 2, 256), jnp.bfloat16)
    whole, running = (reference.measure(f, x, dtype="bfloat16") for f in (jnp.sum, lambda x: lax.cumsum(x)[-1]))
    assert 3 < running.tolerance / whole.tolerance < 100
