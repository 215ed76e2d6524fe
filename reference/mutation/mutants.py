"""The possible faults of one equation of a jaxpr, each in words and as code.

A fault is small and typical of a derivative written by hand: a sign, a factor, a forgotten addend, a missing
transpose, a sum for a mean. To add a kind, write a generator from an equation to its `Fault`s and append it
to `KINDS`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from reference.jaxprs import Values

Apply = Callable[[Callable[[Values], Values], Values], Values]
"""(the right equation, its inputs) -> the outputs with the fault in them."""


@dataclass(frozen=True)
class Fault:
    """One fault of one equation.

    Attributes:
        what: the fault in words.
        apply: computes the equation with the fault.
    """

    what: str
    apply: Apply


def faults(eqn: JaxprEqn, nudge: float, draw: random.Random) -> list[Fault]:
    """Every fault of an equation with a float output; none for one without.

    Args:
        eqn: the equation.
        nudge: the size of the relative error; where the equation's precision cannot hold it, 4 of its epsilons.
        draw: chooses the second element to zero, besides the largest.
    """
    outputs = [k for k, var in enumerate(eqn.outvars) if is_float(var) and shaped(var).size > 0]
    made = [fault for k in outputs for fault in _of_output(eqn, k, nudge, draw)]
    if outputs == [0] and len(eqn.outvars) == 1:
        made += [fault for kind in KINDS for fault in kind(eqn)]
    return made


def shaped(atom: Any) -> Any:
    """The shape and dtype of a variable or constant of a jaxpr."""
    return atom.aval


def is_float(atom: Any) -> bool:
    """Whether a variable or constant is an array of real or complex floats."""
    return hasattr(atom.aval, "dtype") and jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _of_output(eqn: JaxprEqn, k: int, nudge: float, draw: random.Random) -> Iterator[Fault]:
    """Faults that any float output can have."""
    aval = shaped(eqn.outvars[k])
    which = f"output {k}: " if len(eqn.outvars) > 1 else ""
    size = max(nudge, 4 * float(jnp.finfo(aval.dtype).eps))
    yield Fault(f"{which}sign flipped", _changed(k, lambda xp, out: -out))
    yield Fault(f"{which}times 1 + {size:.3g}", _changed(k, lambda xp, out: out * xp.asarray(1 + size, out.dtype)))
    if aval.size == 1:
        yield Fault(f"{which}zeroed", _changed(k, lambda xp, out: xp.zeros_like(out)))
        return
    yield Fault(f"{which}largest element zeroed", _changed(k, _without_largest))
    flat = draw.randrange(aval.size)
    where = ", ".join(str(i) for i in np.unravel_index(flat, aval.shape))
    yield Fault(f"{which}element [{where}] zeroed", _changed(k, lambda xp, out: _zeroed(xp, out, flat)))


Change = Callable[[Any, Any], Any]
"""(numpy or jax.numpy, an array) -> the array changed."""


def _apply(change: Change, value: Any) -> Any:
    """Apply the change, with NumPy if the value is known, which avoids compiling for a shape that occurs once."""
    if isinstance(value, jax.core.Tracer):
        return change(jnp, value)
    with np.errstate(all="ignore"):
        return jnp.asarray(change(np, np.asarray(value)))


def _changed(k: int, change: Change) -> Apply:
    return partial(_with_changed, k, change)


def _with_changed(k: int, change: Change, right: Callable[[Values], Values], inputs: Values) -> Values:
    outputs = list(right(inputs))
    outputs[k] = _apply(change, outputs[k])
    return outputs


def _without_largest(xp: Any, out: Any) -> Any:
    return _zeroed(xp, out, xp.argmax(xp.abs(out)))


def _zeroed(xp: Any, out: Any, flat: Any) -> Any:
    hit = (xp.arange(out.size) == flat).reshape(out.shape)
    return xp.where(hit, xp.zeros_like(out), out)


def _operand(eqn: JaxprEqn, i: int, change: Change = lambda xp, value: value) -> Apply:
    """Return operand i in place of the output, broadcast if it is a scalar."""
    shape = shaped(eqn.outvars[0]).shape

    def apply(right: Callable[[Values], Values], inputs: Values) -> Values:
        return [_apply(lambda xp, value: xp.broadcast_to(change(xp, value), shape), inputs[i])]

    return apply


def _with_input(i: int, change: Change) -> Apply:
    def apply(right: Callable[[Values], Values], inputs: Values) -> Values:
        return right([_apply(change, value) if j == i else value for j, value in enumerate(inputs)])

    return apply


def _same_kind(eqn: JaxprEqn, *operands: int) -> list[int]:
    """The operands that could replace the output: of its dtype, and either of its shape or scalar."""
    out = shaped(eqn.outvars[0])
    avals = [shaped(eqn.invars[i]) for i in operands]
    return [i for i, a in zip(operands, avals, strict=True) if a.dtype == out.dtype and a.shape in ((), out.shape)]


def _name(eqn: JaxprEqn, i: int) -> str:
    """An operand in words: its value if it is a constant, else its side."""
    operand = eqn.invars[i]
    if isinstance(operand, Literal) and np.ndim(operand.val) == 0:
        return f"{float(np.real(operand.val)):.4g}"
    return ("the left operand", "the right operand")[i]


def _of_sums_and_products(eqn: JaxprEqn) -> Iterator[Fault]:
    """Leave out one of two addends or factors."""
    name = eqn.primitive.name
    if name not in ("add", "add_any", "sub", "mul", "div"):
        return
    left, right = (bool(_same_kind(eqn, i)) for i in (0, 1))
    if name in ("add", "add_any", "mul"):
        part = "factor" if name == "mul" else "addend"
        if left:
            yield Fault(f"{part} dropped: {_name(eqn, 1)}", _operand(eqn, 0))
        if right and eqn.invars[0] is not eqn.invars[1]:
            yield Fault(f"{part} dropped: {_name(eqn, 0)}", _operand(eqn, 1))
    elif name == "sub":
        if left:
            yield Fault(f"subtrahend dropped: {_name(eqn, 1)}", _operand(eqn, 0))
        if right:
            yield Fault(f"minuend dropped: {_name(eqn, 0)}", _operand(eqn, 1, lambda xp, value: -value))
    else:
        if left:
            constant = isinstance(eqn.invars[1], Literal)
            yield Fault(f"not divided by {_name(eqn, 1)}" + (" (sum for mean)" if constant else ""), _operand(eqn, 0))
        if right:
            yield Fault(
                f"dividend dropped: {_name(eqn, 0)}", _operand(eqn, 1, lambda xp, value: xp.ones_like(value) / value)
            )


_SAME_VALUE = {"neg", "copy", "copy_p", "convert_element_type", "reduce_precision", "optimization_barrier", "real"}
_IN_WORDS = {"transpose": "transpose dropped", "rev": "reversal dropped"}


def _of_one_operand(eqn: JaxprEqn) -> Iterator[Fault]:
    """Replace f by the identity if the operand has the output's shape; this includes a square transpose."""
    name = eqn.primitive.name
    if len(eqn.invars) != 1 or name in _SAME_VALUE or isinstance(eqn.invars[0], Literal):
        return
    before, after = shaped(eqn.invars[0]), shaped(eqn.outvars[0])
    if (before.shape, before.dtype) == (after.shape, after.dtype):
        yield Fault(_IN_WORDS.get(name, f"identity for {name}"), _operand(eqn, 0))


