"""The same objective, written a second time with jax.nn, jax.lax and optax, for jax.grad to differentiate.

From `manual_backprop` this takes descriptions alone: which layers, which loss, which lambda. Every formula
is another library's or is written anew, so a forward formula that is wrong on one side shows.
To add a layer family or a loss, register its function on `apply` or `losses`; an activation, a row of
`ACTIVATIONS`. An activation or loss of somebody's own that has no witness here is taken at its word, value
by value; its derivative is still jax.grad's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Float

from manual_backprop.layers import Affine, Dense, Node
from manual_backprop.losses import (
    BinaryCrossEntropy,
    Huber,
    Loss,
    SigmoidBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from manual_backprop.network import Repeat, Residual, Serial, Tied
from manual_backprop.objective import Objective

Tree = Any

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": jax.nn.identity,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jax.nn.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerValues:
    """z^(l) and a^(l) of one layer, as the reference computes them."""

    z: Any
    a: Any


@singledispatch
def apply(node: Node, params: Tree, x: Array, probes: Tree) -> tuple[Array, Tree]:
    """(output, values of every layer): the forward pass, `probes` added to every z: d/dprobe is delta."""
    raise TypeError(f"the reference has no forward for {type(node).__name__}; register one on reference.model.apply")


@apply.register
def _(node: Dense, params: Affine, x: Array, probes: Array) -> tuple[Array, LayerValues]:
    z = jax.lax.dot_general(x, params.W, (((x.ndim - 1,), (1,)), ((), ())))
    z = z + jnp.broadcast_to(params.b, z.shape) + probes
    a = ACTIVATIONS.get(node.f.name, node.f.f)(z)
    return a, LayerValues(z, a)


@apply.register
def _(node: Serial, params: Tree, x: Array, probes: Tree) -> tuple[Array, Tree]:
    values: tuple[Tree, ...] = ()
    for child, p, probe in zip(node.nodes, params, probes, strict=True):
        x, value = apply(child, p, x, probe)
        values += (value,)
    return x, values


@apply.register
def _(node: Residual, params: Tree, x: Array, probes: Tree) -> tuple[Array, Tree]:
    branch, values = apply(node.block, params, x, probes)
    return jax.lax.add(x, branch), values


@apply.register
def _(node: Repeat, params: Tree, x: Array, probes: Tree) -> tuple[Array, Tree]:
    return jax.lax.scan(lambda a, block: apply(node.block, block[0], a, block[1]), x, (params, probes))


@apply.register
def _(node: Tied, params: Tree, x: Array, probes: Tree) -> tuple[Array, Tree]:
    return jax.lax.scan(lambda a, probe: apply(node.block, params, a, probe), x, probes)


def zero_probes(net: Node, params: Tree, x: Array) -> Tree:
    """A tree of zeros in the shape of every z."""
    _, values = jax.eval_shape(lambda p, x: apply(net, p, x, _scalar_probes(net, x.dtype)), params, x)
    return jax.tree.map(lambda v: jnp.zeros(v.z.shape, v.z.dtype), values, is_leaf=lambda v: isinstance(v, LayerValues))


def _scalar_probes(node: Node, dtype: Any) -> Tree:
    """Zeros of shape () for every layer, (n,) under Repeat: enough to find the shapes of z."""
    if isinstance(node, Serial):
        return tuple(_scalar_probes(child, dtype) for child in node.nodes)
    if isinstance(node, Residual):
        return _scalar_probes(node.block, dtype)
    if isinstance(node, Repeat | Tied):
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * node.n), _scalar_probes(node.block, dtype))
    return jnp.zeros((), dtype)


def _sum_outputs(terms: Array) -> Float[Array, " N"]:
    return terms.reshape(terms.shape[0], -1).sum(axis=1)


@singledispatch
def losses(loss: Loss, o: Array, y: Array) -> Float[Array, " N"]:
    """l(o_n, y_n) of every example."""
    return loss.value(o, y)


@losses.register
def _(loss: SquaredError, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.l2_loss(o, y))


@losses.register
def _(loss: Huber, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.huber_loss(o, y, delta=loss.threshold))


@losses.register
def _(loss: SoftmaxCrossEntropy, o: Array, y: Array) -> Array:
    if jnp.issubdtype(y.dtype, jnp.integer):
        return _sum_outputs(optax.losses.softmax_cross_entropy_with_integer_labels(o, y))
    return _sum_outputs(optax.losses.softmax_cross_entropy(o, y))


@losses.register
def _(loss: SigmoidBinaryCrossEntropy, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.sigmoid_binary_cross_entropy(o, y))


@losses.register
def _(loss: BinaryCrossEntropy, o: Array, y: Array) -> Array:
    return _sum_outputs(-(xlogy(y, o) + xlog1py(1 - y, -o)))


def penalty(objective: Objective, params: Tree, lam: Any = None) -> Array:
    """(lam/2) sum_l ||W^(l)||_F^2 by optax's tree norm over the weights alone."""
    affine = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Affine))
    if not all(isinstance(node, Affine) for node in affine):
        raise TypeError(f"the reference knows the weights of Affine alone, got {set(map(type, affine))}")
    squared = optax.tree.norm([node.W for node in affine], squared=True)
    if objective.regularizer is None:
        return jnp.zeros_like(squared)
    return (objective.regularizer.lam if lam is None else lam) / 2 * squared


def example_losses(
    objective: Objective, params: Tree, x: Array, y: Array, probes: Tree
) -> tuple[Array, tuple[Array, Tree]]:
    """(L_n of every example, (output, values of every layer)); `probes` as for `apply`."""
    output, values = apply(objective.net, params, x, probes)
    return losses(objective.loss, output, y), (output, values)


def value(objective: Objective, params: Tree, x: Array, y: Array, *, lam: Any = None, weights: Any = None) -> Array:
    """J = sum_n w_n L_n + s."""
    per_example, _ = example_losses(objective, params, x, y, zero_probes(objective.net, params, x))
    if weights is None:
        weights = jnp.full(x.shape[:1], 1 / x.shape[0], per_example.dtype)
    return jnp.dot(weights, per_example) + penalty(objective, params, lam)
