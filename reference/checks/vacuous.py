"""Rows in which nothing could have failed: a derivative that is zero at this point alone, or a leaf without entries."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from reference.checks.linear_rows import Trial, Truth, Vector
from reference.compare import BLIND
from reference.report import Row
from reference.tolerance.monte_carlo import exact
from reference.tolerance.side_by_side import widened

TRIED = 3  # points to look for a derivative other than zero at
Elsewhere = Callable[[Vector], Sequence[Any]]
"""Values of the moving leaves -> the derivative's leaves there."""


def elsewhere(function: Callable[[Vector, Vector], Any], moving: Vector, data: Vector) -> Elsewhere:
    """The derivative at other points in float64, by a function (moving, data) -> its leaves."""
    closed = jax.make_jaxpr(function)(moving, data)

    def at(point: Vector) -> Sequence[Any]:
        with jax.enable_x64(True):
            return [leaf[0] for leaf in exact(closed, [widened(leaf)[None] for leaf in (*point, *data)])]

    return at


def zero_here_alone(moving: Vector, zero: Sequence[bool], at: Elsewhere, seed: int) -> list[bool]:
    """For every leaf of a derivative that is zero, whether it is other than zero at a seeded point beside."""
    found = [False] * len(zero)
    rng = np.random.default_rng([seed, 3])
    for _ in range(TRIED if any(zero) else 0):
        wide = [np.asarray(leaf, np.float64) for leaf in moving]
        point = [leaf + 0.3 * np.maximum(1.0, np.abs(leaf)) * rng.normal(size=leaf.shape) for leaf in wide]
        for i, leaf in enumerate(at(point)):
            leaf = np.asarray(leaf)
            found[i] |= zero[i] and bool(np.any(np.isfinite(leaf) & (leaf != 0)))
    return found


def vacuous(rows: Sequence[Row], names: Sequence[str], here_alone: Sequence[bool], empty: Sequence[bool]) -> list[Row]:
    """The rows, inconclusive where nothing could have failed, with the reason and what would decide.

    Args:
        rows: of a check.
        names: of the derivative's leaves.
        here_alone: whether each is zero at this point and not beside it.
        empty: whether each has no entries.
    """
    decided = any(row.path in names and 0 < row.power <= BLIND for row in rows)
    reasons = {}
    for name, alone, without in zip(names, here_alone, empty, strict=True):
        if alone:
            reasons[name] = (
                "the derivative is zero at this point and not beside it, so a wrong factor cannot show:"
                " check at arguments that are not zero or symmetric"
            )
        elif without and not decided:
            reasons[name] = (
                "there are no entries to compare, so nothing could have failed: check at arguments that have some"
            )

    def one(row: Row) -> Row:
        reason = reasons.get(row.path)
        return row if reason is None or row.verdict == "fail" else replace(row, verdict="inconclusive", reason=reason)

    return [one(row) for row in rows]


def without_vacuous(trial: Trial, rows: Sequence[Row], truth: Truth) -> tuple[list[Row], list[str]]:
    """The rows on a rule with those inconclusive in which nothing could have failed, and notes on what is zero."""
    n = len(trial.vectors)
    values = [[np.asarray(truth.results[k][0][i]) for k in range(n)] for i in range(len(trial.names))]
    empty = [not leaf[0].size for leaf in values]
    seen = {row.path for row in rows if row.scale}  # the function's values may have settled what JAX takes for zero
    zero = [
        not any(map(np.any, leaf)) and bool(leaf[0].size) and name not in seen
        for leaf, name in zip(values, trial.names, strict=True)
    ]
    here_alone = [False] * len(zero)
    if any(zero):
        vector = trial.vectors[0]
        function = lambda moving, data: trial.apply(trial.rule.raw, moving, data, [vector])[1][0]  # noqa: E731
        here_alone = zero_here_alone(trial.moving, zero, elsewhere(function, trial.moving, trial.data), trial.seed)
    notes = [
        f"{name} is zero here and at {TRIED} points beside: only a fault that makes it other than zero can show"
        for name, is_zero, alone in zip(trial.names, zero, here_alone, strict=True)
        if is_zero and not alone
    ]
    without = [name for name, none in zip(trial.names, empty, strict=True) if none]
    notes += [f"{name} is empty: there is nothing to compare" for name in without]
    told = {name for name, alone in zip(trial.names, here_alone, strict=True) if alone}
    notes += all_zeros(trial.rule.given.moving_paths, trial.moving, told)
    return vacuous(rows, trial.names, here_alone, empty), notes


def all_ones(paths: Sequence[str], moving: Vector) -> list[str]:
    """Notes on arguments that are 1 throughout, where one factor of them is as good as none."""
    return [
        f"{path} is all ones: a factor of it too many or too few cannot show; check with other values"
        for path, leaf in zip(paths, moving, strict=True)
        if np.size(leaf) and (np.asarray(leaf, np.float64) == 1).all()
    ]


def all_zeros(paths: Sequence[str], moving: Vector, told: set[str]) -> list[str]:
    """Notes on arguments that are all zero, where a term that multiplies them is unseen, unless one was told of."""
    return [
        f"{path} is all zeros: a term that multiplies it cannot show; check with other values"
        for path, leaf in zip(paths, moving, strict=True)
        if np.size(leaf) and not np.asarray(leaf, np.float64).any() and path not in told
    ]
