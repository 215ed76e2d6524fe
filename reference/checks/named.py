"""Arguments by the names of the function's parameters: in reports and errors, `x['b']` for `args[1]['b']`."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import jax

from reference.report import Report, Row

P = ParamSpec("P")
_ARGUMENT = re.compile(r"(?<![.\w])args\[(\d+)\]")
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names that a function has for its arguments; `args[1]` where it tells none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function in C tells none
        parameters = []
    names = [each.name for each in parameters if each.kind in BY_POSITION][:count]
    rest = [each.name for each in parameters if each.kind is inspect.Parameter.VAR_POSITIONAL]
    if rest:
        return names + [f"{rest[0]}[{i}]" for i in range(count - len(names))]
    return names + [f"args[{i}]" for i in range(len(names), count)]


def by_name(report: Report, function: Callable[..., Any], count: int) -> Report:
    """The report, with the function's own names for its arguments; a name that means something else there is left."""
    taken = {row.path for row in report.rows}
    names = [f"args[{i}]" if name in taken else name for i, name in enumerate(parameter_names(function, count))]

    def named(text: str) -> str:
        return _ARGUMENT.sub(lambda found: _name(names, found), text)

    def of(row: Row) -> Row:
        cause, judged, reason = map(named, (row.cause, row.judged, row.reason))
        return replace(row, path=named(row.path), cause=cause, judged=judged, reason=reason)

    return replace(report, rows=tuple(map(of, report.rows)), notes=tuple(map(named, report.notes)))


def errors_by_name(check: Callable[P, Report]) -> Callable[P, Report]:
    """The check of a function, its first argument, with that function's names for its arguments in errors too.

    A check moves numbers between NumPy and JAX all the time, so it is made where JAX allows that.
    """

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Report:
        try:
            with jax.transfer_guard("allow"):
                return check(*args, **kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            if args and callable(args[0]) and len(error.args) == 1:
                names = parameter_names(args[0], len(args))
                error.args = (_ARGUMENT.sub(lambda found: _name(names, found), str(error.args[0])),)
            raise

    return checked


def _name(names: Sequence[str], found: re.Match[str]) -> str:
    return names[int(found[1])] if int(found[1]) < len(names) else found[0]
