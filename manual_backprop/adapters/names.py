"""A map from the layers of a network to another library's modules by name, for networks whose order no name tells."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from string import Formatter
from typing import Any

import jax

from manual_backprop import validate
from manual_backprop.node import Node
from manual_backprop.types import Shape, Tree, came

Entry = str | Mapping[str, str]
"""The name of a layer's module there, or by our field the name of each of its arrays."""


@dataclass(frozen=True)
class Named:
    """A layer with parameters, and its names in the other library.

    Attributes:
        where: its place in trees that mirror the network's parameters, such as "[1][0]".
        layer: the layer.
        own: shapes of its parameters, of one block.
        blocks: the numbers of blocks in front of these, one for every `Repeat` around the layer.
        entries: its names; of several, each holds the same values.
    """

    where: str
    layer: Node
    own: Any
    blocks: tuple[int, ...]
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return f"{self.where} {self.layer}"

    @property
    def fields(self) -> dict[str, Shape]:
        """The shapes of the layer's arrays by field, without those that it does not have."""
        return {field: leaf.shape for field, leaf in vars(self.own).items() if leaf is not None}

    def numbers(self, pattern: str) -> Iterator[tuple[int, ...]]:
        """The numbers of blocks that a pattern tells apart, in turn; axes beyond them stand in front of the array."""
        return product(*map(range, self.blocks[: braces(pattern)]))


@dataclass(frozen=True)
class Names:
    """The names of another library's modules for every layer of a network, as `by_names` checks them.

    Attributes:
        net: the network.
        layers: its layers with parameters; str(names) is their table.
    """

    net: Node
    layers: tuple[Named, ...]

    def __str__(self) -> str:
        rows = [(one.where, str(one.layer), " = ".join(map(_said, one.entries))) for one in self.layers]
        wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        return "\n".join(f"{where:{wide[0]}}  {layer:{wide[1]}}  {name}" for where, layer, name in rows)

    def tree(self, found: Mapping[str, Any]) -> Tree:
        """A tree that mirrors the parameters, from one entry by `where` for every layer that has any."""
        places, _, structure = _mirror(self.net)
        return jax.tree.unflatten(structure, [found.get(where, ()) for where in places])

    def owned(self, tree: Tree) -> list[Any]:
        """The entries of the layers with parameters, in turn, of a tree that mirrors the parameters."""
        places, _, structure = _mirror(self.net)
        entries = dict(zip(places, structure.flatten_up_to(tree), strict=True))
        return [entries[one.where] for one in self.layers]

    def require_net(self, net: Node) -> None:
        """Refuse another network than the one the names are for.

        Raises:
            ValueError: says both.
        """
        if self.net != net:
            raise ValueError(f"these names are for another network:\n  {self.net}\nnet is\n  {net}")


def by_names(net: Node, names: Tree) -> Names:
    """Check a tree of names against a network.

    `names` mirrors `net`: a tuple for the nodes of a `Serial` or `Parallel`, the block's own names for a `Residual`,
    `Repeat` or `Tied`, and (the embedding's, the body's) for a `TiedReadout`. A layer without parameters has None. Any
    other layer has

        "head"                             its module, whose arrays have the names that the library gives them;
        "blocks.{}.mlp.up"                 in a `Repeat`, with the block's number in the braces, from 0; in nested ones,
                                           with as many braces, the outermost first, or {0} and {1}. Without braces
                                           the other library stacks its blocks too: they stand in front of the array;
        "blocks.{}.attn.qkv[0:8]"          some of the outputs of a module that is several layers in one: rows of our W
                                           and b. Together the layers must take all of them;
        {"W": "attn.in_proj_weight[0:8]"}  a name for each of our arrays, where the library's are others;
        ["wte", "lm_head"]                 a list, where one table has several names there with the same values.

    Steps of a name are parted by "." in all libraries; Flax's and Equinox's may have "/".

    Raises:
        TypeError: not a network, or an entry that is none of these.
        ValueError: a tree of another structure, a layer without names, a layer without parameters that has one, or a
            pattern that does not fit its layer.
    """
    validate.network(net)
    places, layers, structure = _mirror(net)
    try:
        entries = structure.flatten_up_to(names)
    except (TypeError, ValueError) as error:
        raise ValueError(f"names must mirror the network, as\n  {template(net)}\ndoes; got\n  {names!r}") from error
    whole = structure.flatten_up_to(_shapes(net))
    found = []
    for where, layer, shapes, entry in zip(places, layers, whole, entries, strict=True):
        own = _shapes(layer)
        if jax.tree.leaves(own):
            first, one = (jax.tree.leaves(tree)[0].shape for tree in (shapes, own))
            several = tuple(entry) if isinstance(entry, list) else (entry,)
            found.append(Named(where, layer, own, first[: len(first) - len(one)], several))
            _require_entries(found[-1])
        elif entry not in (None, ()):
            raise ValueError(f"{where} {layer} has no parameters, so its name is None; got {entry!r}")
    return Names(net, tuple(found))