def _of_choices(eqn: JaxprEqn) -> Iterator[Fault]:
    """Always take a choice the same way."""
    name = eqn.primitive.name
    if name == "select_n":
        for i in _same_kind(eqn, *range(1, len(eqn.invars))):
            yield Fault(f"case {i - 1} taken always", _operand(eqn, i))
    elif name in ("max", "min"):
        for i in _same_kind(eqn, 0, 1):
            yield Fault(f"{_name(eqn, i)} taken always", _operand(eqn, i))
    elif name == "clamp":
        for i in _same_kind(eqn, 1):
            yield Fault("not clamped", _operand(eqn, i))
    elif name == "pow":
        for i in _same_kind(eqn, 0):
            yield Fault("exponent dropped", _operand(eqn, i))


def _of_contractions(eqn: JaxprEqn) -> Iterator[Fault]:
    """Transpose an operand of a matrix product if its sizes allow, or leave out the last term of the sum."""
    if eqn.primitive.name != "dot_general":
        return
    (contracted, batched) = eqn.params["dimension_numbers"]
    for i, side in enumerate(("left", "right")):
        shape = shaped(eqn.invars[i]).shape
        free = [d for d in range(len(shape)) if d not in (*contracted[i], *batched[i])]
        pair = next(((c, f) for c in contracted[i] for f in free if shape[c] == shape[f] > 1), None)
        if pair is not None:
            yield Fault(f"{side} operand transposed", _with_input(i, _swapped(*pair)))
    if contracted[0] and shaped(eqn.invars[0]).shape[contracted[0][0]] > 1:
        yield Fault("last term of the sum left out", _with_input(0, _without_last(contracted[0][0])))


def _of_reductions(eqn: JaxprEqn) -> Iterator[Fault]:
    """Leave out the last term of a sum, along each summed axis."""
    if eqn.primitive.name != "reduce_sum":
        return
    for axis in eqn.params["axes"]:
        if shaped(eqn.invars[0]).shape[axis] > 1:
            yield Fault(f"last term of the sum over axis {axis} left out", _with_input(0, _without_last(axis)))


def _swapped(one: int, other: int) -> Change:
    return lambda xp, value: xp.swapaxes(value, one, other)


def _without_last(axis: Any) -> Change:
    def change(xp: Any, value: Any) -> Any:
        along = tuple(-1 if d == axis else 1 for d in range(value.ndim))
        keep = (xp.arange(value.shape[axis]) < value.shape[axis] - 1).reshape(along)
        return xp.where(xp.broadcast_to(keep, value.shape), value, xp.zeros_like(value))

    return change


KINDS: tuple[Callable[[JaxprEqn], Iterator[Fault]], ...] = (
    _of_sums_and_products,
    _of_one_operand,
    _of_choices,
    _of_contractions,
    _of_reductions,
)
