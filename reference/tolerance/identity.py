"""Tell whether two programs are the same, so that one that was compiled before need not be compiled again.

Traced anew, the same function gives another jaxpr: its variables, and the functions in its custom rules, are new
objects. Two jaxprs are the same program if they have the same primitives with equal parameters, wired alike, and the
same numbers in them. Where that cannot be told, they count as different, which costs a compilation and nothing else.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from reference.jaxprs import CALLS, inside


def identity(closed: ClosedJaxpr) -> Hashable:
    """A value that is equal for two jaxprs only if they compute the same from the same arguments."""
    return (tuple(map(_number, closed.consts)), _wiring(closed.jaxpr))


def _wiring(jaxpr: Jaxpr) -> Hashable:
    """The equations, with variables numbered in the order in which they appear."""
    numbers: dict[Any, int] = {}

    def of(atoms: Iterable[Any]) -> Hashable:
        return tuple(
            _number(atom.val) if isinstance(atom, Literal) else (numbers.setdefault(atom, len(numbers)), str(atom.aval))
            for atom in atoms
        )

    given = of((*jaxpr.constvars, *jaxpr.invars))
    equations = tuple((e.primitive.name, of(e.invars), _parameters(e), of(e.outvars)) for e in jaxpr.eqns)
    return (given, equations, of(jaxpr.outvars))


def _parameters(equation: JaxprEqn) -> Hashable:
    """Every parameter by name; of a call, the jaxpr inside says it all."""
    if equation.primitive.name in CALLS:
        return tuple(map(identity, inside(equation)))
    return tuple((name, _parameter(value)) for name, value in sorted(equation.params.items()))


def _parameter(value: Any) -> Hashable:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return identity(value if isinstance(value, ClosedJaxpr) else ClosedJaxpr(value, ()))
    if isinstance(value, tuple | list):
        return tuple(map(_parameter, value))
    if isinstance(value, np.ndarray | jax.Array):
        return _number(value)
    try:
        hash(value)
    except TypeError:
        return _Only(value)
    return (type(value), repr(value) if isinstance(value, float) else value)  # -0.0 is equal to 0.0


def _number(value: Any) -> Hashable:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return _Only(value)
    array = np.asarray(value)
    return (str(array.dtype), array.shape, array.tobytes(), getattr(value, "weak_type", None))


class _Only:
    """Equal to nothing but the same object, which it keeps alive so that no other one takes its place."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Only) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
