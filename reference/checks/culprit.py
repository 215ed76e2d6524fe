"""Find the operation that made the first nan or inf, by evaluating a function's jaxpr one equation at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn

from reference.jaxprs import Values, evaluate, inside, through


class _Found(Exception):  # noqa: N818
    """Stops the evaluation at the equation that is sought; its text names the equation."""

    def __init__(self, text: str, from_inf: bool) -> None:
        super().__init__(text)
        self.from_inf = from_inf


def first_nonfinite(function: Callable[..., Any], *args: Any) -> str:
    """In words, the first operation whose result is nan, or else inf, although its inputs are not.

    Args:
        function: traceable by JAX.
        args: pytrees of arrays.

    Returns:
        `log at file:line (function)`; if the nan came from an inf, also the operation that made the first inf. ""
        if no operation of the trace made one.
    """
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)
    found = [_search(closed, leaves, bad) for bad in (_has_nan, _has_inf)]
    nan, inf = found
    if nan and inf and nan.from_inf:
        return f"{nan} from an inf of {inf}"
    return str(nan or inf or "")


def _search(closed: ClosedJaxpr, leaves: Sequence[Any], bad: Callable[[Any], bool]) -> "_Found | None":
    def rule(equation: JaxprEqn, inputs: Values) -> Values:
        bodies = inside(equation)
        outputs = through(equation, inputs, lambda k, given, turn: evaluate(bodies[k], given, rule), unrolled=math.inf)
        if not bodies and any(map(bad, outputs)) and not any(map(bad, inputs)):
            where = source_info_util.summarize(equation.source_info)
            raise _Found(f"{equation.primitive.name} at {where}", any(map(_has_inf, inputs)))
        return outputs

    try:
        evaluate(closed, leaves, rule)
    except _Found as found:
        return found
    return None


def _has_nan(value: Any) -> bool:
    return _inexact(value) and bool(np.isnan(np.asarray(value, np.float64)).any())


def _has_inf(value: Any) -> bool:
    return _inexact(value) and bool(np.isinf(np.asarray(value, np.float64)).any())


def _inexact(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)
