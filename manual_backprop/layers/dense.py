"""The fully connected layer z = W a + b of (F1), with b or without, its transposes (B2) (B3) (B4) and its tangent."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop import activations, explicit
from manual_backprop.activations import Activation
from manual_backprop.layers.base import AffineLayer, Operators, Parameters, require_widths
from manual_backprop.layers.factor import Factor
from manual_backprop.precision import accumulator, compiled
from manual_backprop.types import Leaf, Shape, came, override

_INITIALIZERS = {
    "glorot": jax.nn.initializers.glorot_uniform,
    "he": jax.nn.initializers.he_normal,
    "lecun": jax.nn.initializers.lecun_normal,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine(Parameters):
    """Parameters of an affine map, or a gradient with respect to them.

    Attributes:
        W: weights W^(l), shape (d_out, d_in): the note's orientation, rows are outputs.
        b: bias b^(l), shape (d_out,); None for a layer without bias.
    """

    W: Leaf
    b: Leaf = None

    weights = ("W",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OuterProduct(Factor):
    """(a^(l-1), delta^(l)): dL/dW^(l) is their outer product, dL/db^(l) is delta^(l).

    As a enters W, so a 1 enters the bias: z = W a + b 1. Both gradients together are delta (a, 1)^T.

    Attributes:
        a_in: what entered the layer, shape (N, *positions, d_in); positions belong to their example.
        delta: shape (N, *positions, d_out).
        one: what enters the bias: 1, or None for a layer without bias. A 1 does not change, so it is 0 where a_in is
            a change of what entered, and the bias gets zero.
    """

    a_in: Leaf
    delta: Leaf
    one: int | None = field(default=1, metadata={"static": True})

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """(B4) and (B3), summed over examples with `weights`; sums are formed in float32 or wider."""
        return self._affine(*_weighted_sums(self.a_in, self.delta, weights))

    def total(self) -> Affine:
        """delta^T a and the sum of delta: one matrix product, and no pass over its result."""
        return self._affine(*_sums(self.a_in, self.delta))

    def per_example(self) -> Affine:
        """delta_n a_n^T and delta_n, summed over positions; W is (N, d_out, d_in)."""
        dtype, wide = self.delta.dtype, accumulator(self.delta.dtype)
        dW = explicit.einsum("npo,npi->noi", self._delta, self._a_in, wide)
        return self._affine(dW.astype(dtype), jnp.sum(self._delta.astype(wide), axis=1).astype(dtype))

    def squared_norms(self) -> Float[Array, " N"]:
        """||delta_n||^2 (||a_n||^2 + 1): no gradient is formed (Goodfellow, arXiv:1510.01799).

        With positions it is sum_ts (a_t . a_s + 1)(delta_t . delta_s) (Li et al., arXiv:2110.05679). Where the
        gradients are smaller than these products of positions, they are formed instead. The 1 is the bias's part:
        without bias it is 0.
        """
        a, delta = _wide(self._a_in), _wide(self._delta)
        positions, d_in, d_out = a.shape[1], a.shape[2], delta.shape[2]
        if positions == 1:
            return jnp.sum(jnp.square(delta[:, 0]), axis=1) * (jnp.sum(jnp.square(a[:, 0]), axis=1) + self._one**2)
        if positions * (d_in + d_out) > d_in * d_out:
            return super().squared_norms()
        of_inputs = explicit.einsum("nti,nsi->nts", a, a)
        return explicit.einsum("nts,nts->n", of_inputs + self._one**2, explicit.einsum("nto,nso->nts", delta, delta))

    def squared_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """(delta^2)^T a^2, one matrix product; with positions, the examples' gradients are formed and squared."""
        if self._delta.shape[1] > 1:
            return super().squared_sum(weights)
        a, delta = (jnp.square(_wide(leaf[:, 0])) for leaf in (self._a_in, self._delta))
        return OuterProduct(a, delta, self.one).weighted_sum(weights)  # and one is its own square

    def gram(self, other: Factor) -> Float[Array, "N M"]:
        """(a_n . a'_m + 1)(delta_n . delta'_m), summed over both examples' positions.

        No gradient is formed, except where the gradients are smaller than the products of all positions. Without
        bias, the 1 is 0.
        """
        if not isinstance(other, OuterProduct):
            raise TypeError(f"gram of an OuterProduct with {type(other).__name__}: both must be of one layer")
        (n, t, d_in), d_out, (m, s) = self._a_in.shape, self._delta.shape[2], other._a_in.shape[:2]
        by_positions = n * t * m * s * (d_in + d_out)
        if t * s > 1 and by_positions > (n * t + m * s + n * m) * d_in * d_out:
            return super().gram(other)
        of_inputs = explicit.einsum("nti,msi->ntms", _wide(self._a_in), _wide(other._a_in))
        of_deltas = explicit.einsum("nto,mso->ntms", _wide(self._delta), _wide(other._delta))
        return jnp.sum((of_inputs + self._one * other._one) * of_deltas, axis=(1, 3))

    def tied(self) -> "OuterProduct":
        """The uses become positions of their example, so sums over positions become sums over uses."""
        return OuterProduct(jnp.moveaxis(self.a_in, 0, 1), jnp.moveaxis(self.delta, 0, 1), self.one)

    def kronecker(self, shared: str) -> tuple[Float[Array, "inputs inputs"], Float[Array, "d_out d_out"]]:
        """(A, G), the means over examples of a a^T (with a 1 below a, for a bias) and of delta delta^T.

        Here `delta` may have several rows for each example of `a_in`. G is the sum over all of them by N.

        Args:
            shared: what to do with positions, which share W (Eschenhagen et al., arXiv:2311.00636). "expand"
                takes each position as an example of its own; A is averaged and G summed over them. "reduce" first
                averages a and sums delta over positions. Without positions the two are the same.
        """
        a, delta = _wide(self._a_in), _wide(self._delta)
        n, positions = a.shape[:2]
        if shared == "reduce":
            a, delta = jnp.mean(a, axis=1, keepdims=True), jnp.sum(delta, axis=1, keepdims=True)
            positions = 1
        if self.one is not None:
            a = explicit.whole(a, -1)
            a = jnp.concatenate([a, jnp.full_like(a[..., :1], self.one)], axis=-1)
        return _products(a) / (n * positions), _products(delta) / n

    def _affine(self, dW: Array, db: Array) -> Affine:
        """The gradient, from the sums of delta a^T and of delta: the bias gets delta times what enters it."""
        if self.one is None:
            return Affine(dW)
        return Affine(dW, db if self.one else jnp.zeros_like(db))

    @property
    def _one(self) -> int:
        """The bias's part in products of a: 0 where there is no bias."""
        return self.one or 0

    @property
    def _a_in(self) -> Float[Array, "N positions d_in"]:
        return self.a_in.reshape(self.a_in.shape[0], -1, self.a_in.shape[-1])

    @property
    def _delta(self) -> Float[Array, "N positions d_out"]:
        return self.delta.reshape(self.delta.shape[0], -1, self.delta.shape[-1])


