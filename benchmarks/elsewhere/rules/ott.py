"""OTT: optimal transport, and the custom rules of its mathematics."""

import jax
import jax.numpy as jnp
from ott.geometry import costs
from ott.math import matrix_square_root, utils

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, matrix, rule, within


def _root(A: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(A)
    return (vectors * jnp.sqrt(values)) @ vectors.T


def _inverse_root(A: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(A)
    return (vectors / jnp.sqrt(values)) @ vectors.T


def _lambert(z: jax.Array) -> jax.Array:
    """By Newton's method, enough steps of it."""
    w = jnp.log1p(z)
    for _ in range(8):
        w = w - (w * jnp.exp(w) - z) / (jnp.exp(w) * (w + 1))
    return w


CASES: dict[str, Case] = {
    "ott.math.utils.norm": rule(utils.norm, drawn(6, 5), 2, 1, False, mode="jvp"),
    "ott.math.utils.norm, 1": rule(utils.norm, drawn(6, 5), 1, 1, False, mode="jvp"),
    "ott.math.utils.logsumexp": rule(utils.logsumexp, drawn(6, 5), 1, False, None, False, mode="jvp"),
    "ott.math.utils.logsumexp, weighted": rule(
        utils.logsumexp, drawn(6, 5), 1, False, within(0.3, 2, 6, 5), False, mode="jvp"
    ),
    "ott.math.utils.softmin": rule(utils.softmin, drawn(6, 5), within(0.3, 2), 1),
    "ott.math.utils.softmin, by x": rule(utils.softmin, drawn(6, 5), within(0.3, 2), 1, options={"argnums": 0}),
    "ott.math.utils.lambertw": formula(utils.lambertw, _lambert, within(0.3, 4, 9), mode="jvp"),
    "ott.math.utils.gen_kl": formula(
        utils.gen_kl, lambda p, q: (p * jnp.log(p / q) - p + q).sum(), within(0.3, 2, 6), within(0.3, 2, 6)
    ),
    "ott.math.utils.gen_js": itself(utils.gen_js, within(0.3, 2, 6), within(0.3, 2, 6)),
    "ott.math.sqrtm_only": formula(
        lambda A: matrix_square_root.sqrtm_only((A + A.T) / 2),
        lambda A: _root((A + A.T) / 2),
        matrix("definite"),
        dtypes=WIDE,
    ),
    "ott.math.inv_sqrtm_only": formula(
        lambda A: matrix_square_root.inv_sqrtm_only((A + A.T) / 2),
        lambda A: _inverse_root((A + A.T) / 2),
        matrix("definite"),
        dtypes=WIDE,
    ),
    "ott.geometry.costs.Bures": itself(
        lambda x, y: costs.Bures(2)(x.at[2:].add(jnp.asarray([2, 0, 0, 2], x.dtype)), y),
        *[within(0.9, 1, 6)] * 2,
        dtypes=WIDE,
    ),
    "ott.geometry.costs.Cosine": itself(costs.Cosine(), drawn(5), drawn(5)),
    "ott.geometry.costs.Euclidean": formula(
        costs.Euclidean(), lambda x, y: jnp.sqrt(((x - y) ** 2).sum()), drawn(5), drawn(5)
    ),
    "ott.geometry.costs.PNormP": itself(costs.PNormP(1.5), drawn(5), drawn(5)),
    "ott.geometry.costs.SoftDTW": itself(costs.SoftDTW(gamma=0.5), drawn(4), drawn(5)),
}
