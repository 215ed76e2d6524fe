"""Each row against 50-digit arithmetic over the whole range of every format, and against jax.nn at its kinks."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

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


def _condition(exact, z: mpmath.mpf, value: mpmath.mpf) -> float:
    """|z f'(z) / f(z)|: by how much f magnifies the half ulp that any formula in z may lose on the way."""
    if value == 0 or z == 0:
        return 1.0
    h = abs(z) * mpmath.mpf(10) ** -20
    slope = (exact(z + h) - exact(z - h)) / (2 * h)
    return float(abs(z * slope / value))


def _assert_right(ours: np.ndarray, exact, z: np.ndarray, dtype: str) -> None:
    info = jnp.finfo(dtype)
    for got, at in zip(np.asarray(ours, np.float64), np.asarray(z, np.float64), strict=True):
        at = mpmath.mpf(float(at))
        truth = exact(at)
        assert np.isfinite(got), f"{got} at {at}"
        allowed = ULPS * float(info.eps) * (1 + _condition(exact, at, truth)) * abs(truth)
        # Below the normal range a format may flush to zero, in the result or in the factor that decays.
        allowed += float(info.tiny) * (2 + _condition(exact, at, truth))
        assert abs(mpmath.mpf(float(got)) - truth) <= allowed, f"{got} for {mpmath.nstr(truth, 20)} at {at}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_f_keeps_its_tails_in_every_format(row, dtype):
    """(F2): finite and right to rounding, relative to each value, from subnormals to 1e4."""
    z = points(dtype)
    ours = row.f(jnp.asarray(z))
    assert ours.dtype == jnp.dtype(dtype)
    _assert_right(ours, EXACT[row.name], z, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_df_keeps_its_tails_in_every_format(row, dtype):
    """(C7): the same for the derivative, where the short forms in a would be 0 or a fifth off."""
    z = points(dtype)
    if row.kinks:  # where subnormals are flushed to zero they stand on the kink
        z = z[np.abs(np.asarray(z, np.float64)) >= float(jnp.finfo(dtype).tiny)]
    ours = row.df(jnp.asarray(z), row.f(jnp.asarray(z)))
    assert ours.dtype == jnp.dtype(dtype)
    _assert_right(ours, EXACT_SLOPE[row.name], z, dtype)


def test_tanh_slope_where_the_short_form_in_a_has_lost_it():
    z = jnp.asarray([10.0], jnp.float32)
    a = mb.activations.tanh.f(z)
    assert float((1 - a * a)[0]) == 0.0
    np.testing.assert_allclose(mb.activations.tanh.df(z, a), [8.244614512e-09], rtol=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_df_equals_jax_nn_on_both_sides_and_at_every_kink(row):
    z = jnp.concatenate([jnp.linspace(-6, 6, 101), jnp.asarray([0.0])])
    witness = jax.vmap(jax.grad(ACTIVATIONS[row.name]))(z)
    # Absolute: jax.nn's own tails are less exact than ours, as the tests above say.
    np.testing.assert_allclose(row.df(z, row.f(z)), witness, rtol=0, atol=1e-14)
    np.testing.assert_allclose(row.f(z), ACTIVATIONS[row.name](z), rtol=0, atol=1e-14)
    for kink, slope in row.kinks:
        at = jnp.asarray(kink)
        assert float(row.df(at, row.f(at))) == pytest.approx(slope, rel=1e-15)
        assert float(jax.grad(ACTIVATIONS[row.name])(at)) == pytest.approx(slope, rel=1e-15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_kinks_are_exactly_the_points_where_the_slope_jumps(row):
    """One-sided slopes differ at every declared kink, and f' is continuous everywhere else."""
    h = 1e-7
    z = np.linspace(-4, 4, 81)
    left, right = (np.asarray(row.df(jnp.asarray(z + s), row.f(jnp.asarray(z + s)))) for s in (-h, h))
    jumps = {float(v) for v in np.round(z[np.abs(left - right) > 1e-3], 9)}
    assert jumps == {kink for kink, _ in row.kinks}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nan_stays_nan(row):
    z = jnp.asarray([jnp.nan, 0.5])
    assert bool(jnp.isnan(row.f(z)[0]))


def test_unknown_names_are_refused_with_the_names_there_are(without_hook):
    with pytest.raises(ValueError, match=r"no activation is called 'swish'; there are identity, sigmoid"):
        mb.activations.get("swish")
    with pytest.raises(TypeError, match="must be a name or an Activation row, got int"):
        mb.activations.get(3)
