"""Published claims: each has a name, a source, and a function that measures the claim and its control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Literal

import jax
import numpy as np

Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """A measured number, and the side of a threshold on which it must lie.

    Attributes:
        what: the measured quantity in a few words, and how `value` is computed from the seeds' numbers.
        value: the worst of the seeds' numbers, or their `least_mean`.
        side: "<=" or ">=".
        threshold: the number to compare the value with.
    """

    what: str
    value: float
    side: Literal["<=", ">="]
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether the value lies on that side; False for nan."""
        return self.value <= self.threshold if self.side == "<=" else self.value >= self.threshold

    def __str__(self) -> str:
        text = f"{self.what}: {self.value:.3g} {self.side} {self.threshold:.3g}"
        return text if self.holds else f"{text} FAILS"


def least_mean(values: Sequence[float]) -> float:
    """The mean less two standard errors, which other seeds' means rarely fall below; nan for a single seed."""
    if len(values) < 2:
        return float("nan")
    return float(np.mean(values) - 2 * np.std(values, ddof=1) / np.sqrt(len(values)))


@dataclass(frozen=True)
class Finding:
    """The result of an experiment.

    Attributes:
        measured: the quantity that the claim is about.
        control: a measurement that shows that the result could have been different.
        seeds: of data split, weights and order.
        note: further numbers, for the reader.
    """

    measured: Bound
    control: Bound
    seeds: Seeds
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether both hold, since a measurement without its control proves nothing."""
        return self.measured.holds and self.control.holds

    @property
    def verdict(self) -> str:
        """The result in words."""
        return "holds" if self.holds else "does not hold"


class Claim:
    """A published claim; calling it measures it in float64, whatever JAX's flags are outside.

    Attributes:
        name: the name that --only matches.
        text: the claim, in a few words.
        source: paper and number.
        run: the experiment; its keyword arguments make it smaller.
    """

    def __init__(self, name: str, text: str, source: str, run: Callable[..., Finding]) -> None:
        self.name, self.text, self.source, self.run = name, text, source, run
        update_wrapper(self, run)

    def __call__(self, **size: Any) -> Finding:
        """Measure it."""
        with jax.enable_x64(True):
            return self.run(**size)


CLAIMS: dict[str, Claim] = {}


def claim(name: str, text: str, source: str) -> Callable[[Callable[..., Finding]], Claim]:
    """Register a function as the experiment for a claim.

    Raises:
        ValueError: a name that another claim has.
    """

    def register(run: Callable[..., Finding]) -> Claim:
        if name in CLAIMS:
            raise ValueError(f"the claim {name!r} is registered already; give this one a name of its own")
        CLAIMS[name] = Claim(name, text, source, run)
        return CLAIMS[name]

    return register
