"""Layer norm: each row less its mean, divided by its deviation, times a gain, plus a bias.

Source: Ba et al., arXiv:1607.06450.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.layers.base import Operators, Parameters
from manual_backprop.layers.normalization import (
    Normalization,
    Rows,
    inverse_root,
    less_first,
    mean_of,
    plus,
    summed,
    times,
)
from manual_backprop.layers.rms_norm import Scaled
from manual_backprop.types import Leaf, came, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GainAndBias(Parameters):
    """The parameters of layer norm, or a gradient with respect to them. The regulariser does not count them.

    Attributes:
        gain: multiplies every row entry by entry, shape (d,).
        bias: is added to every row, shape (d,); None for a layer without bias.
    """

    gain: Leaf
    bias: Leaf = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaledAndShifted(Scaled):
    """(xhat, delta) where z = gain * xhat + bias: an example's gradients are sums of xhat * delta and of delta.

    Attributes:
        one: what enters the bias, as in `OuterProduct`: 1, 0 where xhat is a change, or None without bias.
    """

    one: int | None = field(default=1, metadata={"static": True})

    @override
    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> GainAndBias:
        gain = summed(self.delta, self.xhat, weights)
        if self.one is None:
            return GainAndBias(gain)
        return GainAndBias(gain, summed(self.delta, None, weights) if self.one else jnp.zeros_like(gain))


@dataclass(frozen=True)
class LayerNorm(Normalization):
    """z = gain * (x - mean(x)) / sqrt(var(x) + eps) + bias over the last axis, a = f(z).

    The variance is the mean of squared deviations. Deviations are taken from the row's first entry before they are
    from the mean, which changes nothing but rounding: their error is then small beside the spread of the row, however
    large its mean, and a constant row has deviations of exactly 0.

    Attributes:
        d: the features on the last axis.
        eps: added to the variance, inside the root.
        bias: whether there is a bias; without one, `GainAndBias.bias` is None in parameters and gradients.
        activation: f, a name or a row of `activations`.

    Raises:
        TypeError: a bias that is neither True nor False.
    """

    bias: bool = True
    activation: Activation | str = "identity"

    local_derivatives = MappingProxyType({"a_in": "g' diag {gain}", "gain": "diag g({a_in})", "bias": "I"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bias, bool):
            raise TypeError(f"LayerNorm bias must be True or False, got {came(self.bias)}; its values are parameters")

    @override
    def __str__(self) -> str:
        return super().__str__() if self.bias else f"{super().__str__()[:-1]}, no bias)"

    @property
    @override
    def operators(self) -> Operators:
        norm, times, plus = ("norm", ()), ("×", ("gain",)), ("+", ("bias",))
        return (norm, times, plus) if self.bias else (norm, times)

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> GainAndBias:
        """A gain of ones; a bias of zeros, or None without bias."""
        return GainAndBias(jnp.ones(self.d, dtype), jnp.zeros(self.d, dtype) if self.bias else None)

    @override
    def statistics(self, rows: Rows) -> tuple[Array, Array]:
        from_first = less_first(rows)
        mean = mean_of(from_first)
        return inverse_root(from_first - mean, self.eps), mean

    @override
    def scaled(self, params: GainAndBias, xhat: Rows) -> Rows:
        scaled = times(xhat, params.gain)
        return plus(scaled, params.bias) if self.bias else scaled

    @override
    def scaled_factor(self, xhat: Rows, delta: Rows, one: int) -> ScaledAndShifted:
        return ScaledAndShifted(xhat, delta, one if self.bias else None)
