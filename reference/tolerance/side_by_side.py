"""Compute an equation for all samples at once, by NumPy.

The samples lie on the first axis of every value: all of them, or a single row for a value that they share. NumPy needs
no compilation, and the programs that are checked are small, so their operations take microseconds where compiling them
would take seconds. An operation that has no row in `OPERATIONS` is computed by JAX, vmapped over the samples.

Floats that depend on the arguments are in double. Integers, bits and random draws have the width that the program gives
them, since a draw in another width is another draw: a float that is made of bits, or of numbers that stand in the
program, stays narrow until it meets one in double.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import DTypeLike

from reference.jaxprs import Rule, Values, bind, evaluate

Operation = Callable[..., np.ndarray | None]
"""(the equation's parameters, *inputs) -> its output, or None for inputs that NumPy and XLA treat differently."""


def lifted(value: Any, aval: Any) -> Any:
    """A number that stands in a program, as a value that all samples share; a single one has the program's width."""
    if np.ndim(value) or is_key(value):
        return widened(value)[None]
    return np.asarray(value, aval.dtype)[None]


def given(value: Any) -> Any:
    """An argument, as a value that all samples share; floats in double."""
    return widened(value)[None]


def _kept(value: Any) -> Any:
    return value if is_key(value) else np.asarray(value)


def is_key(value: Any) -> bool:
    """Whether a value holds random keys, which only JAX knows."""
    return jnp.issubdtype(getattr(value, "dtype", bool), jax.dtypes.extended)


def is_narrow(values: Sequence[Any]) -> bool:
    """Whether there are floats among these, and all of them made of bits or of numbers that stand in the program.

    They are told by their width, so float64 numbers of a program under x64 count as depending on the arguments.
    """
    floats = [value.dtype for value in values if is_float(value)]
    return bool(floats) and all(dtype not in (np.float64, np.complex128) for dtype in floats)


def widened(value: Any) -> Any:
    """Floats as float64 or complex128; NumPy arrays, but for random keys, which only JAX knows."""
    if is_key(value):
        return value
    array = np.asarray(value)
    return array.astype(double(array.dtype), copy=False) if jnp.issubdtype(array.dtype, jnp.inexact) else array


def double(dtype: DTypeLike) -> Any:
    """float64, or complex128 for a complex type."""
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def evaluate_all(closed: ClosedJaxpr, inputs: Sequence[Any], rule: Rule) -> Values:
    """`reference.jaxprs.evaluate` with samples on the first axis of every value."""
    return evaluate(closed, inputs, rule, lifted)


def is_float(value: Any) -> bool:
    """Whether rounding may change a value."""
    return jnp.issubdtype(getattr(value, "dtype", bool), jnp.inexact)


def chosen(which: np.ndarray, yes: Any, no: Any) -> Any:
    """For every sample one value or the other, or for every entry of its first axes, if `which` has these."""
    if which.size == 1:
        return yes if which.item() else no
    where = np.where if isinstance(yes, np.ndarray) else jnp.where
    return where(which.reshape(*which.shape, *(1,) * (yes.ndim - which.ndim)), yes, no)


def stacked(values: Sequence[Any]) -> Any:
    """Values of several turns as one value, turns behind the samples."""
    library = np if isinstance(values[0], np.ndarray) else jnp
    rows = max(map(len, values))
    return library.stack([library.broadcast_to(value, (rows, *value.shape[1:])) for value in values], axis=1)


def sampled(equation: JaxprEqn, inputs: Values) -> Values:
    """The outputs of an equation without jaxprs inside, for every sample; in double unless its inputs are narrow."""
    if equation.primitive.name == "bitcast_convert_type":
        return _by_jax(equation, _as_wide_as_known(equation, inputs), narrow=True)
    if equation.primitive.name in ("pure_callback", "io_callback"):
        return _called(equation, inputs)
    if is_narrow(inputs) or not inputs:  # without inputs it counts: an iota
        return _by_jax(equation, inputs, narrow=True)
    if any(map(is_key, inputs)):
        drawn = _by_jax(equation, _as_wide_as_known(equation, inputs), narrow=True)
        return [widened(value) for value in drawn] if any(map(is_float, inputs)) else drawn
    inputs = [widened(value) for value in inputs]
    operation = OPERATIONS.get(equation.primitive.name)
    found = None if operation is None else operation(equation.params, *inputs)
    return _by_jax(equation, inputs) if found is None else [found]


def _as_wide_as_known(equation: JaxprEqn, inputs: Values) -> Values:
    """The inputs in the types that the program gives them."""
    avals: list[Any] = [atom.aval for atom in equation.invars]
    pairs = zip(inputs, avals, strict=True)
    return [value if is_key(value) else value.astype(aval.dtype) for value, aval in pairs]


def _called(equation: JaxprEqn, inputs: Values) -> Values:
    """By the user's function in Python, sample by sample, with values as wide as it knows them."""
    own = _as_wide_as_known(equation, inputs)
    each = [equation.params["callback"](*(value[0] for value in own))]
    for k in range(1, max(map(len, own), default=1)):
        try:
            each.append(equation.params["callback"](*(value[k % len(value)] for value in own)))
        except Exception:  # it may check what rounding breaks; then what it gave for the function itself stands
            each.append(each[0])
    return [widened(np.stack([np.asarray(result) for result in results])) for results in zip(*each, strict=True)]


def _by_jax(equation: JaxprEqn, inputs: Values, narrow: bool = False) -> Values:
    """By the primitive itself, with the float types in its parameters widened unless it is narrow."""
    changed, kept = ({}, _kept) if narrow else (_in_double(equation), widened)
    many = [len(value) > 1 for value in inputs]

    one = lambda *given: bind(equation, given, **changed)  # noqa: E731
    given = [value if varies else value[0] for value, varies in zip(inputs, many, strict=True)]
    if not any(many):
        return [kept(output)[None] for output in one(*given)]
    try:
        return [kept(output) for output in jax.vmap(one, [0 if varies else None for varies in many])(*given)]
    except Exception:  # a primitive of some library that has no batching rule
        rows = [one(*(value[k % len(value)] for value in inputs)) for k in range(max(map(len, inputs)))]
        return [np.stack([kept(output) for output in outputs]) for outputs in zip(*rows, strict=True)]


TYPES = ("new_dtype", "dtype", "preferred_element_type")


def _in_double(equation: JaxprEqn) -> dict[str, Any]:
    """The parameters of an equation that hold a float type or a program, widened."""
    types = {key: dtype for key in TYPES if (dtype := equation.params.get(key)) is not None}
    changed = {key: double(dtype) for key, dtype in types.items() if jnp.issubdtype(dtype, jnp.inexact)}
    for key, value in equation.params.items():
        if any(map(_is_program, jax.tree.leaves(value, is_leaf=_is_program))):
            changed[key] = jax.tree.map(_program, value, is_leaf=_is_program)
    return changed


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _program(program: Any) -> Any:
    """A program inside an equation, traced anew in double: how a scatter adds, what a linear solve solves with."""
    if not _is_program(program):
        return program
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())

    def wide(value: Any) -> Any:
        return jnp.asarray(value, double(value.dtype)) if is_float(value) else value

    def rule(equation: JaxprEqn, inputs: Values) -> Values:
        return bind(equation, [wide(value) for value in inputs], **_in_double(equation))

    def run(*inputs: Any) -> Values:
        return evaluate(closed, inputs, rule, lambda number, aval: wide(np.asarray(number, aval.dtype)))

    avals = [variable.aval for variable in closed.jaxpr.invars]
    types = [double(aval.dtype) if is_float(aval) else aval.dtype for aval in avals]
    made = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, t) for a, t in zip(avals, types, strict=True)))
    return made if isinstance(program, ClosedJaxpr) else made.jaxpr


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


