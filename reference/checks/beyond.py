"""A rule beyond the given point and precision: in float64, at other arguments, and differentiated again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from reference.checks import faults
from reference.checks.by_values import by_values, with_slopes
from reference.checks.disputes import Disputes, Judged, explained
from reference.checks.linear_rows import Trial, Vector, arrays
from reference.checks.near import scaled, shuffled
from reference.compare import compare_leaf
from reference.jaxprs import float_types
from reference.report import Row
from reference.xla import quick

FACTORS = (16.0, 1 / 16, -1.0)
"""By which `thorough` scales the arguments; a product that leaves the function's domain is left out, with a note."""


def in_double(trial: Trial, prepared: Callable[..., Trial], asked: DTypeLike | None) -> tuple[list[Row], list[str]]:
    """Rows on the rule run in float64, where a fault shows that narrower rounding hides, and notes.

    Where a precision was asked for, there are none. A rule that computes in a narrower precision inside, or that cannot
    be run in float64, is left out with a note.
    """
    if asked is not None or trial.rule.given.working == np.float64:
        return [], []
    try:
        wide = prepared("float64", called=False)
        wide = wide if trial.valued is None else by_values(wide)
        with wide.rule.given.precision():
            both = {"the rule": wide.rule.f, "the plain function": wide.rule.raw}
            applied = {name: partial(wide.apply, function) for name, function in both.items()}
            narrow = narrower(applied, wide.moving, wide.data, wide.vectors[:1])
            if narrow:
                return [], [f"not repeated in float64: {narrow}"]
            return without_kinks(_at(wide, "in float64: "))
    except Exception as error:  # the precision that was asked for is proven; this is more than that
        return [], [f"not repeated in float64: {faults.one_line(error)}"]


def without_kinks(found: tuple[list[Row], list[str]]) -> tuple[list[Row], list[str]]:
    """The rows, and of the notes those on what was left out: the kinks have been told of in the other precision."""
    return found[0], [note for note in found[1] if "left out" in note]


def narrower(functions: Mapping[str, Callable[..., Any]], *args: Any) -> str:
    """In words, the first of functions, by their names, that computes in less than float64 when given that; or ""."""
    for name, function in functions.items():
        kinds = set(map(str, float_types(jax.make_jaxpr(function)(*args).jaxpr)))
        if less := " and ".join(sorted(kinds - {"float64"})):
            return (
                f"{name} computes in {less} inside; give an array that it makes or closes over the dtype of an argument"
            )
    return ""


def _at(trial: Trial, prefix: str) -> tuple[list[Row], list[str]]:
    """Rows on every result at a trial's point, compiled quickly, with disputes settled; and notes."""

    def plain(moving: Vector, data: Vector, vectors: list[Vector]) -> Any:
        return trial.apply(trial.rule.raw, moving, data, vectors)

    def by_rule(moving: Vector, data: Vector, vectors: list[Vector]) -> Any:
        return trial.apply(trial.rule.f, moving, data, vectors)

    given = arrays(trial.moving), arrays(trial.data), [arrays(vector) for vector in trial.vectors]
    found = trial.measured(plain, trial.moving, trial.data, trial.vectors)
    _, results = jax.jit(by_rule, compiler_options=quick())(*given)
    truth, notes, judged = trial.truth_from(found), list[str](), dict[str, Judged]()
    if trial.valued is not None:
        truth, notes = with_slopes(trial, truth)
    rows = list(trial.results(results, truth, prefix))
    if trial.valued is None and any(row.verdict != "pass" for row in rows):
        truth, notes, judged = Disputes(trial, truth, results).settle()
        rows = [explained(row, judged) for row in trial.results(results, truth, prefix)]
    known = all(np.isfinite(leaf).all() for each in truth.results for leaf in (*each[0], *each[1]))
    if not known and not any(row.verdict == "fail" for row in rows):
        return [], [f"{prefix}left out, since the reference or its tolerance is not finite there"]
    return trial.hinted(rows), [prefix + note for note in notes]


def thoroughly(trial: Trial) -> tuple[list[Row], list[str]]:
    """Rows at other points and on the second derivative, and notes on what could not be looked at."""
    rows, notes = list[Row](), list[str]()
    points = [(f"at {factor:g} times the arguments: ", scaled(trial.moving, factor)) for factor in FACTORS]
    points.append(("at arguments in another order: ", shuffled(trial.moving, trial.seed)))
    for prefix, moving in points:
        try:
            found, said = _at(replace(trial, rule=replace(trial.rule, given=trial.rule.given.moved(moving))), prefix)
        except Exception as error:
            found, said = [], [f"{prefix}left out: {faults.one_line(error)}"]
        rows, notes = rows + found, notes + said
    try:
        rows += _second(trial)
    except Exception as error:
        notes.append(f"the second derivative is left out: {faults.one_line(error)}")
    return rows, notes


def _second(trial: Trial) -> Iterator[Row]:
    """Rows on the derivative of the result along a seeded direction."""
    rng = np.random.default_rng([trial.seed, 2])
    along = [rng.normal(size=np.shape(leaf)).astype(leaf.dtype) for leaf in trial.moving]

    def second(function: Callable[..., Any]) -> Callable[..., Vector]:
        def at(moving: Vector, data: Vector, vector: Vector, along: Vector) -> Vector:
            first = lambda m: trial.apply(function, m, data, [vector])[1][0]  # noqa: E731
            return jax.jvp(first, (moving,), (along,))[1]

        return at

    vector = trial.vectors[0]
    given = (arrays(trial.moving), arrays(trial.data), arrays(vector), arrays(along))
    exact = trial.measured(second(trial.rule.raw), *given)
    ours = jax.jit(second(trial.rule.f), compiler_options=quick())(*given)
    told: Any = {"kind": "contract", "witness": "the second derivative of the plain function"}
    for name, by_hand, value, allowed in zip(trial.names, ours, exact.value, exact.tolerance, strict=True):
        yield compare_leaf(f"differentiated again: {name}", by_hand, value, allowed, **told)
