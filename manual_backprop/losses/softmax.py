"""Softmax cross-entropy, from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from manual_backprop.losses.base import (
    Loss,
    Outputs,
    Roots,
    Targets,
    check_given,
    check_range,
    each_in_its_place,
    sum_outputs,
    widened,
)
from manual_backprop.precision import compiled


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """-sum_c y_c log softmax(o)_c over the last axis, from logits.

    y is either integer labels (N, *positions), or target distributions in the shape and dtype of o. A label
    out of range is refused where its value is known, and gives nan where it is not (under jit).
    """

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_c y_c (log sum_k exp(o_k - m) - (o_c - m)) with m = max(o), so that nothing overflows."""
        (o,) = widened(o)
        if not jnp.issubdtype(y.dtype, jnp.integer):
            return sum_outputs(jnp.sum(_distribution(o, y) * _surprise(o), axis=-1))
        return sum_outputs(_surprise(o, of=_of_label(o, y))[..., 0])

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """softmax(o) sum_c(y_c) - y, which is softmax(o) - y for a distribution."""
        (wide,) = widened(o)
        softmax = _softmax(wide)
        if jnp.issubdtype(y.dtype, jnp.integer):
            return _less_one_at(softmax, y).astype(o.dtype)
        p = y.astype(wide.dtype)
        return (softmax * jnp.sum(p, axis=-1, keepdims=True) - p).astype(o.dtype)

    def hessian_product(self, o: Outputs, y: Targets, d_o: Outputs) -> Outputs:
        """(diag(p) - p p^T) m d_o at every position, with p = softmax(o) and m = sum_c(y_c), which is 1 for a label."""
        check_given(self, o, y, d_o)
        wide, d = widened(o, d_o)
        p, mass = _softmax(wide), jnp.sum(_distribution(wide, y), axis=-1, keepdims=True)
        # H maps constants to 0. With d = 0 at the largest p, the difference below does not cancel where p is near 1.
        d = d - jnp.sum(jnp.where(wide == jnp.max(wide, axis=-1, keepdims=True), d, 0), axis=-1, keepdims=True)
        return (mass * p * (d - jnp.sum(p * d, axis=-1, keepdims=True))).astype(o.dtype)

    def hessian_root(self, o: Outputs, y: Targets) -> Roots:
        """sqrt(m p_c) (p - e_c) for every position and class: the derivative under each label times its sqrt(m p_c).

        Vector t C + c belongs to class c at position t, and is zero at the other positions.
        """
        check_given(self, o, y)
        (wide,) = widened(o)
        p, mass = _softmax(wide), jnp.sum(_distribution(wide, y), axis=-1, keepdims=True)
        unit = jnp.eye(o.shape[-1], dtype=p.dtype).reshape(*(1,) * (o.ndim - 1), *2 * o.shape[-1:])
        columns = jnp.sqrt(mass * p)[..., None] * (p[..., None, :] - unit)
        return each_in_its_place(jnp.moveaxis(columns, -2, 0).astype(o.dtype), o.shape[1:-1])

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """softmax(o) - e_c at every position, with c drawn from softmax(o)."""
        check_given(self, o)
        (wide,) = widened(o)
        labels = jax.random.categorical(key, wide, mode="high")  # "low" is wrong for p < 1e-7 in float32
        return self.derivative(o, labels)

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """-log softmax(o), for target distributions."""
        if jnp.issubdtype(y.dtype, jnp.integer):
            raise TypeError(f"{self}: integer labels have no derivative; give target distributions like the logits")
        check_given(self, o, y)
        return _surprise(*widened(o)).astype(y.dtype)

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Integer labels of o.shape[:-1] in [0, C), or distributions like o; C is 2 or more."""
        if o.shape[-1] == 1:
            raise ValueError(
                f"{self}: softmax over one logit is 1, whatever it is; give the network an output for each class, or"
                " take sigmoid_binary_cross_entropy for yes or no"
            )
        if not jnp.issubdtype(y.dtype, jnp.integer):
            if y.shape == o.shape[:-1]:
                raise TypeError(f"{self}: labels must be integers, got {y.dtype}; convert y with .astype(int)")
            if y.shape == (*o.shape[:-1], 1) != o.shape:
                raise ValueError(
                    f"{self}: y is {y.dtype}{list(y.shape)}; labels must be integers {list(o.shape[:-1])}, so take"
                    " y[..., 0].astype(int), and target distributions must be like the outputs"
                )
            super().check(o, y)
            check_range(self, "target distributions", y, 1)
            return
        if y.shape != o.shape[:-1]:
            raise ValueError(
                f"{self}: integer labels must be {list(o.shape[:-1])} for logits {list(o.shape)}, got"
                f" {list(y.shape)}; target distributions must be floats like the logits"
            )
        check_range(self, f"labels for {o.shape[-1]} logits", y, o.shape[-1] - 1)


def _softmax(o: Array) -> Array:
    e = jnp.exp(o - jnp.max(o, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def _surprise(o: Array, of: Array | None = None) -> Array:
    """-log softmax(o), of every class or of those whose logits are given."""
    largest = jnp.max(o, axis=-1, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(o - largest), axis=-1, keepdims=True))
    return log_sum - ((o if of is None else of) - largest)


@compiled
def _of_label(o: Array, y: Array) -> Array:
    """The logit of each row's label, (..., 1), without a one-hot row; nan for a label out of range."""
    known = ((y >= 0) & (y < o.shape[-1]))[..., None]
    return jnp.where(known, jnp.take_along_axis(o, jnp.where(known, y[..., None], 0), axis=-1), jnp.nan)


@compiled
def _less_one_at(rows: Array, y: Array) -> Array:
    """The rows with 1 subtracted at each label; rows of nan for labels out of range.

    One entry is changed in place. With one-hot rows subtracted, XLA runs the sweep up to a sixth slower on two cores.
    """
    known = (y >= 0) & (y < rows.shape[-1])

    def of_row(row: Array, label: Array) -> Array:
        return row.at[label].add(-1)

    for _ in range(y.ndim):
        of_row = jax.vmap(of_row)
    return jnp.where(known[..., None], of_row(rows, jnp.where(known, y, 0)), jnp.nan)


def _distribution(o: Array, y: Array) -> Array:
    """Target distributions in o's dtype: labels become one-hot rows; one out of range a row of nan."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return y.astype(o.dtype)
    classes = o.shape[-1]
    one_hot = (y[..., None] == jnp.arange(classes, dtype=y.dtype).reshape(*(1,) * y.ndim, -1)).astype(o.dtype)
    return jnp.where((y >= 0)[..., None] & (y < classes)[..., None], one_hot, jnp.nan)
