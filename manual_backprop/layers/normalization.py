"""The base of layers that divide each row by its own size, then scale it entry by entry: RMS norm and layer norm.

With C v = v for RMS norm, and C v = v - mean(v) for layer norm, all means over the last axis,

    xhat = r C x,  r = (mean((C x)^2) + eps)^(-1/2),  z = gain * xhat (+ bias).

Its differential is dxhat = J dx with J v = r (C v - xhat mean(xhat * v)). J is symmetric, so the way forward and the
way back are one formula: a change of x moves xhat by J dx, and an error term goes down as J (gain * delta).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import activations, explicit
from manual_backprop.layers.base import Layer
from manual_backprop.layers.factor import Factor
from manual_backprop.precision import accumulator, compiled
from manual_backprop.types import Coefficient, Leaf, Shape, override, require_number

Rows = Float[Array, "N *positions d"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalized:
    """The input x and one or two numbers for each row, from which the transposes compute xhat again.

    As an array of its own, xhat would be as large as x, and in 16 bits be rounded once more, while x is exact and in
    the trace already, as the output of the layer below. In a compiled sweep, which forms xhat where it is used, both
    take about the same memory.

    Attributes:
        x: what entered the layer.
        r: one over the root of each row's mean square, in the precision of sums, shape (N, *positions, 1).
        mean: the mean of each row less its first entry, in r's shape and precision; None where it stays in the row.
    """

    x: Leaf
    r: Leaf
    mean: Leaf = None


@dataclass(frozen=True)
class Normalization(Layer):
    """Base of RMS norm and layer norm, which give the statistics of a row, and what scales and shifts it.

    All between x and the rounded result is computed in float32 or wider.

    Attributes:
        d: the width of a row.
        eps: added to the mean square, inside the root.

    Raises:
        ValueError: a d below 1, an eps that is not above 0 and finite, or an unknown activation.
        TypeError: an eps that is no Python number.
    """

    d: int
    eps: float = 1e-6

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.d, int) or isinstance(self.d, bool) or self.d < 1:
            raise ValueError(f"{name} d must be an int >= 1, the features on the last axis, got {self.d!r}")
        if isinstance(self.eps, jax.Array):
            raise TypeError(f"{name} eps is static and must be a Python number, got {self.eps}")
        require_number(f"{name} eps", self.eps)
        if not (self.eps > 0 and math.isfinite(self.eps)):
            raise ValueError(f"{name} eps must be finite and above 0, got {self.eps}; a row of zeros is divided by it")
        object.__setattr__(self, "eps", float(self.eps))
        object.__setattr__(self, "activation", activations.get(self.activation))

    @abstractmethod
    def statistics(self, rows: Rows) -> tuple[Array, Array | None]:
        """(r, mean) of rows in the precision of sums, as `Normalized` has them."""

    @abstractmethod
    def scaled(self, params: Any, xhat: Rows) -> Rows:
        """The affine map of the rows, gain * xhat or gain * xhat + bias, in xhat's precision."""

    @abstractmethod
    def scaled_factor(self, xhat: Rows, delta: Rows, one: int) -> Factor:
        """The pair (xhat, delta) that the parameters' gradients are read from; `one` is what enters a bias."""

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of the input, whose last axis must be d."""
        if not in_shape or in_shape[-1] != self.d:
            raise ValueError(f"{self} takes {self.d} features on the last axis, got an example of shape {in_shape}")
        return in_shape

    def net_input(self, params: Any, a_in: Rows) -> tuple[Rows, Normalized]:
        """Net input z = gain * xhat (+ bias) (F1), and x with its statistics."""
        saved = Normalized(a_in, *self.statistics(wide(a_in)))
        return self.scaled(params, normalized(saved)).astype(a_in.dtype), saved

    def transport(self, params: Any, saved: Normalized, delta: Rows) -> Rows:
        """J (gain * delta) for every row (B2)."""
        return _through(saved, normalized(saved), times(wide(delta), params.gain)).astype(delta.dtype)

    def factor(self, saved: Normalized, delta: Rows) -> Factor:
        """(xhat, delta): the gradient of gain is xhat * delta, summed over positions."""
        return self.scaled_factor(normalized(saved), delta, 1)

    def pushforward(self, params: Any, saved: Normalized, dparams: Any, da_in: Rows) -> Rows:
        """Dz = dgain * xhat (+ dbias) + gain * J dx."""
        xhat = normalized(saved)
        dxhat = _through(saved, xhat, wide(da_in))
        return (self.scaled(dparams, xhat) + times(dxhat, params.gain)).astype(da_in.dtype)

    def pushforward_params(self, params: Any, a_in: Rows, saved: Normalized, dparams: Any) -> Rows:
        """Dz = dgain * xhat (+ dbias), where x does not change."""
        return self.scaled(dparams, normalized(saved)).astype(a_in.dtype)

    def change(
        self, params: Any, saved: Normalized, dparams: Any, da_in: Rows, delta: Rows
    ) -> tuple[Rows, Factor | None]:
        """The change of J (gain * delta) and of xhat * delta along (dparams, dx), at a fixed delta.

        With v = gain * delta and dr = -r^2 mean(xhat * dx), it is J (dgain * delta) + dr (C v - xhat mean(xhat * v))
        - r (dxhat mean(xhat * v) + xhat mean(dxhat * v)), where dr times the bracket is -r mean(xhat * dx) J v.
        """
        xhat, dx = normalized(saved), wide(da_in)
        v, dv = times(wide(delta), params.gain), times(wide(delta), dparams.gain)
        dxhat = _through(saved, xhat, dx)
        bent = mean_of(xhat * dx) * _through(saved, xhat, v) + dxhat * mean_of(xhat * v) + xhat * mean_of(dxhat * v)
        moved = _through(saved, xhat, dv) - saved.r * bent
        return moved.astype(delta.dtype), self.scaled_factor(dxhat, delta, 0)

    @override
    def __str__(self) -> str:
        return f"{type(self).__name__}({self.d}, eps={self.eps}, {self.f.name})"


@compiled
def normalized(saved: Normalized) -> Rows:
    """xhat, in the precision of sums."""
    rows = wide(saved.x)
    return (rows if saved.mean is None else less_first(rows) - saved.mean) * saved.r


@compiled
def _through(saved: Normalized, xhat: Rows, v: Rows) -> Rows:
    """J v = r (C v - xhat mean(xhat * v)); as C xhat = xhat, mean(xhat * v) is that of C v."""
    v = v if saved.mean is None else v - mean_of(v)
    return saved.r * (v - xhat * mean_of(xhat * v))


@compiled
def inverse_root(rows: Rows, eps: Coefficient) -> Array:
    """One over the root of every row's mean square: r = (mean(rows^2) + eps)^(-1/2)."""
    return jax.lax.rsqrt(mean_of(jnp.square(rows)) + eps)


