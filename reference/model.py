"""The same objective, written a second time with jax.nn, jax.lax and optax, for jax.grad to differentiate.

From `manual_backprop` this module takes descriptions alone: which layers, which loss, which lambda. Every formula
comes from another library or is written anew, so a forward formula that is wrong on one side shows.

To add a family of layers, register its net input on `apply`. To add a composite, register how it is joined on
`through`. Register a loss on `losses`; an activation is a row of `ACTIVATIONS`. A user's activation or loss without a
witness here is used as it is: its values are not checked, but its derivative is still by jax.grad.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Float

from manual_backprop.layers import (
    Affine,
    Attention,
    Dense,
    Dropout,
    Embedding,
    Gain,
    GainAndBias,
    Layer,
    LayerNorm,
    Parameters,
    PositionalEmbedding,
    Positions,
    Product,
    RMSNorm,
    Table,
)
from manual_backprop.losses import (
    BinaryCrossEntropy,
    Huber,
    Loss,
    SigmoidBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from manual_backprop.network import Parallel, Readout, Repeat, Residual, Serial, Tied, TiedReadout
from manual_backprop.node import Node
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
def apply(layer: Any, params: Tree, a_in: Any) -> Array:
    """z^(l) of a layer, from its parameters and its input (F1); a family registers its own forward here."""
    raise TypeError(
        f"the reference has no forward for {type(layer).__name__}; register one on reference.model.apply, a function of"
        " (layer, params, a_in) that returns z"
    )


@apply.register
def _(layer: Dense, params: Affine, a_in: Array) -> Array:
    z = jax.lax.dot_general(a_in, params.W, (((a_in.ndim - 1,), (1,)), ((), ())))
    return z + jnp.broadcast_to(params.b, z.shape) if layer.bias else z


@apply.register
def _(layer: Product, params: tuple[()], a_in: tuple[Array, Array]) -> Array:
    return jax.lax.mul(*a_in)


@apply.register
def _(layer: Attention, params: tuple[()], a_in: tuple[Array, ...]) -> Array:
    q, k, v, *mask = a_in
    of_keys = layer.heads if layer.kv_heads is None else layer.kv_heads
    q = q.reshape(*q.shape[:2], layer.heads, -1)
    k, v = (jnp.repeat(x.reshape(*x.shape[:2], of_keys, -1), layer.heads // of_keys, axis=2) for x in (k, v))
    if layer.rope is not None:
        q, k = _turned(q, layer.rope), _turned(k, layer.rope)
    rows, keys, size = q.shape[1], k.shape[1], q.shape[3]
    seen = jnp.tri(rows, keys, dtype=bool) if layer.causal else jnp.ones((rows, keys), bool)
    seen = jnp.broadcast_to(seen, (q.shape[0], layer.heads, rows, keys))
    if mask:
        seen &= jnp.broadcast_to(mask[0].reshape(-1, 1, 1, keys), seen.shape)
    scores = jnp.where(seen, jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(size).astype(q.dtype), -1e30)
    P = jnp.where(seen.any(axis=-1, keepdims=True), jax.nn.softmax(scores, axis=-1), 0)
    return jnp.einsum("nhqk,nkhd->nqhd", P, v).reshape(*q.shape[:2], -1)


def _turned(heads: Array, base: float) -> Array:
    """Rotary positions (N, T, heads, size): complex numbers of two features each, half a head apart, turned."""
    length, half = heads.shape[1], heads.shape[3] // 2
    angles = np.outer(np.arange(length), np.power(float(base), -2 * np.arange(half) / heads.shape[3]))
    turns = jax.lax.complex(*(jnp.asarray(part(angles), heads.dtype) for part in (np.cos, np.sin)))
    turned = jax.lax.complex(heads[..., :half], heads[..., half:]) * turns.reshape(1, length, 1, half)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


@apply.register
def _(layer: RMSNorm, params: Gain, a_in: Array) -> Array:
    size = jnp.sqrt(jnp.mean(a_in**2, axis=-1, keepdims=True) + layer.eps)
    return a_in / size * jnp.broadcast_to(params.gain, a_in.shape)


@apply.register
def _(layer: LayerNorm, params: GainAndBias, a_in: Array) -> Array:
    # jax.nn.standardize takes E[x^2] - E[x]^2 for the variance, which cancels; jnp.var squares deviations.
    mean, deviation = jnp.mean(a_in, axis=-1, keepdims=True), jnp.sqrt(jnp.var(a_in, -1, keepdims=True) + layer.eps)
    z = (a_in - mean) / deviation * jnp.broadcast_to(params.gain, a_in.shape)
    return z + jnp.broadcast_to(params.bias, z.shape) if layer.bias else z


@apply.register
def _(layer: Embedding, params: Table, a_in: Array) -> Array:
    return jnp.einsum("...v,vd->...d", jax.nn.one_hot(a_in, layer.vocab, dtype=params.W.dtype), params.W)


@apply.register
def _(layer: PositionalEmbedding, params: Positions, a_in: Array) -> Array:
    return jax.vmap(lambda sequence: jax.lax.add(sequence, jax.lax.slice_in_dim(params.P, 0, len(sequence))))(a_in)


@apply.register
def _(layer: Dropout, params: Any, a_in: Array) -> Array:
    # `params` are (), or the mask as data.
    return a_in if isinstance(params, tuple) else jax.lax.select(params, a_in / (1 - layer.rate), jnp.zeros_like(a_in))


@apply.register
def _(layer: Readout, params: Table, a_in: Array) -> Array:
    return jnp.einsum("...d,vd->...v", a_in, params.W)


def activated(layer: Layer, z: Array) -> Array:
    """a^(l) = f_l(z^(l)) (F2)."""
    return ACTIVATIONS.get(layer.f.name, layer.f.f)(z)


At = Callable[..., tuple[Any, Any]]
"""(layer, its input, its parameters, its entries in other trees) -> (its output, a result to collect)."""


@singledispatch
def through(node: Any, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    """Send x through a node: call `at` at every layer, with its entries in trees that mirror the layers' uses.

    Returns:
        The output, and the results of `at` for every use of every layer.
    """
    raise TypeError(
        f"the reference does not know how {type(node).__name__} is joined; register it on reference.model.through"
    )


@through.register
def _(node: Layer, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    return at(node, x, params, *uses)


@through.register
def _(node: Serial, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    found: tuple[Tree, ...] = ()
    for child, *each in zip(node.nodes, params, *uses, strict=True):
        x, of_child = through(child, at, x, *each)
        found += (of_child,)
    return x, found


@through.register
def _(node: Residual, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    branch, found = through(node.block, at, x, params, *uses)
    return jax.tree.map(jax.lax.add, x, branch), found


@through.register
def _(node: Parallel, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    each = [through(child, at, x, *trees) for child, *trees in zip(node.nodes, params, *uses, strict=True)]
    return tuple(output for output, _ in each), tuple(found for _, found in each)


@through.register
def _(node: Repeat, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    return jax.lax.scan(lambda a, block: through(node.block, at, a, *block), x, (params, *uses), length=node.n)


@through.register
def _(node: Tied, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    return jax.lax.scan(lambda a, use: through(node.block, at, a, params, *use), x, uses, length=node.n)


@through.register
def _(node: TiedReadout, at: At, x: Any, params: Tree, *uses: Tree) -> tuple[Any, Tree]:
    table, of_body = params
    found: tuple[Tree, ...] = ()
    for part, own, *each in zip(node.parts, (table, of_body, table), *uses, strict=True):
        x, of_part = through(part, at, x, own, *each)
        found += (of_part,)
    return x, found


def probed(layer: Layer, x: Any, params: Tree, probe: Array, mask: Any = ()) -> tuple[Array, LayerValues]:
    """A layer with a probe added to its z: the derivative with respect to the probe is delta."""
    z = apply(layer, params if isinstance(mask, tuple) else mask, x) + probe
    a = activated(layer, z)
    return a, LayerValues(z, a)


def unprobed(layer: Layer, x: Any, params: Tree, mask: Any = ()) -> tuple[Array, LayerValues]:
    """A layer without a probe."""
    z = apply(layer, params if isinstance(mask, tuple) else mask, x)
    a = activated(layer, z)
    return a, LayerValues(z, a)


def outputs(net: Node, params: Tree, x: Any, masks: Tree | None = None) -> Any:
    """a^(L): the network as a plain function, for JAX to differentiate."""
    return through(net, unprobed, x, params, *_given(masks))[0]


def _given(masks: Tree | None) -> tuple[Tree, ...]:
    return () if masks is None else (masks,)


def zero_probes(net: Node, params: Tree, x: Any) -> Tree:
    """A tree with an array of zeros in the shape of every z."""
    _, shapes = jax.eval_shape(lambda params, x: through(net, unprobed, x, params), params, x)
    return jax.tree.map(lambda v: jnp.zeros(v.z.shape, v.z.dtype), shapes, is_leaf=lambda v: isinstance(v, LayerValues))


def _sum_outputs(terms: Array) -> Float[Array, " N"]:
    return terms.reshape(terms.shape[0], -1).sum(axis=1)


@singledispatch
def losses(loss: Loss, o: Array, y: Array) -> Float[Array, " N"]:
    """l(o_n, y_n) of every example."""
    return loss.checked_value(o, y)


@losses.register
def _(loss: SquaredError, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.l2_loss(o, y))


@losses.register
def _(loss: Huber, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.huber_loss(o, y, delta=loss.threshold))


@losses.register
def _(loss: SoftmaxCrossEntropy, o: Array, y: Array) -> Array:
    of_labels = jnp.issubdtype(y.dtype, jnp.integer)
    counts = y != loss.ignored if of_labels and loss.ignored is not None else None
    if counts is not None:
        y = jnp.where(counts, y, 0)
    if of_labels and loss.label_smoothing:
        y, of_labels = jax.nn.one_hot(y, o.shape[-1], dtype=o.dtype), False
    if loss.label_smoothing:
        y = optax.smooth_labels(y, loss.label_smoothing)
    of = optax.losses.softmax_cross_entropy_with_integer_labels if of_labels else optax.losses.softmax_cross_entropy
    terms = of(o, y)
    if loss.z_loss:
        terms += loss.z_loss * jnp.square(jax.nn.logsumexp(o, axis=-1))
    return _sum_outputs(terms if counts is None else jnp.where(counts, terms, 0))


@losses.register
def _(loss: SigmoidBinaryCrossEntropy, o: Array, y: Array) -> Array:
    return _sum_outputs(optax.losses.sigmoid_binary_cross_entropy(o, y))


@losses.register
def _(loss: BinaryCrossEntropy, o: Array, y: Array) -> Array:
    return _sum_outputs(-(xlogy(y, o) + xlog1py(1 - y, -o)))


def penalty(objective: Objective, params: Tree, lam: Any = None) -> Array:
    """(lam/2) sum_l ||W^(l)||_F^2 by optax's tree norm over the weights alone, as their families name them."""
    blocks = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Parameters))
    weights = [getattr(block, name) for block in blocks if isinstance(block, Parameters) for name in block.weights]
    squared = jnp.asarray(optax.tree.norm(weights, squared=True))
    if objective.regularizer is None:
        return jnp.zeros_like(squared)
    return (objective.regularizer.lam if lam is None else lam) / 2 * squared


