"""Entries too small beside their tolerance to see a fault in: look through single outputs, and count the rest."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reference.checks.linear_rows import Trial, Truth, Vector, arrays
from reference.compare import blind_entries, compare_leaf
from reference.report import Row

PROBES = 3  # outputs that are looked at alone


def probed(trial: Trial, truth: Truth, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows on single outputs that blind entries depend on, and notes on the entries that stay blind.

    Only where the rest is proven: elsewhere there is a worse finding.
    """
    unseen = [_unseen(trial, truth.results, i) for i in range(len(trial.names))]
    if trial.word != "cotangent" or any(row.verdict == "fail" for row in rows) or not any(map(np.any, unseen)):
        return [], _notes(trial, unseen)
    try:
        probes = _probes(trial, unseen)
        if not probes:
            return [], _notes(trial, unseen)

        def plain(moving: Vector, data: Vector, vectors: list[Vector]) -> Any:
            return trial.apply(trial.rule.raw, moving, data, vectors)[1]

        found = trial.measured(plain, trial.moving, trial.data, probes)
        wanted = list(zip(found.value, found.tolerance, strict=True))
        ours = trial.by_rule(probes)[1]
    except Exception:  # probes are extra: what a function cannot give them is said by the notes
        return [], _notes(trial, unseen)
    more = []
    for i, name in enumerate(trial.names):
        columns = [
            np.stack([np.asarray(one[i], np.float64) for one in side]) for side in (ours, *zip(*wanted, strict=True))
        ]
        told: Any = {"kind": "contract", "witness": trial.program, "leading": "for output"}
        row = compare_leaf(f"from single outputs: {name}", *columns, **told)
        if row.verdict != "inconclusive":  # an output that a leaf does not depend on decides nothing about it
            more.append(row)
        unseen[i] &= _unseen(trial, wanted, i)
    return more, _notes(trial, unseen)


def _unseen(trial: Trial, results: Sequence[tuple[Vector, Vector]], i: int) -> np.ndarray:
    """Which entries of a leaf no vector shows: in some it is other than zero, and in all of these it is blind."""
    blind = np.stack([blind_entries(np.asarray(values[i]), np.asarray(allowed[i])) for values, allowed in results])
    seen = np.stack([np.asarray(values[i]) != 0 for values, _ in results]) & ~blind
    return np.asarray(blind.any(axis=0) & ~seen.any(axis=0))


def _probes(trial: Trial, unseen: list[np.ndarray]) -> list[Vector]:
    """Unit vectors, each of the output entry that depends most on a blind entry."""
    wanted = [(i, tuple(at)) for i, where in enumerate(unseen) for at in np.argwhere(where)]
    some = [wanted[k] for k in np.linspace(0, len(wanted) - 1, min(PROBES, len(wanted))).astype(int)]
    outputs = [np.zeros(kind.shape, kind.dtype) for _, kind in trial.rule.outputs]
    if sum(leaf.size for leaf in outputs) < 2:
        return []  # the one output is what has been looked at
    chosen = set()
    for i, at in some:
        direction = [np.zeros_like(leaf) for leaf in trial.moving]
        direction[i][at] = 1
        moved = jax.jvp(
            lambda m: trial.rule.floats(trial.rule.raw, m, arrays(trial.data)),
            (arrays(trial.moving),),
            (arrays(direction),),
        )[1]
        sizes = [np.abs(np.asarray(leaf, np.float64)) for leaf in moved]
        k = int(np.argmax([size.max(initial=0) for size in sizes]))
        chosen.add((k, int(np.argmax(sizes[k]))))
    probes = []
    for k, at in sorted(chosen):
        probe = [leaf.copy() for leaf in outputs]
        probe[k].ravel()[at] = 1
        probes.append(probe)
    return probes


def _notes(trial: Trial, unseen: Sequence[np.ndarray]) -> list[str]:
    return [
        f"{name}: {np.count_nonzero(where)} of {where.size} entries are so small beside their tolerance that a fault of"
        f" their own size would not show{'' if trial.approximation else '; a wider precision shows more'}"
        for name, where in zip(trial.names, unseen, strict=True)
        if where.any()
    ]
