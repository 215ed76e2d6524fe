"""tinygp: kernels, and the likelihood of Gaussian processes."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import multivariate_normal
from tinygp import GaussianProcess, kernels

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, within


def _matern32(r: jax.Array) -> jax.Array:
    return (1 + 3**0.5 * r) * jnp.exp(-(3**0.5) * r)


def _gram(shape: object) -> object:
    return lambda x, s: shape(jnp.abs(x[:, None] - x[None]) / s)


def _kernel(kernel: object) -> object:
    return lambda x, s: kernel(s)(x, x)


def _likelihood(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    return GaussianProcess(kernels.ExpSquared(s), x, diag=jnp.full_like(x, 0.3)).log_probability(y)


def _plain(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    cov = jnp.exp(-(((x[:, None] - x[None]) / s) ** 2) / 2) + 0.3 * jnp.eye(len(x), dtype=x.dtype)
    return multivariate_normal.logpdf(y, jnp.zeros_like(y), cov)


def _quasi(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    return GaussianProcess(kernels.quasisep.Matern32(s), jnp.cumsum(x), diag=jnp.full_like(x, 0.3)).log_probability(y)


def _quasi_plain(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    x = jnp.cumsum(x)
    cov = _matern32(jnp.abs(x[:, None] - x[None]) / s) + 0.3 * jnp.eye(len(x), dtype=x.dtype)
    return multivariate_normal.logpdf(y, jnp.zeros_like(y), cov)


_AT = (drawn(6), within(0.5, 2))
_DATA = (within(0.3, 1, 6), drawn(6), within(0.5, 2))

CASES: dict[str, Case] = {
    "tinygp.ExpSquared": formula(_kernel(kernels.ExpSquared), _gram(lambda r: jnp.exp(-(r**2) / 2)), *_AT),
    "tinygp.Matern32": itself(_kernel(kernels.Matern32), *_AT),
    "tinygp.Matern52": itself(_kernel(kernels.Matern52), *_AT),
    "tinygp.Cosine": itself(_kernel(kernels.Cosine), *_AT),
    "tinygp.RationalQuadratic": itself(lambda x, s: kernels.RationalQuadratic(s, alpha=1.5)(x, x), *_AT),
    "tinygp.GaussianProcess": formula(_likelihood, _plain, *_DATA, dtypes=WIDE),
    "tinygp.GaussianProcess, quasiseparable": formula(_quasi, _quasi_plain, *_DATA, dtypes=WIDE),
}