def examples(x: Any) -> int:
    """N, the number of rows of a batch, or of each of its parts."""
    return jax.tree.leaves(x)[0].shape[0]


def float_type(params: Tree, x: Any) -> Any:
    """The float type that the network computes in: that of its parameters, or of its input where it has none."""
    return jnp.result_type(*(leaf for leaf in jax.tree.leaves((params, x)) if jnp.issubdtype(leaf.dtype, jnp.floating)))


def example_losses(
    objective: Objective, params: Tree, x: Any, y: Array, probes: Tree, masks: Tree | None = None
) -> tuple[Array, tuple[Array, Tree]]:
    """(L_n of every example, (output, values of every layer)); `probes` as for `probed`, `masks` from `masks`."""
    output, values = through(objective.net, probed, x, params, probes, *_given(masks))
    return losses(objective.loss, output, y), (output, values)


def value(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Array,
    *,
    lam: Any = None,
    weights: Any = None,
    masks: Tree | None = None,
) -> Array:
    """J = sum_n w_n L_n + s, at the masks of dropout if given."""
    per_example, _ = example_losses(objective, params, x, y, zero_probes(objective.net, params, x), masks)
    if weights is None:
        weights = jnp.full(per_example.shape, 1 / examples(x), per_example.dtype)
    return jnp.dot(weights, per_example) + penalty(objective, params, lam)
