"""orthax: series of orthogonal polynomials."""

import jax
import jax.numpy as jnp
import orthax

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, within

_AT = (within(-0.9, 0.9, 5), drawn(4))

_SERIES = {
    "chebval": (orthax.chebyshev.chebval, lambda x: (1, x, 2 * x**2 - 1, 4 * x**3 - 3 * x)),
    "legval": (orthax.legendre.legval, lambda x: (1, x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2)),
    "hermval": (orthax.hermite.hermval, lambda x: (1, 2 * x, 4 * x**2 - 2, 8 * x**3 - 12 * x)),
    "hermeval": (orthax.hermite_e.hermeval, lambda x: (1, x, x**2 - 1, x**3 - 3 * x)),
    "lagval": (orthax.laguerre.lagval, lambda x: (1, 1 - x, x**2 / 2 - 2 * x + 1, 1 - 3 * x + 1.5 * x**2 - x**3 / 6)),
    "polyval": (orthax.polynomial.polyval, lambda x: (1, x, x**2, x**3)),
}


def _sum(basis: object) -> object:
    return lambda x, c: sum(a * b for a, b in zip(c, basis(x), strict=True))


def _derived(x: jax.Array, c: jax.Array) -> jax.Array:
    return orthax.chebyshev.chebval(x, orthax.chebyshev.chebder(c))


CASES: dict[str, Case] = {
    **{f"orthax.{name}": formula(function, _sum(basis), *_AT) for name, (function, basis) in _SERIES.items()},
    "orthax.chebder": formula(_derived, lambda x, c: c[1] + 4 * c[2] * x + c[3] * (12 * x**2 - 3), *_AT),
    "orthax.chebint": itself(lambda x, c: orthax.chebyshev.chebval(x, orthax.chebyshev.chebint(c)), *_AT),
    "orthax.legmul": itself(orthax.legendre.legmul, drawn(4), drawn(3)),
    "orthax.polyvander": itself(lambda x: jnp.sin(orthax.polynomial.polyvander(x, 3)), within(-0.9, 0.9, 5)),
}
