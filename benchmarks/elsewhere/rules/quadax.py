"""quadax: integrals, with derivatives by custom rules."""

import jax.numpy as jnp
import quadax

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, within


def _exact(a, b):
    """The integral of exp(a t) from 0 to b."""
    return jnp.expm1(a * b) / a


def _by(method: object, **options: float) -> object:
    def function(a, b):
        ends = jnp.stack([jnp.zeros_like(b), b])
        return method(lambda t, a: jnp.exp(a * t), ends, args=(a,), **options)[0]

    return function


_AT = (within(0.5, 1), within(0.5, 1.5))
_FINE = {"epsabs": 1e-6, "epsrel": 1e-6}
_STOPS = {"approximation": 1e-6}

CASES: dict[str, Case] = {
    "quadax.quadgk": formula(_by(quadax.quadgk, **_FINE), _exact, *_AT, dtypes=WIDE),
    "quadax.quadcc": formula(_by(quadax.quadcc, **_FINE), _exact, *_AT, dtypes=WIDE),
    "quadax.quadts": formula(_by(quadax.quadts, **_FINE), _exact, *_AT, dtypes=WIDE),
    "quadax.romberg": formula(_by(quadax.romberg, **_FINE), _exact, *_AT, dtypes=WIDE, in_double=_STOPS),
    "quadax.trapezoid": formula(
        lambda y: quadax.trapezoid(y, dx=0.5), lambda y: (y.sum() - (y[0] + y[-1]) / 2) / 2, drawn(9)
    ),
    "quadax.simpson": formula(
        lambda y: quadax.simpson(y, dx=0.5),
        lambda y: (y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-2:2].sum()) / 6,
        drawn(9),
    ),
    "quadax.cumulative_trapezoid": formula(
        lambda y: quadax.cumulative_trapezoid(y, dx=0.5), lambda y: jnp.cumsum(y[1:] + y[:-1]) / 4, drawn(9)
    ),
}