def _products(rows: Float[Array, "N positions d"]) -> Float[Array, "d d"]:
    """The sum of r r^T over all rows r, as one product: XLA copies an operand that is contracted along two axes."""
    rows = jax.lax.collapse(rows, 0, 2)
    return explicit.dot(rows, rows, ((0,), (0,)))


def _wide(rows: Array) -> Array:
    return rows.astype(accumulator(rows.dtype))


@compiled
def _weighted_sums(a_in: Array, delta: Array, weights: Array | None) -> tuple[Array, Array]:
    """(sum_n w_n delta_n a_n^T, sum_n w_n delta_n), or the means: (B4) and (B3)."""
    dtype, n = delta.dtype, delta.shape[0]
    if weights is not None:
        wide = accumulator(dtype)
        return _sums(a_in, (weights.reshape(-1, *(1,) * (delta.ndim - 1)) * delta.astype(wide)).astype(dtype))
    dW, db = _wide_sums(a_in, delta)
    return (dW / n).astype(dtype), (db / n).astype(dtype)


@compiled
def _sums(a_in: Array, delta: Array) -> tuple[Array, Array]:
    """(sum_n delta_n a_n^T, sum_n delta_n)."""
    dW, db = _wide_sums(a_in, delta)
    return dW.astype(delta.dtype), db.astype(delta.dtype)


def _wide_sums(a_in: Array, delta: Array) -> tuple[Array, Array]:
    """The same in the precision of sums."""
    wide = accumulator(delta.dtype)
    rows = tuple(range(delta.ndim - 1))  # examples, and positions within them
    dW = explicit.dot(delta, a_in, (rows, rows), wide)
    return dW, jnp.sum(delta.astype(wide), axis=rows)


