"""RMS norm: each row divided by the root of its mean square, times a gain.

Source: Zhang and Sennrich, arXiv:1910.07467.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.layers.base import Parameters
from manual_backprop.layers.factor import Factor
from manual_backprop.layers.normalization import Normalization, Rows, inverse_root, summed, times
from manual_backprop.types import Leaf, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gain(Parameters):
    """The parameters of RMS norm, or a gradient with respect to them. The regulariser does not count them.

    Attributes:
        gain: multiplies every row entry by entry, shape (d,).
    """

    gain: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled(Factor):
    """(xhat, delta) where z = gain * xhat: an example's gradient is xhat * delta, summed over its positions.

    Attributes:
        xhat: what the gain multiplies, shape (N, *positions, d), in the precision of sums.
        delta: shape (N, *positions, d).
    """

    xhat: Leaf
    delta: Leaf

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Any:
        """The sum over examples with `weights`, formed in float32 or wider; no example's gradient is."""
        return Gain(summed(self.delta, self.xhat, weights))

    def tied(self) -> "Scaled":
        """The uses become positions of their example, so sums over positions become sums over uses."""
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), self)


@dataclass(frozen=True)
class RMSNorm(Normalization):
    """z = gain * x / sqrt(mean(x^2) + eps) over the last axis, a = f(z).

    Attributes:
        d: the features on the last axis.
        eps: added to the mean square, inside the root.
        activation: f, a name or a row of `activations`.
    """

    activation: Activation | str = "identity"

    operators = (("norm", ()), ("×", ("gain",)))
    local_derivatives = MappingProxyType({"a_in": "g' diag {gain}", "gain": "diag g({a_in})"})

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Gain:
        """A gain of ones."""
        return Gain(jnp.ones(self.d, dtype))

    @override
    def statistics(self, rows: Rows) -> tuple[Array, None]:
        return inverse_root(rows, self.eps), None

    @override
    def scaled(self, params: Gain, xhat: Rows) -> Rows:
        return times(xhat, params.gain)

    @override
    def scaled_factor(self, xhat: Rows, delta: Rows, one: int) -> Scaled:
        return Scaled(xhat, delta)
