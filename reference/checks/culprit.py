"""Which operation made the first nan or inf: a function's jaxpr evaluated one equation at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

_INNER = ("jaxpr", "call_jaxpr")  # where calls (jit, remat, custom rules) keep the jaxpr they run


class _Found(Exception):  # noqa: N818
    """Stops the evaluation at the equation that was looked for; its text names it."""

    def __init__(self, text: str, from_inf: bool) -> None:
        super().__init__(text)
        self.from_inf = from_inf


def first_nonfinite(function: Callable[..., Any], *args: Any) -> str:
    """The first operation whose result is nan, or else inf, though what entered it was not, in words.

    Args:
        function: traceable by JAX.
        args: pytrees of arrays.

    Returns:
        `log at file:line (function)`, and where the first inf came from if it was made a nan of; "" where no
        operation of the trace made one.
    """
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)
    found = [_search(closed, leaves, bad) for bad in (_has_nan, _has_inf)]
    nan, inf = found
    if nan and inf and nan.from_inf:
        return f"{nan} from an inf of {inf}"
    return str(nan or inf or "")


def _search(closed: Any, leaves: Sequence[Any], bad: Callable[[Any], bool]) -> "_Found | None":
    try:
        _run(closed.jaxpr, closed.consts, leaves, bad)
    except _Found as found:
        return found
    return None


def _has_nan(value: Any) -> bool:
    return _inexact(value) and bool(np.isnan(np.asarray(value, np.float64)).any())


def _has_inf(value: Any) -> bool:
    return _inexact(value) and bool(np.isinf(np.asarray(value, np.float64)).any())


def _inexact(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], bad: Callable[[Any], bool]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else known[var]

    for equation in jaxpr.eqns:
        inputs = [read(var) for var in equation.invars]
        outputs = _inside(equation, inputs, bad)
        if outputs is None:
            outputs = _bind(equation, inputs)
            if any(map(bad, outputs)) and not any(map(bad, inputs)):
                where = source_info_util.summarize(equation.source_info)
                raise _Found(f"{equation.primitive.name} at {where}", any(map(_has_inf, inputs)))
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _bind(equation: Any, inputs: list[Any]) -> list[Any]:
    result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(result) if equation.primitive.multiple_results else [result]


def _inside(equation: Any, inputs: list[Any], bad: Callable[[Any], bool]) -> list[Any] | None:
    """The outputs of an equation that holds jaxprs of its own, evaluated within; None for a plain one."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, inputs, bad)
    if name == "while":
        return _while(params, inputs, bad)
    if name == "cond":
        return _call(params["branches"][int(inputs[0])], inputs[1:], bad)
    inner = next((params[key] for key in _INNER if key in params), None)
    if inner is None or len(getattr(inner, "jaxpr", inner).invars) != len(inputs):
        return None
    return _call(inner, inputs, bad)


def _call(inner: Any, inputs: Sequence[Any], bad: Callable[[Any], bool]) -> list[Any]:
    """Runs a jaxpr, closed or not."""
    return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, bad)


def _scan(params: dict[str, Any], inputs: list[Any], bad: Callable[[Any], bool]) -> list[Any]:
    fixed, carries = params["num_consts"], params["num_carry"]
    consts, carry, stacked = inputs[:fixed], inputs[fixed : fixed + carries], inputs[fixed + carries :]
    order = range(params["length"])
    rows: dict[int, list[Any]] = {}
    for i in reversed(order) if params["reverse"] else order:
        outputs = _call(params["jaxpr"], [*consts, *carry, *(x[i] for x in stacked)], bad)
        carry, rows[i] = outputs[:carries], outputs[carries:]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[i] for i in order), strict=True))]


def _while(params: dict[str, Any], inputs: list[Any], bad: Callable[[Any], bool]) -> list[Any]:
    head, tail = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    carry = inputs[tail:]
    while bool(_call(params["cond_jaxpr"], [*inputs[:head], *carry], bad)[0]):
        carry = _call(params["body_jaxpr"], [*inputs[head:tail], *carry], bad)
    return carry
