"""Dropout: entries set to zero at random, and the others scaled so that the mean stays.

Source: Srivastava et al. (2014), https://jmlr.org/papers/v15/srivastava14a.html; the scaling is at training time
("inverted"), so that nothing changes in a network that is used without a key.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from manual_backprop import activations, explicit
from manual_backprop.activations import Activation
from manual_backprop.layers.base import ParameterFree
from manual_backprop.precision import accumulator
from manual_backprop.types import Part, Shape, Tree, came, override, require_number

Mask = Bool[Array, "N *features"] | tuple[()]
Rows = Float[Array, "N *features"]


@dataclass(frozen=True)
class Dropout(ParameterFree):
    """z = m * x / (1 - rate) with m of zeros and ones, each entry zero with probability `rate`; a = f(z).

    The mask m is drawn with the key that a sweep is given, `mb.backprop(objective, params, x, y, key=key)`: the same
    key draws the same, and every layer, block of a `Repeat` and use of a `Tied` has a key of its own. Without a key
    z = x, as for evaluation. All entries of a batch are drawn from one key, so row n's mask depends on its place n; in
    `jax.shard_map`, fold the device's index into the key. The draw is the same in every precision.

    Attributes:
        rate: the share of entries that are dropped, a Python number, static under jit; with 0, a key changes nothing.
        activation: f, a name or a row of `activations`.

    Raises:
        ValueError: a rate that is nan or outside 0 <= rate < 1, or an unknown activation.
        TypeError: a rate that is no Python number.
    """

    rate: float
    activation: Activation | str = "identity"

    operators = (("drop", ()),)
    local_derivatives = MappingProxyType({"a_in": "diag m / (1 - rate)"})

    def __post_init__(self) -> None:
        if isinstance(self.rate, jax.Array):
            raise TypeError(f"Dropout rate is static and must be a Python number, got {came(self.rate)}")
        require_number("Dropout rate", self.rate)
        if not 0 <= self.rate < 1:
            raise ValueError(f"Dropout rate must be from 0 to below 1, the share that is dropped, got {self.rate}")
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "activation", activations.get(self.activation))

    def __str__(self) -> str:
        return f"Dropout({', '.join([f'{self.rate:g}', *([self.f.name] if self.f.name != 'identity' else [])])})"

    @property
    @override
    def draws(self) -> bool:
        return self.rate > 0

    @override
    def drawing(self, key: PRNGKeyArray) -> "Dropout":
        return Drawn(self.rate, self.activation, key)

    @override
    def drawing_for(self, part: Part, key: PRNGKeyArray) -> "Dropout":
        return Drawn(self.rate, self.activation, key, part)

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of the input."""
        if any(isinstance(part, tuple) for part in in_shape):
            raise ValueError(f"{self} takes one input, got {len(in_shape)} of shapes {in_shape}")
        return in_shape

    @override
    def tensor_specs(self, params: tuple[()], axis: str, parts: int, entered: Any) -> tuple[bool, None]:
        """Entries that are split stay so."""
        return bool(entered), None

    def net_input(self, params: tuple[()], a_in: Rows) -> tuple[Rows, Mask]:
        """Net input z = x (F1), where no key is given."""
        return a_in, ()

    def transport(self, params: tuple[()], saved: Mask, delta: Rows) -> Rows:
        """The map is its own transpose: m * delta / (1 - rate) (B2)."""
        return self._masked(saved, delta)

    def pushforward(self, params: tuple[()], saved: Mask, dparams: tuple[()], da_in: Rows) -> Rows:
        """Dz = m * dx / (1 - rate)."""
        return self._masked(saved, da_in)

    def change(
        self, params: tuple[()], saved: Mask, dparams: tuple[()], da_in: Rows | None, delta: Rows
    ) -> tuple[Rows, None]:
        """Zero: the transpose depends on nothing but the mask."""
        return jnp.zeros_like(delta), None

    def _masked(self, kept: Mask, rows: Rows) -> Rows:
        """The kept rows over 1 - rate, rounded once, and zero for the others; all of them unchanged without a mask."""
        if isinstance(kept, tuple):
            return rows
        scaled = (rows.astype(accumulator(rows.dtype)) / (1 - self.rate)).astype(rows.dtype)
        return jnp.where(kept, scaled, jnp.zeros_like(scaled))


@dataclass(frozen=True, eq=False)
class Drawn(Dropout):
    """Dropout with its key, for one use on one sweep: `Dropout.drawing` gives it.

    Attributes:
        key: the mask is drawn with it.
        part: of the examples of a batch, whose mask is cut out of the batch's; None means all.
    """

    key: Any = None
    part: Part | None = None

    @override
    def net_input(self, params: tuple[()], a_in: Rows) -> tuple[Rows, Tree]:
        # A share in float32 makes the draw the same with x64 and without it.
        count = a_in.shape[0] if self.part is None else self.part.total
        kept = jax.random.bernoulli(self.key, jnp.float32(1 - self.rate), (count, *a_in.shape[1:]))
        kept = explicit.like(a_in, kept if self.part is None else self.part.of(kept, a_in.shape[0]))
        return self._masked(kept, a_in), kept
