"""Formulas with their rounding: each gives a value in float64 and a bound for the error of a right answer.

With u the unit roundoff of a result, u_sum that of sums, and n terms,

    gamma(n) = min(n, 6 sqrt(n)) u_sum

bounds a sum's error relative to the sum of its magnitudes. The bound n u always holds (Higham, Accuracy and
Stability, section 3.1), and 6 sqrt(n) u almost always (Higham and Mary, 2019, with lambda = 6). If a library computes
a function of z to a few ulps, from a z that it may round once more, the error is at most C u (|f| + |z f'|).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.losses import BinaryCrossEntropy, Huber, Loss, SoftmaxCrossEntropy, SquaredError
from reference import model
from reference.tolerance.formats import Format, unit_roundoff

Wide = Any  # float64 arrays of NumPy, and the numbers that NumPy returns for arrays without axes
LIBRARY = 8.0  # ulps: the largest error of exp, tanh, erf, and functions built from a few of them
DOUBLE = unit_roundoff(jnp.float64)


@dataclass(frozen=True)
class Known:
    """The exact value of a quantity, and bounds for the error of a right answer; inf where it may overflow.

    Attributes:
        value: in float64.
        bound: how far the stored value may be from it.
        slack: how far the value that later equations use may differ from the stored one. A compiler may keep a 16-bit
            value in 32 bits, or compute it again where it is used, with other roundings: z = w a + b in one rounding,
            where b cancels most of w a. It computes sums of products once, unless they have one term.
    """

    value: Wide
    bound: Wide
    slack: Wide

    @classmethod
    def exactly(cls, value: Wide) -> "Known":
        """A value without error."""
        return cls(value, np.zeros_like(value), np.zeros_like(value))

    @classmethod
    def together(cls, uses: Sequence["Known"]) -> "Known":
        """Stack several uses on a new axis behind the first, the examples' axis; a single one is unchanged."""
        if len(uses) == 1:
            return uses[0]
        return cls(*(np.stack([getattr(use, part) for use in uses], axis=1) for part in ("value", "bound", "slack")))

    def __add__(self, other: "Known") -> "Known":
        """The sum before it is rounded."""
        return Known(self.value + other.value, self.bound + other.bound, self.slack + other.slack)

    def further(self, error: Wide) -> "Known":
        """The same with one more error of this size."""
        return Known(self.value, self.bound + error, self.slack + error)

    def stored(self, value: Wide) -> "Known":
        """The stored value, as the equations that use it may see it."""
        return Known(value, self.slack, self.slack)


@dataclass(frozen=True)
class Curve:
    """An activation function at the stored z, and how much it changes within the slack of z.

    Attributes:
        z: stored.
        f: f(z).
        slope: f'(z).
        curvature: f''(z).
        f_moved: the change of f.
        slope_moved: the change of f'; at a kink, the whole jump.
    """

    z: Wide
    f: Wide
    slope: Wide
    curvature: Wide
    f_moved: Wide
    slope_moved: Wide


