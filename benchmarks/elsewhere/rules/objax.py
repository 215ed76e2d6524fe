"""Objax: functions and losses of networks."""

import jax.numpy as jnp
from objax import functional

from benchmarks.elsewhere.cases import Case, drawn, formula, itself

CASES: dict[str, Case] = {
    "objax.average_pool_2d": itself(lambda x: functional.average_pool_2d(x, 2, 2), drawn(1, 2, 4, 4)),
    "objax.max_pool_2d": itself(lambda x: functional.max_pool_2d(x, 2, 2), drawn(1, 2, 4, 4)),
    "objax.upsample_2d": itself(lambda x: functional.upsample_2d(x, (2, 2)), drawn(1, 2, 3, 3)),
    "objax.upscale_nn": itself(lambda x: functional.upscale_nn(x, 2), drawn(1, 2, 3, 3)),
    "objax.loss.cross_entropy_logits": itself(
        lambda x: functional.loss.cross_entropy_logits(x, jnp.eye(6, 5, dtype=x.dtype)), drawn(6, 5)
    ),
    "objax.loss.sigmoid_cross_entropy_logits": itself(
        lambda x: functional.loss.sigmoid_cross_entropy_logits(x, jnp.eye(6, 5, dtype=x.dtype)), drawn(6, 5)
    ),
    "objax.loss.mean_squared_error": formula(
        functional.loss.mean_squared_error, lambda x, y: ((x - y) ** 2).mean(-1), drawn(6, 5), drawn(6, 5)
    ),
    "objax.loss.l2": formula(functional.loss.l2, lambda x: (x**2).sum() / 2, drawn(6, 5)),
}
