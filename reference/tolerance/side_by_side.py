"""Compute an equation for all samples at once, by NumPy.

The samples lie on the first axis of every value: all of them, or a single row for a value that they share. NumPy needs
no compilation, and the programs that are checked are small, so their operations take microseconds where compiling them
would take seconds. An operation that has no row in `OPERATIONS` is computed by JAX, vmapped over the samples.

Floats that depend on the arguments are in double. Integers, bits and random draws have the width that the program gives
them, since a draw in another width is another draw: a float that is made of bits, of counts, or of numbers that stand
in the program, stays narrow until it meets one in double, and is `Standing` where the program's own width is double.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive
from jaxtyping import DTypeLike

from reference.jaxprs import Rule, Values, bind, evaluate, inside
from reference.tolerance.operations import ENTRY_BY_ENTRY, OPERATIONS, THE_SAME_IN_ANY_WIDTH, level
from reference.xla import quick


class Standing(np.ndarray):
    """Doubles of a program in double that depend on none of its arguments, such as the times of a solver."""


def standing(value: Any) -> Any:
    """A value that depends on no argument, told from those that do by its width or by its class."""
    return value.view(Standing) if isinstance(value, np.ndarray) and value.dtype in _DOUBLE else value


_DOUBLE = (np.dtype(np.float64), np.dtype(np.complex128))


def lifted(value: Any, aval: Any) -> Any:
    """A number that stands in a program, as a value that all samples share; a single one has the program's width."""
    if np.ndim(value) or is_key(value):
        return widened(value)[None]
    return standing(np.asarray(value, aval.dtype)[None])


def given(value: Any) -> Any:
    """An argument, as a value that all samples share; floats in double."""
    return widened(value)[None]


def _kept(value: Any) -> Any:
    return value if is_key(value) else np.asarray(value)


def is_key(value: Any) -> bool:
    """Whether a value holds random keys, which only JAX knows."""
    return jnp.issubdtype(getattr(value, "dtype", bool), jax.dtypes.extended)


def is_narrow(values: Sequence[Any]) -> bool:
    """Whether there are floats among these, and all of them made of bits or of numbers that stand in the program."""
    floats = [value for value in values if is_float(value)]
    return bool(floats) and all(isinstance(x, Standing) or x.dtype not in _DOUBLE for x in floats)


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
    library: Any = np if isinstance(yes, np.ndarray) else jnp
    return _like([yes, no], library.where(which.reshape(*which.shape, *(1,) * (yes.ndim - which.ndim)), yes, no))


def stacked(values: Sequence[Any]) -> Any:
    """Values of several turns as one value, turns behind the samples."""
    library = np if isinstance(values[0], np.ndarray) else jnp
    rows = max(map(len, values))
    return _like(values, library.stack([library.broadcast_to(x, (rows, *x.shape[1:])) for x in values], axis=1))


def _like(values: Sequence[Any], made: Any) -> Any:
    """The value that was made of these; it depends on no argument if none of them does."""
    return standing(made) if all(isinstance(value, Standing) for value in values) else made


def sampled(equation: JaxprEqn, inputs: Values, points: bool = False) -> Values:
    """The outputs of an equation without jaxprs inside, for every sample; in double unless its inputs are narrow.

    With `points` the samples are points of their own, so that an error in one is an error.
    """
    if any(hasattr(variable.aval, "inner_aval") for variable in equation.outvars):
        raise NotImplementedError(
            f"{equation.primitive.name}: a mutable reference (jax.new_ref) is not evaluated in float64; check the"
            " function written with values, or give that as the plain one"
        )
    if equation.primitive.name == "bitcast_convert_type":
        return [*map(standing, _by_jax(equation, _as_wide_as_known(equation, inputs), narrow=True))]
    if equation.primitive.name in CALLBACKS:
        return _as_it_stands(equation, inputs, points, equation.params["callback"])
    name = equation.primitive.name
    if is_narrow(inputs) or not inputs:  # without inputs it counts: an iota
        found = OPERATIONS[name](equation.params, *inputs) if name in THE_SAME_IN_ANY_WIDTH else None
        return [*map(standing, _by_jax(equation, inputs, narrow=True) if found is None else [found])]
    if any(map(is_key, inputs)):
        drawn = _by_jax(equation, _as_wide_as_known(equation, inputs), narrow=True)
        return [widened(value) if any(map(is_float, inputs)) else standing(value) for value in drawn]
    inputs = [widened(value) for value in inputs]
    operation = OPERATIONS.get(name)
    found = None if operation is None else operation(equation.params, *inputs)
    if name == "convert_element_type" and not is_float(inputs[0]) and found is not None:
        return [standing(found)]  # a count is exact
    if found is None:
        return _by_primitive(equation, inputs, points)
    return found if isinstance(found, list) else [found]


_REFUSE_DOUBLE: set[Any] = set()
"""Primitives found to refuse wider floats than a program gives them, as one does that knows its types by heart."""


def in_its_own_types(equation: JaxprEqn) -> bool:
    """Whether an equation is evaluated in the types that the program gives it, and not in double."""
    refuses = equation.primitive in _REFUSE_DOUBLE and _knows_less_than_double(equation)
    return refuses or equation.primitive.name in CALLBACKS


def refusing_double(closed: ClosedJaxpr) -> tuple[str, ...]:
    """The names of the primitives in a program that were found to refuse wider floats than it gives them."""
    return tuple(sorted(set(_refusing(closed)))) if _REFUSE_DOUBLE else ()


def _refusing(closed: ClosedJaxpr) -> Iterator[str]:
    for equation in closed.jaxpr.eqns:
        if equation.primitive in _REFUSE_DOUBLE and _knows_less_than_double(equation):
            yield equation.primitive.name
        for part in inside(equation):
            yield from _refusing(part)


