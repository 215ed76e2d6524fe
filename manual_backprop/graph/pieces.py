"""The pieces of a network that forward and backward graphs draw.

Every composite says how it is drawn (`Node.drawn`); this module knows no composite by its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate
from typing import Any

import jax

from manual_backprop.graph.values import Values
from manual_backprop.layers.base import Layer
from manual_backprop.network.scanned import Chain
from manual_backprop.node import Branches, Node, Wrapper
from manual_backprop.types import Tree

Levels = bool | int
LOOPS = "kjimnpqr"  # the letters that count a chain's blocks, outermost first


@dataclass(frozen=True)
class Index:
    """A layer's index: a number, or in repeated blocks a sum such as 2+3k, with k the block's number from 0."""

    first: int
    loops: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        loops = [f"{stride if stride > 1 else ''}{letter}" for stride, letter in self.loops]
        return "+".join([str(self.first)] * (self.first > 0 or not loops) + loops)

    @property
    def slug(self) -> str:
        """The index as a part of a key."""
        return str(self).replace("+", "_")

    def plus(self, layers: int) -> "Index":
        """The index this many layers on."""
        return replace(self, first=self.first + layers)


@dataclass(frozen=True)
class LayerPiece:
    """A layer; `weights` is the index of its parameters, the same for all uses of a shared block."""

    layer: Layer
    index: Index
    weights: Index
    values: Values

    @property
    def parameters(self) -> dict[str, Any]:
        """The layer's parameters by name: arrays, or their shapes."""
        return _named(self.values.params)

    @property
    def operators(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The layer's circles, each with its sign and the parameters that enter it (`Layer.operators`).

        Raises:
            ValueError: the family's operators do not name each of its parameters once.
        """
        parameters = tuple(self.parameters)
        operators = self.layer.operators or ((type(self.layer).__name__, parameters),)
        drawn = [name for _, names in operators for name in names]
        if sorted(drawn) != sorted(parameters):
            raise ValueError(
                f"{self.layer}: its operators name the parameters {drawn}, but it has {list(parameters)};"
                f" {type(self.layer).__name__}.operators must name each once, or be ()"
            )
        return operators

    @property
    def gradients(self) -> dict[str, Any]:
        """The parameters' gradients by name; empty where no batch was given."""
        return _named(self.values.gradients)

    @property
    def penalised(self) -> tuple[str, ...]:
        """The parameters that the regulariser counts (J2)."""
        return _weights(self.values.params)

    def entering(self, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(name, label) of each input; where the layer does not name this many, all are called a_in."""
        names = self.layer.inputs if len(self.layer.inputs) == len(labels) else ("a_in",) * len(labels)
        return zip(names, labels, strict=True)


@dataclass(frozen=True)
class Output:
    """A node's output: a for a layer; h for a residual block, with a prime for every residual block inside it."""

    letter: str
    index: Index

    def __str__(self) -> str:
        return f"{self.letter}^({self.index})"

    @property
    def slug(self) -> str:
        """The output as a part of a key."""
        return self.letter.replace("'", "p") + "_" + self.index.slug

    @property
    def added(self) -> "Output":
        """The output of a residual block around this one."""
        return replace(self, letter="h" if self.letter == "a" else self.letter + "'")


@dataclass(frozen=True)
class Closed:
    """A composite that is drawn as one box.

    Attributes:
        label: its caption.
        index: of its last layer.
        outputs: its outputs.
        owns: whether it has parameters.
        penalised: whether the regulariser counts some of them.
    """

    label: str
    index: Index
    outputs: tuple[Output, ...]
    owns: bool
    penalised: bool


@dataclass(frozen=True)
class Opened:
    """A composite around a block, drawn as a frame around the block's drawing.

    Attributes:
        label: its caption.
        index: of the block's first layer.
        loop: of a chain, the letter that counts its blocks from 0.
        inside: the block.
        added: whether the input is added to the block's output.
        outputs: its outputs.
    """

    label: str
    index: Index
    loop: str
    inside: tuple["Piece", ...]
    added: bool
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Beside:
    """Branches that all have the same input; their outputs are side by side."""

    branches: tuple[tuple["Piece", ...], ...]


Piece = LayerPiece | Closed | Opened | Beside


def pieces(node: Node, index: Index, values: Values, levels: Levels, shared: Index | None = None) -> Iterator[Piece]:
    """The pieces that `node` is drawn as.

    Args:
        node: a layer or composite.
        index: of its first layer.
        values: of this node.
        levels: how many levels of composites are opened; True opens all.
        shared: inside blocks that share parameters, the index that all uses of these have in common.
    """
    if isinstance(node, Layer):
        yield LayerPiece(node, index, shared or index, values)
    elif isinstance(node, Branches) and node.drawn == "in turn":
        for part in _parts(node, index, values, levels, shared):
            yield from part
    elif isinstance(node, Branches) and node.drawn == "beside":
        yield Beside(tuple(map(tuple, _parts(node, index, values, levels, shared))))
    elif isinstance(node, Wrapper) and node.drawn != "closed" and (levels is True or levels >= 1):
        yield _opened(node, index, values, levels if levels is True else levels - 1, shared)
    else:
        owns = bool(jax.tree.leaves(values.params))
        last = index.plus(node.depth - 1)
        yield Closed(node.caption, last, outputs(node, index), owns, _any_penalised(values.params))


def _parts(
    node: Branches, index: Index, values: Values, levels: Levels, shared: Index | None
) -> Iterator[Iterator[Piece]]:
    for i, part in enumerate(node.nodes):
        yield pieces(part, index, values.at(i), levels, shared)
        index, shared = index.plus(part.depth), shared and shared.plus(_owned(part))


def _opened(node: Wrapper, index: Index, values: Values, levels: Levels, shared: Index | None) -> Opened:
    block, label, within, letter = node.block, node.caption, index, ""
    if isinstance(node, Chain):
        letter = LOOPS[len(index.loops) :][:1] or f"k{len(index.loops)}"
        label += f", {letter} = 0..{node.n - 1}"
        within = replace(index, loops=(*index.loops, (block.depth, letter)))
        if node.shared:
            shared = shared or index
        elif shared is not None:
            shared = replace(shared, loops=(*shared.loops, (_owned(block), letter)))
    inside = tuple(pieces(block, within, values, levels, shared))
    return Opened(label, within, letter, inside, node.drawn == "added", outputs(node, index))


def outputs(node: Node, index: Index) -> tuple[Output, ...]:
    """The outputs of a node whose first layer has this index: one, unless it is known to be a tuple."""
    if isinstance(node, Branches) and node.drawn != "closed":
        firsts = accumulate((part.depth for part in node.nodes), initial=0)
        each = [outputs(part, index.plus(first)) for part, first in zip(node.nodes, firsts, strict=False)]
        return each[-1] if node.drawn == "in turn" else tuple(output for of_branch in each for output in of_branch)
    if isinstance(node, Wrapper) and node.drawn != "closed":
        last = outputs(node.block, index.plus(node.depth - node.block.depth))
        return tuple(output.added for output in last) if node.drawn == "added" else last
    return (Output("a", index.plus(node.depth - 1)),)


def _owned(node: Node) -> int:
    """The number of layers with parameters of their own, as `keys` counts them."""
    return sum(key.size for key in jax.tree.leaves(jax.eval_shape(node.keys, jax.random.key(0))))


def _named(params: Any) -> dict[str, Any]:
    """A layer's parameters by name; one that the layer does not have, such as a bias, is None and has no name here."""
    named = {field.name: getattr(params, field.name) for field in fields(params)} if is_dataclass(params) else {}
    return {name: value for name, value in named.items() if value is not None}


def _weights(params: Any) -> tuple[str, ...]:
    return tuple(getattr(params, "weights", ()))


def _any_penalised(params: Tree) -> bool:
    return any(map(_weights, jax.tree.leaves(params, is_leaf=lambda node: hasattr(node, "weights"))))
