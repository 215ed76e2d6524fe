"""Arrays to and from another library by the names of its modules: found, checked, and brought into the other layout."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.adapters.common import Family, There, as_array, require_dtypes
from manual_backprop.adapters.names import Entry, Named, Names, rows_of
from manual_backprop.node import Node
from manual_backprop.types import Shape, Tree, came

MOST = 12  # rows of an error


@dataclass(frozen=True)
class Library:
    """Where another library has the arrays of each family of layers.

    Attributes:
        families: by our class of parameters.
        separator: the text between the steps of a name.
    """

    families: Mapping[type, Family]
    separator: str


@dataclass(frozen=True)
class Piece:
    """One array of the other library, or rows of it, and what it holds.

    Attributes:
        name: the array's, there.
        rows: which of our rows it is cut from, or None for all.
        there: its layout.
        front: the blocks that stand in front of it.
        shape: of our array, of one block.
        owner: the layer and the field, for an error.
    """

    name: str
    rows: tuple[int, int] | None
    there: There
    front: tuple[int, ...]
    shape: Shape
    owner: str

    def whole(self, there: Shape) -> Shape:
        """The shape of all of an array there in our layout, of one block: with every row that it has."""
        rest = self.shape[1:]
        return self.shape if self.rows is None else (prod(there) // prod((*self.front, *rest)), *rest)

    def expected(self, whole: Shape) -> list[int]:
        """The shape there of an array of a shape of ours."""
        return [*self.front, *self.there.shape(whole)]

    def fits(self, there: Shape) -> bool:
        """Whether an array of a shape there can be this one, or be cut into it."""
        whole, front = self.whole(there), len(self.front)
        expected = self.expected(whole)
        enough = self.rows is None or self.rows[1] <= whole[0]
        return enough and list(there[:front]) == expected[:front] and self.there.fits(there[front:], expected[front:])

    def taken(self, value: Any) -> Array:
        """Our array, from the one there."""
        array = as_array(self.name, value)
        array = self.there.carried(array.reshape(self.expected(self.whole(array.shape))))
        return array if self.rows is None else jax.lax.slice_in_dim(array, *self.rows, axis=len(self.front))


def pieces(library: Library, named: Named, entry: Entry, field: str) -> Iterator[Piece]:
    """The arrays there that hold one of ours, in the order of the blocks."""
    family = library.families.get(type(named.own))
    if family is None and isinstance(entry, str):
        raise TypeError(
            f"{named}: the other library's arrays of a {type(named.layer).__name__} are not known; give a name for each"
            f" of {list(named.fields)}, whose layout is then ours"
        )
    there = family.arrays[field] if family else There("", ())
    name, rows = rows_of(entry if isinstance(entry, str) else entry[field])
    pattern = f"{name}.{there.name}" if isinstance(entry, str) else name
    pattern = pattern.replace(".", library.separator)
    for numbers in named.numbers(pattern):
        front, shape = named.blocks[len(numbers) :], named.fields[field]
        yield Piece(pattern.format(*numbers), rows, there, front, shape, f"{field} of {named}")


def require_all(library: Library, names: Names, leaves: Mapping[str, Any]) -> None:
    """Refuse names without an array there, arrays without a name, and shapes that do not fit.

    Raises:
        ValueError: says all of them.
    """
    takers: dict[str, list[Piece]] = {}
    for named in names.layers:
        for entry, field in product(named.entries, named.fields):
            for piece in pieces(library, named, entry, field):
                takers.setdefault(piece.name, []).append(piece)
    said = [fault for name, of_array in takers.items() for fault in _faults(name, of_array, leaves)]
    said += [
        f"{name!r} {list(np.shape(leaf))} is taken by no layer; if it is no parameter, leave it out"
        for name, leaf in leaves.items()
        if name not in takers
    ]
    if said:
        more = [f"and {len(said) - MOST} more"] if len(said) > MOST else []
        raise ValueError("the names do not fit the model:\n  " + "\n  ".join(said[:MOST] + more))


def _faults(name: str, takers: list[Piece], leaves: Mapping[str, Any]) -> list[str]:
    """Say where the pieces of one array do not fit it."""
    owners = " and ".join(piece.owner for piece in takers)
    if name not in leaves:
        near = get_close_matches(name, leaves, n=3)
        return [f"there is no {name!r}, for {owners}" + (f"; near it are {near}" if near else "")]
    shape = np.shape(leaves[name])
    for piece in reversed(takers):
        if not piece.fits(shape):
            length = max([one.rows[1] for one in takers if one.rows], default=0)
            whole = piece.shape if piece.rows is None else (length, *piece.shape[1:])
            return [f"{name!r} is {list(shape)}, expected {piece.expected(whole)}, for {piece.owner}"]
    if any(piece.rows is None for piece in takers):
        return [f"{name!r} is taken twice, for {owners}"] if len(takers) > 1 else []
    ends, said = [0], []
    for start, stop in [*sorted(piece.rows for piece in takers if piece.rows), (takers[0].whole(shape)[0],) * 2]:
        if start != ends[-1]:
            by = "by no layer" if start > ends[-1] else f"twice, for {owners}"
            said.append(f"rows {min(start, ends[-1])}:{max(start, ends[-1])} of {name!r} are taken {by}")
        ends.append(stop)
    return said


def params_by_names(library: Library, names: Names, net: Node, leaves: Mapping[str, Any]) -> Tree:
    """Our parameters, by the names of the other library's arrays.

    Raises:
        ValueError: as `require_all`, names for another network than `net`, or values that differ where an entry has
            several names.
        TypeError: not `Names`, not float arrays of one dtype, or several names under jit.
    """
    require_names(names).require_net(net)
    require_all(library, names, leaves)
    found = {}
    for named in names.layers:
        arrays = {field: _array(library, named, field, leaves) for field in named.fields}
        found[named.where] = replace(named.own, **arrays)
    return validate.params(net, names.tree(found))


def entries_by_names(library: Library, names: Names, tree: Tree, leaves: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of a tree that mirrors the parameters, by their names there, in the shapes there.

    Raises:
        ValueError: as `require_all`, or a tree that does not fit the network of the names.
        TypeError: not `Names`, or dtypes that differ.
    """
    tree = validate.params(require_names(names).net, tree)
    require_all(library, names, leaves)
    parts: dict[str, list[tuple[Piece, Array]]] = {}
    for named, own in zip(names.layers, names.owned(tree), strict=True):
        for entry, field in product(named.entries, named.fields):
            several = list(pieces(library, named, entry, field))
            blocks = getattr(own, field).reshape(len(several), *several[0].front, *several[0].shape)
            for piece, part in zip(several, blocks, strict=True):
                parts.setdefault(piece.name, []).append((piece, part))
    entries = {name: _joined(held).reshape(np.shape(leaves[name])) for name, held in parts.items()}
    require_dtypes(leaves, entries)
    return entries


