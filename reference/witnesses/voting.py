"""Find out which derivative is wrong: compare several derivatives of one function, with error bars, pair by pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import jax
import numpy as np

from reference.compare import compare_leaf
from reference.report import Row
from reference.witnesses.derivatives import complex_step, forward_mode
from reference.witnesses.differences import DifferenceCurve, Taylor, curve_at, finite_differences, taylor_at
from reference.witnesses.points import EPS, MOST, Point, Witness
from reference.xla import quick

Tree = Any
MANUAL = "manual"


@dataclass(frozen=True)
class LeafVote:
    """The vote on one leaf.

    Attributes:
        path: of the leaf.
        outcome: "agree"; "alone": all others agree without `alone`; "undecided": two disagree and there is no third
            to decide; "split": anything else.
        alone: the candidate that stands alone, or "".
        text: the outcome in words.
    """

    path: str
    outcome: str
    alone: str
    text: str


@dataclass(frozen=True)
class Vote:
    """The vote on every leaf.

    Attributes:
        leaves: one vote for each leaf.
        rows: "manual", if it is a candidate, against each other candidate; `kind` is "witness".
        notes: entries left out of the rows.
    """

    leaves: tuple[LeafVote, ...]
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agree(self) -> bool:
        """Whether all candidates agree on every leaf."""
        return all(leaf.outcome == "agree" for leaf in self.leaves)

    @property
    def alone(self) -> tuple[str, ...]:
        """The candidates that stand alone on some leaf."""
        return tuple(dict.fromkeys(leaf.alone for leaf in self.leaves if leaf.alone))

    def __str__(self) -> str:
        told = [leaf for leaf in self.leaves if leaf.outcome != "agree"] or self.leaves[:1]
        return "\n".join(f"{leaf.path}: {leaf.text}" if leaf.outcome != "agree" else leaf.text for leaf in told)


def vote(candidates: Mapping[str, Tree], errors: Mapping[str, Tree], *, name: str = "gradients") -> Vote:
    """Compare every pair within the sum of their error bars, leaf by leaf.

    Args:
        candidates: name -> a tree; all of one structure and shapes. Leaves of dtype float0 are left out.
        errors: name -> a tree like it with the error bar of each entry; inf where it is unknown. A candidate whose
            errors are unknown on a whole leaf does not vote on it.
        name: the name of the trees, for paths.

    Raises:
        ValueError: fewer than two candidates, one without errors, or trees that differ in structure or shape.
    """
    if len(candidates) < 2:
        raise ValueError(f"a vote needs two candidates, got {', '.join(candidates) or 'none'}")
    if missing := [who for who in candidates if who not in errors]:
        raise ValueError(f"no errors are given for {', '.join(missing)}")
    leaves = _leaves(name, candidates, errors)
    votes, rows, notes = [], list[Row](), list[str]()
    for path, values, bars in leaves:
        voters = [who for who in values if np.isfinite(bars[who]).any() or not bars[who].size]
        votes.append(_leaf_vote(path, voters, values, bars))
        if MANUAL in values:
            for witness in values:
                if witness != MANUAL:
                    _add_row(rows, notes, path, witness, values, bars)
    return Vote(tuple(votes), tuple(rows), tuple(notes))


def _leaves(
    name: str, candidates: Mapping[str, Tree], errors: Mapping[str, Tree]
) -> list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """(path, name -> value, name -> error) of every leaf."""
    first = next(iter(candidates))
    paths, structure = jax.tree_util.tree_flatten_with_path(candidates[first])
    flat: dict[str, tuple[list, list]] = {}
    for who, tree in candidates.items():
        for part in (tree, errors[who]):
            other: Any = jax.tree.structure(part)
            if other != structure:
                raise ValueError(f"{who} has structure\n  {other}\nbut {first}\n  {structure}")
        flat[who] = jax.tree.leaves(tree), jax.tree.leaves(errors[who])
    found = []
    for i, (path, leaf) in enumerate(paths):
        if getattr(leaf, "dtype", None) == jax.dtypes.float0:
            continue
        values = {who: np.asarray(flat[who][0][i], np.float64) for who in candidates}
        bars = {who: np.asarray(flat[who][1][i], np.float64) for who in candidates}
        full = name + jax.tree_util.keystr(path)
        for who in candidates:
            if values[who].shape != values[first].shape or bars[who].shape != values[first].shape:
                shapes = f"{values[who].shape} with errors {bars[who].shape}"
                raise ValueError(f"{full} of {who} is {shapes}, but of {first} {values[first].shape}")
        found.append((full, values, bars))
    return found


def _excess(a: np.ndarray, b: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The difference of two leaves where it is more than allowed, else 0."""
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)) | np.isinf(allowed), 0.0, np.abs(a - b))
    apart = np.where(np.isnan(apart), np.inf, apart)
    return np.where(apart > allowed, apart, 0.0)


