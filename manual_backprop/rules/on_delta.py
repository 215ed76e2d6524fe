"""The rule that edits every delta on the way back; `edits` has a few edits from the literature."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.activations import by_name
from manual_backprop.layers.base import Layer, LayerTrace
from manual_backprop.node import Branches, Node, Wrapper, require_key
from manual_backprop.sweep import Rule, backpropagation, checked_rule
from manual_backprop.types import Flow, Tree, came, override


@dataclass(frozen=True)
class Site:
    """The values at one layer that an edit may use.

    Attributes:
        layer: the layer.
        trace: its z, a and saved.
        d_a: dL/da^(l), which arrived from above.
        delta: the error term that the rule beneath computed from d_a.
        key: a key of this layer's own; None where the rule was given none.
    """

    layer: Layer
    trace: LayerTrace
    d_a: Array
    delta: Array
    key: Any


Edit = Callable[[Site], Array]
"""A pure function from the values at a layer to its new delta."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Edited:
    """The rule's entry for one layer: its edit, a key, and the entry of the rule beneath."""

    edit: Edit | None = field(metadata={"static": True})
    key: Any
    beneath: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnDelta(Rule):
    """Edits every delta and sends the edited one on: top-k, noise, quantising, straight-through.

    An edit is a function of a `Site` that returns the new delta: `lambda site: jnp.clip(site.delta, -1, 1)`. A few
    from the literature are in `edits`.

    Attributes:
        edits: one edit for all layers, or a tuple with one entry for each node of a `Serial`, nested like the network;
            None is no edit: `(None, my_edit, None)`. It is static under jit. Define it once: a new lambda recompiles.
        key: for edits that draw; every layer, block and use gets a key of its own.
        beneath: the rule that is edited.

    Raises (when used):
        ValueError: edits that do not mirror the network; a delta of another shape or dtype; a key that is missing.
        TypeError: an edit that returns no array, or that is a class; a key that is none; a rule beneath that is none.
    """

    edits: Any = field(metadata={"static": True})
    key: Any = None
    beneath: Rule = backpropagation

    def __repr__(self) -> str:
        given = {"edits": self.edits, "key": self.key, "beneath": self.beneath}
        return f"{type(self).__name__}({', '.join(f'{name}={by_name(value)}' for name, value in given.items())})"

    @override
    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Flow) -> Tree:
        beneath = checked_rule(self.beneath).carried(net, params, trace, d_output)
        return _with_edits(self.edits, net, self._keys(net), beneath)

    def _keys(self, net: Node) -> Tree:
        if self.key is None:
            return net.map(lambda layer: None)
        if isinstance(self.key, Rule):
            raise TypeError("a rule came in the place of the key; the rule to edit is given by name, beneath=rule")
        require_key(self.key)
        typed = jnp.issubdtype(self.key.dtype, jax.dtypes.prng_key)
        return net.keys(self.key if typed else jax.random.wrap_key_data(self.key))

    @override
    def params(self, carried: Edited) -> Any:
        return self.beneath.params(carried.beneath)

    @override
    def at_use(self, carried: Tree, use: Array) -> Tree:
        def of_layer(edited: Edited) -> Edited:
            beneath = self.beneath.at_use(edited.beneath, use)
            if edited.key is None:
                return Edited(edited.edit, None, beneath)
            each = jax.vmap(jax.random.fold_in, (0, None))(edited.key.reshape(-1), use)
            return Edited(edited.edit, each.reshape(edited.key.shape), beneath)

        return jax.tree.map(of_layer, carried, is_leaf=lambda node: isinstance(node, Edited))

    @override
    def delta(self, layer: Layer, carried: Edited, trace: LayerTrace, d_a: Array) -> Array:
        delta = self.beneath.delta(layer, carried.beneath, trace, d_a)
        if carried.edit is None:
            return delta
        edited = carried.edit(Site(layer, trace, d_a, delta, carried.key))
        if not isinstance(edited, jax.Array | np.ndarray):
            raise TypeError(
                f"{layer}: the edit returned {came(edited)}; it must return the new delta, an array"
                f" {delta.dtype}{list(delta.shape)}"
            )
        if edited.shape != delta.shape or edited.dtype != delta.dtype:
            raise ValueError(
                f"{layer}: the edit made {edited.dtype}{list(edited.shape)} of a delta that is"
                f" {delta.dtype}{list(delta.shape)}; it must keep both"
            )
        return edited

    @override
    def transport(self, layer: Layer, carried: Edited, saved: Tree, delta: Array) -> Any:
        return self.beneath.transport(layer, carried.beneath, saved, delta)


on_delta = OnDelta
"""The same class as `OnDelta`, in lower case for use like a function."""


def _with_edits(edits: Any, net: Node, *trees: Tree) -> Tree:
    """An `Edited` for every layer: from a tuple each node gets its own edit, from one edit all layers get that."""
    if isinstance(edits, type):
        raise TypeError(f"an edit is a function or an instance such as edits.TopK(3), got {came(edits)}")
    if edits is None or callable(edits):
        return net.map(lambda layer, *each: Edited(edits, *each), *trees)
    if not isinstance(edits, tuple):
        raise ValueError(f"edits are a function, None, or a tuple of these, got {came(edits)}")
    if isinstance(net, Wrapper):
        return _with_edits(edits, net.block, *trees)
    if not isinstance(net, Branches) or len(net.nodes) != len(edits):
        raise ValueError(f"{len(edits)} edits in a tuple do not mirror {net}: one for each node of a Serial")
    return tuple(_with_edits(*each) for each in zip(edits, net.nodes, *trees, strict=True))
