"""GPJax: kernels."""

import jax
import jax.numpy as jnp
from gpjax import kernels

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, within


def _gram(kind: str, **options: float) -> object:
    """By the points, the length scale and the variance."""

    def function(x: jax.Array, length: jax.Array, variance: jax.Array) -> jax.Array:
        kernel = getattr(kernels, kind)(lengthscale=length, variance=variance, **options)
        return kernel.cross_covariance(x, x + 0.3)

    return function


def _rbf(x: jax.Array, length: jax.Array, variance: jax.Array) -> jax.Array:
    apart = ((x[:, None] - x[None] - 0.3) / length) ** 2
    return variance * jnp.exp(-apart.sum(-1) / 2)


_AT = (drawn(5, 2), within(0.5, 2), within(0.5, 2))

CASES: dict[str, Case] = {
    "gpjax.RBF": formula(_gram("RBF"), _rbf, *_AT),
    **{
        f"gpjax.{kind}": itself(_gram(kind), *_AT) for kind in ("Matern12", "Matern32", "Matern52", "RationalQuadratic")
    },
}
