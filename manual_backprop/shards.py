"""How arrays vary within `jax.shard_map`: what a hand-written rule must say there, and nothing anywhere else."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from manual_backprop import explicit
from manual_backprop.types import Tree


def varying_like(primal: Tree, cotangent: Tree) -> Tree:
    """The cotangent as JAX wants it: in shard_map summed over the axes along which its argument is replicated.

    Under explicit axes it lies where its argument does.
    """
    if cotangent is None:
        return None

    def of_leaf(primal: Array, cotangent: Array | None) -> Array | None:
        if cotangent is None:  # to integers and booleans nothing flows
            return None
        axes, own = varying_axes(primal), varying_axes(cotangent)
        if own - axes:
            cotangent = jax.lax.psum(cotangent, tuple(sorted(own - axes)))
        return explicit.like(primal, _varying(cotangent, axes - own))

    return jax.tree.map(of_leaf, primal, cotangent)


def varying_along(axes: tuple[Any, ...], tree: Tree) -> Tree:
    """The same values, as ones that may differ along these axes: nothing is summed over devices for them."""
    return jax.tree.map(lambda leaf: _varying(leaf, frozenset(axes) - varying_axes(leaf)), tree)


def zeros_beside(arrays: Tree, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Zeros to begin a sum with: they vary along every axis along which one of these arrays does."""
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(arrays)))
    return _varying(jnp.zeros(shape, dtype), axes)


def varying_axes(leaf: Array) -> frozenset[Any]:
    """The mesh axes along which shard_map holds different values of the leaf."""
    kind = jax.typeof(leaf)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def _varying(value: Array, axes: frozenset[Any]) -> Array:
    return jax.lax.pcast(value, tuple(sorted(axes)), to="varying") if axes else value
