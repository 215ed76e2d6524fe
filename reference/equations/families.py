"""What the equation check asks of a family of layers: each equation in float64, and how far a right answer may be off.

Where a family has registered derived bounds on `family`, they answer; for every other family the bound of each equation
is measured (`reference.equations.measured`).
"""

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Any

from manual_backprop.layers import Layer
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide

Mistakes = dict[str, Wide]
"""What a value would be instead, by the mistake that would make it so."""

Flow = Any
"""What enters a layer: a `Known`, or a tuple of these; None for integers on the way back."""


class Family(ABC):
    """The equations of one family of layers, from the stored values that enter them."""

    @abstractmethod
    def net_input(self, of: Arithmetic, use: Use, a_in: Flow) -> tuple[Known, Mistakes]:
        """(F1) z from what entered."""

    @abstractmethod
    def transport(self, of: Arithmetic, use: Use, a_in: Flow, delta: Known) -> tuple[Flow, Mistakes]:
        """What arrives at the layer below, the middle of (B2)."""

    @abstractmethod
    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[Flow], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        """(B3) (B4): the gradient of every parameter by its path, summed over examples by `shares` and over the uses.

        It is rounded to the format.
        """

    def gradient_mistakes(self, use: Use, entered: dict[Use, Flow], shares: Wide, name: str) -> Mistakes:
        """What a parameter's gradient would be from what should not have entered it; `entered` has all layers'."""
        return {}


@singledispatch
def family(layer: Layer) -> Family:
    """The equations of a layer's family."""
    raise TypeError(f"{type(layer).__name__} is no layer")
