"""The checks of a user's jax.custom_vjp or jax.custom_jvp against JAX's derivative of the plain function."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from reference.checks import faults
from reference.checks.approximation import allowed_text, require_approximation
from reference.checks.arguments import Arguments
from reference.checks.bare_rule import Findings, bare_vjp
from reference.checks.beyond import in_double, thoroughly
from reference.checks.culprit import naming_lost
from reference.checks.gradient import TRANSFORMS, known_transforms
from reference.checks.held_rule import held_rule
from reference.checks.linear_rows import Trial, Truth, combined, drawn
from reference.checks.named import by_name, errors_by_name
from reference.checks.proof import Told, begin, proven, truth_of
from reference.checks.rule_parts import parts_of_jvp, parts_of_vjp, transposed
from reference.checks.rule_subject import like, primal_rows, rule_under_test, tangents_like
from reference.checks.vacuous import without_vacuous
from reference.report import Report, Row
from reference.tolerance.rounding import require_samples

Tree = Any


@errors_by_name
def check_vjp(
    f: Callable[..., Any],
    *args: Any,
    cotangents: Tree = None,
    argnums: int | Sequence[int] | None = None,
    nondiff_argnums: Sequence[int] = (),
    dtype: DTypeLike | None = None,
    samples: int = 16,
    seed: int = 0,
    raw: Callable[..., Any] | None = None,
    transforms: str | Sequence[str] = TRANSFORMS,
    approximation: float = 0.0,
    thorough: bool = False,
) -> Report:
    """Prove a jax.custom_vjp right at a point, or say what its backward rule does wrong.

    Where the rule and JAX's derivative of the plain function differ, the function's own values are asked before it is
    called wrong: at a kink any slope between the two sides passes, with a note.

    Args:
        f: a jax.custom_vjp with its rules defined, or a jit or a functools.partial of one; with `raw`, any function
            that JAX can pull back through.
        args: its arguments; pytrees, integers and static values may be among them.
        cotangents: the tree of f's output, to pull back; None draws two, normal and seeded, for every output.
        argnums: the arguments to differentiate by; None means all that hold floats.
        nondiff_argnums: static arguments besides those that `f` declares.
        dtype: to round float arguments to and to run `f` in. None leaves each as it is, and repeats the comparison
            in float64, where a small fault shows that rounding hides, if the rule can be run in it.
        samples: of Monte Carlo arithmetic.
        seed: of the cotangents and the rounding noise.
        raw: the plain function, in the place of the one inside `f`. One that JAX cannot differentiate is asked for
            values alone, and a note says so.
        transforms: any of "eager", "jit" and "vmap".
        approximation: how far the rule may be off by intent, relative to the largest entry of a leaf: the tolerance of
            a solver behind an implicit derivative or an adjoint.
        thorough: whether to check also at other points, with larger and smaller arguments, and the second derivative.

    Returns:
        Rows on `primal` of f and of its forward rule, on every entry of every result (the first index is the number
        of the cotangent), and on its promises: types, linearity, zero to zero, large and small cotangents, pullbacks
        in turns, a second point, one argument or output at a time, jit, vmap. A rule that raises gives a failing
        row.

    Raises:
        TypeError: `f` has no rule of its own, no float argument or no float output, or it is complex.
        ValueError: cotangents of another structure, values that are not finite, a transformation not named above, or
            an approximation that is no number from 0 to 1.
        reference.CallFailed: `f`'s plain function raised, or neither it nor `f` can be differentiated.
    """
    transforms = known_transforms(transforms)
    require_samples(samples)
    require_approximation(approximation)
    held = held_rule(f, jax.custom_vjp, raw)

    def prepared(dtype: DTypeLike | None, called: bool = True) -> Trial:
        rule = rule_under_test(f, held, raw, args, argnums, nondiff_argnums, dtype, called)
        with rule.given.precision():
            if cotangents is None:
                vectors = drawn([kind for _, kind in rule.outputs], seed)
            else:
                vectors = combined([like(cotangents, rule.value, "cotangents", "f's output", dtype)])
        names = rule.given.moving_paths
        return Trial(rule, rule.pullback, names, vectors, "cotangent", seed, samples, approximation)

    trial = prepared(dtype)
    rule = trial.rule
    with rule.given.precision():
        begun = begin(trial, transforms)
        trial, truth, notes = truth_of(trial)
        bare = Findings() if held is None else bare_vjp(held, rule.given, trial.vectors[0], rule.value)
        rows, notes = [*primal_rows(rule, truth), *bare.rows], [*notes, *bare.notes]
        further: Told = [], []
        if held is not None and (unseen := held.unseen(args)):
            notes.append(f"not differentiated: {', '.join(unseen)}; give by position what has a default, to check it")
        if not any(row.path in ("fwd", "bwd") for row in bare.failures):
            beyond = partial(in_double, trial, prepared, dtype)
            (found, said), further = proven(trial, truth, begun, lambda truth: parts_of_vjp(trial, truth), beyond)
            rows, notes = rows + found, notes + said
    said, causes = _silent(bare.nones, truth, rule.given)
    rows = [replace(row, cause=causes[row.path]) if not row.passed and row.path in causes else row for row in rows]
    options = {"argnums": argnums, "nondiff_argnums": nondiff_argnums, "raw": raw, "transforms": transforms}
    return _finished("check_vjp", trial, truth, rows, notes + said, further, dtype, thorough, options)


@errors_by_name
def check_jvp(
    f: Callable[..., Any],
    *args: Any,
    tangents: Tree = None,
    argnums: int | Sequence[int] | None = None,
    nondiff_argnums: Sequence[int] = (),
    dtype: DTypeLike | None = None,
    samples: int = 16,
    seed: int = 0,
    raw: Callable[..., Any] | None = None,
    transforms: str | Sequence[str] = TRANSFORMS,
    approximation: float = 0.0,
    thorough: bool = False,
) -> Report:
    """Prove a jax.custom_jvp right at a point, or say what its rule does wrong.

    Args:
        f: a jax.custom_jvp with its rule defined, or a jit or a functools.partial of one; with `raw`, any function
            that JAX can push forward through.
        args: as for `check_vjp`.
        tangents: a tuple with one tree for each differentiated argument; None draws two, normal and seeded.
        argnums: as for `check_vjp`.
        nondiff_argnums: as for `check_vjp`.
        dtype: as for `check_vjp`.
        samples: as for `check_vjp`.
        seed: as for `check_vjp`.
        raw: as for `check_vjp`.
        transforms: as for `check_vjp`.
        approximation: as for `check_vjp`.
        thorough: as for `check_vjp`.

    Returns:
        Rows as from `check_vjp`, for tangents, and rows on JAX's transpose of the rule: every entry of its
        cotangents, and <u, J v> = <J^T u, v>.

    Raises:
        TypeError, ValueError, reference.CallFailed: as `check_vjp`.
    """
    transforms = known_transforms(transforms)
    require_samples(samples)
    require_approximation(approximation)
    held = held_rule(f, jax.custom_jvp, raw)

    def prepared(dtype: DTypeLike | None, called: bool = True) -> Trial:
        rule = rule_under_test(f, held, raw, args, argnums, nondiff_argnums, dtype, called)
        with rule.given.precision():
            moving = rule.given.fresh("moving")
            given = None if tangents is None else tangents_like(tangents, rule, argnums, dtype)
            vectors = drawn(moving, seed) if given is None else combined([given])
        names = [f"tangent of {name}" for name, _ in rule.outputs]
        return Trial(rule, rule.pushforward, names, vectors, "tangent", seed, samples, approximation)

    trial = prepared(dtype)
    rule = trial.rule
    with rule.given.precision():
        begun = begin(trial, transforms)
        trial, truth, asked = truth_of(trial)
        rows = primal_rows(rule, truth)
        beyond = partial(in_double, trial, prepared, dtype)
        (found, notes), further = proven(trial, truth, begun, lambda truth: parts_of_jvp(trial, truth), beyond)
        more, said = transposed(trial, truth, promised=held is not None)
    rows, notes = [*rows, *found, *more], [*asked, *notes, *said]
    options = {"argnums": argnums, "nondiff_argnums": nondiff_argnums, "raw": raw, "transforms": transforms}
    return _finished("check_jvp", trial, truth, rows, notes, further, dtype, thorough, options)


def _finished(
    check: str,
    trial: Trial,
    truth: Truth,
    rows: list[Row],
    notes: list[str],
    beyond: Told,
    asked: DTypeLike | None,
    thorough: bool,
    options: dict[str, Any],
) -> Report:
    """The report, with the rows of other points and precisions, and with no row that could not have failed."""
    rows = _naming_lost(trial, rows)
    if not any(row.verdict == "fail" for row in rows):
        rows, notes = rows + beyond[0], notes + beyond[1]
        if thorough:
            with trial.rule.given.precision():
                more, said = thoroughly(trial)
            rows, notes = rows + more, notes + said
    with trial.rule.given.precision():
        rows, said = without_vacuous(trial, rows, truth)
    name, dtype = faults.name_of(trial.rule.f), str(trial.rule.given.working)
    if trial.approximation:
        notes = [*notes, allowed_text(trial.approximation)]
    options = {name: value for name, value in options.items() if callable(value) or value not in ((), TRANSFORMS)}
    options |= {
        "dtype": asked and dtype,
        "seed": trial.seed,
        "approximation": trial.approximation,
        "thorough": thorough,
    }
    count = len(trial.rule.given.build(trial.moving, trial.data))
    report = Report(
        rows=tuple(rows),
        dtype=dtype,
        subject=f"the {check.removeprefix('check_')} rule of {name}",
        notes=(*trial.rule.given.notes(), *notes, *said),
        reproduce=faults.call_of(check, [trial.rule.f], count, **options),
    )
    return by_name(report, trial.rule.f, count)


def _naming_lost(trial: Trial, rows: list[Row]) -> list[Row]:
    if trial.valued is not None:
        return rows
    apply, given = partial(trial.apply, trial.rule.raw), trial.rule.given
    with given.precision():
        at = trial.moving, trial.data, trial.vectors
        return naming_lost(rows, apply, *at, dtype=given.working, samples=trial.samples, seed=trial.seed)


def _silent(nones: Sequence[str], truth: Truth, given: Arguments) -> tuple[list[str], dict[str, str]]:
    """Notes on None cotangents that are rightly zero, and for those that are not the cause of failure, by path."""
    notes, causes = [], {}
    for i, path in enumerate(given.moving_paths):
        if path not in nones:
            continue
        if any(np.any(values[i]) for values, _ in truth.results):
            causes[path] = f"bwd returns None for {path}, which JAX takes for zero; its cotangent is not zero"
        else:
            notes.append(f"bwd returns None for {path}; its cotangent is zero here, as None says")
    return notes, causes
