"""Explicit axes of a mesh (`jax.sharding.AxisType.Explicit`): how the results of contractions are sharded.

There an array's sharding is part of its type, and an operation whose result could lie in several ways must say which.
Here it is said from the operands: every axis of the result lies as the axis that it comes from. A mesh axis that would
be named twice is dropped where it comes second, so that rows keep the devices of the data, and weights that are split
over the same devices (FSDP) are gathered. Where axes are automatic, as on one device, nothing is
said, and the program is the same.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike

from manual_backprop.types import Tree

Spec = tuple[Any, ...]
"""For every axis of an array the mesh axes that it is split over: a name, a tuple of names, or None."""


def spec(array: Any) -> Spec:
    """The explicit axes over which an array is split; None for every axis where there are none."""
    return tuple(jax.typeof(array).sharding.spec)


def is_explicit(*arrays: Any) -> bool:
    """Whether one of the arrays is split over an explicit axis."""
    return any(axes is not None for array in arrays for axes in spec(array))


def dot(
    lhs: Array, rhs: Array, contracted: tuple[Sequence[int], Sequence[int]], wide: DTypeLike | None = None
) -> Array:
    """`jax.lax.dot_general` without batch axes: those of `lhs` that are left stand before those of `rhs`."""
    left = [axes for i, axes in enumerate(spec(lhs)) if i not in contracted[0]]
    right = [axes for i, axes in enumerate(spec(rhs)) if i not in contracted[1]]
    out = _sharding((*left, *right), lhs, rhs)
    return jax.lax.dot_general(lhs, rhs, (contracted, ((), ())), preferred_element_type=wide, out_sharding=out)


def einsum(formula: str, one: Array, other: Array, wide: DTypeLike | None = None) -> Array:
    """`jnp.einsum` of two arrays, its letters written out."""
    operands, result = formula.split("->")
    lies: dict[str, Any] = {}
    for letters, array in zip(operands.split(","), (one, other), strict=True):
        for letter, axes in zip(letters, spec(array), strict=True):
            lies[letter] = lies.get(letter) or axes
    out = _sharding([lies[letter] for letter in result], one, other)
    return jnp.einsum(formula, one, other, preferred_element_type=wide, out_sharding=out)


def lies_as(array: Any) -> PartitionSpec:
    """The same as a `PartitionSpec`."""
    return PartitionSpec(*spec(array))


def parts(array: Array, axis: int) -> int:
    """The number of devices over which an axis is split."""
    return math.prod(jax.typeof(array).sharding.mesh.shape[name] for name in _names(spec(array)[axis]))


def whole(array: Array, *axes: int) -> Array:
    """The array with these axes on every device, as a slice, a join or a scan of them needs it; by default all axes."""
    held = list(spec(array))
    for i in axes or range(array.ndim):
        held[i] = None
    return array if tuple(held) == spec(array) else jax.reshard(array, _sharding(held, array))


def in_every_row(entries: Array, rows: Array) -> Array:
    """A vector written out for every row, its entries where those of the rows lie."""
    if is_explicit(entries, rows):
        entries = jax.reshard(entries, _sharding(spec(rows)[-1:], entries, rows))
    return jax.lax.broadcast_in_dim(entries, rows.shape, (rows.ndim - 1,))


def like(primal: Tree, value: Tree) -> Tree:
    """The values, each sharded as its primal: a gradient as its parameter, what leaves a block as what entered it.

    Values of another structure or shape, such as a reader's of its own, stay as they are.
    """

    def of_leaf(value: Array, primal: Array) -> Array:
        if value.shape != primal.shape or spec(value) == spec(primal) or not is_explicit(value, primal):
            return value
        return jax.reshard(value, NamedSharding(_mesh(value, primal), PartitionSpec(*spec(primal))))

    of_value: Any = jax.tree.structure(value)
    of_primal: Any = jax.tree.structure(primal)
    return jax.tree.map(of_leaf, value, primal) if of_value == of_primal else value


def automatic(formula: Callable[..., Any], lies: Tree, *arrays: Tree) -> Any:
    """A formula of trees of arrays under automatic axes; its results lie as `lies` says, a `PartitionSpec` for each.

    For what JAX has no types of: rows drawn from a table or added to it, and scans over parts of rows.
    """
    leaves = jax.tree.leaves(arrays)
    if not is_explicit(*leaves):
        return formula(*arrays)
    out = jax.tree.map(
        lambda spec: _sharding(spec, *leaves), lies, is_leaf=lambda spec: isinstance(spec, PartitionSpec)
    )
    return jax.sharding.auto_axes(formula, out_sharding=out)(*arrays)


def everywhere(formula: Callable[..., Any], *arrays: Tree) -> Any:
    """The same, where nobody knows what the formula returns: its results lie on every device."""
    if not is_explicit(*jax.tree.leaves(arrays)):
        return formula(*arrays)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    lies = jax.tree.map(lambda leaf: PartitionSpec(), jax.eval_shape(formula, *shapes))
    return automatic(formula, lies, *arrays)


def _sharding(lies: Iterable[Any], *arrays: Any) -> NamedSharding | None:
    """Results that lie so, or None where no array is split over an explicit axis."""
    if not is_explicit(*arrays):
        return None
    taken: set[str] = set()
    kept = []
    for axes in lies:
        own = tuple(name for name in _names(axes) if name not in taken)
        taken |= set(own)
        kept.append(own or None)
    return NamedSharding(_mesh(*arrays), PartitionSpec(*kept))


def _names(axes: Any) -> tuple[str, ...]:
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def _mesh(*arrays: Any) -> Any:
    return next(jax.typeof(array).sharding.mesh for array in arrays if not jax.typeof(array).sharding.mesh.empty)
