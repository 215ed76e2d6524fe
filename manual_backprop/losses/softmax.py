"""Softmax cross-entropy, from logits, for one label or for one at every position."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from manual_backprop import explicit
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
from manual_backprop.types import came, require_number, values_here


@dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(Loss):
    """-sum_c q_c log softmax(o)_c over the last axis, from logits, summed over positions; q = y unless smoothed.

    y is either integer labels (N, *positions), or target distributions in the shape and dtype of o. A label
    out of range is refused where its value is known, and gives nan where it is not (under jit).

    Attributes:
        ignored: the label of positions that count nothing, such as -1 for padding: their loss and derivative are 0.
            Target distributions have none: there a row of zeros counts nothing, where it is not smoothed.
        label_smoothing: s in q = (1 - s) y + s/C, with one-hot y for labels (Szegedy et al., arXiv:1512.00567).
        z_loss: z in z (log sum_k exp o_k)^2, which is added at every position that counts and keeps softmax's
            normaliser near 1 (PaLM, arXiv:2204.02311).
        chunk: the number of rows (positions of all examples) for which logits exist at a time; None makes all at once.
            Where it is given, the network must end in a linear `Dense`, and `Objective.__call__`, `value_and_grad` and
            `as_custom_vjp` compute readout and loss together, chunk by chunk, and never make all logits. This holds for
            integer labels and plain backpropagation; `backprop`, which shows the logits, makes them.

    Raises:
        ValueError: a label_smoothing outside 0..1, a z_loss that is negative or not finite, or a chunk below 1.
        TypeError: an option of another type.
    """

    ignored: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, top in (("label_smoothing", 1.0), ("z_loss", float("inf"))):
            require_number(f"{type(self).__name__} {name}", number := getattr(self, name))
            if not (0 <= number <= top and number < float("inf")):
                limits = "in 0..1" if top == 1 else "finite and >= 0"
                raise ValueError(f"{type(self).__name__} {name} must be {limits}, got {number}")
            object.__setattr__(self, name, float(number))
        for name in ("ignored", "chunk"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise TypeError(f"{type(self).__name__} {name} must be an int or None, got {came(number)}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"{type(self).__name__} chunk must be a number of rows >= 1, got {self.chunk}")

    def __repr__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(given)})"

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_c q_c (log sum_k exp(o_k - m) - (o_c - m)) with m = max(o), so that nothing overflows; and the z-loss."""
        (o,) = widened(o)
        if _are_labels(y):
            terms = _surprise(o, of=_of_label(o, y))[..., 0]
            if self.label_smoothing:
                smooth = self.label_smoothing
                terms = (1 - smooth) * terms + smooth * jnp.mean(_surprise(o), axis=-1)
        else:
            terms = jnp.sum(self._target(o, y) * _surprise(o), axis=-1)
        if self.z_loss:
            terms = terms + self.z_loss * jnp.square(_log_sum_exp(o)[..., 0])
        return sum_outputs(self.counted(terms, y))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """softmax(o) (sum_c(q_c) + 2 z log sum_k exp o_k) - q, which is softmax(o) - q for a distribution and no z."""
        return self._error(o, y, _less_at)

    def chunk_derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The same for the logits of a few rows: the labels are found by comparison, so that all is one pass over them.

        On all logits of a batch a change in place is faster, and `derivative` makes it.
        """
        return self._error(o, y, _less_where)

    def _error(self, o: Array, y: Array, less: Callable[[Array, Array, float], Array]) -> Array:
        (wide,) = widened(o)
        softmax = _softmax(wide)
        if _are_labels(y):
            spread = softmax - self.label_smoothing / o.shape[-1] if self.label_smoothing else softmax
            error = less(spread, y, 1 - self.label_smoothing)
        else:
            q = self._target(wide, y)
            error = softmax * jnp.sum(q, axis=-1, keepdims=True) - q
        if self.z_loss:
            error = error + 2 * self.z_loss * _log_sum_exp(wide) * softmax
        return self.counted(error, y).astype(o.dtype)

    def hessian_product(self, o: Outputs, y: Targets, d_o: Outputs) -> Outputs:
        """(m (diag(p) - p p^T) + 2 z p p^T) d_o at every position.

        Here p = softmax(o) and m = sum_c(q_c) + 2 z log sum_k exp o_k; without a z-loss m is 1 for a label.
        """
        check_given(self, o, y, d_o)
        wide, d = widened(o, d_o)
        p, mass = _softmax(wide), self._curvature(wide, y)
        # H maps constants to 0. With d = 0 at the largest p, the difference below does not cancel where p is near 1.
        at_rest = d - jnp.sum(jnp.where(wide == jnp.max(wide, axis=-1, keepdims=True), d, 0), axis=-1, keepdims=True)
        product = mass * p * (at_rest - jnp.sum(p * at_rest, axis=-1, keepdims=True))
        if self.z_loss:
            product = product + 2 * self.z_loss * p * jnp.sum(p * d, axis=-1, keepdims=True)
        return self.counted(product, y).astype(o.dtype)

    def hessian_root(self, o: Outputs, y: Targets) -> Roots:
        """sqrt(p_c) (sqrt(m) (p - e_c) + sqrt(2 z) p) for every position and class, p and m as in `hessian_product`.

        Vector t C + c belongs to class c at position t, and is zero at the other positions. Without a z-loss it is the
        derivative under each label times its sqrt(m p_c). The products of both terms add up to 0 over the classes,
        since sum_c p_c (p - e_c) = 0.

        Raises:
            ValueError: a z-loss where m < 0, for there H has a negative eigenvalue; traced, it gives nan.
        """
        check_given(self, o, y)
        (wide,) = widened(o)
        p, mass = _softmax(wide), self._curvature(wide, y)
        self._require_root(self.counted(mass, y))
        unit = jnp.eye(o.shape[-1], dtype=p.dtype).reshape(*(1,) * (o.ndim - 1), *2 * o.shape[-1:])
        columns = jnp.sqrt(mass * explicit.whole(p, p.ndim - 1))[..., None] * (p[..., None, :] - unit)
        if self.z_loss:
            columns = columns + jnp.sqrt(2 * self.z_loss * p)[..., None] * p[..., None, :]
        columns = self.counted(columns, y)
        return each_in_its_place(jnp.moveaxis(columns, -2, 0).astype(o.dtype), o.shape[1:-1])

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """softmax(o) - e_c at every position, with c drawn from softmax(o); with smoothed labels too, as H is the same.

        Raises:
            NotImplementedError: a z-loss, which is no model's likelihood; `ignored`, as only y says what counts.
        """
        if self.z_loss or self.ignored is not None:
            why = "z_loss is no part of a likelihood" if self.z_loss else "only targets say which positions are ignored"
            raise NotImplementedError(
                f"{self} has no sample_derivative: {why}; hessian_root gives the same matrix exactly"
            )
        check_given(self, o)
        (wide,) = widened(o)

        def error(key: PRNGKeyArray, wide: Array) -> Array:
            labels = jax.random.categorical(key, wide, mode="high")  # "low" is wrong for p < 1e-7 in float32
            return _less_at(_softmax(wide), labels, 1.0)

        return explicit.automatic(error, explicit.lies_as(wide), key, wide).astype(o.dtype)

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """-(1 - s) log softmax(o), for target distributions."""
        if _are_labels(y):
            raise TypeError(f"{self}: integer labels have no derivative; give target distributions like the logits")
        check_given(self, o, y)
        surprise = _surprise(*widened(o))
        return ((1 - self.label_smoothing) * surprise if self.label_smoothing else surprise).astype(y.dtype)

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Integer labels of o.shape[:-1] in [0, C) or ignored, or distributions like o; C is 2 or more."""
        if o.shape[-1] == 1:
            raise ValueError(
                f"{self}: softmax over one logit is 1, whatever it is; give the network an output for each class, or"
                " take sigmoid_binary_cross_entropy for yes or no"
            )
        if not _are_labels(y):
            self._check_distributions(o, y)
            return
        if y.shape != o.shape[:-1]:
            raise ValueError(
                f"{self}: integer labels must be {list(o.shape[:-1])} for logits {list(o.shape)}, got"
                f" {list(y.shape)}; target distributions must be floats like the logits"
            )
        known: Array | np.ndarray = y
        if not isinstance(y, jax.core.Tracer):
            known = values_here(y)  # of NumPy, which knows the values of constants under jit too
            counts = self._counts(known)
            known = known if counts is None else known[counts]
        check_range(self, f"labels for {o.shape[-1]} logits", known, o.shape[-1] - 1)

    def _check_distributions(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        if y.shape == o.shape[:-1]:
            raise TypeError(f"{self}: labels must be integers, got {y.dtype}; convert y with .astype(int)")
        if y.shape == (*o.shape[:-1], 1) != o.shape:
            raise ValueError(
                f"{self}: y is {y.dtype}{list(y.shape)}; labels must be integers {list(o.shape[:-1])}, so take"
                " y[..., 0].astype(int), and target distributions must be like the outputs"
            )
        super().check(o, y)
        check_range(self, "target distributions", y, 1)

    def _target(self, o: Array, y: Array) -> Array:
        """The q in o's dtype: target distributions, or one-hot rows for labels, smoothed."""
        q = _distribution(o, y)
        return (1 - self.label_smoothing) * q + self.label_smoothing / o.shape[-1] if self.label_smoothing else q

    def _curvature(self, o: Array, y: Array) -> Array:
        """The m of `hessian_product`, (..., 1)."""
        mass = jnp.sum(self._target(o, y), axis=-1, keepdims=True)
        return mass + 2 * self.z_loss * _log_sum_exp(o) if self.z_loss else mass

    def _require_root(self, mass: Array) -> None:
        if not self.z_loss or isinstance(mass, jax.core.Tracer):
            return
        least = np.min(values_here(mass), initial=np.inf)
        if least < 0:
            raise ValueError(
                f"{self} has no real hessian_root here: 1 + 2 z_loss log sum exp(o) falls to {least:.3g}, and"
                " below 0 the Hessian has a negative eigenvalue; take hessian_product, or a smaller z_loss"
            )

    def _counts(self, y: Array | np.ndarray) -> Any:
        """Which positions count; None where all do."""
        if self.ignored is None or not _are_labels(y):
            return None
        limits = jnp.iinfo(y.dtype)
        return y != self.ignored if limits.min <= self.ignored <= limits.max else None

    def counted(self, terms: Array, y: Array) -> Array:
        """The terms of every position, or 0 where it is ignored."""
        counts = self._counts(y)
        if counts is None:
            return terms
        return jnp.where(counts.reshape(*counts.shape, *(1,) * (terms.ndim - counts.ndim)), terms, 0)


def _are_labels(y: Array | np.ndarray) -> bool:
    return jnp.issubdtype(y.dtype, jnp.integer)


def _countable(y: Array) -> Array:
    """The labels in a type that holds the number of classes too: int8 ends at 127."""
    return y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)