@dataclass(frozen=True)
class Arithmetic(Format):
    """The rounding of the step under test: the numbers of its format, and bounds derived from them.

    Attributes:
        devices: among how many the terms of a sum may be shared; empty for a step on one device.
    """

    devices: tuple[int, ...] = ()

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of this many terms."""
        return min(terms, 6 * terms**0.5) * self.u_sum

    def rounded(self, known: Known, roundings: float = 1.0) -> Known:
        """The value after this many roundings to the format; unknown where it may exceed the largest number."""
        size = np.abs(known.value)
        rounded = known.further(roundings * (self.u * size + self.eta))
        return rounded.further(np.where(size + rounded.bound < self.largest, 0.0, np.inf))

    def summed(self, value: Wide, magnitudes: Wide, terms: int) -> Known:
        """A sum of products whose magnitudes add up to `magnitudes`, rounded to the format."""
        return self.rounded(Known.exactly(value).further(self.gamma(terms) * magnitudes + terms * self.eta_sum))


def net_input(of: Arithmetic, W: Wide, b: Wide | None, a_in: Known) -> Known:
    """(F1) W a + b for every row; without bias it is the product alone, which is rounded once less."""
    terms = W.shape[1]
    product = of.summed(a_in.value @ W.T, np.abs(a_in.value) @ np.abs(W).T, terms)
    bound, slack = product.bound + a_in.bound @ np.abs(W).T, product.slack
    if terms == 1:
        slack = slack + a_in.slack @ np.abs(W).T
    if b is None:
        return Known(product.value, bound, slack)
    return of.rounded(Known(product.value + b, bound, slack))


def transport(of: Arithmetic, W: Wide, delta: Known) -> Known:
    """(C6) W^T delta for every row."""
    terms = W.shape[0]
    product = of.summed(delta.value @ W, np.abs(delta.value) @ np.abs(W), terms)
    slack = product.slack + (delta.slack @ np.abs(W) if terms == 1 else 0.0)
    return Known(product.value, product.bound + delta.bound @ np.abs(W), slack)


def contraction(of: Arithmetic, a_in: Known, delta: Known, weights: Wide) -> tuple[Known, Known]:
    """(B4) and (B3): sum_n w_n delta_n a_n^T and sum_n w_n delta_n, positions summed with their example.

    Weights may be multiplied into delta, and the product rounded, before it is summed; a mean is divided after.
    """
    n, terms = len(delta.value), delta.value[..., 0].size
    mean = bool(np.all(weights == 1 / n))
    lost = of.eta_sum if mean else of.eta
    shares = weights.reshape(-1, *(1,) * (delta.value.ndim - 1))
    weighted, moved = ((shares * part).reshape(terms, -1) for part in (delta.value, delta.bound))
    a, a_moved = (part.reshape(terms, -1) for part in (a_in.value, a_in.bound))
    size, moved = np.abs(weighted), np.abs(moved)
    per_term = of.gamma(terms + 2) + (0.0 if mean else of.u)
    flushed = lost * np.abs(a).sum(axis=0) + 2 * terms * of.eta_sum
    dW = Known.exactly(weighted.T @ a)
    db = Known.exactly(weighted.sum(axis=0))
    dW = dW.further(size.T @ (per_term * np.abs(a) + a_moved) + moved.T @ (np.abs(a) + a_moved) + flushed)
    db = db.further(per_term * size.sum(axis=0) + moved.sum(axis=0) + 2 * terms * lost)
    return of.rounded(dW), of.rounded(db)


def activated(of: Arithmetic, at: Curve) -> Known:
    """(F2) f(z), from the stored z."""
    return of.rounded(Known.exactly(at.f).further(_library(of, at.z, at.f, at.slope) + at.f_moved))


def error_term(of: Arithmetic, at: Curve, d_a: Known) -> Known:
    """(B1) and (B2): f'(z) times dL/da."""
    error = _library(of, at.z, at.slope, at.curvature) + of.u * np.abs(at.slope)
    error = error + LIBRARY * (1 + np.abs(at.z)) * of.eta + at.slope_moved
    size, steep = np.abs(d_a.value), np.abs(at.slope)
    bound, slack = (steep * off + error * (size + off) for off in (d_a.bound, d_a.slack))
    return of.rounded(Known(at.slope * d_a.value, bound, slack))


def _library(of: Arithmetic, z: Wide, value: Wide, derivative: Wide) -> Wide:
    """The error of both sides in a function of z.

    In a tail, the reference's own error is relative to the terms that cancel, such as 1 + tanh of a cubic in z (GELU),
    until the result is exactly 0.
    """
    moved = np.nan_to_num(np.abs(z * derivative), nan=0.0, posinf=np.inf)
    error = LIBRARY * (of.u_sum * (np.abs(value) + moved) + DOUBLE * (1 + np.minimum(np.abs(z), 10.0)) ** 3)
    return np.where(np.isfinite(z), error, np.inf)


def squared_norm(of: Arithmetic, weights: list[Wide], factor: float) -> Known:
    """(J2) factor times the sum of squares of every weight, in the precision of sums."""
    total = factor * sum(float(np.sum(np.square(W))) for W in weights)
    terms = sum(W.size for W in weights) + 2 if weights else 0  # without a regulariser it is exactly zero
    return Known.exactly(np.asarray(total)).further(of.gamma(terms) * abs(total) + terms * of.eta_sum)


def example_losses(of: Arithmetic, loss: Loss, output: Known, y: Wide) -> tuple[Known, Known]:
    """(J1): l(o_n, y_n) of every example, and dl/do, from the stored outputs."""
    o = output.value
    with jax.enable_x64(True):
        value, slope = (np.asarray(result) for result in _loss(loss)(o, y))
    labels = np.issubdtype(y.dtype, np.integer)
    targets = np.ones_like(o) if labels else y
    size, slope_size = sensitivity(loss, o, targets)
    slope_moved = output.slack.max(axis=-1, keepdims=True) * steepest(loss, o, targets)
    rows = size.reshape(len(o), -1).sum(axis=1)
    moved = (output.slack * (np.abs(slope) + slope_moved)).reshape(len(o), -1).sum(axis=1)
    terms = o[0].size + 4
    u = LIBRARY * (of.u_sum + DOUBLE)
    whole = np.isfinite(o).all(axis=-1, keepdims=True) & np.isfinite(o)  # after an overflow nothing is known
    seen = np.where(whole.reshape(len(o), -1).all(axis=1), 0.0, np.inf)
    total = Known.exactly(value).further(
        (of.gamma(terms) + u) * (np.abs(value) + rows) + moved + terms * of.eta_sum + seen
    )
    # JAX adds terms that cancel: (q - threshold) + threshold for Huber's q.
    witness = LIBRARY * DOUBLE * (np.abs(o) + np.abs(targets) + getattr(loss, "threshold", 1.0))
    bound = np.where(whole, u * (np.abs(slope) + slope_size) + witness + slope_moved, np.inf)
    return total, of.rounded(Known.exactly(slope).further(bound), 2.0)