@dataclass(frozen=True)
class Dense(AffineLayer):
    """A fully connected layer, a = f(W a_in + b), or f(W a_in) without bias, applied to the last axis.

    Attributes:
        d_in: M_(l-1), neurons below.
        d_out: M_l, neurons of this layer.
        activation: f_l, a name or a row of `activations`.
        initializer: "glorot", "he" or "lecun"; None takes what the activation's row asks for.
        bias: whether there is a b; without one, `Affine.b` is None in parameters and gradients.

    Raises:
        ValueError: a width below 1, or an unknown activation or initializer.
        TypeError: a bias that is neither True nor False.
    """

    d_in: int
    d_out: int
    activation: Activation | str = "identity"
    initializer: str | None = None
    bias: bool = True

    local_derivatives = MappingProxyType({"a_in": "({W})^T", "W": "({a_in})^T", "b": "I"})  # (C6) (C3) (C4)

    def __post_init__(self) -> None:
        require_widths(self, "d_in", "d_out")
        object.__setattr__(self, "activation", activations.get(self.activation))
        if self.initializer is None:
            object.__setattr__(self, "initializer", self.f.initializer)
        if self.initializer not in _INITIALIZERS:
            raise ValueError(f"no initializer {self.initializer!r}; there are {', '.join(_INITIALIZERS)}")
        if not isinstance(self.bias, bool):
            raise TypeError(f"Dense bias must be True or False, got {came(self.bias)}; values of b are parameters")

    def __str__(self) -> str:
        return f"Dense({self.d_in} -> {self.d_out}, {self.f.name}{'' if self.bias else ', no bias'})"

    @property
    @override
    def operators(self) -> Operators:
        times, plus = ("×", ("W",)), ("+", ("b",))  # (F1)
        return (times, plus) if self.bias else (times,)

    @classmethod
    def specimen(cls, width: int, activation: Activation | str) -> "Dense":
        """A square layer."""
        return cls(width, width, activation)

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Affine:
        """W by Glorot, He or LeCun; b zero, or None without bias."""
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        draw = _INITIALIZERS[str(self.initializer)](in_axis=1, out_axis=0)
        W = draw(key, (self.d_out, self.d_in), dtype)
        return Affine(W, jnp.zeros(self.d_out, dtype) if self.bias else None)

    def out_shape(self, in_shape: Shape) -> Shape:
        """The last axis d_in becomes d_out."""
        if not in_shape or in_shape[-1] != self.d_in:
            raise ValueError(f"{self} takes {self.d_in} features on the last axis, got an example of shape {in_shape}")
        return (*in_shape[:-1], self.d_out)

    @override
    def tensor_specs(self, params: Affine, axis: str, parts: int, entered: Any) -> tuple[bool, Affine | None]:
        """W by columns of the product where whole rows enter, which splits what leaves; by rows where it is split.

        Then each device adds up the part that it holds, and one sum over devices makes rows whole (Shoeybi et al.,
        arXiv:1909.08053). W is (d_out, d_in), so the columns of a W^T are the rows of W.
        """
        if entered and self.d_in % parts == 0:
            return False, Affine(PartitionSpec(None, axis), PartitionSpec() if self.bias else None)
        if self.d_out % parts:
            return False, None
        return True, Affine(PartitionSpec(axis), PartitionSpec(axis) if self.bias else None)

    def net_input(
        self, params: Affine, a_in: Float[Array, "N *positions d_in"]
    ) -> tuple[Float[Array, "N *positions d_out"], Float[Array, "N *positions d_in"]]:
        """Net input z = W a_in + b for every row (F1), without bias W a_in; a_in is all that the transposes need."""
        return affine(params.W, params.b, a_in), a_in

    def transport(
        self,
        params: Affine,
        saved: Float[Array, "N *positions d_in"],
        delta: Float[Array, "N *positions d_out"],
    ) -> Float[Array, "N *positions d_in"]:
        """W^T delta for every row: (C6) applied, the middle of (B2), and (B5) at the first layer."""
        return through(delta, params.W)

    def factor(
        self, saved: Float[Array, "N *positions d_in"], delta: Float[Array, "N *positions d_out"]
    ) -> OuterProduct:
        """(a_in, delta), and the 1 that enters a bias."""
        return OuterProduct(saved, delta, 1 if self.bias else None)

    def pushforward(
        self,
        params: Affine,
        saved: Float[Array, "N *positions d_in"],
        dparams: Affine,
        da_in: Float[Array, "N *positions d_in"],
    ) -> Float[Array, "N *positions d_out"]:
        """Dz = dW a_in + W da_in + db: the differential of (F1)."""
        return affine(dparams.W, dparams.b, saved) + affine(params.W, None, da_in)

    def pushforward_params(
        self,
        params: Affine,
        a_in: Float[Array, "N *positions d_in"],
        saved: Float[Array, "N *positions d_in"],
        dparams: Affine,
    ) -> Float[Array, "N *positions d_out"]:
        """Dz = dW a_in + db, where a_in does not change."""
        return affine(dparams.W, dparams.b, saved)

    def change(
        self,
        params: Affine,
        saved: Float[Array, "N *positions d_in"],
        dparams: Affine,
        da_in: Float[Array, "N *positions d_in"] | None,
        delta: Float[Array, "N *positions d_out"],
    ) -> tuple[Float[Array, "N *positions d_in"], Factor | None]:
        """V^T delta, and delta R{a}^T: the differentials of (B2), (B4) and (B3) at a fixed delta."""
        moved = None if da_in is None else OuterProduct(da_in, delta, 0 if self.bias else None)
        return through(delta, dparams.W), moved


@compiled
def affine(W: Array, b: Array | None, a: Array) -> Array:
    """W a + b for every row, W a where b is None; adding b to every row is written out, not left to broadcasting."""
    z = explicit.dot(a, W, ((a.ndim - 1,), (1,)), accumulator(a.dtype)).astype(a.dtype)
    return z if b is None else z + explicit.in_every_row(b, z)


@compiled
def through(rows: Array, W: Array) -> Array:
    """W^T r for every row r: W's transpose."""
    return explicit.dot(rows, W, ((rows.ndim - 1,), (0,)), accumulator(rows.dtype)).astype(rows.dtype)
