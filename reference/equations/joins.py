"""Known values through the composites: up from the input, and down from dL/d(output).

The joins are written anew, with the rounding of every sum, and visit the layers in the order of computation. A
composite that is not registered here is measured (`reference.equations.joined`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from manual_backprop.layers import Layer
from manual_backprop.network import Parallel, Repeat, Residual, Serial, Tied, TiedReadout
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import KnownFlow, Mistakes


@dataclass(frozen=True)
class Way:
    """One way up or down.

    Attributes:
        of: the arithmetic of the step under test.
        at: the work at a layer: (use, input) -> output; on the way down both consist of `Arriving`.
        entered: the input of every measured composite, by the number of its first layer, noted on the way up.
    """

    of: Arithmetic
    at: Callable[[Use, Any], Any]
    entered: dict[int, KnownFlow]


@dataclass(frozen=True)
class Arriving:
    """dL/d(output of a node), on its way down.

    Attributes:
        known: the expected value.
        mistakes: the values that mistakes further up would give.
        by: the numbers of the layers whose transports sent it.
    """

    known: Known
    mistakes: Mistakes = field(default_factory=dict)
    by: tuple[int, ...] = ()


@singledispatch
def up(node: Any, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    """The output of a node, from its input."""
    raise TypeError(f"{type(node).__name__} is no node")


@singledispatch
def down(node: Any, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    """dL/d(input of a node), from dL/d(its output); `uses` come last to first.

    Both are an `Arriving`, a tuple of these, or None where integers entered.
    """
    raise TypeError(f"{type(node).__name__} is no node")


@up.register
def _(node: Layer, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    return way.at(next(uses), x)


@down.register
def _(node: Layer, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    return way.at(next(uses), d)


@up.register
def _(node: Serial, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    for child in node.nodes:
        x = up(child, way, x, uses)
    return x


@down.register
def _(node: Serial, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    for child in reversed(node.nodes):
        d = down(child, way, d, uses)
    return d


@up.register
def _(node: TiedReadout, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    for child in node.parts:
        x = up(child, way, x, uses)
    return x


@down.register
def _(node: TiedReadout, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    for child in reversed(node.parts):
        d = down(child, way, d, uses)
    return d


@up.register(Repeat)
@up.register(Tied)
def _(node: Repeat | Tied, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    for _ in range(node.n):
        x = up(node.block, way, x, uses)
    return x


@down.register(Repeat)
@down.register(Tied)
def _(node: Repeat | Tied, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    for _ in range(node.n):
        d = down(node.block, way, d, uses)
    return d


@up.register
def _(node: Residual, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    return way.of.rounded(x + up(node.block, way, x, uses))


@down.register
def _(node: Residual, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    branch = down(node.block, way, d, uses)
    mistakes = {what: d.known.value + value for what, value in branch.mistakes.items()}
    mistakes["the branch of the residual is missing"] = d.known.value
    mistakes["the skip of the residual is missing"] = branch.known.value
    return Arriving(way.of.rounded(d.known + branch.known), mistakes, branch.by + d.by)


@up.register
def _(node: Parallel, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    return tuple(up(child, way, x, uses) for child in node.nodes)


@down.register
def _(node: Parallel, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    branches = [down(child, way, part, uses) for child, part in zip(reversed(node.nodes), reversed(d), strict=True)]
    whole = [branch for branch in reversed(branches) if branch is not None]
    if not whole:
        return None
    total = whole[0].known
    for branch in whole[1:]:
        total = way.of.rounded(total + branch.known)
    return Arriving(total, _of_branches(total.value, whole), sum((branch.by for branch in whole), ()))


def _of_branches(total: Wide, branches: list[Arriving]) -> Mistakes:
    """The totals with a mistake inside one branch, or with one of several branches left out."""
    mistakes: Mistakes = {}
    for i, branch in enumerate(branches):
        others = total - branch.known.value
        mistakes |= {what: others + value for what, value in branch.mistakes.items()}
        if len(branches) > 1:
            mistakes[f"branch {i + 1} of the Parallel is missing"] = others
    return mistakes
