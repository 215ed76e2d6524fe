"""Mistakes that a derivative rule can make as a whole, tried on one that fails."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reference.checks.linear_rows import Trial, Truth, Vector
from reference.report import Row

Mistake = tuple[str, list[Vector]]
"""(what it is, the results that a rule with it gives for the first vectors)."""


def named(trial: Trial, truth: Truth, results: Sequence[Vector], rows: Sequence[Row]) -> list[Row]:
    """The rows; those of a leaf that a known mistake explains say so.

    Args:
        trial: what is tested.
        truth: what the reference says.
        results: by hand, for every vector.
        rows: of the check.
    """
    causes = {}
    wrong = {row.path for row in rows if row.verdict == "fail" and row.path in trial.names}
    for i, name in enumerate(trial.names):
        if name in wrong:
            causes[name] = (
                _deaf(trial, results, i) or _anothers(trial, truth, results, i) or _forgetful(trial, truth, results, i)
            )
    found = {name: cause for name, cause in causes.items() if cause}
    return [replace(row, cause=found[row.path]) if row.path in wrong & found.keys() else row for row in rows]


def _deaf(trial: Trial, results: Sequence[Vector], i: int) -> str:
    """Whether two vectors that differ give one result."""
    first, last = np.asarray(results[0][i]), np.asarray(results[-2][i])
    same = len(results) > 2 and first.any() and np.array_equal(first, last)
    return f"it does not depend on the {trial.word}, which a derivative is a multiple of" if same else ""


def _anothers(trial: Trial, truth: Truth, results: Sequence[Vector], i: int) -> str:
    """The leaf whose result this is, if it is another's."""
    ours = np.asarray(results[0][i], np.float64)
    values, allowed = truth.results[0]
    for k, name in enumerate(trial.names):
        if (
            k != i
            and np.shape(values[k]) == ours.shape
            and ours.any()
            and np.all(np.abs(ours - values[k]) <= allowed[k])
        ):
            return f"it is the {trial.word} of {name}: two are exchanged, or one is returned for both"
    return ""


def _forgetful(trial: Trial, truth: Truth, results: Sequence[Vector], i: int) -> str:
    """The output or argument whose vector is left out, if one explains the result."""
    vector, outputs = trial.vectors[0], len(trial.vectors[0])
    if outputs < 2:
        return ""
    without = [[np.zeros_like(leaf) if j == k else leaf for j, leaf in enumerate(vector)] for k in range(outputs)]

    def plain(moving: Vector, data: Vector, vectors: list[Vector]) -> Any:
        return trial.apply(trial.rule.raw, moving, data, vectors)[1]

    found = trial.measured(plain, trial.moving, trial.data, without)
    ours = np.asarray(results[0][i], np.float64)
    for path, value, allowed in zip(_entering(trial), found.value, found.tolerance, strict=True):
        if np.all(np.abs(ours - value[i]) <= 2 * (allowed[i] + truth.results[0][1][i])):
            return f"the {trial.word} of {path} is left out"
    return ""


def _entering(trial: Trial) -> Iterator[str]:
    if trial.word == "cotangent":
        return (name for name, _ in trial.rule.outputs)
    return iter(trial.rule.given.moving_paths)
