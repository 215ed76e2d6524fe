"""Sweeps in which layers draw at random, such as dropout: every use of every layer gets a key of its own.

A sweep over a part of a batch draws what a sweep over the whole batch draws for these examples, where it knows which
they are (`Part`).

`Drawing` is a step around any other. It takes the keys out of the trees, so that neither the step inside nor a rule,
a reading or a composite meets one. A block that is run forward again has the same keys, and draws the same.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from manual_backprop.node import Node, Step, require_key
from manual_backprop.types import Flow, Leaf, Part, Tree, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WithKey:
    """A layer's entry in the tree that a sweep takes along, and the layer's key.

    Attributes:
        own: the entry that the step inside is given.
        key: with blocks of a `Repeat` in front; None where the layer draws nothing.
    """

    own: Tree
    key: Leaf


@dataclass(frozen=True)
class Drawing(Step):
    """A step in which every layer that draws has a key; `owned` has a `WithKey` at every layer.

    Attributes:
        step: does the work.
        part: which examples of a batch the sweep is over; None means all of them.
    """

    step: Step
    part: Part | None = None

    @property
    @override
    def lean(self) -> bool:  # type: ignore[override]
        return self.step.lean

    @override
    def forward(self, layer: Any, x: Flow, own: WithKey) -> tuple[Flow, Any]:
        return self.step.forward(self._drawing(layer, own.key), x, own.own)

    def _drawing(self, layer: Any, key: Any) -> Any:
        if key is None:
            return layer
        return layer.drawing(key) if self.part is None else layer.drawing_for(self.part, key)

    @override
    def backward(self, layer: Any, d: Flow, own: WithKey, kept: Any) -> tuple[Flow, Any]:
        return self.step.backward(layer, d, own.own, kept)

    @override
    def at_use(self, owned: Tree, use: Array) -> Tree:
        structure: Any
        entries, structure = jax.tree.flatten(owned, is_leaf=lambda node: isinstance(node, WithKey))
        at_use = self.step.at_use(structure.unflatten([entry.own for entry in entries]), use)
        keys = [None if entry.key is None else keys_at_use(entry.key, use) for entry in entries]
        return structure.unflatten(map(WithKey, structure.flatten_up_to(at_use), keys))

    @override
    def scannable(self, flow: Flow) -> Flow:
        return self.step.scannable(flow)

    @property
    @override
    def unread(self) -> "Drawing":
        return Drawing(self.step.unread, self.part)

    @override
    def read(self, block: Node, kept: Tree, found: Tree) -> Tree:
        return self.step.read(block, kept, found)

    @override
    def joined(self, layer: Any, kept: tuple[Any, ...], found: tuple[Any, ...]) -> Any:
        return self.step.joined(layer, kept, found)


def drawn(net: Node, step: Step, owned: Tree, keys: Tree | None, part: Part | None = None) -> tuple[Step, Tree]:
    """The step to send through a network and the tree to send along; `keys` as from `layer_keys`."""
    if keys is None:
        return step, owned
    return Drawing(step, part), net.map(lambda layer, own, key: WithKey(own, key), owned, keys)


def draws(net: Node) -> bool:
    """Whether any layer draws at random where a key is given."""
    return any(layer.draws for layer in net.layers())


def layer_keys(net: Node, key: PRNGKeyArray | None) -> Tree | None:
    """A key for every layer that draws and None for the others, in a tree that mirrors the parameters.

    Args:
        net: a layer or composite.
        key: split as `net.keys` does; None draws nothing.

    Returns:
        None where nothing is drawn.

    Raises:
        TypeError: anything but a key, such as the number of a seed.
        ValueError: several keys in one array.
    """
    if key is None:
        return None
    key = typed(key)
    return net.map(lambda layer, own: own if layer.draws else None, net.keys(key)) if draws(net) else None


def typed(key: Any) -> PRNGKeyArray:
    """One key as a typed one, whether it is or holds plain integers, as `jax.random.PRNGKey` gives them.

    Raises:
        TypeError: anything but a key, such as the number of a seed.
        ValueError: several keys in one array.
    """
    require_key(key)
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if key.shape != ():
        raise ValueError(f"key must be one key, got {list(key.shape)} of them; map over several with jax.vmap")
    return key


def keys_at_use(keys: Array, use: Array) -> Array:
    """The keys for one use of a block that is used several times, from those of the block."""
    each = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), use)  # blocks of a Repeat stand in front
    return each.reshape(keys.shape)