@lru_cache
def _loss(loss: Loss) -> Callable[..., Any]:
    def both(o: Any, y: Any) -> Any:
        value, pull = jax.vjp(lambda o: model.losses(loss, o, y), o)
        return value, pull(jnp.ones_like(value))[0]

    return jax.jit(both)


@singledispatch
def steepest(loss: Loss, o: Wide, y: Wide) -> Wide:
    """A bound for the change of dl/do with o: 1 for the half square, Huber and both cross-entropies on logits."""
    return np.ones_like(o)


@steepest.register(BinaryCrossEntropy)
def _(loss: Loss, o: Wide, y: Wide) -> Wide:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(y == 0, 0, y / o**2) + np.where(y == 1, 0, (1 - y) / (1 - o) ** 2)


@steepest.register(SoftmaxCrossEntropy)
def _(loss: SoftmaxCrossEntropy, o: Wide, y: Wide) -> Wide:
    """The z-loss adds 2 z (log sum exp (diag p - p p^T) + p p^T)."""
    return 1 + 2 * loss.z_loss * (1 + _largest(o)) if loss.z_loss else np.ones_like(o)


@singledispatch
def sensitivity(loss: Loss, o: Wide, y: Wide) -> tuple[Wide, Wide]:
    """(of l, of dl/do) for every output: the size of the summed terms, beyond the size of the result.

    For losses on logits, and any other: terms up to (1 + |o|) |y| in l, probabilities and y in dl/do.
    """
    return (1 + np.abs(o)) * np.maximum(1, np.abs(y)), np.maximum(1, np.abs(y))


@sensitivity.register(SoftmaxCrossEntropy)
def _(loss: SoftmaxCrossEntropy, o: Wide, y: Wide) -> tuple[Wide, Wide]:
    """The z-loss adds z (log sum exp)^2, and 2 z p log sum exp to dl/do."""
    size, slope_size = np.maximum(1, np.abs(y)) * (1 + np.abs(o)), np.maximum(1, np.abs(y))
    if not loss.z_loss:
        return size, slope_size
    largest = _largest(o)
    return size + 2 * loss.z_loss * largest**2 / o.shape[-1], slope_size + 2 * loss.z_loss * largest


def _largest(o: Wide) -> Wide:
    """A bound for the size of log sum exp and of its terms, for every output."""
    with np.errstate(invalid="ignore"):
        return np.broadcast_to(np.max(np.abs(o), axis=-1, keepdims=True) + np.log(o.shape[-1]), o.shape)


@sensitivity.register(SquaredError)
@sensitivity.register(Huber)
@sensitivity.register(BinaryCrossEntropy)
def _(loss: Loss, o: Wide, y: Wide) -> tuple[Wide, Wide]:
    """Nothing cancels but o - y and 1 - o, which are single subtractions."""
    return np.zeros_like(o), np.zeros_like(o)


def curve(function: Callable[[Any], Any], z: Wide, slack: Wide) -> Curve:
    """A function of z and its derivatives, by JAX's forward mode, at z and at both ends of its slack."""
    ends = np.stack([z, z + slack, z - slack])
    padded = np.zeros(1 << max(8, int(ends.size - 1).bit_length()))  # few shapes to compile for
    padded[: ends.size] = ends.ravel()
    with jax.enable_x64(True):
        results = _twice(function)(padded)
    f, slope, curvature = (np.asarray(result)[: ends.size].reshape(ends.shape) for result in results)
    f_moved, slope_moved = (np.max(np.abs(each[1:] - each[0]), axis=0) for each in (f, slope))
    return Curve(z, f[0], slope[0], curvature[0], f_moved, slope_moved)


@lru_cache
def _twice(f: Callable[[Any], Any]) -> Callable[..., Any]:
    def slope(z: Any) -> Any:
        return jax.jvp(f, (z,), (jnp.ones_like(z),))

    def both(z: Any) -> Any:
        (value, first), (_, second) = jax.jvp(slope, (z,), (jnp.ones_like(z),))
        return value, first, second

    return jax.jit(both)
