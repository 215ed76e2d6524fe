"""Each row against 50-digit arithmetic over the whole range of every format, and against jax.nn at its kinks."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import OPTIMISED

import manual_backprop as mb
from reference.model import ACTIVATIONS

mpmath.mp.dps = 50
ROWS = list(mb.activations.TABLE.values())
DTYPES = ("float64", "float32", "bfloat16", "float16")
ULPS = 24  # of room for the functions (erfc, exp, tanh) that XLA gives us, beyond what the condition asks

SELU_SCALE, SELU_ALPHA = (
    mpmath.mpf("1.0507009873554804934193349852946"),
    mpmath.mpf("1.6732632423543772848170429916717"),
)


def _sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


EXACT = {
    "identity": lambda z: z,
    "sigmoid": _sigmoid,
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "leaky_relu": lambda z: z if z >= 0 else z / 100,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "selu": lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * mpmath.expm1(z)),
    "gelu": lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda z: z * _sigmoid(2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3)),
    "silu": lambda z: z * _sigmoid(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "softsign": lambda z: z / (1 + abs(z)),
}


def _gelu_slope(z):
    return mpmath.ncdf(z) + z * mpmath.npdf(z)


def _gelu_tanh_slope(z):
    c = 2 * mpmath.sqrt(2 / mpmath.pi)
    s = _sigmoid(c * (z + mpmath.mpf("0.044715") * z**3))
    other = _sigmoid(-c * (z + mpmath.mpf("0.044715") * z**3))
    return s + z * c * (1 + 3 * mpmath.mpf("0.044715") * z**2) * s * other


EXACT_SLOPE = {
    "identity": lambda z: mpmath.mpf(1),
    "sigmoid": lambda z: _sigmoid(z) * _sigmoid(-z),
    "tanh": lambda z: mpmath.sech(z) ** 2,
    "relu": lambda z: mpmath.mpf(z > 0),
    "leaky_relu": lambda z: mpmath.mpf(1) if z >= 0 else mpmath.mpf("0.01"),
    "elu": lambda z: mpmath.exp(min(z, mpmath.mpf(0))),
    "selu": lambda z: SELU_SCALE * (mpmath.mpf(1) if z > 0 else SELU_ALPHA * mpmath.exp(z)),
    "gelu": _gelu_slope,
    "gelu_tanh": _gelu_tanh_slope,
    "silu": lambda z: _sigmoid(z) + z * _sigmoid(z) * _sigmoid(-z),
    "softplus": _sigmoid,
    "softsign": lambda z: 1 / (1 + abs(z)) ** 2,
}


def points(dtype: str) -> np.ndarray:
    """0, subnormals, the ordinary range densely, and out to 1e4, both signs, as numbers of that format."""
    info = jnp.finfo(dtype)
    magnitudes = np.concatenate(
        [
            [0.0, float(info.smallest_subnormal), float(info.tiny) / 2, float(info.tiny)],
            np.logspace(np.log10(float(info.tiny)) + 0.1, 0, 20),
            np.linspace(0.05, 30, 120),
            np.logspace(1.5, 4, 25),
        ]
    )
    both = np.concatenate([-magnitudes[::-1], magnitudes])
    return np.asarray(both, jnp.dtype(dtype))


@jax.jit
def _every_row(z: jax.Array) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    return {row.name: (a := row.f(z), row.df(z, a), row.d2f(z, a)) for row in ROWS}


def of_every_row(z: np.ndarray) -> dict[str, np.ndarray]:
    """f, df and d2f of every row at z, stacked. Whatever z is, one program for a format computes them."""
    padded = np.zeros(400, z.dtype)
    padded[: z.size] = z.ravel()
    found = jax.tree.map(lambda array: np.asarray(array)[: z.size].reshape(z.shape), _every_row(padded))
    return {name: np.stack(values) for name, values in found.items()}


@cache
def at_points(dtype: str) -> dict[str, np.ndarray]:
    return of_every_row(points(dtype))


def _condition(exact, z: mpmath.mpf, value: mpmath.mpf) -> float:
    """|z f'(z) / f(z)|: by how much f magnifies the half ulp that any formula in z may lose on the way."""
    if value == 0 or z == 0:
        return 1.0
    h = abs(z) * mpmath.mpf(10) ** -20
    slope = (exact(z + h) - exact(z - h)) / (2 * h)
    return float(abs(z * slope / value))


