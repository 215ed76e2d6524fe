"""Direct feedback alignment: every hidden layer gets the output's error; nothing travels from layer to layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop import explicit, validate
from manual_backprop.layers.base import Layer, LayerTrace, Parameters
from manual_backprop.network import Serial
from manual_backprop.node import Node, require_key
from manual_backprop.sweep import Rule
from manual_backprop.types import Flow, Leaf, Tree, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Broadcast:
    """DFA's entry for one layer: its B (None: it takes the error term from above), the output's delta, parameters."""

    B: Leaf | None
    error: Leaf
    params: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
    """Every hidden layer gets the output's error directly: delta^(l) = f_l'(z^(l)) * (B_l^T delta^(L)).

    Nothing travels from layer to layer (Nokland, arXiv:1609.01596). The network must end in a layer, whose own
    delta is exact. dL/dx is computed as usual, (W^(1))^T delta^(1). Layers without weights have no B: the error term
    of the layer above passes through them.

    Attributes:
        feedback: an array B_l (M_L, M_l) for every layer, blocks in front under `Repeat`, and None for the last and
            for those without weights; `direct_feedback` draws them.

    Raises (when used):
        ValueError: B of another shape; a network that does not end in a layer; positions that differ.
    """

    feedback: Tree

    linear = True

    @override
    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Flow) -> Tree:
        last, at = _last_layer(net, trace)
        error = last.error_term(at, d_output)
        _require_feedback(self.feedback, net)

        def entry(layer: Layer, own: Any, B: Array | None) -> Broadcast:
            if B is not None and B.dtype != error.dtype:
                raise TypeError(f"feedback is {B.dtype} but the error terms are {error.dtype}; convert it with .astype")
            return Broadcast(B, error, own)

        return net.map(entry, params, self.feedback)

    @override
    def params(self, carried: Broadcast) -> Any:
        return carried.params

    @override
    def delta(self, layer: Layer, carried: Broadcast, trace: LayerTrace, d_a: Array) -> Array:
        if carried.B is None:
            return layer.error_term(trace, d_a)
        expected = (carried.error.shape[-1], trace.z.shape[-1])
        if carried.B.shape != expected:
            raise ValueError(f"{layer}: feedback is {list(carried.B.shape)}, expected {list(expected)}: (M_L, M_l)")
        if carried.error.shape[:-1] != trace.z.shape[:-1]:
            raise ValueError(
                f"{layer}: direct feedback goes from position to position, but the error is"
                f" {list(carried.error.shape)} and z is {list(trace.z.shape)}"
            )
        broadcast = explicit.dot(carried.error, carried.B, ((carried.error.ndim - 1,), (0,)))
        return layer.error_term(trace, broadcast)

    @override
    def transport(self, layer: Layer, carried: Broadcast, saved: Tree, delta: Array) -> Any:
        return layer.transport(carried.params, saved, delta)


def direct_feedback(net: Node, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:
    """Random B_l (M_L, M_l) with entries of variance 1/M_L for every layer of `net` that gets the output's error.

    These are the layers with weights, the last one excepted; the others get None.

    Raises:
        ValueError: `net` does not end in a layer, or has layers with weights whose width it does not know.
        TypeError: no network, or no key.
    """
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    require_key(key)
    last, _ = _last_layer(validate.network(net), None)

    def draw(layer: Layer, own: PRNGKeyArray) -> Array | None:
        if not layer.weights:
            return None
        outputs, width = _width(last), _width(layer)
        return jax.random.normal(own, (outputs, width), dtype) / jnp.sqrt(jnp.asarray(outputs, dtype))

    return _for_hidden(lambda node, keys: node.map(draw, keys), net, net.keys(key))


def _width(layer: Layer) -> int:
    """The features of a layer's z: `d_out` of a dense layer, `d` of an embedding."""
    width = getattr(layer, "d_out", getattr(layer, "d", None))
    if not isinstance(width, int):
        raise ValueError(f"direct_feedback does not know the width of {layer}; make the arrays yourself")
    return width


def _for_hidden(draw: Callable[..., Tree], node: Node, *trees: Tree) -> Tree:
    """A tree with `draw`'s entries for every layer but the last of a `Serial`, which gets None."""
    if not isinstance(node, Serial):
        return None
    *hidden, last = zip(node.nodes, *trees, strict=True)
    return (*(draw(*each) for each in hidden), _for_hidden(draw, *last))


def _last_layer(net: Node, trace: Tree) -> tuple[Layer, Any]:
    while isinstance(net, Serial):
        net, trace = net.nodes[-1], None if trace is None else trace[-1]
    if not isinstance(net, Layer):
        raise ValueError(f"direct feedback starts from the delta of the last layer, but the network ends in {net}")
    return net, trace


def _require_feedback(feedback: Tree, net: Node) -> None:
    structure: Any  # mypy takes it for something that cannot be compared
    leaves, structure = jax.tree.flatten(feedback, is_leaf=lambda leaf: leaf is None or isinstance(leaf, Parameters))
    if any(isinstance(leaf, Parameters) for leaf in leaves):
        raise ValueError(
            "DirectFeedbackAlignment feedback has the parameters' form; it takes an array (M_L, M_l) for every"
            " layer, and None for the last: rules.direct_feedback(net, key) draws it"
        )
    due = _for_hidden(lambda node: node.map(lambda layer: 0 if layer.weights else None), net)
    expected, wanted = jax.tree.flatten(due, is_leaf=lambda leaf: leaf is None)
    if structure != wanted:
        raise ValueError(
            "DirectFeedbackAlignment feedback must have one array for every layer, and None for the last, in"
            f" the network's structure, got {structure}; rules.direct_feedback draws it"
        )
    if [leaf is None for leaf in leaves] != [leaf is None for leaf in expected]:
        raise ValueError(
            "DirectFeedbackAlignment feedback must be None for the last layer (and for those without weights) and an"
            f" array for every other, got None at {[i for i, leaf in enumerate(leaves) if leaf is None]} of"
            f" {len(leaves)} layers"
        )
