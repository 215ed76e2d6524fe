"""How far XLA's special functions are off, over their ranges; `reference.tolerance.libraries` rests on it.

    python -m benchmarks.functions                      in float32, against float64
    python -m benchmarks.functions --dtype float64      against mpmath

For each function: the quantiles of its error, in units of u |f|, or of u times the function's own scale, and what the
table allows.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax import lax
from mpmath import mp

from reference.tolerance.formats import unit_roundoff
from reference.tolerance.libraries import roundings, scale
from reference.tolerance.rounding import SIGMAS

POINTS = 20_000
TOLERANCE = SIGMAS / 3**0.5  # of one rounding, in units of u: uniform noise in [-u, u] has this many deviations
QUANTILES = (0.5, 0.99, 0.999, 1.0)

Points = Callable[[np.random.Generator, int], np.ndarray]


def positive(rng: np.random.Generator, n: int) -> np.ndarray:
    """From 1e-3 to 1e2, evenly in the logarithm."""
    return 10 ** rng.uniform(-3, 2, n)


def above_one(rng: np.random.Generator, n: int) -> np.ndarray:
    """Above 1 by 1e-3 to 1e2."""
    return 1 + positive(rng, n)


def real(rng: np.random.Generator, n: int, scale: float = 2.0) -> np.ndarray:
    """Normal."""
    return scale * rng.normal(size=n)


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    """In (-1, 1), many of them close to its ends."""
    return np.tanh(real(rng, n))


def _with(function: Callable[..., jax.Array], *first: float) -> Callable[[jax.Array], jax.Array]:
    return lambda x: function(*(jnp.full_like(x, a) for a in first), x)


FUNCTIONS: dict[str, list[tuple[Callable[[jax.Array], jax.Array], Points]]] = {
    "acosh": [(lax.acosh, above_one)],
    "asin": [(lax.asin, unit)],
    "asinh": [(lax.asinh, real)],
    "atan": [(lax.atan, real)],
    "atanh": [(lax.atanh, unit)],
    "bessel_i0e": [(lax.bessel_i0e, partial(real, scale=5.0))],
    "bessel_i1e": [(lax.bessel_i1e, partial(real, scale=5.0))],
    "cbrt": [(lax.cbrt, positive)],
    "cos": [(lax.cos, real)],
    "cosh": [(lax.cosh, real)],
    "digamma": [(lax.digamma, positive)],
    "erf": [(lax.erf, real)],
    "erf_inv": [(lax.erf_inv, unit)],
    "erfc": [(lax.erfc, real)],
    "exp": [(lax.exp, partial(real, scale=20.0))],
    "exp2": [(lax.exp2, partial(real, scale=20.0))],
    "expm1": [(lax.expm1, real)],
    "igamma": [(_with(lax.igamma, 2.0), positive), (_with(lax.igamma, 0.5), positive)],
    "igamma_grad_a": [(_with(lax.igamma_grad_a, 2.0), positive)],
    "igammac": [(_with(lax.igammac, 2.0), positive)],
    "lgamma": [(lax.lgamma, positive)],
    "log": [(lax.log, positive)],
    "log1p": [(lax.log1p, positive), (lax.log1p, unit)],
    "logistic": [(lax.logistic, partial(real, scale=20.0))],
    "polygamma": [(_with(lax.polygamma, 1.0), positive)],
    "pow": [(_with(lax.pow, 1.7), real)],
    "regularized_incomplete_beta": [
        (_with(lax.betainc, a, b), lambda rng, n: np.abs(unit(rng, n))) for a, b in ((2.0, 3.0), (10.0, 30.0))
    ],
    "rsqrt": [(lax.rsqrt, positive)],
    "sin": [(lax.sin, real)],
    "sinh": [(lax.sinh, real)],
    "sqrt": [(lax.sqrt, positive)],
    "tan": [(lax.tan, real)],
    "tanh": [(lax.tanh, real)],
    "zeta": [(lambda x: lax.zeta(x + 1.1, jnp.full_like(x, 2.0)), positive)],
}


EXACT: dict[str, list[Callable[[Any], Any]]] = {
    "bessel_i0e": [lambda x: mp.besseli(0, x) * mp.exp(-abs(x))],
    "bessel_i1e": [lambda x: mp.besseli(1, x) * mp.exp(-abs(x))],
    "cbrt": [mp.cbrt],
    "digamma": [mp.digamma],
    "erf_inv": [mp.erfinv],
    "exp2": [lambda x: mp.mpf(2) ** x],
    "igamma": [lambda x: mp.gammainc(2, 0, x, regularized=True), lambda x: mp.gammainc(0.5, 0, x, regularized=True)],
    "igamma_grad_a": [lambda x: mp.diff(lambda a: mp.gammainc(a, 0, x, regularized=True), 2)],
    "igammac": [lambda x: mp.gammainc(2, x, mp.inf, regularized=True)],
    "lgamma": [mp.loggamma],
    "log1p": [mp.log1p, mp.log1p],
    "logistic": [lambda x: 1 / (1 + mp.exp(-x))],
    "polygamma": [lambda x: mp.psi(1, x)],
    "pow": [lambda x: mp.power(1.7, x)],
    "regularized_incomplete_beta": [
        lambda x: mp.betainc(2, 3, 0, x, regularized=True),
        lambda x: mp.betainc(10, 30, 0, x, regularized=True),
    ],
    "rsqrt": [lambda x: 1 / mp.sqrt(x)],
    "zeta": [lambda x: mp.zeta(x + 1.1, 2)],
}
"""The functions that mpmath has under another name, or of other arguments."""


def errors(name: str, dtype: str = "float32", points: int = POINTS, seed: int = 0) -> np.ndarray:
    """|computed - exact| at every point where the result is a normal number, in units of what a tolerance is of."""
    rng, found = np.random.default_rng(seed), []
    for k, (function, draw) in enumerate(FUNCTIONS[name]):
        x = draw(rng, points).astype(dtype)
        with jax.enable_x64(True):
            low = np.asarray(jax.jit(function)(jnp.asarray(x)), np.float64)
            if dtype == "float32":
                high = np.asarray(jax.jit(function)(jnp.asarray(x, "float64")))
                apart = low - high
            else:
                high, apart = _beside(EXACT[name][k] if name in EXACT else getattr(mp, name), x, low)
        size = roundings(name, {}, unit_roundoff(dtype)) * np.abs(high)
        if further := scale(name, unit_roundoff(dtype)):
            size = size + further(x.astype("float64"))
        usual = np.isfinite(high) & (np.abs(high) > 1e-35) & (np.abs(high) < 1e38)
        found.append((np.abs(apart) / (unit_roundoff(dtype) * size))[usual])
    return np.concatenate(found)


def _beside(exact: Callable[[Any], Any], x: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The function by mpmath in 50 digits, and what the computed values are off, before either is rounded."""
    with mpmath.workdps(50):
        each = [exact(mp.mpf(float(t))) for t in x]
        apart = [
            mp.mpf(float(value)) - right if np.isfinite(value) else mp.nan
            for value, right in zip(low, each, strict=True)
        ]
        return np.array([float(mp.re(t)) for t in each]), np.array([float(mp.re(t)) for t in apart])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.functions", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--points", type=int, metavar="N", help=f"{POINTS}, and 1000 in float64")
    given = parser.parse_args()
    points = given.points or (POINTS if given.dtype == "float32" else 1000)
    print(f"{'function':28} errors in units of the noise, of which {TOLERANCE:.1f} are allowed: quantiles {QUANTILES}")
    for name in FUNCTIONS:
        of = np.quantile(errors(name, given.dtype, points), QUANTILES)
        print(f"{name:28} " + "".join(f"{q:10.2f}" for q in of), flush=True)


if __name__ == "__main__":
    main()
