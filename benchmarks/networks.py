"""The networks that costs are measured on, and their objectives as a user of jax.grad would write them.

The plain functions take an objective's description alone; every formula is jax.nn's or optax's, without probes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from reference import model

NETS = {
    "64-128-128-10": (64, 128, 128, 10),
    "784-512-512-10": (784, 512, 512, 10),
    "784-1024x4-10": (784, 1024, 1024, 1024, 1024, 10),
    "256x256 depth 64": (256,) * 65,
}


def objective_of(net: Any, lam: float) -> mb.Objective:
    """Softmax cross-entropy of a network, with lam/2 times the squares of all weights unless lam is 0."""
    return mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(lam) if lam else None)


def arguments_of(net: Any, d_in: int, d_out: int, n: int) -> tuple[Any, jax.Array, jax.Array]:
    """(params, x, y) for n examples of d_in features and d_out classes; params and x are float32."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, d_in)), jnp.float32)
    return net.init(jax.random.key(0), jnp.float32), x, jnp.asarray(rng.integers(0, d_out, n), jnp.int32)


def plain_outputs(objective: mb.Objective) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, x) -> o, the outputs of a chain of dense layers."""
    activations = [model.ACTIVATIONS[node.f.name] for node in objective.net.nodes]

    def outputs(params: Any, x: jax.Array) -> jax.Array:
        for layer, f in zip(params, activations, strict=True):
            x = f(x @ layer.W.T + layer.b)
        return x

    return outputs


def plain_loss(objective: mb.Objective) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """(o, y, weights) -> L, the mean of the examples' losses, or their sum with one weight each."""

    def loss(o: jax.Array, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        losses = model.losses(objective.loss, o, y)
        return jnp.mean(losses) if weights is None else jnp.sum(weights * losses)

    return loss


def plain_objective(objective: mb.Objective) -> Callable[..., jax.Array]:
    """(params, x, y, weights=None) -> J."""
    outputs, loss = plain_outputs(objective), plain_loss(objective)

    def J(params: Any, x: jax.Array, y: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        mean = loss(outputs(params, x), y, weights)
        if objective.regularizer is None:
            return mean
        return mean + objective.regularizer.lam / 2 * sum(jnp.sum(jnp.square(layer.W)) for layer in params)

    return J
