"""A gradient by hand beyond the given point and precision, and rows on it in which nothing could have failed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.beyond import FACTORS, narrower, without_kinks
from reference.checks.disputes import explained
from reference.checks.gradient_trial import NEEDS_VALUES, Subject, Trial
from reference.checks.near import scaled, shuffled
from reference.checks.vacuous import TRIED, all_ones, all_zeros, elsewhere, vacuous, zero_here_alone
from reference.compare import compare_leaf
from reference.report import Row
from reference.tolerance.rounding import Measured, measure
from reference.xla import quick

Said = tuple[list[Row], list[str]]


def in_double(trial: Trial, prepared: Callable[[Any], Subject]) -> Said:
    """Rows on the gradient run in float64, where a fault shows that narrower rounding hides, and notes."""
    if trial.subject.given.working == np.float64:
        return [], []
    try:
        wide = replace(trial, subject=prepared("float64"))
        with wide.subject.given.precision():
            given = wide.subject.given
            both = {"fun": wide.subject.loss, "grad_fun": wide.subject.by_hand}
            try:
                narrow = narrower(both, given.fresh("moving"), given.fresh("data"))
            except NEEDS_VALUES:
                return [], ["not repeated in float64: grad_fun is not traced, so it may compute in less inside"]
            if narrow:
                return [], [f"not repeated in float64: {narrow}"]
            return without_kinks(_at(wide, "in float64: "))
    except Exception as error:  # the precision that was asked for is proven; this is more than that
        return [], [f"not repeated in float64: {faults.one_line(error)}"]


def _at(trial: Trial, prefix: str) -> Said:
    """Rows on every leaf at a trial's point, with disputes settled, and notes."""
    subject = trial.subject
    points, measured = trial.measured(False)
    flat = subject.flat(subject.by_hand(subject.given.fresh("moving"), subject.given.fresh("data")))
    measured, notes, judged = trial.settled(flat, measured, points)
    rows = [explained(row, judged) for row in trial.compared([flat], measured, prefix)]
    known = all(np.isfinite(leaf).all() for leaf in (*measured.value[0][1], *measured.tolerance[0][1]))
    if not known and not any(row.verdict == "fail" for row in rows):
        return [], [f"{prefix}left out, since the reference or its tolerance is not finite there"]
    return trial.hinted(rows), [prefix + note for note in notes]


def elsewhere_too(trial: Trial) -> Said:
    """Rows at larger, smaller and other arguments and on the second derivative, and notes on what is left out."""
    rows, notes = list[Row](), list[str]()
    here = trial.subject.given.fresh("moving")
    points = [(f"at {factor:g} times the arguments: ", scaled(here, factor)) for factor in FACTORS]
    points.append(("at arguments in another order: ", shuffled(here, trial.seed)))
    for prefix, moving in points:
        try:
            given = trial.subject.given.moved(moving)
            found, said = _at(replace(trial, subject=replace(trial.subject, given=given)), prefix)
        except Exception as error:
            found, said = [], [f"{prefix}left out: {faults.one_line(error)}"]
        rows, notes = rows + found, notes + said
    try:
        rows += _second(trial)
    except Exception as error:
        notes.append(f"the second derivative is left out: {faults.one_line(error)}")
    return rows, notes


def _second(trial: Trial) -> Iterator[Row]:
    """Rows on the derivative of the gradient along a seeded direction, as by jax.jvp of jax.grad of fun."""
    subject, plan, given = trial.subject, trial.plan, trial.subject.given
    moving, data = given.fresh("moving"), given.fresh("data")
    rng = np.random.default_rng([trial.seed, 2])
    along = [jnp.asarray(rng.normal(size=np.shape(leaf)), leaf.dtype) for leaf in moving]

    def by_hand(moving: list[Any], data: list[Any]) -> list[Any]:
        return subject.flat(subject.by_hand(moving, data))[1]

    def second(gradient: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        return lambda moving, data, along: plan.seen(jax.jvp(lambda at: gradient(at, data), (moving,), (along,))[1])

    at = list(map(jnp.asarray, moving)), data, along
    exact = measure(second(jax.grad(subject.loss)), *at, dtype=given.working, samples=trial.samples, seed=trial.seed)
    ours = jax.jit(second(by_hand), compiler_options=quick())(*at)
    told: Any = {"kind": "contract", "witness": "the second derivative of fun"}
    columns = zip(plan.paths, plan.projected, ours, exact.value, exact.tolerance, strict=True)
    for path, projected, mine, value, allowed in columns:
        name = f"differentiated again: {path}{' projected' if projected else ''}"
        yield compare_leaf(name, np.asarray(mine), value, allowed, **told)


def without_vacuous(trial: Trial, rows: Sequence[Row], measured: Measured) -> Said:
    """The rows with those inconclusive in which nothing could have failed, and notes on what is zero."""
    given, paths, gradient = trial.subject.given, trial.plan.paths, measured.value[0][1]
    moving = given.fresh("moving")
    empty = [not np.size(leaf) for leaf in moving]
    seen = {row.path for row in rows if row.scale}  # the function's values may have settled what JAX takes for zero
    zero = [
        not np.any(slope) and not none and path not in seen
        for slope, none, path in zip(gradient, empty, paths, strict=True)
    ]
    here_alone = [False] * len(zero)
    if any(zero):
        with given.precision():
            at = elsewhere(jax.grad(trial.subject.loss), moving, given.fresh("data"))
            here_alone = zero_here_alone(moving, zero, at, trial.seed)
    columns = list(zip(paths, zero, here_alone, empty, strict=True))
    notes = [f"{path} is empty: there is nothing to compare" for path, *_, none in columns if none]
    notes += [
        f"the gradient for {path} is zero here and at {TRIED} points beside: only a fault that makes it other than zero"
        " can show"
        for path, is_zero, alone, _ in columns
        if is_zero and not alone
    ]
    notes += all_zeros(paths, moving, {path for path, _, alone, _ in columns if alone})
    notes += all_ones(paths, moving) if len(measured.value) == 1 else []  # a second point has other values
    return vacuous(rows, paths, here_alone, empty), notes
