"""Jraph: functions of graphs."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, within

_IDS = np.asarray([0, 0, 1, 0, 2, 1])
_ONE_HOT = np.eye(3)[_IDS]


def _mean(x: jax.Array) -> jax.Array:
    one_hot = jnp.asarray(_ONE_HOT, x.dtype)
    return (one_hot.T @ x) / one_hot.sum(0)[:, None]


def _softmax(x: jax.Array) -> jax.Array:
    e = jnp.exp(x)
    one_hot = jnp.asarray(_ONE_HOT, x.dtype)
    return e / (one_hot @ (one_hot.T @ e))


def _convolved(nodes: jax.Array, W: jax.Array) -> jax.Array:
    graph = jraph.GraphsTuple(
        nodes=nodes,
        edges=None,
        senders=jnp.asarray([0, 1, 2, 3]),
        receivers=jnp.asarray([1, 2, 3, 0]),
        globals=None,
        n_node=jnp.asarray([4]),
        n_edge=jnp.asarray([4]),
    )
    return jraph.GraphConvolution(lambda n: n @ W, add_self_edges=True)(graph).nodes


CASES: dict[str, Case] = {
    "jraph.segment_mean": formula(lambda x: jraph.segment_mean(x, jnp.asarray(_IDS), 3), _mean, drawn(6, 2)),
    "jraph.segment_variance": itself(lambda x: jraph.segment_variance(x, jnp.asarray(_IDS), 3), drawn(6, 2)),
    "jraph.segment_normalize": itself(lambda x: jraph.segment_normalize(x, jnp.asarray(_IDS % 2), 2), drawn(6, 2)),
    "jraph.segment_softmax": formula(lambda x: jraph.segment_softmax(x, jnp.asarray(_IDS), 3), _softmax, drawn(6)),
    "jraph.segment_max_or_constant": itself(
        lambda x: jraph.segment_max_or_constant(x, jnp.asarray(_IDS), 4), drawn(6, 2)
    ),
    "jraph.partition_softmax": itself(lambda x: jraph.partition_softmax(x, jnp.asarray([2, 3, 1]), 6), drawn(6)),
    "jraph.GraphConvolution": itself(_convolved, within(0.3, 2, 4, 3), drawn(3, 2)),
}