def _leaf_vote(path: str, voters: list[str], values: dict[str, np.ndarray], bars: dict[str, np.ndarray]) -> LeafVote:
    excess = {(p, q): _excess(values[p], values[q], bars[p] + bars[q]) for p, q in combinations(voters, 2)}
    apart = {pair: e for pair, e in excess.items() if e.any()}
    if not apart:
        return LeafVote(path, "agree", "", f"{_list(voters)} agree")
    pair, worst = max(apart.items(), key=lambda item: item[1].max())
    index = np.unravel_index(int(np.argmax(worst)), worst.shape)
    at = f"[{', '.join(map(str, index))}]" if index else ""
    place = f" ({path}{at}: {pair[0]} {values[pair[0]][index]:.9g}, {pair[1]} {values[pair[1]][index]:.9g})"
    suspects = [who for who in voters if all(who in pair for pair in apart)]
    others = [who for who in voters if who not in suspects]
    if len(suspects) == 1:
        (who,) = suspects
        sure = [o for o in others if (who, o) in apart or (o, who) in apart]
        coarse = [o for o in others if o not in sure]
        text = f"{who} stands alone: {_list(sure)} agree{_cannot(coarse)}{place}"
        return LeafVote(path, "alone", who, text)
    if len(suspects) == 2:
        text = f"{_list(suspects)} disagree, and nothing else can tell which is right{_cannot(others)}{place}"
        return LeafVote(path, "undecided", "", text)
    groups = " against ".join(_list(group) for group in _groups(voters, set(apart)))
    return LeafVote(path, "split", "", f"they split: {groups}{place}")


def _groups(voters: list[str], apart: set[tuple[str, str]]) -> list[list[str]]:
    """The largest set of voters that agree pairwise, the largest of the rest, and so on."""
    groups, rest = [], list(voters)
    while rest:
        sizes = range(len(rest), 0, -1)
        sets = (list(s) for size in sizes for s in combinations(rest, size))
        groups.append(next(s for s in sets if not any(pair in apart for pair in combinations(s, 2))))
        rest = [who for who in rest if who not in groups[-1]]
    return groups


def _cannot(who: list[str]) -> str:
    return f"; {_list(who)} cannot tell" if who else ""


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names) or "nobody"


def _add_row(
    rows: list[Row],
    notes: list[str],
    path: str,
    witness: str,
    values: dict[str, np.ndarray],
    bars: dict[str, np.ndarray],
) -> None:
    """Add the row of manual against one witness, over the entries with known errors."""
    ours, theirs, allowed = values[MANUAL], values[witness], bars[MANUAL] + bars[witness]
    known = np.isfinite(allowed)
    if not known.all():
        notes.append(f"{path}: {witness} says nothing on {int((~known).sum())} of {known.size} entries")
        if not known.any():
            return
    shown = (ours, theirs, allowed) if known.all() else (ours[known], theirs[known], allowed[known])
    row = compare_leaf(path, *shown, kind="witness", witness=witness)
    if not known.all():
        where = tuple(int(i) for i in np.argwhere(known)[row.where[0]])
        row = replace(row, shape=ours.shape, where=where)
    rows.append(row)


@dataclass(frozen=True, eq=False)
class Panel:
    """Every witness's answer on one gradient.

    Attributes:
        witnesses: jax.grad first, then each other way, available or not.
        vote: the vote of all on every leaf.
        taylor: Taylor's remainder with the gradient by hand; None exactly at a kink.
        curve: error of the finite difference against the gradient by hand, by step.
        notes: entries that a witness could not compute, and why.
    """

    witnesses: tuple[Witness, ...]
    vote: Vote
    taylor: Taylor | None
    curve: DifferenceCurve
    notes: tuple[str, ...]


def panel(fun: Callable[..., Any], *args: Any, manual: Tree, argnum: int = 0, most: int = MOST, seed: int = 0) -> Panel:
    """Compare a gradient by hand with jax.grad, forward mode, complex step and differences, all in float64.

    Args:
        fun: a scalar function, JAX-traceable.
        *args: its arguments, any pytrees.
        manual: the gradient with respect to one of them, a tree like it; leaves that are not floats are not read.
        argnum: number of that argument.
        most: above this many elements, slopes along seeded directions are compared instead of every element.
        seed: of all random numbers.

    Raises:
        ValueError: fun returns no scalar float, the argument holds no floats, or `manual` is not like it.
    """
    point = Point(fun, args, argnum)
    by_hand = point.tree(point.vector(manual))
    with jax.enable_x64(True):
        reverse = jax.jit(jax.grad(fun, argnum, allow_int=True), compiler_options=quick())(*point.args)
    others = [way(fun, *args, argnum=argnum, most=most, seed=seed) for way in _WAYS]
    forward = others[0]
    elementwise, directions = point.tree(point.vector(reverse)), forward.directions
    grad = Witness("jax.grad", elementwise, _grad_error(point, forward, elementwise))
    if directions is not None:
        along = directions @ point.vector(reverse)
        grad = Witness("jax.grad", along, _finite(forward.error), directions=directions)
        by_hand = directions @ point.vector(manual)
    heard = [w for w in (grad, *others) if w.available]
    candidates = {MANUAL: by_hand} | {w.name: w.value for w in heard}
    errors = {MANUAL: grad.error} | {w.name: w.error for w in heard}
    ballot = vote(candidates, errors, name="gradients" if directions is None else "gradients along seeded directions")
    notes = [f"{w.name}: {w.why}" for w in others if w.why]
    remainder = None if forward.why else taylor_at(point, manual, seed)  # at a kink there is no expansion
    return Panel((grad, *others), ballot, remainder, curve_at(point, manual, seed), (*notes, *ballot.notes))


_WAYS = (forward_mode, complex_step, finite_differences)


def _finite(error: np.ndarray) -> np.ndarray:
    """Error bars with the largest known one where an entry has none: at a kink jax.grad follows a convention."""
    known = error[np.isfinite(error)]
    return np.where(np.isfinite(error), error, known.max() if known.size else 64 * EPS)


def _grad_error(point: Point, forward: Witness, value: Tree) -> Tree:
    """Error bars of jax.grad, taken to be those of forward mode."""
    return point.tree(_finite(point.vector(forward.error))) if forward.directions is None else value
