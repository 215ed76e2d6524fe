"""A step under test on several devices: where its inputs lie, and how its results are taken from the devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import manual_backprop as mb
from manual_backprop.node import Node
from reference.compare import as_float64

Tree = Any
Layout = Any
"""The name of a layout (`manual_backprop.sharding.LAYOUTS`), or a tree of specs that mirrors the parameters."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A mesh, and how parameters and examples lie on it.

    Attributes:
        mesh: the devices.
        params: a spec for every parameter.
        batch: the spec of x, y and weights.
        words: what a report says of it.
    """

    mesh: Mesh
    params: Tree
    batch: PartitionSpec
    words: str

    @classmethod
    def of(cls, net: Node, params: Tree, mesh: Mesh, layout: Layout, data: str = "data") -> "Placement":
        """The placement of a layout.

        Raises:
            ValueError, TypeError: as from `manual_backprop.sharding.specs`; a tree that does not mirror the parameters.
        """
        named = isinstance(layout, str)
        if named:
            specs, batch = mb.sharding.specs(net, params, layout, mesh, data=data), mb.sharding.batch_spec(layout)
        else:
            specs, batch = layout, PartitionSpec(data) if data in mesh.shape else PartitionSpec()
        axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
        said = f'layout "{layout}"' if named else "a layout of specs"
        return cls(mesh, specs, batch, f"on {mesh.size} devices, {axes}, {said}")

    @property
    def shards(self) -> int:
        """The number of parts that the batch is split into."""
        names = [name for axes in self.batch for name in ((axes,) if isinstance(axes, str) else axes or ())]
        return int(np.prod([self.mesh.shape[name] for name in names], dtype=int))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Into how many parts an axis may be split: the sizes of the mesh's axes, and their product."""
        return tuple(dict.fromkeys((*self.mesh.shape.values(), self.mesh.size)))

    def place(self, inputs: tuple[Tree, Any, Any], given: dict[str, Any]) -> tuple[tuple[Tree, Any, Any], dict]:
        """The inputs on the devices.

        Raises:
            ValueError: an axis that its devices do not divide; says which.
        """
        params, x, y = inputs
        whole = PartitionSpec()
        x, y = (mb.sharding.place({name: leaf}, self.mesh, self.batch)[name] for name, leaf in (("x", x), ("y", y)))
        placed = {
            name: mb.sharding.place(value, self.mesh, self.batch if name == "weights" else whole)
            for name, value in given.items()
        }
        return (mb.sharding.place(params, self.mesh, self.params), x, y), placed


def gathered(tree: Tree, expected: Tree) -> Tree:
    """Results as NumPy arrays; where devices disagree on what they hold in common, the copy that is farthest off.

    A result that every device holds is taken from the first, so that a sum over devices which only the others lack
    would never be seen. All parts of an array are taken from devices that stand alike on the mesh, so that what they
    hold is one wrong array.

    Args:
        tree: of arrays on devices.
        expected: the values by the reference. A tree of another structure is refused elsewhere, and here counts as
            unknown: the copy is then taken that is farthest from the first.
    """
    leaves, structure = jax.tree.flatten(tree)
    of_expected: Any = jax.tree.structure(expected)
    known = jax.tree.leaves(expected) if of_expected == structure else leaves
    return jax.tree.unflatten(structure, [_farthest(*both) for both in zip(leaves, known, strict=True)])


def _farthest(leaf: Any, expected: Any) -> np.ndarray:
    value = np.array(jax.device_get(leaf))
    if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
        return value
    truth = as_float64(expected)
    if truth.shape != value.shape:
        return value
    copies: dict[str, list[Any]] = {}
    for shard in leaf.addressable_shards:
        copies.setdefault(str(shard.index), []).append(shard)
    # The first copies of all parts, the second copies, and so on; one process may hold more copies of one than another.
    columns = [[shard for shard in column if shard is not None] for column in zip_longest(*copies.values())]
    if len(columns) == 1 or all(_agree(same) for same in copies.values()):
        return value
    with np.errstate(invalid="ignore"):
        off = [[np.max(np.abs(as_float64(s.data) - truth[s.index]), initial=0) for s in one] for one in columns]
    for shard in columns[int(np.argmax([np.max(parts) for parts in off]))]:  # by np.max, which nan stands out in
        value[shard.index] = np.asarray(shard.data)
    return value


def _agree(copies: Sequence[Any]) -> bool:
    first, *others = (np.asarray(shard.data) for shard in copies)
    return all(np.array_equal(one, first, equal_nan=True) for one in others)