def _behind(axes: Sequence[int]) -> tuple[int, ...]:
    """Axes of a value as axes of its samples."""
    return tuple(axis + 1 for axis in axes)


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
    if len(cases) != 2 or which.dtype != np.bool_:
        return None
    which, no, yes = level((which, *cases))
    return np.where(which, yes, no)


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
    "add": _each(np.add),
    "add_any": _each(np.add),
    "and": _each(np.logical_and, "b"),
    "broadcast_in_dim": _broadcast_in_dim,
    "ceil": _each(np.ceil, "f"),
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _unchanged,
    "cos": _each(np.cos, "f"),
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
    "mul": _each(np.multiply, "f"),
    "ne": _each(np.not_equal, _ANY),
    "neg": _each(np.negative),
    "not": _each(np.logical_not, "b"),
    "or": _each(np.logical_or, "b"),
    "reduce_max": _reduced(np.max, "f"),
    "reduce_min": _reduced(np.min, "f"),
    "reduce_sum": _reduced(np.sum, "fc"),
    "reduce_precision": _unchanged,  # cutting the bits would cut the noise
    "reshape": _reshape,
    "rsqrt": _each(lambda x: 1 / np.sqrt(x), "f"),
    "select_n": _select_n,
    "sign": _each(np.sign, "f"),
    "sin": _each(np.sin, "f"),
    "slice": _slice,
    "sqrt": _each(np.sqrt, "f"),
    "square": _each(np.square, "f"),
    "squeeze": _squeeze,
    "stop_gradient": _unchanged,
    "sub": _each(np.subtract),
    "tanh": _each(np.tanh, "f"),
    "transpose": lambda params, x: x.transpose(0, *_behind(params["permutation"])),
}
"""The operations that NumPy computes as XLA does, by primitive."""
