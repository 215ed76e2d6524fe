"""Rows that compare a gradient with further ways to differentiate, other than jax.grad."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reference.report import Row
from reference.witnesses.derivatives import complex_step, forward_mode
from reference.witnesses.differences import finite_differences
from reference.witnesses.points import Witness
from reference.witnesses.voting import LeafVote, vote

WAYS: dict[str, Callable[..., Witness]] = {
    "forward mode": forward_mode,
    "complex step": complex_step,
    "differences": finite_differences,
}
Leaves = Sequence[Any]
_NAME = "leaves"


def chosen_ways(witnesses: str | Sequence[str]) -> list[str]:
    """The names of the requested ways: "all", or some of `WAYS`.

    Raises:
        ValueError: a name that is not one of them, or no name.
    """
    if not isinstance(witnesses, Sequence):
        raise ValueError(f"witnesses are 'all' or some of {', '.join(WAYS)}, got {witnesses!r}")
    names = list(WAYS) if witnesses == "all" else [witnesses] if isinstance(witnesses, str) else list(witnesses)
    for name in names:
        if name not in WAYS:
            raise ValueError(f"witnesses are 'all' or some of {', '.join(WAYS)}, got {name!r}")
    return names


def witness_rows(
    function: Callable[[list[Any]], Any],
    moving: list[Any],
    paths: Sequence[str],
    by: Mapping[str, tuple[Leaves, Leaves]],
    witnesses: str | Sequence[str],
    seed: int,
) -> tuple[list[Row], list[str]]:
    """Rows of kind "witness", and notes on who stands alone and on witnesses that cannot answer here.

    Args:
        function: takes a list of arrays and returns one real number.
        moving: that list.
        paths: names of its leaves.
        by: "manual" and "jax.grad", each with its gradient and an error bar for every entry.
        witnesses: "all", or names from `WAYS`.
        seed: of directions, if there are too many entries to take one by one.
    """
    found = [WAYS[name](function, moving, seed=seed) for name in chosen_ways(witnesses)]
    notes = [f"{witness.name}: {witness.why}" for witness in found if witness.why]
    heard = [witness for witness in found if witness.available]
    if not heard:
        return [], notes
    directions = heard[0].directions
    values, errors = (_seen({who: pair[i] for who, pair in by.items()}, directions, bool(i)) for i in (0, 1))
    values |= {witness.name: witness.value for witness in heard}
    errors |= {witness.name: witness.error for witness in heard}
    ballot = vote(values, errors, name=_NAME)
    named = {f"{_NAME}[{i}]": path for i, path in enumerate(paths)} | {_NAME: "slopes along seeded directions"}
    rows = [replace(row, path=named[row.path]) for row in ballot.rows if row.witness != "jax.grad"]
    odd = [leaf for leaf in ballot.leaves if leaf.outcome != "agree"]
    notes += [_renamed(note, named) for note in ballot.notes]
    return rows, notes + ([_told(leaf, named[leaf.path]) for leaf in odd] or [ballot.leaves[0].text])


def _seen(trees: Mapping[str, Leaves], directions: np.ndarray | None, bars: bool) -> dict[str, Any]:
    """Each gradient in the witnesses' form: leaf by leaf, or as slopes along their directions."""
    wide = {who: [np.asarray(leaf, np.float64) for leaf in leaves] for who, leaves in trees.items()}
    if directions is None:
        return dict(wide)
    flat = {who: np.concatenate([leaf.ravel() for leaf in leaves]) for who, leaves in wide.items()}
    return {who: (np.abs(directions) if bars else directions) @ vector for who, vector in flat.items()}


def _told(leaf: LeafVote, path: str) -> str:
    return f"{path}: {leaf.text.replace(leaf.path, path)}"


def _renamed(note: str, named: Mapping[str, str]) -> str:
    path, colon, rest = note.partition(":")
    return f"{named.get(path, path)}{colon}{rest}"
