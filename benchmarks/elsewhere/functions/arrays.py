"""Sums, running sums, windows, indices, and whatever else moves the entries of an array."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.elsewhere.cases import ALL, WIDE, Case, drawn, itself, normal, positive, within

IDS = (0, 0, 1, 0, 2, 0)


def _conv(padding: str, **options: object) -> object:
    """A convolution of images with channels last."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=numbers, **options)


def _at(method: str) -> object:
    """An update of rows, of which one is written to twice."""
    return lambda x, y: getattr(x.at[jnp.asarray([0, 2, 2])], method)(y)


CASES: dict[str, Case] = {
    # Sums and their relatives.
    "amax": normal(lambda x: jnp.max(x, 1)),
    "average": itself(lambda x, w: jnp.average(x, 0, w), drawn(6, 5), within(0.3, 2, 6)),
    "corrcoef": normal(jnp.corrcoef, 3, 8),
    "cov": normal(jnp.cov, 3, 8),
    "cumlogsumexp": normal(lax.cumlogsumexp, 30),
    "cummax": normal(lax.cummax, 30),
    "cummin": normal(lax.cummin, 30),
    "cumprod": positive(jnp.cumprod, 12),
    "cumsum": normal(jnp.cumsum, 300),
    "diff": normal(lambda x: jnp.diff(x, 2)),
    "ediff1d": normal(jnp.ediff1d, 9),
    "gradient": normal(lambda x: jnp.gradient(x)[0]),
    "mean": normal(lambda x: jnp.mean(x, 1)),
    "median": normal(jnp.median, 9),
    "nanmean": normal(lambda x: jnp.nanmean(jnp.where(x > 1, jnp.nan, x))),
    "nansum": normal(lambda x: jnp.nansum(x**2, 0)),
    "nanvar": normal(jnp.nanvar),
    "norm": normal(jnp.linalg.norm),
    "norm, 1": normal(lambda x: jnp.linalg.norm(x, 1)),
    "norm, inf": normal(lambda x: jnp.linalg.norm(x, jnp.inf, 1)),
    "percentile, a number": normal(lambda x: jnp.percentile(x, 45.0), 21),
    "percentile": normal(lambda x: jnp.percentile(x, jnp.asarray([20.0, 70.0], x.dtype)), 11),
    "prod": positive(lambda x: jnp.prod(x, 0), 6, 5),
    "ptp": normal(lambda x: jnp.ptp(x, 0)),
    "quantile": normal(lambda x: jnp.quantile(x, jnp.asarray(0.3, x.dtype), axis=0)),
    "segment_max": normal(lambda x: jax.ops.segment_max(x, jnp.asarray(IDS), 3)),
    "segment_min": normal(lambda x: jax.ops.segment_min(x, jnp.asarray(IDS), 3)),
    "segment_prod": positive(lambda x: jax.ops.segment_prod(x, jnp.arange(6), 6, unique_indices=True), 6, 5),
    "segment_sum": normal(lambda x: jax.ops.segment_sum(x, jnp.asarray(IDS), 3)),
    "std": normal(lambda x: jnp.std(x, 0, ddof=1)),
    "trace": normal(jnp.trace, 5, 5),
    "trapezoid": itself(jnp.trapezoid, drawn(9), drawn(9)),
    "var": normal(lambda x: jnp.var(x, 0)),
    # Windows.
    "avg_pool": normal(lambda x: lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (3,), (1,), "SAME"), 20),
    "conv": itself(_conv("SAME"), drawn(2, 6, 6, 3), drawn(3, 3, 3, 4)),
    "conv, depthwise": itself(_conv("VALID", feature_group_count=3), drawn(1, 6, 6, 3), drawn(3, 3, 1, 6)),
    "conv, dilated": itself(_conv("SAME", rhs_dilation=(2, 2)), drawn(1, 7, 7, 2), drawn(3, 3, 2, 2)),
    "conv_transpose": itself(
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), drawn(1, 4, 4, 2), drawn(3, 3, 2, 3)
    ),
    "convolve": normal(lambda x: jnp.convolve(x, jnp.asarray([1.0, 2.0, 0.5], x.dtype)), 20),
    "max_pool": normal(lambda x: lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, (3,), (1,), "SAME"), 20),
    "signal.convolve2d": itself(jax.scipy.signal.convolve2d, drawn(6, 6), drawn(3, 3)),
    "signal.correlate": itself(jax.scipy.signal.correlate, drawn(12), drawn(4)),
    "signal.detrend": normal(jax.scipy.signal.detrend, 12, dtypes=WIDE),
    "signal.fftconvolve": itself(jax.scipy.signal.fftconvolve, drawn(12), drawn(5), dtypes=WIDE),
    "signal.stft": normal(lambda x: jnp.abs(jax.scipy.signal.stft(x, nperseg=8)[2]) ** 2, 32, dtypes=WIDE),
    "signal.welch": normal(lambda x: jax.scipy.signal.welch(x, nperseg=8)[1], 32, dtypes=WIDE),
    # Indices.
    "at add": itself(_at("add"), drawn(6, 5), drawn(3, 5)),
    "at max": itself(_at("max"), drawn(6, 5), drawn(3, 5)),
    "at min": itself(_at("min"), drawn(6, 5), drawn(3, 5)),
    "at multiply": itself(
        lambda x, y: x.at[jnp.asarray([0, 2, 3])].multiply(y, unique_indices=True), drawn(6, 5), drawn(3, 5)
    ),
    "at set": itself(lambda x, y: x.at[1:4].set(y) ** 2, drawn(6, 5), drawn(3, 5)),
    "choose": normal(lambda x: jnp.choose(jnp.asarray([0, 2, 1, 3, 0]), list(x[:4]), mode="clip")),
    "compress": normal(lambda x: jnp.compress(jnp.asarray([True, False, True, True]), x, 0, size=3)),
    "diag": normal(lambda x: jnp.diag(jnp.diag(x) ** 2), 5, 5),
    "dynamic_slice": normal(lambda x: lax.dynamic_slice(x, (1, 2), (3, 2)) ** 2),
    "dynamic_update_slice": itself(lambda x, y: lax.dynamic_update_slice(x, y, (1, 2)) * x, drawn(6, 5), drawn(3, 2)),
    "extract by mask": normal(lambda x: jnp.where(jnp.arange(5) > 2, x, 0) @ jnp.ones(5, x.dtype)),
    "gather": normal(lambda x: x[jnp.asarray([0, 0, 1, 0, 2, 0, 0, 0, 1])]),
    "interp": normal(lambda x: jnp.interp(x, jnp.linspace(-3, 3, 7, dtype=x.dtype), jnp.arange(7, dtype=x.dtype)), 10),
    "piecewise": normal(lambda x: jnp.piecewise(x, [x < 0, x >= 0], [jnp.sin, jnp.exp])),
    "scatter max": normal(lambda x: jnp.zeros((3, 5), x.dtype).at[jnp.asarray(IDS)].max(x)),
    "select": normal(lambda x: jnp.select([x < -0.5, x < 0.5], [x**2, jnp.sin(x)], x)),
    "take_along_axis": normal(lambda x: jnp.take_along_axis(x, jnp.argsort(x, 0)[:3], 0)),
    "top_k": normal(lambda x: lax.top_k(x, 3)[0]),
    "where": normal(lambda x: jnp.where(x > 0, jnp.log1p(jnp.abs(x)), x**2)),
    # Places.
    "block": normal(lambda x: jnp.block([[x, x.T], [x.T @ x, x * x]]), 5, 5),
    "flip and rot90": normal(lambda x: jnp.rot90(jnp.flip(x, 0)) * x, 5, 5),
    "pad, reflect": normal(lambda x: jnp.pad(x, 2, "reflect") ** 2),
    "pad, wrap": normal(lambda x: jnp.pad(x, ((1, 2), (0, 3)), "wrap")),
    "repeat": normal(lambda x: jnp.repeat(x, 3, 0) ** 2),
    "roll": normal(lambda x: jnp.roll(x, 2, 0) * x),
    "sort": normal(jnp.sort, 20),
    "stack and split": normal(lambda x: jnp.stack(jnp.split(x, 3)) ** 2),
    "tile": normal(lambda x: jnp.tile(x, (2, 3))),
    "transpose": normal(lambda x: jnp.einsum("ijk->kij", x) ** 2, 2, 3, 4),
    "tril": normal(lambda x: jnp.tril(x) @ jnp.triu(x), 5, 5),
    "vander": positive(lambda x: jnp.vander(x, 4), 5),
    # Images.
    "image.resize, cubic": normal(lambda x: jax.image.resize(x, (9, 4), "cubic")),
    "image.resize, lanczos3": normal(lambda x: jax.image.resize(x, (4, 9), "lanczos3")),
    "image.resize, linear": normal(lambda x: jax.image.resize(x, (9, 8), "linear")),
    "image.scale_and_translate": itself(
        lambda x, s: jax.image.scale_and_translate(x, (7, 7), (0, 1), s, jnp.full(2, 0.3, x.dtype), "linear"),
        drawn(6, 5),
        within(1.3, 1.6, 2),
    ),
    "map_coordinates": itself(
        lambda x, a, b: jax.scipy.ndimage.map_coordinates(x, [a, b], 1, "nearest"),
        drawn(6, 5),
        within(0.2, 4.8, 7),
        within(0.2, 3.8, 7),
        dtypes=ALL,
    ),
}