def _by_primitive(equation: JaxprEqn, inputs: Values, points: bool) -> Values:
    """In double; or in its own types, sample by sample, where it refuses that."""
    if not in_its_own_types(equation):
        try:
            return _by_jax(equation, inputs, points=points)
        except Exception:
            if not _knows_less_than_double(equation):
                raise
    found = _as_it_stands(equation, inputs, points, lambda *values: bind(equation, [*map(jnp.asarray, values)]))
    _REFUSE_DOUBLE.add(equation.primitive)
    return found


def _as_wide_as_known(equation: JaxprEqn, inputs: Values) -> Values:
    """The inputs in the types that the program gives them."""
    avals: list[Any] = [atom.aval for atom in equation.invars]
    pairs = zip(inputs, avals, strict=True)
    return [value if is_key(value) else np.asarray(value, aval.dtype) for value, aval in pairs]


def _knows_less_than_double(equation: JaxprEqn) -> bool:
    avals: list[Any] = [atom.aval for atom in equation.invars]
    return any(is_float(aval) and double(aval.dtype) != aval.dtype for aval in avals)


def _as_it_stands(equation: JaxprEqn, inputs: Values, points: bool, compute: Callable[..., Any]) -> Values:
    """By a function that knows its types, such as the user's in Python, sample by sample."""
    each = _one_by_one(_as_wide_as_known(equation, inputs), compute, points)
    return [widened(np.stack([np.asarray(result) for result in results])) for results in zip(*each, strict=True)]


def _one_by_one(inputs: Values, compute: Callable[..., Any], points: bool) -> list[Any]:
    """The outputs for each sample; what checks its inputs may raise where noise breaks what it checks.

    Then those of the function itself stand, which is the first sample, and which may raise; but not where the samples
    are points.
    """
    each = [compute(*(value[0] for value in inputs))]
    for k in range(1, max(map(len, inputs), default=1)):
        try:
            each.append(compute(*(value[k % len(value)] for value in inputs)))
        except Exception:
            if points:
                raise
            each.append(each[0])
    return each


def _by_jax(equation: JaxprEqn, inputs: Values, narrow: bool = False, points: bool = False) -> Values:
    """By the primitive itself, with the float types in its parameters widened unless it is narrow."""
    inputs = [_kept(value) for value in inputs]
    if equation.primitive.name in ENTRY_BY_ENTRY:
        function = _compiled(equation.primitive, tuple(equation.params.items()))
        return [np.asarray(function(*np.broadcast_arrays(*level(inputs))))]

    changed, kept = ({}, _kept) if narrow else (_in_double(equation), widened)
    many = [len(value) > 1 for value in inputs]
    one = lambda *given: bind(equation, given, **changed)  # noqa: E731
    given = [value if varies else value[0] for value, varies in zip(inputs, many, strict=True)]
    if not any(many):
        return [kept(output)[None] for output in one(*given)]
    if equation.primitive.name not in _OF_A_BATCH:
        with suppress(Exception):  # a primitive of some library that has no batching rule
            return [kept(output) for output in jax.vmap(one, [0 if varies else None for varies in many])(*given)]
    each = lambda *of: one(*(value if is_key(value) else jnp.asarray(value) for value in of))  # noqa: E731
    rows = _one_by_one(inputs, each, points)
    return [np.stack([kept(output) for output in outputs]) for outputs in zip(*rows, strict=True)]


@cache
def _compiled(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """A function of numbers as one program, which a loop calls a thousand times."""
    return jax.jit(lambda *entries: primitive.bind(*entries, **dict(params)), compiler_options=quick())


_OF_A_BATCH = ("unvmap_all", "unvmap_any", "unvmap_max")
"""Equinox's, which under vmap are of all examples at once, to ask whether any is in error; a sample is no example."""
CALLBACKS = ("pure_callback", "io_callback")
TYPES = ("new_dtype", "dtype", "preferred_element_type")


def _in_double(equation: JaxprEqn) -> dict[str, Any]:
    """The parameters of an equation that hold a float type or a program, widened."""
    types = {key: dtype for key in TYPES if (dtype := equation.params.get(key)) is not None}
    changed = {key: double(dtype) for key, dtype in types.items() if jnp.issubdtype(dtype, jnp.inexact)}
    for key, value in equation.params.items():
        if any(map(_is_program, jax.tree.leaves(value, is_leaf=_is_program))):
            changed[key] = jax.tree.map(
                lambda part: _traced_anew(part) if _is_program(part) else part, value, is_leaf=_is_program
            )
    return changed


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


@lru_cache(maxsize=512)  # the same object is what lets JAX compile it once
def _traced_anew(program: Any) -> Any:
    """A program inside an equation, traced anew in double: how a scatter adds, what a linear solve solves with."""
    if not isinstance(program, ClosedJaxpr) and program.constvars:
        return program  # its constants are known elsewhere
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())

    def wide(value: Any) -> Any:
        return jnp.asarray(value, double(value.dtype)) if is_float(value) else value

    def rule(equation: JaxprEqn, inputs: Values) -> Values:
        return bind(equation, [wide(value) for value in inputs], **_in_double(equation))

    def run(*inputs: Any) -> Values:
        return evaluate(closed, inputs, rule, lambda number, aval: wide(np.asarray(number, aval.dtype)))

    avals: list[Any] = [variable.aval for variable in closed.jaxpr.invars]
    types = [double(aval.dtype) if is_float(aval) else aval.dtype for aval in avals]
    made = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, t) for a, t in zip(avals, types, strict=True)))
    return made if isinstance(program, ClosedJaxpr) else made.jaxpr
