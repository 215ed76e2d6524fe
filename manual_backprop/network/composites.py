"""Composites that join different nodes, and `mlp`, the fully connected network of the note (F3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce, wraps
from typing import Any, TypeVar

from manual_backprop import activations
from manual_backprop.activations import Activation
from manual_backprop.layers.dense import Dense
from manual_backprop.layers.product import Product
from manual_backprop.node import Branches, Node, Step, Wrapper, add
from manual_backprop.types import Flow, Tree, came, override

Kind = TypeVar("Kind", bound=type[Branches])


def nodes_in_one_tuple(kind: Kind) -> Kind:
    """Let a composite of several nodes refuse nodes that are given one by one, in words instead of by their number."""
    build = kind.__init__

    @wraps(build)
    def __init__(self: Branches, *fields: Any, **named: Any) -> None:  # noqa: N807
        if len(fields) > 1 and isinstance(fields[0], Node):
            name, each = kind.__name__, ", ".join(map(came, fields))
            raise TypeError(f"the nodes of {name} are one tuple: write {name}((first, second)), got {each}")
        build(self, *fields, **named)

    kind.__init__ = __init__  # type: ignore[method-assign]
    return kind


@nodes_in_one_tuple
@dataclass(frozen=True)
class Serial(Branches):
    """Nodes one after the other: the composition (F3). Parameters, trace and deltas are tuples."""

    nodes: tuple[Node, ...]

    drawn = "in turn"

    def __str__(self) -> str:
        return " > ".join(str(node) for node in self.nodes)

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> "Serial":
        return cls((block,) * n)

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        kept = []
        for node, own in zip(self.nodes, owned, strict=True):
            x, of_node = node.forward(step, x, own)
            kept.append(of_node)
        return x, tuple(kept)

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        found = []
        for node, own, of_node in reversed(list(zip(self.nodes, owned, kept, strict=True))):
            d, at_node = node.backward(step, d, own, of_node)
            found.append(at_node)
        return d, tuple(reversed(found))


@dataclass(frozen=True)
class Residual(Wrapper):
    """x + block(x). Parameters, trace and deltas are the block's."""

    block: Node

    drawn = "added"

    def __str__(self) -> str:
        return f"x + [{self.block}]"

    @property
    @override
    def caption(self) -> str:
        return f"{type(self).__name__}: x + f(x)"

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> Serial:
        return Serial((cls(block),) * n)

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        branch, kept = self.block.forward(step, x, owned)
        return add(x, self.kept_shape(x, branch)), kept

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        d_branch, found = self.block.backward(step, d, owned, kept)
        return add(d, d_branch), found


@nodes_in_one_tuple
@dataclass(frozen=True)
class Parallel(Branches):
    """x -> (f_1(x), ..., f_k(x)): one input for several nodes, whose outputs are a tuple; dL/dx adds up."""

    nodes: tuple[Node, ...]

    drawn = "beside"

    def __str__(self) -> str:
        return f"({' | '.join(str(node) for node in self.nodes)})"

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> Serial:
        """Two branches of unequal depth, joined by their product, which counts as one block of the depth."""
        return Serial((cls((Serial((block,) * max(1, n - 1)), block)), Product()))

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        outputs, kept = zip(*(n.forward(step, x, own) for n, own in zip(self.nodes, owned, strict=True)), strict=True)
        return outputs, kept

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        each = zip(self.nodes, d, owned, kept, strict=True)
        d_x, found = zip(*(node.backward(step, *of_node) for node, *of_node in each), strict=True)
        return reduce(add, d_x), found


def mlp(
    sizes: Sequence[int],
    activation: str | Activation | Sequence[str | Activation] = "tanh",
    output_activation: str | Activation = "identity",
    *,
    bias: bool = True,
) -> Serial:
    """The note's fully connected feedforward network, L = len(sizes) - 1 layers.

    Args:
        sizes: M_0, M_1, ..., M_L: inputs, neurons of every layer, outputs.
        activation: f_1 .. f_(L-1): one for all hidden layers, or one each.
        output_activation: f_L; the identity where the loss takes logits.
        bias: whether every layer has a b.

    Raises:
        ValueError: fewer than two sizes, a size below 1, a name that no activation has, or more or fewer activations
            than hidden layers.
        TypeError: sizes that are not a sequence, an activation that is neither a name nor a row, or a bias that is
            neither True nor False.
    """
    if not isinstance(sizes, Iterable) or isinstance(sizes, str):
        raise TypeError(
            f"mlp sizes are one sequence from the inputs to the outputs, as in mlp((4, 5, 3)), got {came(sizes)}"
        )
    sizes = tuple(sizes)
    if len(sizes) < 2:
        raise ValueError(f"mlp sizes must name at least inputs and outputs, got {sizes}")
    hidden = len(sizes) - 2
    if isinstance(activation, str) or not isinstance(activation, Sequence):
        activation = (activations.get(activation),) * hidden
    if len(activation) != hidden:
        raise ValueError(f"mlp{sizes} has {hidden} hidden layers, got {len(activation)} activations for them")
    rows = (*activation, output_activation)
    return Serial(tuple(Dense(i, o, f, bias=bias) for i, o, f in zip(sizes[:-1], sizes[1:], rows, strict=True)))
