"""NumPyro: densities, transforms, and special functions with custom rules."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, gammaln
from numpyro.distributions import transforms, util

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, matrix, rule, within

_ABOVE = within(0.3, 2, 8)


def _density(distribution: object) -> object:
    return lambda x, *parameters: distribution(*parameters).log_prob(x)


def _moved(transform: object) -> object:
    """The transform and the logarithm of its determinant."""
    return lambda x: (transform(x), transform.log_abs_det_jacobian(x, transform(x)))


def _power_law(x: jax.Array, alpha: jax.Array) -> jax.Array:
    """Between 0.2 and 3."""
    return alpha * jnp.log(x) + jnp.log((1 + alpha) / (3 ** (1 + alpha) - 0.2 ** (1 + alpha)))


def _double(what: str) -> object:
    def function(x: jax.Array, alpha: jax.Array) -> jax.Array:
        ends = jnp.asarray([0.2, 3.0], x.dtype)
        return getattr(dist.DoublyTruncatedPowerLaw(alpha, *ends), what)(x)

    return function


CASES: dict[str, Case] = {
    "numpyro.log1mexp": rule(util.log1mexp, within(-3, -0.1, 12), mode="jvp"),
    "numpyro.logdiffexp": formula(
        lambda x, y: util.logdiffexp(x + 3, y), lambda x, y: jnp.log(jnp.exp(x + 3) - jnp.exp(y)), _ABOVE, _ABOVE
    ),
    "numpyro.logmatmulexp": formula(
        util.logmatmulexp, lambda x, y: jnp.log(jnp.exp(x) @ jnp.exp(y)), drawn(3, 4), drawn(4, 2)
    ),
    "numpyro.safe_normalize": formula(
        util.safe_normalize, lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True)), drawn(3, 4)
    ),
    "numpyro.cholesky_update": formula(
        lambda A, x: util.cholesky_update(jnp.linalg.cholesky(A), x),
        lambda A, x: jnp.linalg.cholesky(A + jnp.outer(x, x)),
        matrix("definite"),
        drawn(5),
        dtypes=WIDE,
    ),
    "numpyro.Beta": formula(
        _density(dist.Beta),
        lambda x, a, b: (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - betaln(a, b),
        within(0.1, 0.9, 8),
        within(1, 3, 8),
        within(1, 3, 8),
    ),
    "numpyro.Gamma": formula(
        _density(dist.Gamma),
        lambda x, a, b: a * jnp.log(b) + (a - 1) * jnp.log(x) - b * x - gammaln(a),
        _ABOVE,
        within(1, 3, 8),
        _ABOVE,
    ),
    "numpyro.Normal": formula(
        _density(dist.Normal),
        lambda x, m, s: -(((x - m) / s) ** 2) / 2 - jnp.log(s) - jnp.log(2 * jnp.pi) / 2,
        drawn(8),
        drawn(8),
        _ABOVE,
    ),
    "numpyro.StudentT": formula(
        _density(dist.StudentT),
        lambda x, n: (
            gammaln((n + 1) / 2) - gammaln(n / 2) - jnp.log(n * jnp.pi) / 2 - (n + 1) / 2 * jnp.log1p(x**2 / n)
        ),
        drawn(8),
        within(2, 6, 8),
    ),
    "numpyro.Kumaraswamy": formula(
        _density(dist.Kumaraswamy),
        lambda x, a, b: jnp.log(a * b) + (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-(x**a)),
        within(0.1, 0.9, 8),
        within(1, 3, 8),
        within(1, 3, 8),
    ),
    "numpyro.Weibull": formula(
        _density(dist.Weibull),
        lambda x, s, k: jnp.log(k / s) + (k - 1) * jnp.log(x / s) - (x / s) ** k,
        _ABOVE,
        _ABOVE,
        within(1, 3, 8),
    ),
    "numpyro.InverseGamma": formula(
        _density(dist.InverseGamma),
        lambda x, a, b: a * jnp.log(b) - gammaln(a) - (a + 1) * jnp.log(x) - b / x,
        _ABOVE,
        within(1, 3, 8),
        _ABOVE,
    ),
    "numpyro.HalfCauchy": formula(
        _density(dist.HalfCauchy),
        lambda x, s: jnp.log(2 / jnp.pi) - jnp.log(s) - jnp.log1p((x / s) ** 2),
        _ABOVE,
        _ABOVE,
    ),
    "numpyro.Gumbel": formula(
        _density(dist.Gumbel),
        lambda x, m, s: -(x - m) / s - jnp.exp(-(x - m) / s) - jnp.log(s),
        drawn(8),
        drawn(8),
        within(1, 2, 8),
    ),
    "numpyro.Levy": formula(
        _density(dist.Levy),
        lambda x, m, c: jnp.log(c / (2 * jnp.pi)) / 2 - c / (2 * (x - m)) - 1.5 * jnp.log(x - m),
        within(2, 3, 8),
        within(0.3, 1, 8),
        _ABOVE,
    ),
    "numpyro.Dagum": itself(_density(dist.Dagum), _ABOVE, _ABOVE, _ABOVE, _ABOVE),
    "numpyro.Gompertz": itself(_density(dist.Gompertz), _ABOVE, _ABOVE),
    "numpyro.VonMises": itself(_density(dist.VonMises), drawn(8), drawn(8), _ABOVE),
    "numpyro.BetaBinomial": itself(
        lambda a, b: dist.BetaBinomial(a, b, 10).log_prob(jnp.arange(8)), within(1, 3, 8), within(1, 3, 8)
    ),
    "numpyro.NegativeBinomial2": itself(
        lambda m, k: dist.NegativeBinomial2(m, k).log_prob(jnp.arange(8)), within(1, 3, 8), within(1, 3, 8)
    ),
    "numpyro.ZeroInflatedPoisson": itself(
        lambda p, m: dist.ZeroInflatedPoisson(p, m).log_prob(jnp.arange(8) % 3), within(0.1, 0.9, 8), within(1, 3, 8)
    ),
    "numpyro.TruncatedNormal": itself(
        lambda x, m, s: dist.TruncatedNormal(m, s, low=-1.0, high=2.0).log_prob(x),
        within(-0.8, 1.8, 8),
        drawn(8),
        _ABOVE,
    ),
    "numpyro.TwoSidedTruncatedDistribution.icdf": itself(
        lambda u, m, s: dist.TruncatedNormal(m, s, low=-1.0, high=2.0).icdf(u), within(0.2, 0.8, 8), drawn(8), _ABOVE
    ),
    "numpyro.DoublyTruncatedPowerLaw": formula(_double("log_prob"), _power_law, _ABOVE, within(0.5, 2, 8)),
    "numpyro.DoublyTruncatedPowerLaw.cdf": formula(
        _double("cdf"),
        lambda x, a: (x ** (1 + a) - 0.2 ** (1 + a)) / (3 ** (1 + a) - 0.2 ** (1 + a)),
        _ABOVE,
        within(0.5, 2, 8),
    ),
    "numpyro.DoublyTruncatedPowerLaw.icdf": formula(
        _double("icdf"),
        lambda q, a: (0.2 ** (1 + a) + q * (3 ** (1 + a) - 0.2 ** (1 + a))) ** (1 / (1 + a)),
        within(0.1, 0.9, 8),
        within(0.5, 2, 8),
    ),
    "numpyro.LKJCholesky": itself(
        lambda x, c: dist.LKJCholesky(3, c).log_prob(transforms.CorrCholeskyTransform()(x)),
        drawn(3),
        within(1, 3),
        dtypes=WIDE,
    ),
    "numpyro.MultivariateNormal": itself(
        lambda x, A: dist.MultivariateNormal(jnp.zeros_like(x), A).log_prob(x),
        drawn(5),
        matrix("definite"),
        dtypes=WIDE,
    ),
    "numpyro.LowRankMultivariateNormal": itself(
        lambda x, W, d: dist.LowRankMultivariateNormal(jnp.zeros_like(x), W, d).log_prob(x),
        drawn(5),
        drawn(5, 2),
        within(0.5, 2, 5),
        dtypes=WIDE,
    ),
    "numpyro.StickBreakingTransform": itself(_moved(transforms.StickBreakingTransform()), drawn(5)),
    "numpyro.CorrCholeskyTransform": itself(_moved(transforms.CorrCholeskyTransform()), drawn(6)),
    "numpyro.LowerCholeskyTransform": itself(_moved(transforms.LowerCholeskyTransform()), drawn(6)),
    "numpyro.OrderedTransform": itself(_moved(transforms.OrderedTransform()), drawn(5)),
    "numpyro.SoftplusTransform": itself(_moved(transforms.SoftplusTransform()), drawn(5)),
    "numpyro.SimplexToOrderedTransform": itself(
        lambda x: transforms.SimplexToOrderedTransform(jnp.asarray(0.0, x.dtype))(jax.nn.softmax(x)), drawn(5)
    ),
}
