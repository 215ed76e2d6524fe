"""The loss L = l(o, y) of one example (J1) and its derivative dl/do, for the first delta of (B1).

Each loss is a small frozen class: `value` per example, `derivative` per output, `check` for its targets.
Every one is summed over one example's outputs; the mean over examples is taken where examples are summed.
To add one, subclass `Loss` here and bring its witness in `reference.model`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from manual_backprop.precision import accumulator, rounded_once

Outputs = Float[Array, "N *outputs"]
Targets = Shaped[Array, "N *targets"]


class Loss(ABC):
    """A loss of one example, for outputs o of shape (N, *outputs)."""

    @abstractmethod
    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """l(o_n, y_n) of every example, summed over its outputs, in float32 or wider (J1)."""

    @abstractmethod
    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """dl(o_n, y_n)/do_n of every example, in o's dtype (B1)."""

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Refuse targets that do not fit outputs of that shape and dtype.

        Raises:
            ValueError: wrong shape, or (where the values are known) values out of range.
            TypeError: wrong dtype.
        """
        if y.shape != o.shape:
            raise ValueError(
                f"{self} compares y with the outputs entry by entry: y is {list(y.shape)} but the outputs are"
                f" {list(o.shape)}; reshape y (nothing is broadcast)"
            )
        if y.dtype != o.dtype:
            raise TypeError(f"{self}: y is {y.dtype} but the outputs are {o.dtype}; convert y with .astype")


def _check_range(loss: Loss, what: str, y: Array, top: int) -> None:
    """Refuse targets outside 0..top, where their values are known: not for a y that is being traced."""
    if isinstance(y, jax.core.Tracer):
        return
    values = np.asarray(y)
    if not np.all((values >= 0) & (values <= top)):
        raise ValueError(f"{loss}: {what} must lie in 0..{top}, got {values.min()} to {values.max()}")


def _sum_outputs(terms: Array) -> Float[Array, " N"]:
    """Sum over all but the first axis, in float32 or wider."""
    return jnp.sum(terms.astype(accumulator(terms.dtype)), axis=tuple(range(1, terms.ndim)))


def _wide(*arrays: Array) -> tuple[Array, ...]:
    return tuple(array.astype(accumulator(array.dtype)) for array in arrays)


@dataclass(frozen=True)
class SquaredError(Loss):
    """(1/2) ||o - y||^2."""

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """(1/2) sum_i (o_i - y_i)^2."""
        o, y = _wide(o, y)
        return _sum_outputs(0.5 * jnp.square(o - y))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The error o - y."""
        return o - y


