"""Transport and contraction apart: B keeps every layer's pair (a, delta), and W contracts it later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from manual_backprop.layers.factor import Factor, NoParameters
from manual_backprop.node import Node
from manual_backprop.types import Tree

Reading = Callable[[Factor, Array], Any]
"""(a layer's factor in one microbatch, the weights of its examples) -> floats, to be summed over microbatches."""


def pair(factor: Factor) -> Factor | tuple[()]:
    """The reader of a sweep that only transports: it keeps the pair, and nothing of a layer without parameters."""
    return () if isinstance(factor, NoParameters) else factor


@dataclass(frozen=True)
class Contraction:
    """The contraction of pairs: the gradient, and the readings that the caller asks for.

    Attributes:
        readings: by name.
        weighed: whether the error terms carry the examples' weights already. It saves a pass over every gradient, but
            readings that are not linear need error terms without weights.
    """

    readings: Mapping[str, Reading]
    weighed: bool

    def __call__(self, node: Node | None, pairs: Tree, weights: Array) -> tuple[Tree, dict[str, Tree]]:
        """(the gradient, the readings by name), each in the structure of the node's parameters."""
        return self._each(node, self._gradient, pairs, weights), {
            name: self._each(node, reading, pairs, weights) for name, reading in self.readings.items()
        }

    def _gradient(self, factor: Factor, weights: Array) -> Tree:
        return factor.total() if self.weighed else factor.weighted_sum(weights)

    def _each(self, node: Node | None, reading: Reading, pairs: Tree, weights: Array) -> Tree:
        def at_layer(layer: Any, factor: Factor | tuple[()]) -> Any:
            return () if isinstance(factor, tuple) else reading(factor, weights)

        return () if node is None else node.map(at_layer, pairs)
