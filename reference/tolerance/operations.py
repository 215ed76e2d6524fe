"""The operations that NumPy computes as XLA does, with samples on the first axis of every value."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

Operation = Callable[..., Any]
"""(the equation's parameters, *inputs) -> its output or outputs; None for what NumPy and XLA treat differently."""


def level(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Give scalars as many axes as the others have, behind that of the samples."""
    axes = max(value.ndim for value in inputs)
    return [value.reshape(len(value), *(1,) * (axes - 1)) if value.ndim < axes else value for value in inputs]


def _each(function: Callable[..., Any], kinds: str = "fc") -> Operation:
    """Entry by entry, for inputs whose types are of these kinds: f float, c complex, i and u integers, b boolean."""

    def operation(params: dict[str, Any], *inputs: np.ndarray) -> np.ndarray | None:
        if any(value.dtype.kind not in kinds for value in inputs):
            return None
        return function(*level(inputs))

    return operation


def _reduced(function: Callable[..., Any], kinds: str) -> Operation:
    def operation(params: dict[str, Any], x: np.ndarray) -> np.ndarray | None:
        if x.dtype.kind not in kinds or not x.size:
            return None
        return function(x, axis=_behind(params["axes"]))

    return operation


def _behind(axes: Sequence[Any]) -> tuple[int, ...]:
    """Axes of a value as axes of its samples."""
    return tuple(int(axis) + 1 for axis in axes)  # a library may give NumPy integers


def _broadcast_in_dim(params: dict[str, Any], x: np.ndarray, *dynamic: Any) -> np.ndarray | None:
    if dynamic:
        return None
    spread = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape[1:], strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(len(x), *spread), (len(x), *params["shape"]))


def _concatenate(params: dict[str, Any], *inputs: np.ndarray) -> np.ndarray:
    rows = max(map(len, inputs))
    each = [np.broadcast_to(value, (rows, *value.shape[1:])) for value in inputs]
    return np.concatenate(each, axis=params["dimension"] + 1)


def _convert(params: dict[str, Any], x: np.ndarray) -> np.ndarray | None:
    kind = np.dtype(params["new_dtype"])
    if jnp.issubdtype(kind, jnp.floating) and x.dtype.kind in "iub":
        return x.astype(kind)  # a count is exact, and no rounding moves it
    if jnp.issubdtype(kind, jnp.floating) and x.dtype.kind == "f":
        return x.astype(np.float64, copy=False)
    return x if kind == x.dtype else None


def _dot_general(params: dict[str, Any], a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """As products of matrices: batch axes in front, then what is free, then what is contracted."""
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return None
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    free_a, free_b = (
        [axis for axis in range(value.ndim - 1) if axis not in {*contracted, *batch}]
        for value, contracted, batch in ((a, contract_a, batch_a), (b, contract_b, batch_b))
    )
    batch = [a.shape[1 + axis] for axis in batch_a]
    sizes_a, sizes_b = ([v.shape[1 + axis] for axis in free] for v, free in ((a, free_a), (b, free_b)))
    contracted = int(np.prod([a.shape[1 + axis] for axis in contract_a], dtype=int))
    left = a.transpose(0, *_behind((*batch_a, *free_a, *contract_a)))
    right = b.transpose(0, *_behind((*batch_b, *contract_b, *free_b)))
    product = np.matmul(
        left.reshape(len(a), *batch, int(np.prod(sizes_a, dtype=int)), contracted),
        right.reshape(len(b), *batch, contracted, int(np.prod(sizes_b, dtype=int))),
    )
    return product.reshape(len(product), *batch, *sizes_a, *sizes_b)


def _integer_pow(params: dict[str, Any], x: np.ndarray) -> np.ndarray | None:
    return x ** float(params["y"]) if x.dtype.kind == "f" else None


def _logistic(x: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(x))
    return np.where(x < 0, tail, 1.0) / (1 + tail)


def _reshape(params: dict[str, Any], x: np.ndarray, *dynamic: Any) -> np.ndarray | None:
    if dynamic or params["dimensions"] is not None:
        return None
    return x.reshape(len(x), *params["new_sizes"])


def _select_n(params: dict[str, Any], which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    which, found, *others = level((which, *cases))
    for k, case in enumerate(others, 1):
        found = np.where(which == k, case, found)
    return found


def _pad(params: dict[str, Any], x: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Place every entry at its low padding plus its number times one more than the interior; what is outside is cut."""
    sizes, where, kept = [], [], []
    for (low, high, interior), count in zip(params["padding_config"], x.shape[1:], strict=True):
        sizes.append(low + high + count + max(0, count - 1) * interior)
        at = [k for k in range(count) if 0 <= low + k * (interior + 1) < sizes[-1]]
        first, last = (at[0], at[-1] + 1) if at else (0, 0)
        kept.append(slice(first, last))
        start = low + first * (interior + 1)
        where.append(slice(start, start + (last - first) * (interior + 1), interior + 1))
    padded = np.empty((max(len(x), len(value)), *sizes), x.dtype)
    padded[...] = value.reshape(len(value), *(1,) * len(sizes))
    padded[(slice(None), *where)] = x[(slice(None), *kept)]
    return padded


def _round(params: dict[str, Any], x: np.ndarray) -> np.ndarray | None:
    to_even = params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN
    return np.rint(x) if to_even and x.dtype.kind == "f" else None


def _split(params: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"] + 1)


def _slice(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * len(params["start_indices"])
    cut = map(slice, params["start_indices"], params["limit_indices"], strides)
    return x[(slice(None), *cut)]


def _squeeze(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return np.squeeze(x, _behind(params["dimensions"]))


def _unchanged(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return x


_NUMBERS, _ANY = "fiu", "fciub"
OPERATIONS: dict[str, Operation] = {
    "abs": _each(np.abs, "f"),
    "acos": _each(np.arccos, "f"),
    "acosh": _each(np.arccosh, "f"),
    "add": _each(np.add, _NUMBERS + "c"),
    "add_any": _each(np.add),
    "and": _each(np.logical_and, "b"),
    "asin": _each(np.arcsin, "f"),
    "asinh": _each(np.arcsinh, "f"),
    "atan": _each(np.arctan, "f"),
    "atan2": _each(np.arctan2, "f"),
    "atanh": _each(np.arctanh, "f"),
    "broadcast_in_dim": _broadcast_in_dim,
    "cbrt": _each(np.cbrt, "f"),
    "ceil": _each(np.ceil, "f"),
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _unchanged,
    "cos": _each(np.cos, "f"),
    "cosh": _each(np.cosh, "f"),
    "div": _each(np.divide, "f"),
    "dot_general": _dot_general,
    "eq": _each(np.equal, _ANY),
    "exp": _each(np.exp, "f"),
    "exp2": _each(np.exp2, "f"),
    "expm1": _each(np.expm1, "f"),
    "floor": _each(np.floor, "f"),
    "ge": _each(np.greater_equal, _NUMBERS),
    "gt": _each(np.greater, _NUMBERS),
    "integer_pow": _integer_pow,
    "is_finite": _each(np.isfinite, "f"),
    "le": _each(np.less_equal, _NUMBERS),
    "log": _each(np.log, "f"),
    "log1p": _each(np.log1p, "f"),
    "logistic": _each(_logistic, "f"),
    "lt": _each(np.less, _NUMBERS),
    "max": _each(np.maximum, "f"),
    "min": _each(np.minimum, "f"),
    "mul": _each(np.multiply, _NUMBERS),
    "ne": _each(np.not_equal, _ANY),
    "neg": _each(np.negative),
    "not": _each(np.logical_not, "b"),
    "or": _each(np.logical_or, "b"),
    "pad": _pad,
    "pow": _each(np.power, "f"),
    "reduce_max": _reduced(np.max, "f"),
    "reduce_min": _reduced(np.min, "f"),
    "reduce_sum": _reduced(np.sum, "fc"),
    "reduce_precision": _unchanged,  # cutting the bits would cut the noise
    "rem": _each(np.fmod, "f"),
    "reshape": _reshape,
    "round": _round,
    "rsqrt": _each(lambda x: 1 / np.sqrt(x), "f"),
    "select_n": _select_n,
    "sign": _each(np.sign, "f"),
    "sin": _each(np.sin, "f"),
    "sinh": _each(np.sinh, "f"),
    "slice": _slice,
    "sqrt": _each(np.sqrt, "f"),
    "square": _each(np.square, "f"),
    "squeeze": _squeeze,
    "stop_gradient": _unchanged,
    "split": _split,
    "sub": _each(np.subtract, _NUMBERS + "c"),
    "tan": _each(np.tan, "f"),
    "tanh": _each(np.tanh, "f"),
    "transpose": lambda params, x: x.transpose(0, *_behind(params["permutation"])),
}
"""The operations that NumPy computes as XLA does, by primitive."""
ENTRY_BY_ENTRY = frozenset({
    "bessel_i0e", "bessel_i1e", "digamma", "erf", "erf_inv", "erfc", "igamma", "igamma_grad_a", "igammac", "lgamma",
    "polygamma", "random_gamma_grad", "regularized_incomplete_beta", "zeta",
})  # fmt: skip
"""Functions that XLA alone knows, and that need no vmap, since samples are more entries to them."""
THE_SAME_IN_ANY_WIDTH = frozenset({
    "abs", "add", "broadcast_in_dim", "ceil", "concatenate", "div", "eq", "floor", "ge", "gt", "le", "lt", "max", "min",
    "mul", "ne", "neg", "rem", "reshape", "round", "select_n", "slice", "squeeze", "sub", "transpose",
})  # fmt: skip
"""Of these, those that round correctly or not at all, so that NumPy and XLA agree to the bit in a narrow type too."""
