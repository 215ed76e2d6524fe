"""How far a derivative may be off by intent: the tolerance of a solver behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from reference.jaxprs import inside
from reference.report import Row

_STOP = "let it stop relative to the size of its right side, which here is the cotangent or tangent"
LOOKS_LIKE = 1e-2  # a larger share of a leaf is no tolerance of a solver
_ITERATES = {"while", "scan", "custom_linear_solve"}


def require_approximation(approximation: Any) -> None:
    """Refuse what is no share of a value.

    Raises:
        ValueError: says what came.
    """
    number = isinstance(approximation, int | float) and not isinstance(approximation, bool)
    if not number or not 0 <= approximation < 1:
        raise ValueError(
            f"approximation is how far the derivative may be off, relative to the largest entry: a number from 0 up to"
            f" 1, such as 1e-8; got {approximation!r}"
        )


def allowed_text(approximation: float) -> str:
    """The note of a report that allows it."""
    return f"approximation: beyond rounding, {approximation:g} of the largest entry of a leaf is allowed, as asked for"


def hinted(rows: Sequence[Row], *programs: Any) -> list[Row]:
    """The rows; one that fails by little, where one of the programs iterates, says that this may be meant."""
    if not any(row.verdict == "fail" for row in rows) or not any(_iterates(closed.jaxpr) for closed in programs):
        return list(rows)

    def one(row: Row) -> Row:
        if row.cause.startswith("not proportional"):
            return replace(row, cause=f"{row.cause}; a solver does this that stops at an absolute tolerance: {_STOP}")
        close = row.verdict == "fail" and 0 < row.relative <= LOOKS_LIKE and row.kind != "equation"
        if not close or row.cause.startswith("a constant factor"):
            return row
        most = 10.0 ** np.ceil(np.log10(2 * row.relative))
        told = (
            f"it is off by {row.relative:.1g} of the largest entry, and the function iterates: if the derivative comes"
            f" from a solver that stops at a tolerance, say so by approximation={most:.0e}"
        )
        return replace(row, judged=f"{row.judged}; {told}" if row.judged else told)

    return [one(row) for row in rows]


def _iterates(jaxpr: jax.extend.core.Jaxpr) -> bool:
    return any(
        equation.primitive.name in _ITERATES or any(_iterates(part.jaxpr) for part in inside(equation))
        for equation in jaxpr.eqns
    )
