"""Find and check the layers of another library's model, and convert their arrays.

For each library a `Family` says where a layer's arrays stand: for each of our fields, its name and its axes there.
Names, shapes, transposes, and the table of mismatches in an error are read from it. `families` has all of a library.

`Found`, `layers_of`, `nodes_of` and `entries_of` are for a `Serial` of `Dense`, whose order is found by names, in their
checks and error texts. Other networks are carried by names that are given (`carried`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from math import prod
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.layers import Affine, Dense, Gain, GainAndBias, Node, Positions, Table
from manual_backprop.network import Serial
from manual_backprop.types import Shape, Tree


@dataclass(frozen=True)
class There:
    """The place of one of our arrays in a layer of the other library.

    Attributes:
        name: its name there.
        axes: its axes there, each as the attribute of our layer that holds the axis's length.
        turned: whether it is the transpose of ours.
        given: the attribute of our layer that says whether it has the array; None where every layer has it.
        parted: whether one of its axes may stand there as several, as heads and their features do in Flax; only where
            names are given.
    """

    name: str
    axes: tuple[str, ...]
    turned: bool = False
    given: str | None = None
    parted: bool = False

    def carried(self, array: Array) -> Array:
        """Convert our array to the other library's layout, or back; blocks may stand in front."""
        return array.swapaxes(-1, -2) if self.turned else array

    def fits(self, shape: Shape, expected: Sequence[int]) -> bool:
        """Whether an array there has the expected shape, or one whose axes are parts of the expected ones in turn."""
        if not self.parted or len(shape) <= len(expected):
            return list(shape) == list(expected)
        ends = set(accumulate(shape, mul))
        return prod(shape) == prod(expected) and all(end in ends for end in accumulate(expected, mul))

    def shape(self, ours: Shape) -> list[int]:
        """The shape there for the shape of our array."""
        return list(ours[::-1] if self.turned else ours)

    def shape_for(self, node: Node) -> list[int] | None:
        """The shape there for one of our layers; None where the layer has no such array."""
        if self.given and not getattr(node, self.given):
            return None
        return [getattr(node, axis) for axis in self.axes]


@dataclass(frozen=True)
class Family:
    """The layout of one kind of layer in the other library.

    Attributes:
        params: our class for its parameters; a field whose array may be missing is None by default.
        arrays: where each field of `params` stands, in their order.
    """

    params: Callable[..., Tree]
    arrays: Mapping[str, There]

    @property
    def names(self) -> list[str]:
        """The names of the arrays in the other library."""
        return [there.name for there in self.arrays.values()]


def dense(W: There) -> Family:
    """The family of `Dense` in a library with its matrix at `W`; all three libraries call b "bias"."""
    return Family(Affine, {"W": W, "b": There("bias", ("d_out",), given="bias", parted=W.parted)})


def families(of_dense: Family, table: str, gain: str) -> dict[Any, Family]:
    """All families of a library by our class of parameters, from its names of a table and of a gain."""
    norm = {"gain": There(gain, ("d",))}
    return {
        Affine: of_dense,
        Table: Family(Table, {"W": There(table, ("vocab", "d"))}),
        Positions: Family(Positions, {"P": There(table, ("length", "d"))}),
        Gain: Family(Gain, norm),
        GainAndBias: Family(GainAndBias, {**norm, "bias": There("bias", ("d",), given="bias")}),
    }


@dataclass(frozen=True)
class Found:
    """The layers of the other library's tree.

    Attributes:
        layers: their names in the order of application.
        leaves: every array by name, "layer/kernel" and "layer/bias".
        family: the layers' kind.
        separator: the text between the steps of a name.
    """

    layers: Sequence[str]
    leaves: Mapping[str, Any]
    family: Family
    separator: str = "/"

    def __post_init__(self) -> None:
        for layer in self.layers:
            for field, there in self.family.arrays.items():
                name = self.names(layer)[field]
                if name not in self.leaves and there.given is None:
                    raise ValueError(f"layer {layer!r} has no {name!r}, and every Dense has a {field}")
                if name not in self.leaves:
                    continue
                shape, rank = list(np.shape(self.leaves[name])), len(there.axes)
                if len(shape) != rank:
                    raise ValueError(
                        f"{name} is {shape}, expected rank {rank}, for a Serial of Dense has no other layers"
                    )

    def names(self, layer: str) -> dict[str, str]:
        """By our field, the full names of a layer's arrays, whether they are there or not."""
        stem = layer + self.separator if layer else ""
        return {field: stem + there.name for field, there in self.family.arrays.items()}

    def held(self, layer: str) -> dict[str, str]:
        """By our field, the full names of the arrays that the layer has."""
        return {field: name for field, name in self.names(layer).items() if name in self.leaves}


def layers_of(entries: Iterable[str], family: Family, separator: str = "/") -> list[str]:
    """Names of the layers in the order of first appearance; refuse any entry that is not one of their arrays."""
    layers: dict[str, None] = {}
    for entry in entries:
        layer, _, kind = entry.rpartition(separator)
        if kind not in family.names:
            known = " or ".join(family.names)
            raise ValueError(f"{entry!r} is no {known} of a dense layer, and a Serial of Dense has no more")
        layers[layer] = None
    return list(layers)


def by_number(names: Sequence[str], separator: str = "/") -> list[str] | None:
    """Sort names that differ only in their numbers by number; None where the names tell no order."""
    number = rf"\d+(?={re.escape(separator)}|$)"
    stems = {re.sub(number, "#", name) for name in names}
    numbered = {tuple(map(int, re.findall(number, name))): name for name in names}
    return [numbered[key] for key in sorted(numbered)] if len(stems) <= 1 and len(numbered) == len(names) else None