def template(net: Node) -> Tree:
    """A tree of names to fill in: every layer's text where its name belongs, None where there are no parameters."""
    return net.map(lambda layer: str(layer) if jax.tree.leaves(_shapes(layer)) else None)


def _shapes(net: Node) -> Tree:
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


@dataclass(frozen=True)
class _Box:
    """A layer as a leaf of a tree."""

    layer: Any


def _mirror(net: Node) -> tuple[list[str], list[Any], Any]:
    """The places of all layers in a tree that mirrors the parameters, the layers, and the tree's structure."""
    boxes, structure = jax.tree_util.tree_flatten_with_path(net.map(_Box))
    return [jax.tree_util.keystr(path) for path, _ in boxes], [box.layer for _, box in boxes], structure


def _require_entries(named: Named) -> None:
    """Refuse names that do not fit their layer."""
    if not named.entries:
        raise ValueError(f"{named} has an empty list of names")
    for entry in named.entries:
        if not isinstance(entry, str | Mapping):
            raise TypeError(f"{named} needs a name, or a name for each of {list(named.fields)}, got {came(entry)}")
        if isinstance(entry, Mapping) and set(entry) != set(named.fields):
            raise ValueError(f"{named} has the arrays {list(named.fields)}, got names for {list(entry)}")
        for pattern in entry.values() if isinstance(entry, Mapping) else (entry,):
            _require_pattern(named, pattern)


def _require_pattern(named: Named, pattern: Any) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise TypeError(f"{named}: a name is text, got {came(pattern)}")
    several, around = braces(pattern), len(named.blocks)
    if several is None:
        raise ValueError(
            f"{named}: {pattern!r} may have {{}}, or {{0}} and {{1}}, for numbers of blocks, and no others"
        )
    if several > around:
        raise ValueError(f"{named}: {pattern!r} has {several} numbers of blocks, but the layer is in {around} Repeat")
    rows = rows_of(pattern)[1]
    for field, shape in named.fields.items():
        if rows and (rows[1] - rows[0],) != shape[:1]:
            raise ValueError(f"{named}: {pattern!r} has {rows[1] - rows[0]} rows, but {field} is {list(shape)}")


def rows_of(pattern: str) -> tuple[str, tuple[int, int] | None]:
    """A name and the rows that it takes, from "name[0:8]"; None where it takes all."""
    found = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", pattern)
    return (found[1], (int(found[2]), int(found[3]))) if found else (pattern, None)


def braces(pattern: str) -> int | None:
    """How many numbers of blocks a pattern has; None where its braces are of another kind."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(pattern) if field is not None]
    except ValueError:
        return None
    if not any(fields):
        return len(fields)
    return len(set(fields)) if set(fields) == set(map(str, range(len(set(fields))))) else None


def _said(entry: Entry) -> str:
    return entry if isinstance(entry, str) else ", ".join(f"{field}: {name}" for field, name in entry.items())