def require_names(names: Any) -> Names:
    """Return names, checked to be some.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(names, Names):
        raise TypeError(f"names must be what adapters.by_names(net, tree) or gpt_names gives, got {came(names)}")
    return names


def _array(library: Library, named: Named, field: str, leaves: Mapping[str, Any]) -> Array:
    """Our array of a layer, with the blocks in front; where it has several names, all hold the same."""
    first, *others = (list(pieces(library, named, entry, field)) for entry in named.entries)
    array = _stacked(named, first, leaves)
    for other in others:
        again = _stacked(named, other, leaves)
        both = f"{first[0].name!r} and {other[0].name!r}"
        if isinstance(array, jax.core.Tracer) or isinstance(again, jax.core.Tracer):
            raise TypeError(f"{both} must hold the same values, which are not known under jit; call it outside")
        if array.dtype != again.dtype or np.asarray(array).tobytes() != np.asarray(again).tobytes():
            raise ValueError(f"{both} must hold the same values, as both are {field} of {named}, but they differ")
    return array


def _stacked(named: Named, several: list[Piece], leaves: Mapping[str, Any]) -> Array:
    """The blocks' arrays in one."""
    blocks = jnp.stack([piece.taken(leaves[piece.name]) for piece in several])
    return blocks.reshape(*named.blocks, *several[0].shape)


def _joined(held: list[tuple[Piece, Array]]) -> Array:
    """One array there, from all that it holds."""
    piece, part = held[0]
    if piece.rows is not None:
        held = sorted(held, key=lambda one: one[0].rows or ())
        part = jnp.concatenate([part for _, part in held], axis=len(piece.front))
    return piece.there.carried(part)
