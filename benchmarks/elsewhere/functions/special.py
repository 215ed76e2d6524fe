"""Special functions."""

import jax.numpy as jnp
from jax import lax
from jax.scipy import special

from benchmarks.elsewhere.cases import WIDE, Case, between, drawn, itself, normal, positive, within

CASES: dict[str, Case] = {
    "beta": itself(special.beta, within(1, 3, 8), within(1, 3, 8)),
    "betainc": positive(lambda x: special.betainc(*jnp.asarray([2.0, 3.0], x.dtype), x / 3), 20),
    "betaln": itself(special.betaln, within(1, 3, 8), within(1, 3, 8)),
    "digamma": positive(lambda x: lax.digamma(3 * x), 50),
    "entr": positive(special.entr),
    "erf": normal(special.erf),
    "erf_inv": normal(lambda x: lax.erf_inv(x / 4), 20),
    "erfc": normal(special.erfc),
    "exp1": positive(special.exp1),
    "expit": normal(special.expit),
    "expn": positive(lambda x: special.expn(3, x)),
    "factorial": positive(special.factorial),
    "gamma": positive(special.gamma),
    "gammainc": positive(lambda x: special.gammainc(jnp.asarray(2.0, x.dtype), x), 20),
    "gammainc, by both": itself(special.gammainc, within(1, 3, 8), within(1, 3, 8)),
    "gammaincc": itself(special.gammaincc, within(1, 3, 8), within(1, 3, 8)),
    "gammaln": positive(lambda x: special.gammaln(x + 2)),
    "hyp1f1": between(lambda x: special.hyp1f1(*jnp.asarray([1.5, 2.5], x.dtype), x), 0.3, 3),
    "i0": normal(special.i0, 10),
    "i0e": normal(special.i0e, 10),
    "i1": normal(special.i1, 10),
    "i1e": normal(special.i1e, 10),
    "kl_div": itself(special.kl_div, within(0.3, 2, 8), within(0.3, 2, 8)),
    "lgamma": positive(lambda x: lax.lgamma(3 * x), 50),
    "log_ndtr": normal(special.log_ndtr, 20, dtypes=WIDE),
    "logit": between(special.logit, 0.1, 0.9),
    "lpmn_values": between(lambda x: special.lpmn_values(3, 3, x, True), -0.9, 0.9, 6, dtypes=WIDE),
    "multigammaln": between(lambda x: special.multigammaln(x, 3), 2, 5),
    "ndtr": normal(special.ndtr, dtypes=WIDE),
    "ndtri": between(special.ndtri, 0.05, 0.95, dtypes=WIDE),
    "poch": itself(special.poch, within(1, 3, 8), within(1, 3, 8)),
    "polygamma": positive(lambda x: special.polygamma(1, x), 5),
    "rel_entr": itself(special.rel_entr, within(0.3, 2, 8), within(0.3, 2, 8)),
    "sph_harm_y": itself(
        lambda t, p: special.sph_harm_y(jnp.asarray([2]), jnp.asarray([1]), t, p, n_max=2).real,
        within(0.3, 2.5, 1),
        within(0.3, 2.5, 1),
    ),
    "spence": between(special.spence, 0.2, 0.9, dtypes=WIDE),
    "spence, above 1": between(special.spence, 1.1, 2, dtypes=WIDE),
    "xlog1py": itself(special.xlog1py, drawn(8), within(0.3, 2, 8)),
    "xlogy": itself(special.xlogy, drawn(8), within(0.3, 2, 8)),
    "zeta": positive(lambda x: special.zeta(x + 1, jnp.asarray(2.0, x.dtype)), 5),
}