def nodes_of(net: Node) -> tuple[Dense, ...]:
    """The layers of a `Serial` of `Dense`; refuse any other network and name the part that does not fit."""
    if not isinstance(net, Node):
        raise TypeError(f"net must be a network such as mlp(sizes, activation), got {type(net).__name__}")
    if type(net) is not Serial:
        raise ValueError(f"net must be a Serial of Dense, as mlp(sizes) is, got {type(net).__name__}: {net}")
    for i, node in enumerate(net.nodes):
        if type(node) is not Dense:
            raise ValueError(f"net must be a Serial of Dense alone, got {type(node).__name__} as node {i}: {node}")
    return tuple(node for node in net.nodes if isinstance(node, Dense))


def params_from(found: Found, net: Node) -> Tree:
    """Our parameters, checked against `net`."""
    places = found.family.arrays
    shapes = [[there.shape_for(node) for there in places.values()] for node in nodes_of(net)]
    _fit(found, shapes, f"the network {net}")
    params = []
    for layer in found.layers:
        arrays = {field: as_array(name, found.leaves[name]) for field, name in found.held(layer).items()}
        params.append(found.family.params(**{field: places[field].carried(a) for field, a in arrays.items()}))
    return validate.params(net, tuple(params))


def entries_of(found: Found, tree: Tree) -> dict[str, Array]:
    """Our arrays under the other library's names, checked against the arrays there."""
    if not isinstance(tree, tuple) or not all(isinstance(one, Affine) for one in tree):
        kinds = [type(one).__name__ for one in tree] if isinstance(tree, tuple) else type(tree).__name__
        raise TypeError(f"tree must be a tuple with one Affine a layer, as params and gradients of mlp; got {kinds}")
    places = found.family.arrays
    ours = [
        {k: validate.array(f"tree[{i}].{k}", getattr(one, k)) for k in places if getattr(one, k) is not None}
        for i, one in enumerate(tree)
    ]
    shapes = [[there.shape(one[k].shape) if k in one else None for k, there in places.items()] for one in ours]
    _fit(found, shapes, "tree")
    entries: dict[str, Array] = {}
    for layer, one in zip(found.layers, ours, strict=True):
        entries |= {name: places[k].carried(one[k]) for k, name in found.held(layer).items()}
    require_dtypes(found.leaves, entries)
    return entries


def require_dtypes(leaves: Mapping[str, Any], entries: Mapping[str, Array]) -> None:
    """Refuse our arrays where the other library's under the same names have another dtype.

    Raises:
        TypeError: says both.
    """
    for name, entry in entries.items():
        there = str(getattr(leaves[name], "dtype", "no array")).removeprefix("torch.")
        if there != str(entry.dtype):
            raise TypeError(f"{name} is {there} in like, {entry.dtype} in tree; nothing is cast, convert one of them")


Shapes = list[list[int] | None]
"""The shapes of a layer's arrays there, in the order of our fields; None for an array that the layer does not have."""


def _fit(found: Found, expected: Sequence[Shapes], what: str) -> None:
    """Refuse layers whose arrays do not have the expected shapes, and show both sides."""
    leaves = found.leaves
    there: list[Shapes] = [
        [list(leaves[name].shape) if name in leaves else None for name in found.names(layer).values()]
        for layer in found.layers
    ]
    if there == expected:
        return

    def said(shapes: Shapes | None) -> str:
        if not shapes:
            return "nothing"
        pairs = zip(found.family.names, shapes, strict=True)
        return ", ".join(f"no {name}" if shape is None else f"{name} {shape}" for name, shape in pairs)

    rows = []
    for i, (left, right) in enumerate(zip_longest(there, expected)):
        has = f"{found.layers[i]!r} with {said(left)}" if left else "nothing"
        rows.append(f"  layer {i + 1}: {has}; expected {said(right)}" + ("" if left == right else "  <- differs"))
    places = found.family.arrays.values()
    axes = [f"a {t.name} is ({', '.join(t.axes)})" for t in places if len(t.axes) > 1]
    axes += [f"a {t.name} is where a layer has {t.given}=True" for t in places if t.given]
    raise ValueError(f"the model's layers do not fit {what}; {'; '.join(axes)}:\n" + "\n".join(rows))


def as_array(name: str, value: Any) -> Array:
    """`value` as a JAX array of the same dtype, from a copy: JAX may read NumPy's memory later, and tensors change."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        brain = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(jnp.bfloat16) if brain else value.numpy()
    if not isinstance(value, jax.Array) and hasattr(value, "__array__"):
        value = np.array(value)
    return validate.array(name, value)


def named(tree: Any) -> dict[str, Any]:
    """Leaves by name, without Linen's leading "params" and without the box that Flax puts around an array."""
    by_name = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        steps = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))) for step in path]
        boxed = path[-1:] == (jax.tree_util.GetAttrKey("value"),)
        name = "/".join(steps[steps[:1] == ["params"] : len(steps) - boxed])
        if name in by_name:
            raise ValueError(f"two entries have the name {name!r}; rename one")
        by_name[name] = leaf
    return by_name


def rebuilt(like: Any, entries: Mapping[str, Array]) -> Any:
    """Our arrays in the containers of `like`, with None for every other leaf."""
    return jax.tree.unflatten(jax.tree.structure(like), [entries.get(name) for name in named(like)])
