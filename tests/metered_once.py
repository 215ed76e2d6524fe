"""Monte Carlo arithmetic of one program, compiled once for all tests of a process that measure it.

Most tests plant a fault on one side of a check; the reference's side is the same program each time.
"""

from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from reference.tolerance import rounding


@cache
def install() -> None:
    """Let `measure` and `meter` take what was compiled before."""
    compiled: dict[tuple[Any, ...], Any] = {}
    meter = rounding.meter

    @wraps(meter)
    def once(function: Callable[..., Any], *like: Any, **given: Any) -> Any:
        key = _key(function, like, dict(given))
        if key not in compiled:
            compiled[key] = meter(function, *like, **given)
        return compiled[key]

    rounding.meter = once


def _key(function: Callable[..., Any], like: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for calls of `meter` that would compile the same program: its equations and all numbers in them."""
    with jax.enable_x64(True):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*jax.tree.map(rounding._in_float64, like))
    consts = [(str(array.dtype), array.shape, array.tobytes()) for array in map(np.asarray, _consts(closed))]
    options = sorted((given.pop("compiler_options", None) or {}).items())
    return str(closed.jaxpr), *consts, jax.tree.structure(shape), *options, *sorted(given.items())


def _consts(closed: ClosedJaxpr) -> Iterator[Any]:
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr)):
            if isinstance(inner, ClosedJaxpr):
                yield from _consts(inner)
