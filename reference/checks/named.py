"""Arguments by the names of the function's parameters: in a report, `x['b']` for `args[1]['b']`."""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reference.report import Report, Row

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
        return _ARGUMENT.sub(lambda found: names[int(found[1])] if int(found[1]) < count else found[0], text)

    def of(row: Row) -> Row:
        cause, judged, reason = map(named, (row.cause, row.judged, row.reason))
        return replace(row, path=named(row.path), cause=cause, judged=judged, reason=reason)

    return replace(report, rows=tuple(map(of, report.rows)), notes=tuple(map(named, report.notes)))
