"""The parts that all experiments share: scikit-learn's digits, training, and gradients by jax.grad."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import manual_backprop as mb
import reference
from manual_backprop.node import Node
from manual_backprop.sweep import Rule
from reference import model
from reference.catalogue import data
from reference.xla import quick

Tree = Any
compiled = partial(jax.jit, compiler_options=quick())  # most programs here run for less time than they compile
CLASSES = 10
TRAIN = 1400  # of 1797; the other 397 are for testing
RATE = 0.1
BATCH = 50
NET = mb.mlp((64, 100, 100, CLASSES), "tanh")
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)


@dataclass(frozen=True, eq=False)
class Split:
    """Images, one a row, and labels, for training and for testing."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


@cache
def split(seed: int) -> Split:
    """Digits in an order drawn by the seed, pixels in [0, 1]."""
    digits = data.raw("digits")
    order = np.random.default_rng(seed).permutation(len(digits.y))
    x, y = jnp.asarray(digits.x[order] / 16), jnp.asarray(digits.y[order])
    return Split(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def small(seed: int, n: int) -> tuple[Float[Array, "n 16"], Array]:
    """(x, y) of n images of 4 x 4, each pixel the mean of 2 x 2, small enough for full curvature matrices."""
    digits = split(seed)
    return digits.x[:n].reshape(n, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(n, 16), digits.y[:n]


def sequences(seed: int, n: int) -> tuple[Float[Array, "n 8 8"], Array]:
    """(x, y) of n images as sequences: eight positions, each a row of eight pixels."""
    digits = split(seed)
    return digits.x[:n].reshape(n, 8, 8), digits.y[:n]


def keys(seed: int, n: int) -> PRNGKeyArray:
    """Split a seed's key into n keys."""
    return jax.random.split(jax.random.key(seed), n)


@partial(compiled, static_argnums=(0, 6))
def trained(
    objective: mb.Objective, params: Tree, rule: Rule, key: PRNGKeyArray, x: Array, y: Array, epochs: int
) -> Tree:
    """SGD under a rule, one scan: the parameters after each epoch, epochs in front of every leaf."""
    optimizer = optax.sgd(RATE)

    def under_rule(objective: mb.Objective) -> Callable[..., Any]:
        return partial(mb.value_and_grad(objective), rule=rule)

    epoch = mb.training.make_epoch(objective, optimizer, BATCH, value_and_grad=under_rule)

    def one(carry: Tree, key: PRNGKeyArray) -> tuple[Tree, Tree]:
        params, state, _ = epoch(*carry, key, x, y)
        return (params, state), params

    return jax.lax.scan(one, (params, optimizer.init(params)), jax.random.split(key, epochs))[1]


def at(history: Tree, epoch: int) -> Tree:
    """The parameters after one epoch."""
    return jax.tree.map(lambda leaf: leaf[epoch], history)


@partial(compiled, static_argnums=0)
def accuracy(net: Node, params: Tree, x: Array, y: Array) -> Array:
    """Per cent of examples whose largest output is the label's."""
    output, _ = mb.forward(net, params, x)
    return 100 * jnp.mean(jnp.argmax(output, axis=-1) == y)


@partial(compiled, static_argnums=0)
def drawn(net: mb.Serial, of_params: PRNGKeyArray, of_biases: PRNGKeyArray) -> Tree:
    """Parameters with random biases, since a bias of 0, as `init` gives, would hide faults in its own terms."""
    params, own = net.init(of_params), jax.random.split(of_biases, len(net.nodes))
    return tuple(
        mb.Affine(p.W, 0.3 * jax.random.normal(k, p.b.shape, p.b.dtype)) for p, k in zip(params, own, strict=True)
    )


@partial(compiled, static_argnums=0)
def example_gradients(objective: mb.Objective, params: Tree, x: Array, y: Array) -> Tree:
    """The witness: jax.grad of the reference's objective, example by example."""
    gradient = reference.value_and_grad(objective)
    return jax.vmap(lambda x, y: gradient(params, x[None], y[None])[1])(x, y)


def reference_output(net: Node, params: Tree, x: Array) -> Array:
    """The reference's own forward pass."""
    return model.outputs(net, params, x)


def rows(gradients: Tree) -> Float[Array, "N P"]:
    """Gradients with the examples in front, one row an example."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)], axis=1)


def relative(ours: Any, theirs: Any) -> float:
    """||ours - theirs|| / ||theirs|| over all leaves; by numpy, which compiles nothing."""
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
