"""The learned positional embedding: a row of its own is added at every position."""

from dataclasses import dataclass, field
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop import activations, explicit
from manual_backprop.activations import Activation
from manual_backprop.layers.base import Layer, Parameters, require_widths
from manual_backprop.layers.factor import Factor
from manual_backprop.precision import accumulator
from manual_backprop.types import Leaf, Shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions(Parameters):
    """Parameters of a positional embedding, or a gradient with respect to them.

    Attributes:
        P: one row a position, shape (length, d). The regulariser counts it, as weight decay does in GPT.
    """

    P: Leaf

    weights = ("P",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shifts(Factor):
    """Delta alone: row t of dL_n/dP is delta_nt, and rows beyond the sequence are zero.

    Attributes:
        delta: shape (N, T, d).
        length: rows of P.
    """

    delta: Leaf
    length: int = field(metadata={"static": True})

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Positions:
        """The sum over examples, in float32 or wider."""
        delta = self._delta
        return self._positions(
            jnp.mean(delta, axis=0) if weights is None else explicit.dot(weights, delta, ((0,), (0,)))
        )

    def per_example(self) -> Positions:
        """Delta of every example."""
        return self._positions(self._delta)

    def squared_norms(self) -> Float[Array, " N"]:
        """||delta_n||^2."""
        return jnp.sum(jnp.square(self._delta), axis=(1, 2))

    def squared_sum(self, weights: Float[Array, " N"] | None = None) -> Positions:
        """The sum over examples of delta^2."""
        return Shifts(jnp.square(self._delta), self.length).weighted_sum(weights)

    def gram(self, other: Factor) -> Float[Array, "N M"]:
        """delta_n . delta'_m, over the positions that both have."""
        if not isinstance(other, Shifts):
            raise TypeError(f"gram of Shifts with {type(other).__name__}: both must be of one layer")
        both = min(self.delta.shape[1], other.delta.shape[1])
        return explicit.einsum("ntd,mtd->nm", self._delta[:, :both], other._delta[:, :both])

    def tied(self) -> "Shifts":
        """The sum over uses, rounded once."""
        return Shifts(jnp.sum(self._delta, axis=0).astype(self.delta.dtype), self.length)

    def _positions(self, rows: Array) -> Positions:
        beyond = self.length - self.delta.shape[1]
        rows = jnp.pad(rows, ((0, 0),) * (rows.ndim - 2) + ((0, beyond), (0, 0)))
        return Positions(rows.astype(self.delta.dtype))

    @property
    def _delta(self) -> Array:
        return self.delta.astype(accumulator(self.delta.dtype))


@dataclass(frozen=True)
class PositionalEmbedding(Layer):
    """A vector for every position, z_t = x_t + P_t, for sequences (N, T, d) that may be shorter than P.

    Attributes:
        length: the longest sequence that it takes.
        d: features of each position.
        activation: f, a name or a row of `activations`.

    Raises:
        ValueError: a length or d below 1, or an unknown activation.
    """

    length: int
    d: int
    activation: Activation | str = "identity"

    shifts = True
    operators = (("+", ("P",)),)
    local_derivatives = MappingProxyType({"a_in": "I", "P": "I"})

    def __post_init__(self) -> None:
        require_widths(self, "length", "d")
        object.__setattr__(self, "activation", activations.get(self.activation))

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Positions:
        """Normal entries of variance 1/d, as `Embedding` has."""
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        return Positions(jax.random.normal(key, (self.length, self.d), dtype) / jnp.sqrt(jnp.asarray(self.d, dtype)))

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of the input."""
        if len(in_shape) != 2 or in_shape[1] != self.d or in_shape[0] > self.length:
            raise ValueError(
                f"{self} takes sequences of up to {self.length} positions with {self.d} features each,"
                f" got an example of shape {in_shape}"
            )
        return in_shape

    def net_input(self, params: Positions, a_in: Float[Array, "N T d"]) -> tuple[Float[Array, "N T d"], tuple[()]]:
        """z_t = x_t + P_t (F1); the transposes need nothing."""
        return a_in + self._rows(params, a_in), ()

    def transport(self, params: Positions, saved: tuple[()], delta: Float[Array, "N T d"]) -> Float[Array, "N T d"]:
        """Delta itself."""
        return delta

    def factor(self, saved: tuple[()], delta: Float[Array, "N T d"]) -> Shifts:
        """Delta itself."""
        return Shifts(delta, self.length)

    def pushforward(
        self, params: Positions, saved: tuple[()], dparams: Positions, da_in: Float[Array, "N T d"]
    ) -> Float[Array, "N T d"]:
        """Dz_t = dx_t + dP_t."""
        return da_in + self._rows(dparams, da_in)

    def pushforward_params(
        self, params: Positions, a_in: Float[Array, "N T d"], saved: tuple[()], dparams: Positions
    ) -> Float[Array, "N T d"]:
        """Dz_t = dP_t, where x does not change."""
        return self._rows(dparams, a_in)

    def change(
        self,
        params: Positions,
        saved: tuple[()],
        dparams: Positions,
        da_in: Float[Array, "N T d"] | None,
        delta: Float[Array, "N T d"],
    ) -> tuple[Float[Array, "N T d"], None]:
        """Zero: the transposes depend on nothing but delta."""
        return jnp.zeros_like(delta), None

    def _rows(self, params: Positions, like: Array) -> Array:
        """P_t of every position of the sequences, for every example."""
        return jnp.broadcast_to(explicit.whole(params.P)[None, : like.shape[1]], like.shape)
