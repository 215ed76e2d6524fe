"""The interface of a family of layers to the equation check: each equation in float64, with error bounds.

If a family has registered derived bounds on `family`, they are used. For every other family the bound of each equation
is measured (`reference.equations.measured`).
"""

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Any

from manual_backprop.layers import Layer
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide

Mistakes = dict[str, Wide]
"""Mistake in words -> the value that it would give."""

KnownFlow = Any
"""A layer's input: a `Known`, or a tuple of these; None for integers on the way back."""


class Family(ABC):
    """The equations of one family of layers, from the stored values that enter them."""

    @abstractmethod
    def net_input(self, of: Arithmetic, use: Use, a_in: KnownFlow) -> tuple[Known, Mistakes]:
        """(F1) z from the input."""

    @abstractmethod
    def transport(self, of: Arithmetic, use: Use, a_in: KnownFlow, delta: Known) -> tuple[KnownFlow, Mistakes]:
        """dL/da for the layer below, the middle of (B2)."""

    @abstractmethod
    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[KnownFlow], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        """(B3) (B4): the gradient of every parameter by its path, summed over examples by `shares` and over the uses.

        It is rounded to the format.
        """

    def gradient_mistakes(self, use: Use, entered: dict[Use, KnownFlow], shares: Wide, name: str) -> Mistakes:
        """A parameter's gradient if computed from a wrong input, by mistake; `entered` has the inputs of all uses."""
        return {}


@singledispatch
def family(layer: Layer) -> Family:
    """The equations of a layer's family."""
    raise TypeError(f"{type(layer).__name__} is no layer")
