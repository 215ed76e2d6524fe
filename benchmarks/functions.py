"""How far XLA's special functions are off in float32, over their ranges; `reference.tolerance.libraries` rests on it.

    python -m benchmarks.functions

For each function: the quantiles of its error against the same function in float64, in units of u |f|, or of u times
the function's own scale, and what the table allows.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reference.tolerance.formats import unit_roundoff
from reference.tolerance.libraries import FACTORS, SCALES
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
    "log1p": [(lax.log1p, positive)],
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


def errors(name: str, points: int = POINTS, seed: int = 0) -> np.ndarray:
    """|float32 - float64| at every point where the result is a normal number, in units of what a tolerance is of."""
    rng, found = np.random.default_rng(seed), []
    for function, draw in FUNCTIONS[name]:
        x = draw(rng, points).astype("float32")
        low = np.asarray(jax.jit(function)(x), np.float64)
        with jax.enable_x64(True):
            high = np.asarray(jax.jit(function)(jnp.asarray(x, "float64")))
        scale = FACTORS[name] * np.abs(high)
        if name in SCALES:
            scale = scale + SCALES[name](x.astype("float64"))
        usual = np.isfinite(high) & (np.abs(high) > 1e-35) & (np.abs(high) < 1e38)
        found.append((np.abs(low - high) / (unit_roundoff("float32") * scale))[usual])
    return np.concatenate(found)


def main() -> None:
    """Print the table."""
    print(f"{'function':28} errors in units of the noise, of which {TOLERANCE:.1f} are allowed: quantiles {QUANTILES}")
    for name in FUNCTIONS:
        print(f"{name:28} " + "".join(f"{q:10.2f}" for q in np.quantile(errors(name), QUANTILES)))


if __name__ == "__main__":
    main()
