"""Distributions of jax.scipy.stats."""

import jax
import jax.numpy as jnp
from jax.scipy import stats

from benchmarks.elsewhere.cases import WIDE, Case, between, drawn, itself, matrix, normal, within

_PLACE = (drawn(8), within(0.5, 2, 8))


def _with_scale(distribution: object, what: str = "logpdf") -> Case:
    """By the value, the location and the scale."""
    function = getattr(distribution, what)
    return itself(lambda x, loc, scale: function(x, loc=loc, scale=scale), drawn(8), *_PLACE)


CASES: dict[str, Case] = {
    "bernoulli.logpmf": between(lambda p: stats.bernoulli.logpmf(jnp.arange(12) % 2, p), 0.1, 0.9),
    "beta.logpdf": itself(stats.beta.logpdf, within(0.1, 0.9, 8), within(1, 3, 8), within(1, 3, 8)),
    "binom.logpmf": between(lambda p: stats.binom.logpmf(jnp.arange(12), 12, p), 0.1, 0.9),
    "cauchy.cdf": _with_scale(stats.cauchy, "cdf"),
    "cauchy.logpdf": _with_scale(stats.cauchy),
    "chi2.logpdf": itself(stats.chi2.logpdf, within(0.5, 3, 8), within(2, 5, 8)),
    "dirichlet.logpdf": itself(
        lambda x, a: stats.dirichlet.logpdf(jax.nn.softmax(x, 0), a), drawn(4, 6), within(1, 3, 4)
    ),
    "expon.logpdf": between(stats.expon.logpdf, 0.2, 3),
    "gamma.cdf": itself(stats.gamma.cdf, within(0.5, 3, 8), within(1, 3, 8)),
    "gamma.logpdf": itself(stats.gamma.logpdf, within(0.5, 3, 8), within(1, 3, 8)),
    "gaussian_kde": itself(
        lambda x, points: stats.gaussian_kde(x).evaluate(points), drawn(2, 20), drawn(2, 5), dtypes=WIDE
    ),
    "laplace.logpdf": _with_scale(stats.laplace),
    "logistic.logpdf": _with_scale(stats.logistic),
    "multivariate_normal.logpdf": itself(
        stats.multivariate_normal.logpdf, drawn(3, 5), drawn(5), matrix("definite"), dtypes=WIDE
    ),
    "nbinom.logpmf": between(lambda p: stats.nbinom.logpmf(jnp.arange(12), 4, p), 0.1, 0.9),
    "norm.logcdf": normal(stats.norm.logcdf, dtypes=WIDE),
    "norm.logpdf": _with_scale(stats.norm),
    "norm.ppf": between(stats.norm.ppf, 0.05, 0.95, dtypes=WIDE),
    "pareto.logpdf": itself(stats.pareto.logpdf, within(2, 4, 8), within(1, 3, 8)),
    "poisson.logpmf": between(lambda mu: stats.poisson.logpmf(jnp.arange(12), mu), 0.5, 5),
    "t.logpdf": itself(lambda x, df: stats.t.logpdf(x, df), drawn(8), within(2, 6, 8)),
    "truncnorm.logpdf": between(lambda x: stats.truncnorm.logpdf(x, -2, 3), -1.5, 2.5, dtypes=WIDE),
    "vonmises.logpdf": itself(stats.vonmises.logpdf, drawn(8), within(0.5, 2, 8)),
}