def _softmax(o: Array) -> Array:
    e = jnp.exp(o - jnp.max(o, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def _surprise(o: Array, of: Array | None = None) -> Array:
    """-log softmax(o), of every class or of those whose logits are given."""
    largest = jnp.max(o, axis=-1, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(o - largest), axis=-1, keepdims=True))
    return log_sum - ((o if of is None else of) - largest)


def _log_sum_exp(o: Array) -> Array:
    """Logarithm of sum_k exp(o_k), (..., 1)."""
    largest = jnp.max(o, axis=-1, keepdims=True)
    return largest + jnp.log(jnp.sum(jnp.exp(o - largest), axis=-1, keepdims=True))


@compiled
def _of_label(o: Array, y: Array) -> Array:
    """The logit of each row's label, (..., 1), without a one-hot row; nan for a label out of range."""
    y = _countable(y)
    known = ((y >= 0) & (y < o.shape[-1]))[..., None]
    return jnp.where(known, jnp.take_along_axis(o, jnp.where(known, y[..., None], 0), axis=-1), jnp.nan)


@partial(compiled, static_argnums=2)
def _less_at(rows: Array, y: Array, amount: float) -> Array:
    """The rows with `amount` subtracted at each label; rows of nan for labels out of range.

    One entry is changed in place. With one-hot rows subtracted, XLA runs the sweep up to a sixth slower on two cores.
    """
    y = _countable(y)
    known = (y >= 0) & (y < rows.shape[-1])

    def of_row(row: Array, label: Array) -> Array:
        return row.at[label].add(-amount)

    for _ in range(y.ndim):
        of_row = jax.vmap(of_row)
    return jnp.where(known[..., None], of_row(rows, jnp.where(known, y, 0)), jnp.nan)


def _less_where(rows: Array, y: Array, amount: float) -> Array:
    """The same by comparing every class with the label."""
    y = _countable(y)
    known = (y >= 0) & (y < rows.shape[-1])
    at_label = y[..., None] == jnp.arange(rows.shape[-1], dtype=y.dtype).reshape(*(1,) * y.ndim, -1)
    return rows - jnp.where(at_label, amount, 0) + jnp.where(known, 0, jnp.nan)[..., None]


def _distribution(o: Array, y: Array) -> Array:
    """Target distributions in o's dtype: labels become one-hot rows; one out of range a row of nan."""
    if not _are_labels(y):
        return y.astype(o.dtype)
    y, classes = _countable(y), o.shape[-1]
    one_hot = (y[..., None] == jnp.arange(classes, dtype=y.dtype).reshape(*(1,) * y.ndim, -1)).astype(o.dtype)
    return jnp.where((y >= 0)[..., None] & (y < classes)[..., None], one_hot, jnp.nan)