def _assert_right(ours: np.ndarray, exact, z: np.ndarray, dtype: str) -> None:
    info = jnp.finfo(dtype)
    ulps, tiny = ULPS * float(info.eps), float(info.tiny)
    for got, at in dict.fromkeys(
        zip(np.asarray(ours, np.float64).tolist(), np.asarray(z, np.float64).tolist(), strict=True)
    ):
        assert np.isfinite(got), f"{got} at {at}"
        at = mpmath.mpf(at)
        truth = exact(at)
        error = abs(mpmath.mpf(got) - truth)
        if error <= ulps * abs(truth) + 2 * tiny:  # within what is allowed whatever the condition, which is dear
            continue
        condition = _condition(exact, at, truth)
        # Below the normal range a format may flush to zero, in the result or in the factor that decays.
        allowed = ulps * (1 + condition) * abs(truth) + tiny * (2 + condition)
        assert error <= allowed, f"{got} for {mpmath.nstr(truth, 20)} at {at}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_f_keeps_its_tails_in_every_format(row, dtype):
    """(F2): finite and right to rounding, relative to each value, from subnormals to 1e4."""
    ours = at_points(dtype)[row.name][0]
    assert ours.dtype == jnp.dtype(dtype)
    _assert_right(ours, EXACT[row.name], points(dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_df_keeps_its_tails_in_every_format(row, dtype):
    """(C7): the same for the derivative, where the short forms in a would be 0 or a fifth off."""
    z, ours = points(dtype), at_points(dtype)[row.name][1]
    assert ours.dtype == jnp.dtype(dtype)
    # Where subnormals are flushed to zero they stand on the kink.
    kept = np.abs(np.asarray(z, np.float64)) >= (float(jnp.finfo(dtype).tiny) if row.kinks else 0)
    _assert_right(ours[kept], EXACT_SLOPE[row.name], z[kept], dtype)


def test_tanh_slope_where_the_short_form_in_a_has_lost_it():
    """What is left of 1 - a**2 in float32, 0 or a rounding error, has no digit in common with the slope."""
    slope = 8.244614512e-09
    a, ours, _ = of_every_row(np.asarray([10.0], np.float32))["tanh"]
    assert abs(float(1 - a[0] * a[0]) / slope - 1) > 0.9
    np.testing.assert_allclose(ours, [slope], rtol=1e-6)


@cache
def by_jax_nn() -> tuple[np.ndarray, dict, dict]:
    """(z with every kink, f and df of every row, the same of jax.nn by jax.grad)."""
    z = np.concatenate([np.linspace(-6, 6, 101), [0.0], [kink for row in ROWS for kink, _ in row.kinks]])

    def witness(z: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {row.name: jax.vmap(jax.value_and_grad(ACTIVATIONS[row.name]))(z) for row in ROWS}

    # Compiled quickly, the tanh of jax.nn's gelu loses more than the test allows.
    return z, of_every_row(z), jax.tree.map(np.asarray, jax.jit(witness, compiler_options=OPTIMISED)(z))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_df_equals_jax_nn_on_both_sides_and_at_every_kink(row):
    z, ours, witness = by_jax_nn()
    # Absolute: jax.nn's own tails are less exact than ours, as the tests above say.
    for got, theirs in zip(ours[row.name][:2], witness[row.name], strict=True):
        np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-14)
    for kink, slope in row.kinks:
        assert (z == kink).any()
        for slopes in (ours[row.name][1], witness[row.name][1]):
            np.testing.assert_allclose(slopes[z == kink], slope, rtol=1e-15)


@cache
def jumps() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(z, by how much f, df and d2f of every row rise within 2e-7 around z)."""
    z, h = np.linspace(-4, 4, 81), 1e-7
    found = of_every_row(np.stack([z - h, z + h]))
    return z, {name: np.abs(values[:, 1] - values[:, 0]) for name, values in found.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_kinks_are_exactly_the_points_where_the_slope_jumps(row):
    """One-sided slopes differ at every declared kink, and f' is continuous everywhere else."""
    z, rise = jumps()
    found = {float(v) for v in np.round(z[rise[row.name][1] > 1e-3], 9)}
    assert found == {kink for kink, _ in row.kinks}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nan_stays_nan(row):
    assert np.isnan(of_every_row(np.asarray([np.nan, 0.5]))[row.name][0, 0])


def test_unknown_names_are_refused_with_the_names_there_are(without_hook):
    with pytest.raises(ValueError, match=r"no activation is called 'swish'; there are identity, sigmoid"):
        mb.activations.get("swish")
    with pytest.raises(TypeError, match="must be a name or an Activation row, got int"):
        mb.activations.get(3)


def test_gelus_slope_stands_an_a_of_a_z_that_was_rounded_otherwise():
    """XLA may compute z twice with two roundings, for a and for f'; near 0 a quotient of both is worthless."""
    z = np.concatenate([np.linspace(-1, 1, 401), np.geomspace(1e-30, 1e-2, 40)])
    other = z + 1e-9
    slope = mb.activations.gelu.df(jnp.asarray(z), mb.activations.gelu.f(jnp.asarray(other)))
    assert np.max(np.abs(slope - mb.activations.gelu.df(jnp.asarray(z), mb.activations.gelu.f(jnp.asarray(z))))) < 3e-9
