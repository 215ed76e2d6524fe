"""Rows on a rule taken in parts, by one argument or from one output at a time, and on its transpose."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from reference.checks import faults
from reference.checks.arguments import Arguments
from reference.checks.disputes import Disputes, explained
from reference.checks.linear_rows import Trial, Truth, Vector, against, arrays, drawn
from reference.compare import compare_leaf
from reference.report import Row


def parts_of_vjp(trial: Trial, truth: Truth) -> Iterator[Row]:
    """Rows on pulling back to one argument alone, and from one output alone: the rule then gets symbolic zeros."""
    rule, vector = trial.rule, trial.vectors[0]
    wanted, groups = truth.results[0], by_argument(rule.given)
    if len(groups) > 1:
        found: dict[int, Any] = {}
        for group in groups:
            pull = jax.vjp(_of_some(trial, group), _of(arrays(trial.moving), group))[1]
            found |= zip(group, pull(arrays(vector))[0], strict=True)
        alone = [found[i] for i in range(len(found))]
        yield from against(trial.names, alone, wanted, "by one argument alone: ", kind="contract")
    if len(vector) > 1:
        parts = []
        for k, part in enumerate(arrays(vector)):
            one = lambda m, k=k: rule.floats(rule.f, m, arrays(trial.data))[k]  # noqa: E731
            parts.append(jax.vjp(one, arrays(trial.moving))[1](part)[0])
        yield from against(trial.names, _sums(parts), wanted, "sum over outputs: ", len(vector), "contract")


def parts_of_jvp(trial: Trial, truth: Truth) -> Iterator[Row]:
    """Rows on pushing forward from one argument alone, with symbolic zeros for the others; the parts must add up."""
    rule, vector = trial.rule, trial.vectors[0]
    groups = by_argument(rule.given)
    if len(groups) < 2:
        return
    parts = []
    for group in groups:
        point, along = _of(arrays(trial.moving), group), _of(arrays(vector), group)
        parts.append(jax.jvp(_of_some(trial, group), (point,), (along,))[1])
    wanted = truth.results[0]
    yield from against(trial.names, _sums(parts), wanted, "sum over arguments: ", len(groups), "contract")


def by_argument(given: Arguments) -> list[list[int]]:
    """The numbers of the differentiated leaves, grouped by argument."""
    owners = [path[: path.index("]")] for path in given.moving_paths]
    return [[i for i, its in enumerate(owners) if its == owner] for owner in dict.fromkeys(owners)]


def _of_some(trial: Trial, group: Sequence[int]) -> Callable[[Vector], Vector]:
    """The rule as a function of the leaves in a group alone."""
    rule = trial.rule
    return lambda part: rule.floats(rule.f, _with(arrays(trial.moving), group, part), arrays(trial.data))


def _of(leaves: Vector, group: Sequence[int]) -> Vector:
    return [leaves[i] for i in group]


def _with(leaves: Vector, group: Sequence[int], part: Vector) -> Vector:
    values = dict(zip(group, part, strict=True))
    return [values.get(i, leaf) for i, leaf in enumerate(leaves)]


def _sums(parts: list[Vector]) -> Vector:
    return [np.sum([np.asarray(leaf, np.float64) for leaf in column], axis=0) for column in zip(*parts, strict=True)]


def transposed(trial: Trial, truth: Truth, promised: bool) -> tuple[list[Row], list[str]]:
    """Rows on JAX's transpose of the rule and on <u, J v> = <J^T u, v>, and notes.

    Args:
        trial: what is tested.
        truth: what the reference says.
        promised: whether there is a rule, which JAX must be able to transpose.
    """
    rule, given, v = trial.rule, trial.rule.given, trial.vectors[0]
    u = drawn([kind for _, kind in rule.outputs], trial.seed + 1)[0]
    back = replace(trial, apply=rule.pullback, names=given.moving_paths, vectors=[u], word="cotangent")
    try:
        pulled, pushed = back.by_rule([u])[1][0], trial.by_rule([v])[1][0]
    except Exception as error:  # JAX cannot transpose the rule: that is the finding, if there is a rule
        told = f"raised {faults.one_line(error)}"
        return ([faults.contract("transpose", told)], []) if promised else ([], [f"no transpose to compare: it {told}"])

    def plain(moving: Vector, data: Vector, u: Vector, v: Vector) -> Any:
        back = rule.pullback(rule.raw, moving, data, [u])[1][0]
        forth = rule.pushforward(rule.raw, moving, data, [v])[1][0]
        return back, _dot(u, forth) - _dot(back, v)

    rows: list[Row] = []
    notes: list[str] = []
    try:
        exact = trial.measured(plain, trial.moving, trial.data, u, v)
        (value, _), (bars, allowed) = exact.value, exact.tolerance
        there = replace(truth, results=[(value, bars)])
        there, notes, judged = Disputes(back, there, [pulled]).settle()
        found = against(
            given.moving_paths, pulled, there.results[0], "transposed: ", kind="contract", witness=back.program
        )
        rows += [explained(row, judged) for row in found]
    except Exception as error:  # a plain function without reverse mode (a while loop) has no transpose to compare
        notes.append(f"the transpose is held against J alone: the plain function has none ({faults.one_line(error)})")
        pairs = zip(u, truth.results[0][1], strict=True)
        allowed = 2 * sum(float(np.sum(np.abs(np.asarray(a, np.float64)) * tol)) for a, tol in pairs)
    sides = (float(_dot(_wide(u), _wide(pushed))), float(_dot(_wide(pulled), _wide(v))))
    row = compare_leaf("<u, J v> = <J^T u, v>", *sides, allowed, kind="contract", witness="its transpose")
    return [*rows, row], notes


def _wide(leaves: Vector) -> Vector:
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def _dot(a: Vector, b: Vector) -> Any:
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))
