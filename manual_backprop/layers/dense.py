"""The fully connected layer z = W a + b of (F1), its transposes (B2) (B3) (B4) and its tangent."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop import activations
from manual_backprop.activations import Activation
from manual_backprop.layers.base import Factor, Layer, Leaf, Parameters, Shape
from manual_backprop.precision import accumulator, compiled

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
        b: bias b^(l), shape (d_out,).
    """

    W: Leaf
    b: Leaf

    weights = ("W",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OuterProduct(Factor):
    """(a^(l-1), delta^(l)): dL/dW^(l) is their outer product, dL/db^(l) is delta^(l).

    Attributes:
        a_in: what entered the layer, shape (N, *positions, d_in); positions belong to their example.
        delta: shape (N, *positions, d_out).
    """

    a_in: Leaf
    delta: Leaf

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """(B4) and (B3), summed over examples with `weights`; sums are formed in float32 or wider."""
        return Affine(*_weighted_sums(self.a_in, self.delta, weights))


@compiled
def _weighted_sums(a_in: Array, delta: Array, weights: Array | None) -> tuple[Array, Array]:
    """(sum_n w_n delta_n a_n^T, sum_n w_n delta_n), or the means: (B4) and (B3)."""
    dtype, n = delta.dtype, delta.shape[0]
    wide = accumulator(dtype)
    if weights is not None:
        delta = (weights.reshape(-1, *(1,) * (delta.ndim - 1)) * delta.astype(wide)).astype(dtype)
    rows = tuple(range(delta.ndim - 1))  # examples, and positions within them
    dW = jax.lax.dot_general(delta, a_in, ((rows, rows), ((), ())), preferred_element_type=wide)
    db = jnp.sum(delta.astype(wide), axis=rows)
    if weights is None:
        dW, db = dW / n, db / n
    return dW.astype(dtype), db.astype(dtype)


@dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer, a = f(W a_in + b), applied to the last axis.

    Attributes:
        d_in: M_(l-1), neurons below.
        d_out: M_l, neurons of this layer.
        activation: f_l, a name or a row of `activations`.
        initializer: "glorot", "he" or "lecun"; None takes what the activation's row asks for.

    Raises:
        ValueError: a width below 1, or an unknown activation or initializer.
    """

    d_in: int
    d_out: int
    activation: Activation | str = "identity"
    initializer: str | None = None

    def __post_init__(self) -> None:
        for name, width in (("d_in", self.d_in), ("d_out", self.d_out)):
            if not isinstance(width, int) or width < 1:
                raise ValueError(f"Dense {name} must be an int >= 1, got {width!r}")
        object.__setattr__(self, "activation", activations.get(self.activation))
        if self.initializer is None:
            object.__setattr__(self, "initializer", self.f.initializer)
        if self.initializer not in _INITIALIZERS:
            raise ValueError(f"no initializer {self.initializer!r}; there are {', '.join(_INITIALIZERS)}")

    def __str__(self) -> str:
        return f"Dense({self.d_in} -> {self.d_out}, {self.f.name})"

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Affine:
        """W by Glorot, He or LeCun, b zero."""
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        draw = _INITIALIZERS[str(self.initializer)](in_axis=1, out_axis=0)
        return Affine(draw(key, (self.d_out, self.d_in), dtype), jnp.zeros(self.d_out, dtype))

    def out_shape(self, in_shape: Shape) -> Shape:
        """The last axis d_in becomes d_out."""
        if not in_shape or in_shape[-1] != self.d_in:
            raise ValueError(f"{self} takes {self.d_in} features on the last axis, got an example of shape {in_shape}")
        return (*in_shape[:-1], self.d_out)

    def net_input(
        self, params: Affine, a_in: Float[Array, "N *positions d_in"]
    ) -> tuple[Float[Array, "N *positions d_out"], Float[Array, "N *positions d_in"]]:
        """Net input z = W a_in + b for every row (F1); a_in is all that the transposes need."""
        return _affine(params.W, params.b, a_in), a_in

    def transport(
        self,
        params: Affine,
        saved: Float[Array, "N *positions d_in"],
        delta: Float[Array, "N *positions d_out"],
    ) -> Float[Array, "N *positions d_in"]:
        """W^T delta for every row: (C6) applied, the middle of (B2), and (B5) at the first layer."""
        return _through(delta, params.W)

    def factor(
        self, saved: Float[Array, "N *positions d_in"], delta: Float[Array, "N *positions d_out"]
    ) -> OuterProduct:
        """(a_in, delta)."""
        return OuterProduct(saved, delta)

    def pushforward(
        self,
        params: Affine,
        saved: Float[Array, "N *positions d_in"],
        dparams: Affine,
        da_in: Float[Array, "N *positions d_in"],
    ) -> Float[Array, "N *positions d_out"]:
        """Dz = dW a_in + W da_in + db: the differential of (F1)."""
        return _affine(dparams.W, dparams.b, saved) + _through(da_in, params.W.T)


@compiled
def _affine(W: Array, b: Array, a: Array) -> Array:
    """W a + b for every row; adding b to every row is written out, not left to broadcasting."""
    return a @ W.T + jax.lax.broadcast_in_dim(b, (*a.shape[:-1], b.size), (a.ndim - 1,))


@compiled
def _through(rows: Array, W: Array) -> Array:
    return rows @ W
