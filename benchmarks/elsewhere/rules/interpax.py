"""interpax: interpolation."""

import interpax
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import WIDE, Case, drawn, itself, within


def _line(method: str) -> object:
    def function(q: jax.Array, f: jax.Array) -> jax.Array:
        return interpax.interp1d(q, jnp.linspace(0, 1, 8, dtype=f.dtype), f, method=method)

    return function


def _plane(a: jax.Array, b: jax.Array, f: jax.Array) -> jax.Array:
    x, y = (jnp.linspace(0, 1, n, dtype=f.dtype) for n in f.shape)
    return interpax.interp2d(a, b, x, y, f, method="cubic")


_AT = (within(0.05, 0.95, 5), drawn(8))

CASES: dict[str, Case] = {
    **{
        f"interpax.interp1d, {method}": itself(_line(method), *_AT, dtypes=WIDE)
        for method in ("linear", "cubic", "cubic2", "catmull-rom", "cardinal", "monotonic", "akima")
    },
    "interpax.interp2d": itself(_plane, within(0.05, 0.95, 4), within(0.05, 0.95, 4), drawn(6, 5), dtypes=WIDE),
    "interpax.CubicSpline": itself(
        lambda q, f: interpax.CubicSpline(jnp.linspace(0, 1, 8, dtype=f.dtype), f, check=False)(q), *_AT, dtypes=WIDE
    ),
    "interpax.PchipInterpolator": itself(
        lambda q, f: interpax.PchipInterpolator(jnp.linspace(0, 1, 8, dtype=f.dtype), f, check=False)(q),
        *_AT,
        dtypes=WIDE,
    ),
    "interpax.fft_interp1d": itself(lambda f: interpax.fft_interp1d(f, 12), drawn(8), dtypes=WIDE),
}
