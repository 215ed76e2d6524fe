"""Work that is done or not, and values in places: both so that XLA changes what is held without a copy of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop.types import Leaf, Tree

Work = Callable[[Any], Any]
"""A part of the state -> the same part, after an operation."""


def once(when: Array, work: Work, held: Tree) -> Tree:
    """Apply `work` to what is held, where `when` is true.

    It is a loop of at most one turn. XLA changes what goes round a loop in place, but copies what goes through a
    conditional: here all that a stage holds, in every tick.
    """

    def turn(state: tuple[Array, Tree]) -> tuple[Array, Tree]:
        when, held = state
        return when & False, work(held)

    return jax.lax.while_loop(lambda state: state[0], turn, (when, held))[1]


def taken(tree: Tree, place: Leaf) -> Tree:
    """The part at a place."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), tree)


def put(tree: Tree, place: Leaf, part: Tree, *, when: Array | None = None) -> Tree:
    """The tree with this part at a place, if `when`; in a scan XLA writes it in place."""

    def of_leaf(leaf: Array, own: Array) -> Array:
        own = own if when is None else jnp.where(when, own, taken(leaf, place))
        return jax.lax.dynamic_update_index_in_dim(leaf, own, place, 0)

    return jax.tree.map(of_leaf, tree, part)


def added(total: Tree, part: Tree) -> Tree:
    """The sum, in the precision of the total."""
    return jax.tree.map(lambda whole, own: whole + own.astype(whole.dtype), total, part)
