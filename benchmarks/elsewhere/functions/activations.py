"""What networks are made of."""

import jax
import jax.numpy as jnp
from jax import nn

from benchmarks.elsewhere.cases import Case, drawn, itself, normal


def _entropy(x: jax.Array) -> jax.Array:
    return -(nn.one_hot(jnp.arange(6) % 5, 5, dtype=x.dtype) * nn.log_softmax(x)).sum(-1)


CASES: dict[str, Case] = {
    "celu": normal(lambda x: nn.celu(x, 0.7)),
    "cross entropy": normal(_entropy),
    "dot_product_attention": itself(nn.dot_product_attention, *[drawn(1, 4, 2, 3)] * 3),
    "dot_product_attention, causal": itself(
        lambda q, k, v: nn.dot_product_attention(q, k, v, is_causal=True), *[drawn(1, 4, 2, 3)] * 3
    ),
    "elu": normal(nn.elu),
    "gelu": normal(nn.gelu),
    "gelu, exact": normal(lambda x: nn.gelu(x, approximate=False)),
    "glu": normal(nn.glu, 6, 4),
    "hard_sigmoid": normal(nn.hard_sigmoid),
    "hard_swish": normal(nn.hard_swish),
    "hard_tanh": normal(nn.hard_tanh),
    "leaky_relu": normal(nn.leaky_relu),
    "log1mexp": normal(lambda x: nn.log1mexp(jnp.abs(x) + 0.2)),
    "log_sigmoid": normal(nn.log_sigmoid),
    "log_softmax": normal(nn.log_softmax),
    "logmeanexp": normal(lambda x: nn.logmeanexp(x, 0)),
    "logsumexp": normal(nn.logsumexp),
    "logsumexp, weighted": itself(lambda x, b: nn.logsumexp(x, 0, b=b**2), drawn(6, 5), drawn(6, 5)),
    "mish": normal(nn.mish),
    "relu": normal(nn.relu),
    "relu6": normal(lambda x: nn.relu6(4 * x)),
    "selu": normal(nn.selu),
    "sigmoid": normal(nn.sigmoid),
    "silu": normal(nn.silu),
    "soft_sign": normal(nn.soft_sign),
    "softmax": normal(nn.softmax),
    "softmax, masked": normal(lambda x: nn.softmax(x, where=jnp.arange(5) < 3)),
    "softplus": normal(nn.softplus),
    "sparse_plus": normal(nn.sparse_plus),
    "sparse_sigmoid": normal(nn.sparse_sigmoid),
    "squareplus": normal(nn.squareplus),
    "standardize": normal(nn.standardize),
    "tanh": normal(jnp.tanh),
}