@compiled
def less_first(rows: Rows) -> Rows:
    """Every row less its first entry."""
    return rows - explicit.whole(rows, -1)[..., :1]


def times(rows: Rows, entries: Float[Array, " d"]) -> Rows:
    """Every row times a vector, entry by entry, in the rows' precision."""
    return rows * _in_every_row(entries, rows)


def plus(rows: Rows, entries: Float[Array, " d"]) -> Rows:
    """Every row plus a vector, in the rows' precision."""
    return rows + _in_every_row(entries, rows)


@compiled
def summed(delta: Array, xhat: Array | None, weights: Array | None) -> Array:
    """sum_n weights[n] xhat_n * delta_n over examples and positions, rounded once; None is 1/N, and an xhat of 1."""
    n, terms = delta.shape[0], wide(delta) if xhat is None else xhat * wide(delta)
    if weights is not None:
        terms = weights.reshape(-1, *(1,) * (delta.ndim - 1)) * terms
    total = jnp.sum(terms, axis=tuple(range(delta.ndim - 1)))
    return (total / n if weights is None else total).astype(delta.dtype)


@compiled
def _in_every_row(entries: Array, rows: Array) -> Array:
    return explicit.in_every_row(entries.astype(rows.dtype), rows)


def wide(rows: Array) -> Array:
    """The rows in the precision of sums."""
    return rows.astype(accumulator(rows.dtype))


def mean_of(rows: Array) -> Array:
    """The mean of every row."""
    return jnp.mean(rows, axis=-1, keepdims=True)