@dataclass(frozen=True)
class Huber(Loss):
    """Squared error near zero, absolute error beyond the threshold; summed over outputs.

    Attributes:
        threshold: |o - y| at which the quadratic r^2/2 becomes the line threshold (|r| - threshold/2).
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"Huber threshold must be > 0, got {self.threshold}")

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_i r_i^2/2 where |r_i| <= threshold, else threshold (|r_i| - threshold/2)."""
        o, y = _wide(o, y)
        r = jnp.abs(o - y)
        near = jnp.minimum(r, self.threshold)  # keeps the square finite in the branch not taken
        return _sum_outputs(jnp.where(r <= self.threshold, 0.5 * near * near, self.threshold * (r - 0.5 * near)))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The error o - y, held to [-threshold, threshold]."""
        return jnp.clip(o - y, -self.threshold, self.threshold)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """-sum_c y_c log softmax(o)_c over the last axis, from logits.

    y is either integer labels (N, *positions), or target distributions in the shape and dtype of o. A label
    out of range is refused where its value is known, and gives nan where it is not (under jit).
    """

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_c y_c (log sum_k exp(o_k - m) - (o_c - m)) with m = max(o), so that nothing overflows."""
        (o,) = _wide(o)
        shifted = o - jnp.max(o, axis=-1, keepdims=True)
        log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
        return _sum_outputs(jnp.sum(_distribution(o, y) * (log_sum - shifted), axis=-1))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """softmax(o) sum_c(y_c) - y, which is softmax(o) - y for a distribution."""
        dtype = o.dtype
        (o,) = _wide(o)
        p = _distribution(o, y)
        e = jnp.exp(o - jnp.max(o, axis=-1, keepdims=True))
        softmax = e / jnp.sum(e, axis=-1, keepdims=True)
        if not jnp.issubdtype(y.dtype, jnp.integer):
            softmax = softmax * jnp.sum(p, axis=-1, keepdims=True)
        return (softmax - p).astype(dtype)

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Integer labels of o.shape[:-1] in [0, C), or distributions like o."""
        if not jnp.issubdtype(y.dtype, jnp.integer):
            if y.shape == o.shape[:-1]:
                raise TypeError(f"{self}: labels must be integers, got {y.dtype}; convert y with .astype(int)")
            super().check(o, y)
            _check_range(self, "target distributions", y, 1)
            return
        if y.shape != o.shape[:-1]:
            raise ValueError(
                f"{self}: integer labels must be {list(o.shape[:-1])} for logits {list(o.shape)}, got"
                f" {list(y.shape)}; target distributions must be floats like the logits"
            )
        _check_range(self, f"labels for {o.shape[-1]} logits", y, o.shape[-1] - 1)


def _distribution(o: Array, y: Array) -> Array:
    """Target distributions in o's dtype: labels become one-hot rows; one out of range a row of nan."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return y.astype(o.dtype)
    classes = o.shape[-1]
    one_hot = (y[..., None] == jnp.arange(classes, dtype=y.dtype).reshape(*(1,) * y.ndim, -1)).astype(o.dtype)
    return jnp.where((y >= 0)[..., None] & (y < classes)[..., None], one_hot, jnp.nan)


@dataclass(frozen=True)
class SigmoidBinaryCrossEntropy(Loss):
    """-sum_i (y_i log sigmoid(o_i) + (1 - y_i) log sigmoid(-o_i)), from logits; y in [0, 1]."""

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_i max(o_i, 0) - o_i y_i + log(1 + exp(-|o_i|))."""
        o, y = _wide(o, y)
        return _sum_outputs(jnp.maximum(o, 0) - o * y + jnp.log1p(jnp.exp(-jnp.abs(o))))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """sigmoid(o) - y."""
        return _sigmoid_error(o, y)

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Targets like o, in [0, 1]."""
        super().check(o, y)
        _check_range(self, "targets", y, 1)


@rounded_once
def _sigmoid_error(o: Array, y: Array) -> Array:
    e = jnp.exp(-jnp.abs(o))
    return jnp.where(o >= 0, 1, e) / (1 + e) - y


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """-sum_i (y_i log o_i + (1 - y_i) log(1 - o_i)), for outputs that are probabilities; y in [0, 1].

    An output that has rounded to 0 or 1 against its target has infinite loss, as it should;
    `SigmoidBinaryCrossEntropy` on the logits keeps what the rounding loses.
    """

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """With 0 log 0 = 0."""
        o, y = _wide(o, y)
        heads = jnp.where(y == 0, 0, y * jnp.log(o))
        tails = jnp.where(y == 1, 0, (1 - y) * jnp.log1p(-o))
        return _sum_outputs(-(heads + tails))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """-y/o + (1 - y)/(1 - o), with 0/0 = 0."""
        return _odds_error(o, y)

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Targets like o, in [0, 1]."""
        super().check(o, y)
        _check_range(self, "targets", y, 1)


@rounded_once
def _odds_error(o: Array, y: Array) -> Array:
    return jnp.where(y == 1, 0, (1 - y) / (1 - o)) - jnp.where(y == 0, 0, y / o)


squared_error = SquaredError()
huber = Huber()
softmax_cross_entropy = SoftmaxCrossEntropy()
sigmoid_binary_cross_entropy = SigmoidBinaryCrossEntropy()
binary_cross_entropy = BinaryCrossEntropy()

TABLE: dict[str, Loss] = {
    "squared_error": squared_error,
    "huber": huber,
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
