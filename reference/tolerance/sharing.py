"""Share what is measured between checks that ask for the same.

The same program on the same values, with the same noise, measures the same. Within `shared(memo)`, what
`reference.tolerance.rounding` has measured once is looked up. A key holds the whole program, its values bit by bit, the
format, and samples and seed of the noise, so a program or a value that differs in anything is measured anew.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from reference.jaxprs import CALLS, inside
from reference.tolerance.side_by_side import is_key

Pairs = list[tuple[np.ndarray, np.ndarray]]
"""(value, tolerance) of every result."""
Memo = dict[Hashable, Pairs]
MOST = 64  # measurements in a memo, so that a test with a thousand parameters does not keep them all
_memo: ContextVar[Memo | None] = ContextVar("memo", default=None)


@contextmanager
def shared(memo: Memo) -> Iterator[None]:
    """Within this context, look measurements up in the memo, and keep there those that are new.

    Args:
        memo: a dict of its own, empty at first, which the caller keeps for as long as it is of use.
    """
    token = _memo.set(memo)
    try:
        yield
    finally:
        _memo.reset(token)


def once(compute: Callable[[], Pairs], program: ClosedJaxpr, values: Sequence[Any], *noise: Hashable) -> Pairs:
    """The result of `compute`, or a copy of its result for an equal program with equal values and noise.

    Outside of `shared`, and for a program with side effects or parameters that cannot be compared, it is computed.

    Args:
        compute: measures the program on the values.
        program: the program that is measured.
        values: arrays, one for each of its inputs.
        noise: whatever else the result depends on.
    """
    memo = _memo.get()
    if memo is None or program.effects:
        return compute()
    key = (_program(program.jaxpr, program.consts), tuple(map(_bits, values)), noise)
    try:
        hash(key)
    except TypeError:
        return compute()
    if key not in memo:
        if len(memo) >= MOST:
            del memo[next(iter(memo))]  # the oldest
        memo[key] = compute()
    return [(value.copy(), tolerance.copy()) for value, tolerance in memo[key]]


def _program(jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> Hashable:
    """A program as nested tuples, equal for equal programs: its variables are numbered as they come.

    Functions and other objects among the parameters stand for themselves. The tuples keep them alive, so that no other
    object can take their place.
    """
    numbers: dict[Any, int] = {}

    def atom(given: Any) -> Hashable:
        read = _bits(given.val) if isinstance(given, Literal) else numbers.setdefault(given, len(numbers))
        return read, given.aval

    def atoms(given: Sequence[Any]) -> Hashable:
        return tuple(map(atom, given))

    given = atoms([*jaxpr.constvars, *jaxpr.invars])
    equations = tuple((e.primitive, atoms(e.invars), atoms(e.outvars), _parameters(e)) for e in jaxpr.eqns)
    return given, tuple(map(_bits, consts)), equations, atoms(jaxpr.outvars)


def _parameters(equation: JaxprEqn) -> Hashable:
    """The parameters that a value depends on: of a call, only the program inside it."""
    return _part(inside(equation) if equation.primitive.name in CALLS else equation.params)


def _part(value: Any) -> Hashable:
    match value:
        case ClosedJaxpr():
            return _program(value.jaxpr, value.consts)
        case Jaxpr():
            return _program(value)
        case dict():
            return tuple((name, _part(value[name])) for name in sorted(value, key=str))
        case tuple() | list():
            return type(value), tuple(map(_part, value))
        case np.ndarray() | np.generic() | jax.Array():
            return _bits(value)
        case float() | complex():
            return type(value), repr(value)  # -0.0 equals 0.0, and nan does not equal itself
        case _:
            return type(value), value  # True equals 1


def _bits(value: Any) -> Hashable:
    array = np.asarray(jax.random.key_data(value) if is_key(value) else value)
    kind = str(getattr(value, "dtype", array.dtype))
    return kind, array.shape, hashlib.sha256(array.tobytes()).digest()
