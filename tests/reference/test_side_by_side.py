"""Operations for all samples at once: NumPy's are JAX's own, for shared and for differing samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reference.tolerance import side_by_side
from reference.tolerance.operations import OPERATIONS, THE_SAME_IN_ANY_WIDTH
from reference.tolerance.rounding import measure
from reference.tolerance.side_by_side import _by_jax, sampled

SAMPLES = 3
rng = np.random.default_rng(0)
X = rng.normal(size=(SAMPLES, 2, 3))
Y = rng.normal(size=(SAMPLES, 2, 3))
P = rng.uniform(0.1, 2, (SAMPLES, 2, 3))
WEIRD = np.asarray([[np.nan, np.inf, -np.inf], [0.0, -0.0, 1e300]])[None]
HALVES = np.arange(-2, 4).reshape(1, 2, 3) / 2
WHICH = rng.uniform(size=(SAMPLES, 2, 3)) < 0.5
CASES = {
    "abs": [(lax.abs, X), (lax.abs, WEIRD)],
    "acos": [(lax.acos, X / 4), (lax.acos, WEIRD)],
    "acosh": [(lax.acosh, 1 + P), (lax.acosh, WEIRD)],
    "add": [(lax.add, X, Y), (lambda x: lax.add(x, 2.0), X), (lax.add, WEIRD, X)],
    "add_any": [(jax.grad(lambda x: jnp.sum(x * x) + jnp.sum(jnp.sin(x))), X)],
    "and": [(lax.bitwise_and, WHICH, ~WHICH[:1])],
    "asin": [(lax.asin, X / 4), (lax.asin, WEIRD)],
    "asinh": [(lax.asinh, X), (lax.asinh, WEIRD)],
    "atan": [(lax.atan, X), (lax.atan, WEIRD)],
    "atan2": [(lax.atan2, X, Y[:1]), (lax.atan2, WEIRD, X), (lax.atan2, X, WEIRD)],
    "atanh": [(lax.atanh, X / 4), (lax.atanh, WEIRD)],
    "broadcast_in_dim": [
        (lambda x: lax.broadcast_in_dim(x, (4, 2, 5, 3), (1, 3)), X),
        (lambda x: lax.broadcast_in_dim(x, (2, 4), (0,)), X[:, :, 0]),
    ],
    "cbrt": [(lax.cbrt, X), (lax.cbrt, np.minimum(WEIRD, 1e30))],
    "ceil": [(lax.ceil, X), (lax.ceil, WEIRD)],
    "concatenate": [(lambda x, y: lax.concatenate([x, y], 1), X, Y[:1]), (lambda x: jnp.concatenate([x, x]), X)],
    "convert_element_type": [
        (lambda x: lax.convert_element_type(x, jnp.float32), X),
        (lambda x: lax.convert_element_type(x, jnp.float16), WHICH),
        (lambda x: lax.convert_element_type(x, jnp.int32), 3 * X),
        (lambda x: lax.convert_element_type(x, jnp.int32), WEIRD),
    ],
    "copy": [(jnp.copy, X)],
    "cos": [(lax.cos, X)],
    "cosh": [(lax.cosh, X), (lax.cosh, WEIRD)],
    "div": [(lax.div, X, P), (lax.div, X, WEIRD), (lax.div, np.asarray([[7, -7]]), np.asarray([[2, 2], [-2, 3]]))],
    "dot_general": [
        (lambda x, y: x @ y.T, X, Y),
        (lambda x, y: x.T @ y, X[:1], Y),
        (lambda x, y: x[0] @ y[1], X, Y[:1]),
        (lambda x, y: jnp.outer(x[0], y[1]), X, Y),
        (lambda x, y: jnp.einsum("ni,nj->nij", x, y), X, Y),
        (lambda x, y: jnp.einsum("ni,ni->", x, y), X, Y),
        (lambda x: jnp.einsum("abcd,bce->bead", x, x[0, :, :2]), rng.normal(size=(SAMPLES, 2, 3, 2, 2))),
        (lambda x, y: x @ y, np.arange(6).reshape(1, 2, 3), np.arange(6).reshape(1, 3, 2)),
    ],
    "eq": [(lax.eq, X, X[:1]), (lax.eq, WEIRD, WEIRD), (lax.eq, np.asarray([[1, 2]]), np.asarray([[1, 3], [2, 2]]))],
    "exp": [(lax.exp, X), (lax.exp, WEIRD)],
    "exp2": [(lax.exp2, X)],
    "expm1": [(lax.expm1, X), (lax.expm1, 1e-9 * X)],
    "floor": [(lax.floor, X)],
    "ge": [(lax.ge, X, Y[:1]), (lax.ge, WEIRD, X)],
    "gt": [(lax.gt, X, Y), (lambda x: lax.gt(x, 0.0), X)],
    "integer_pow": [(lambda x: x**3, X), (lambda x: x**-2, X), (lambda x: x**3, np.arange(6).reshape(1, 6))],
    "is_finite": [(lax.is_finite, X), (lax.is_finite, WEIRD)],
    "le": [(lax.le, X, Y)],
    "log": [(lax.log, P), (lax.log, WEIRD)],
    "log1p": [(lax.log1p, P), (lax.log1p, WEIRD)],
    "logistic": [(lax.logistic, 90 * X), (lax.logistic, WEIRD)],
    "lt": [(lax.lt, X, Y)],
    "max": [(lax.max, X, Y), (lax.max, WEIRD, X), (lambda x: lax.max(x, 0.0), X)],
    "min": [(lax.min, X, Y), (lax.min, WEIRD, X)],
    "mul": [(lax.mul, X, Y), (lambda x: 3.0 * x, X), (lax.mul, X + 1j * Y, Y - 1j * X)],
    "ne": [(lax.ne, X, X), (lax.ne, WEIRD, WEIRD)],
    "neg": [(lax.neg, X), (lax.neg, np.asarray([[1, -2]]))],
    "not": [(lax.bitwise_not, WHICH), (lax.bitwise_not, np.asarray([[1, -2]]))],
    "or": [(lax.bitwise_or, WHICH, ~WHICH[:1])],
    "pad": [
        (lambda x: lax.pad(x, 7.0, ((1, 2, 0), (0, 1, 2))), X),
        (lambda x: lax.pad(x, 7.0, ((-1, 3, 1), (2, -1, 0))), X),
        (lambda x, v: lax.pad(x, v[0, 0], ((-1, -1, 0), (0, 0, 0))), X, Y),
    ],
    "pow": [(lax.pow, P, Y[:1]), (lax.pow, X, Y), (lax.pow, WEIRD, X), (lax.pow, X, WEIRD)],
    "reduce_max": [(lambda x: jnp.max(x, 1), X), (jnp.max, WEIRD)],
    "reduce_min": [(lambda x: jnp.min(x, 0), X)],
    "reduce_precision": [(lambda x: lax.reduce_precision(x, 11, 52), X)],
    "rem": [(lax.rem, 3 * X, P), (lax.rem, WEIRD, X), (lax.rem, X, WEIRD)],
    "reduce_sum": [(jnp.sum, X), (lambda x: jnp.sum(x, 0), X), (jnp.sum, X[:, :, :0]), (jnp.sum, WEIRD)],
    "reshape": [(lambda x: x.reshape(3, 2), X), (lambda x: lax.reshape(x, (6,), (1, 0)), X)],
    "round": [
        (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), HALVES),
        (jnp.round, HALVES),
        (jnp.round, WEIRD),
    ],
    "rsqrt": [(lax.rsqrt, P), (lax.rsqrt, WEIRD)],
    "select_n": [
        (lax.select_n, WHICH, X, Y[:1]),
        (lambda x, y: lax.select_n(x[0, 0] > 0, x, y), X, Y),
        (lambda x, y: lax.select_n(jnp.asarray([[0, 1, 2], [2, 1, 0]]), x, y, x * y), X, Y),
        (lax.select_n, np.asarray([[0, 2]]), *(np.asarray([[1.0 * k, 2.0]]) for k in range(3))),
    ],
    "sign": [(lax.sign, X), (lax.sign, WEIRD)],
    "sin": [(lax.sin, X)],
    "sinh": [(lax.sinh, X), (lax.sinh, WEIRD)],
    "slice": [(lambda x: x[1:, ::2], X), (lambda x: x[:, 1], X)],
    "sqrt": [(lax.sqrt, P), (lax.sqrt, WEIRD)],
    "split": [(lambda x: lax.split(x, (1, 2), 1)[1], X)],
    "square": [(lax.square, X)],
    "squeeze": [(lambda x: lax.squeeze(x, (1,)), X[:, :, :1])],
    "stop_gradient": [(lax.stop_gradient, X)],
    "sub": [(lax.sub, X, Y), (lax.sub, WEIRD, WEIRD)],
    "tan": [(lax.tan, X), (lax.tan, WEIRD)],
    "tanh": [(lax.tanh, X)],
    "transpose": [(lambda x: lax.transpose(x, (1, 0)), X)],
}


def test_every_operation_has_cases():
    assert set(CASES) == set(OPERATIONS)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_by_numpy_is_that_of_jax(name, monkeypatch):
    """Every equation of every case, by NumPy's row and by JAX's primitive, with samples in each input and shared."""
    met = set()

    def both(equation, inputs):
        counts = equation.primitive.name == "convert_element_type" and inputs[0].dtype.kind in "iub"
        wanted = _by_jax(equation, inputs, narrow=counts)  # a count keeps the program's width
        with np.errstate(all="ignore"):
            found = sampled(equation, inputs)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, equation
            np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-300, equal_nan=True)
        met.add(equation.primitive.name)
        return found

    with jax.enable_x64(True):
        for function, *inputs in CASES[name]:
            closed = jax.make_jaxpr(function)(*(value[0] for value in inputs))
            side_by_side.evaluate_all(closed, inputs, both)
    assert name in met


def to_even(x):
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


ONE_INPUT = [lax.abs, lax.ceil, lax.floor, lax.neg, to_even]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "function",
    [*ONE_INPUT, lax.add, lax.div, lax.lt, lax.max, lax.min, lax.mul, lax.rem, lax.sub],
)
def test_numbers_that_stand_in_a_program_are_those_of_jax_to_the_bit(function, dtype):
    inputs = [np.random.default_rng(k).normal(size=(1, 500)).astype(dtype) for k in range(2)]
    inputs = inputs[: 1 if function in ONE_INPUT else 2]
    (equation,) = jax.make_jaxpr(function)(*(value[0] for value in inputs)).jaxpr.eqns
    assert equation.primitive.name in THE_SAME_IN_ANY_WIDTH
    (found,), (wanted,) = sampled(equation, inputs), _by_jax(equation, inputs, narrow=True)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_a_random_key_goes_through_as_jax_has_it():
    key = jax.random.key(0)
    with jax.enable_x64(True):
        wanted = np.asarray(jax.random.normal(key, (3,), "float64"))
    measured = measure(lambda key, x: x + jax.random.normal(key, x.shape, x.dtype), key, np.zeros(3), dtype="float32")
    np.testing.assert_allclose(measured.value, wanted, rtol=1e-14)


@pytest.mark.parametrize("near", [0.0, 1e-9])
def test_samples_that_branch_apart_each_get_their_own_branch(near):
    """At a branch that rounding turns, the spread is that of the two results; away from it only one is run."""

    def function(x):
        return lax.cond(x + 1.0 - 1.0 > near, lambda x: x + 5.0, lambda x: x - 5.0, x)

    measured = measure(function, 1e-9, dtype="float32")
    assert measured.tolerance > 10
    assert measure(function, 1.0, dtype="float32").tolerance < 1e-5


def test_a_loop_whose_length_depends_on_a_sample_runs_each_to_its_end():
    """Newton's square root until two steps agree to 1e-4: the samples stop after different numbers of turns.

    Rounding in float16 makes two steps at 100 differ by more than that nearly always, and the loop ends all the same.
    """

    def root(x):
        def step(state):
            return state[1], (state[1] + x / state[1]) / 2

        return lax.while_loop(lambda state: jnp.abs(state[0] - state[1]) > 1e-4, step, (x, (x + 1) / 2))[1]

    for value in (jax.vmap(root), lambda x: jnp.stack([root(x[0]), root(x[1])])):
        measured = measure(value, np.asarray([2.0, 1e4]), dtype="float16")
        np.testing.assert_allclose(measured.value, [2**0.5, 100], rtol=1e-4)
        assert np.isfinite(measured.tolerance).all()
        assert np.all(measured.tolerance > 1e-4)


def test_scans_forward_backward_and_without_turns_stack_what_they_collect():
    x = np.arange(1.0, 5.0)

    def running(x, reverse=False):
        return lax.scan(lambda c, x: (c * x, (c, c + x)), jnp.ones((), x.dtype) * 2.0, x, reverse=reverse)

    for length, reverse in ((4, False), (4, True), (0, False)):
        wanted = jax.jit(partial(running, reverse=reverse))(x[:length])
        measured = measure(partial(running, reverse=reverse), x[:length], dtype="float32")
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), measured.value, wanted)


def test_two_seeds_differ_and_what_is_large_is_rounded_everywhere():
    """More entries than the table of noise has: each is rounded, and neighbours differently."""
    x = np.ones(40_000)
    measured = measure(lambda x: x * 1.1, x, dtype="float32")
    assert measured.tolerance.min() > 1e-8
    assert len(np.unique(measured.tolerance)) > 10_000


def test_the_value_is_the_function_s_own_where_it_is_infinite_or_the_precision_overflows():
    assert measure(lambda x: x * x, np.asarray([300.0]), dtype="float16").value == 90_000
    measured = measure(lambda x: 1 / x, np.asarray([0.0, -0.0, 2.0]), dtype="float32")
    np.testing.assert_array_equal(measured.value, [np.inf, -np.inf, 0.5])
