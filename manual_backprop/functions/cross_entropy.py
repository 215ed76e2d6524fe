"""The last affine map of a classifier or language model with softmax cross-entropy, and never all logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from manual_backprop import validate
from manual_backprop.functions.custom_vjp import with_rule
from manual_backprop.layers import Affine
from manual_backprop.losses import SoftmaxCrossEntropy
from manual_backprop.precision import accumulator
from manual_backprop.readout import row_gradients, row_losses
from manual_backprop.shards import varying_like
from manual_backprop.types import Scalar


def linear_cross_entropy(
    x: Float[Array, "*rows d"],
    W: Float[Array, "V d"],
    b: Float[Array, " V"] | None,
    labels: Int[Array, "*rows"],
    *,
    chunk: int = 256,
    ignored: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, "*rows"]:
    """Softmax cross-entropy of every row from the logits W x + b, of which only a chunk of rows exists at a time.

    The gradient keeps the arguments alone and makes each chunk's logits again: four products in all, where
    `mean_linear_cross_entropy` needs three.

    Args:
        x: rows that enter the map; any number of axes in front.
        W: one row for each class.
        b: the bias, or None for no bias.
        labels: of every row, in 0..V-1, or `ignored`.
        chunk: the number of rows whose logits exist at a time.
        ignored: the label of rows that count nothing: their loss and gradient are 0.
        label_smoothing: s in the target (1 - s) y + s/V.
        z_loss: z in z (log sum_k exp o_k)^2, added at every row that counts.

    Returns:
        One loss for each row, in float32 or wider; 0 for ignored rows. Under jit, nan for a label out of range.

    Raises:
        ValueError: shapes that do not fit, labels out of range where their values are known, or an option out of range.
        TypeError: dtypes that differ, labels that are no integers, or an option of another type.
    """
    loss = SoftmaxCrossEntropy(ignored, label_smoothing, z_loss, chunk)
    return _each(loss, *_checked(loss, x, W, b, labels))


def mean_linear_cross_entropy(
    x: Float[Array, "*rows d"],
    W: Float[Array, "V d"],
    b: Float[Array, " V"] | None,
    labels: Int[Array, "*rows"],
    weights: Float[Array, "*rows"] | None = None,
    *,
    chunk: int = 256,
    ignored: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Scalar:
    """The weighted sum of `linear_cross_entropy` over all rows; by default the mean over the rows that count.

    Where it is differentiated, value and gradient come from one pass over the rows: three products for each chunk,
    and the gradient waits in memory for the cotangent, a number, to scale it.

    Args:
        x: as for `linear_cross_entropy`, like all others.
        W: one row for each class.
        b: the bias, or None.
        labels: of every row.
        weights: one for each row, in the dtype of x or in the precision of sums; they may be differentiated. None is 1
            by the number of rows that are not ignored; where all are, the mean is 0.
        chunk: as there.
        ignored: as there.
        label_smoothing: as there.
        z_loss: as there.

    Raises:
        ValueError: as there; or weights of another shape than the labels.
        TypeError: as there; or weights that are no floats.
    """
    loss = SoftmaxCrossEntropy(ignored, label_smoothing, z_loss, chunk)
    readout, x, labels = _checked(loss, x, W, b, labels)
    wide = accumulator(x.dtype)
    if weights is None:
        counts = jnp.ones(labels.shape, wide) if ignored is None else loss.counted(jnp.ones(labels.shape, wide), labels)
        weights = counts / jnp.maximum(jnp.sum(counts), 1)
    else:
        weights = validate.array("weights", weights)
        if weights.shape != labels.shape:
            raise ValueError(f"weights are {list(weights.shape)} but labels are {list(labels.shape)}: one for each row")
        if weights.dtype not in (x.dtype, wide):
            raise TypeError(f"weights are {weights.dtype} but x is {x.dtype}; convert them with .astype")
    return _total(loss, readout, x, labels, weights.astype(wide))


def _checked(loss: SoftmaxCrossEntropy, x: Any, W: Any, b: Any, labels: Any) -> tuple[Affine, Array, Array]:
    x, W, labels = (validate.array(name, value) for name, value in (("x", x), ("W", W), ("labels", labels)))
    b = None if b is None else validate.array("b", b)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must hold floats, got {x.dtype}; convert it with .astype")
    if W.ndim != 2 or x.ndim < 1 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"x is {list(x.shape)} and W is {list(W.shape)}, expected [..., d] and [V, d], a row a class")
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"b is {list(b.shape)}, expected [{W.shape[0]}]: one for each row of W, or None")
    for name, leaf in (("W", W), ("b", b)):
        if leaf is not None and leaf.dtype != x.dtype:
            raise TypeError(f"{name} is {leaf.dtype} but x is {x.dtype}; convert one of them with .astype")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}; convert them with .astype(int)")
    if labels.shape != x.shape[:-1]:
        raise ValueError(f"labels are {list(labels.shape)}, expected {list(x.shape[:-1])}: one for each row of x")
    loss.check(jax.ShapeDtypeStruct((*labels.shape, W.shape[0]), x.dtype), labels)
    return Affine(W, b), x, labels


def _each_forward(loss: SoftmaxCrossEntropy, readout: Affine, x: Array, labels: Array) -> tuple[Array, Any]:
    return row_losses(loss, readout, x, labels), (readout, x, labels)


def _each_backward(loss: SoftmaxCrossEntropy, saved: Any, g: Array) -> tuple[Affine, Array, None]:
    readout, x, labels = saved
    _, d_x, d_readout = row_gradients(loss, readout, x, labels, g)
    return varying_like(readout, _like(readout, d_readout)), varying_like(x, d_x), None


_each = with_rule(row_losses, _each_forward, _each_backward)


def _weighted_sum(loss: SoftmaxCrossEntropy, readout: Affine, x: Array, labels: Array, weights: Array) -> Scalar:
    return jnp.sum(weights * row_losses(loss, readout, x, labels))


def _total_forward(
    loss: SoftmaxCrossEntropy, readout: Affine, x: Array, labels: Array, weights: Array
) -> tuple[Scalar, Any]:
    values, d_x, d_readout = row_gradients(loss, readout, x, labels, weights)
    found = _like(readout, d_readout), d_x, values
    return jnp.sum(weights * values), (found, readout, x, weights)


def _total_backward(loss: SoftmaxCrossEntropy, saved: Any, g: Array) -> tuple[Affine, Array, None, Array]:
    found, *primals = saved
    scaled = jax.tree.map(lambda leaf: _scaled(g, leaf), found)
    d_readout, d_x, d_weights = map(varying_like, primals, scaled)
    return d_readout, d_x, None, d_weights


_total = with_rule(_weighted_sum, _total_forward, _total_backward)


def _scaled(factor: Array, leaf: Array) -> Array:
    """The product in the precision of sums, rounded to the leaf's dtype."""
    return (factor * leaf.astype(factor.dtype)).astype(leaf.dtype)


def _like(readout: Affine, sums: Affine) -> Affine:
    """The sums in the dtype of the parameters."""
    return jax.tree.map(lambda leaf, total: total.astype(leaf.dtype), readout, sums)
