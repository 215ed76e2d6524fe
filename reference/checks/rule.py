"""The checks of a user's jax.custom_vjp or jax.custom_jvp against JAX's derivative of the plain function."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from reference.checks import faults
from reference.checks.arguments import Arguments
from reference.checks.bare_rule import Findings, bare_vjp
from reference.checks.gradient import TRANSFORMS, degenerate, known_transforms
from reference.checks.linear_rows import Rule, Trial, Vector, against, combined, drawn
from reference.checks.rule_subject import like, output_of, primal_rows, rule_of, rule_under_test, tangents_like
from reference.compare import compare_leaf
from reference.report import Report, Row
from reference.tolerance.rounding import Measured, measure, require_samples

Tree = Any


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
) -> Report:
    """Prove a jax.custom_vjp right at a point, or say what its backward rule does wrong.

    Args:
        f: a jax.custom_vjp with its rules defined; with `raw`, any function that JAX can pull back through.
        args: its arguments; pytrees, integers and static values may be among them.
        cotangents: the tree of f's output, to pull back; None draws two, normal and seeded, for every output.
        argnums: the arguments to differentiate by; None means all that hold floats.
        nondiff_argnums: static arguments besides those that `f` declares.
        dtype: to round float arguments to and to run `f` in; None leaves each as it is.
        samples: of Monte Carlo arithmetic.
        seed: of the cotangents and the rounding noise.
        raw: the plain function, if JAX cannot differentiate the one inside `f`.
        transforms: any of "eager", "jit" and "vmap".

    Returns:
        Rows on `primal` of f and of its forward rule, on every entry of every result (the first index is the number
        of the cotangent), and on its promises: types, linearity, zero to zero, one argument or output at a time,
        jit, vmap. A rule that raises gives a failing row.

    Raises:
        TypeError: `f` has no rule of its own, no float argument or no float output.
        ValueError: cotangents of another structure, values that are not finite, or a transformation not named above.
        reference.CallFailed: `f`'s plain function raised, or JAX cannot differentiate it.
    """
    transforms = known_transforms(transforms)
    require_samples(samples)
    held = rule_of(f, jax.custom_vjp, raw)
    rule = rule_under_test(f, held, raw, args, argnums, nondiff_argnums, dtype)
    types = [kind for _, kind in rule.outputs]
    given = None if cotangents is None else like(cotangents, output_of(rule), "cotangents", "f's output", dtype)
    with rule.given.precision():
        vectors = drawn(types, seed) if given is None else combined([given])
        trial = Trial(rule, rule.pullback, rule.given.moving_paths, vectors, "cotangent", seed, samples)
        measured = _measured(trial)
        bare = Findings() if held is None else bare_vjp(held, rule.given, vectors[0], output_of(rule))
        rows = [*primal_rows(rule, measured), *bare.rows]
        if not any(row.path in ("fwd", "bwd") for row in bare.failures):
            rows += _guarded(lambda: trial.rows(measured, transforms), "vjp")
            rows += _guarded(lambda: _parts_of_vjp(trial, measured), "one at a time")
    notes, causes = _silent(bare.nones, measured, rule.given)
    rows = [replace(row, cause=causes[row.path]) if not row.passed and row.path in causes else row for row in rows]
    notes += [*bare.notes, *degenerate(rule.given, [np.stack(parts) for parts in zip(*measured.value[1], strict=True)])]
    return _report("check_vjp", "vjp", rule, rows, notes, seed)


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
) -> Report:
    """Prove a jax.custom_jvp right at a point, or say what its rule does wrong.

    Args:
        f: a jax.custom_jvp with its rule defined; with `raw`, any function that JAX can push forward through.
        args: as for `check_vjp`.
        tangents: a tuple with one tree for each differentiated argument; None draws two, normal and seeded.
        argnums: as for `check_vjp`.
        nondiff_argnums: as for `check_vjp`.
        dtype: as for `check_vjp`.
        samples: as for `check_vjp`.
        seed: as for `check_vjp`.
        raw: as for `check_vjp`.
        transforms: as for `check_vjp`.

    Returns:
        Rows as from `check_vjp`, for tangents, and rows on JAX's transpose of the rule: every entry of its
        cotangents, and <u, J v> = <J^T u, v>.

    Raises:
        TypeError, ValueError, reference.CallFailed: as `check_vjp`.
    """
    transforms = known_transforms(transforms)
    require_samples(samples)
    held = rule_of(f, jax.custom_jvp, raw)
    rule = rule_under_test(f, held, raw, args, argnums, nondiff_argnums, dtype)
    names = [name for name, _ in rule.outputs]
    with rule.given.precision():
        moving = rule.given.fresh("moving")
        vectors = drawn(moving, seed) if tangents is None else combined([tangents_like(tangents, rule, argnums, dtype)])
        trial = Trial(
            rule, rule.pushforward, [f"tangent of {name}" for name in names], vectors, "tangent", seed, samples
        )
        measured = _measured(trial)
        rows = primal_rows(rule, measured)
        rows += _guarded(lambda: trial.rows(measured, transforms), "jvp")
        rows += _guarded(lambda: _parts_of_jvp(trial, measured), "one at a time")
        more, notes = _transposed(trial, measured)
    notes += degenerate(rule.given, [np.ones(1)] * len(moving))
    return _report("check_jvp", "jvp", rule, rows + more, notes, seed)


def _measured(trial: Trial) -> Measured:
    word = "pulled back" if trial.word == "cotangent" else "pushed forward"
    role = f"the plain function of {faults.name_of(trial.rule.f)}, {word} through in float64,"
    hint = "if JAX cannot differentiate it, give raw=, a plain function of the same value that it can"
    measured = faults.call(lambda *_: trial.reference(), (), role, hint)
    with jax.enable_x64(True):
        moving, data = trial.rule.given.fresh("moving"), trial.rule.given.fresh("data")

        def again(moving: Vector, vector: Vector) -> Vector:
            return trial.apply(trial.rule.raw, moving, data, [vector])[1][0]

        for results in measured.value[1]:
            faults.require_finite(results, trial.names, "the reference", again, moving, trial.vectors[0])
    return measured


def _guarded(rows: Callable[[], Iterator[Row]], path: str) -> list[Row]:
    """The rows; if computing them raises, one more row with the error as the finding."""
    made: list[Row] = []
    try:
        for row in rows():
            made.append(row)
    except Exception as error:
        made.append(faults.contract(path, f"raised {faults.one_line(error)}"))
    return made


def _parts_of_vjp(trial: Trial, measured: Measured) -> Iterator[Row]:
    """Rows on pulling back to one argument alone, and from one output alone: the rule then gets symbolic zeros."""
    rule, vector = trial.rule, trial.vectors[0]
    moving, data = rule.given.fresh("moving"), rule.given.fresh("data")
    wanted = (measured.value[1][0], measured.tolerance[1][0])
    groups = _by_argument(rule.given)
    if len(groups) > 1:
        found: dict[int, Any] = {}
        for group in groups:
            _, pull = jax.vjp(
                lambda part, group=group: rule.floats(rule.f, _with(moving, group, part), data), _of(moving, group)
            )
            found |= zip(group, pull(vector)[0], strict=True)
        alone = [found[i] for i in range(len(moving))]
        yield from against(trial.names, alone, wanted, "by one argument alone: ", kind="contract")
    if len(vector) > 1:
        parts = [jax.vjp(lambda m, k=k: rule.floats(rule.f, m, data)[k], moving)[1](v)[0] for k, v in enumerate(vector)]
        yield from against(trial.names, _sums(parts), wanted, "sum over outputs: ", len(vector), "contract")


def _parts_of_jvp(trial: Trial, measured: Measured) -> Iterator[Row]:
    """Rows on pushing forward from one argument alone, with symbolic zeros for the others; the parts must add up."""
    rule, vector = trial.rule, trial.vectors[0]
    moving, data = rule.given.fresh("moving"), rule.given.fresh("data")
    groups = _by_argument(rule.given)
    if len(groups) < 2:
        return
    parts = []
    for group in groups:
        along = lambda part, group=group: rule.floats(rule.f, _with(moving, group, part), data)  # noqa: E731
        parts.append(jax.jvp(along, (_of(moving, group),), (_of(vector, group),))[1])
    wanted = (measured.value[1][0], measured.tolerance[1][0])
    yield from against(trial.names, _sums(parts), wanted, "sum over arguments: ", len(groups), "contract")


def _by_argument(given: Arguments) -> list[list[int]]:
    """The numbers of the differentiated leaves, grouped by argument."""
    owners = [path[: path.index("]")] for path in given.moving_paths]
    return [[i for i, its in enumerate(owners) if its == owner] for owner in dict.fromkeys(owners)]


def _of(leaves: Vector, group: Sequence[int]) -> Vector:
    return [leaves[i] for i in group]


def _with(leaves: Vector, group: Sequence[int], part: Vector) -> Vector:
    values = dict(zip(group, part, strict=True))
    return [values.get(i, leaf) for i, leaf in enumerate(leaves)]


def _sums(parts: list[Vector]) -> Vector:
    return [np.sum([np.asarray(leaf, np.float64) for leaf in column], axis=0) for column in zip(*parts, strict=True)]


def _transposed(trial: Trial, measured: Measured) -> tuple[list[Row], list[str]]:
    """Rows on JAX's transpose of the rule and on <u, J v> = <J^T u, v>, and notes."""
    rule, given = trial.rule, trial.rule.given
    moving, data, v = given.fresh("moving"), given.fresh("data"), trial.vectors[0]
    u = drawn([kind for _, kind in rule.outputs], trial.seed + 1)[0]
    try:
        pulled = rule.pullback(rule.f, moving, data, [u])[1][0]
        pushed = rule.pushforward(rule.f, moving, data, [v])[1][0]
    except Exception as error:  # JAX cannot transpose the rule: that is the finding
        return [faults.contract("transpose", f"raised {faults.one_line(error)}")], []

    def plain(moving: Vector, data: Vector, u: Vector, v: Vector) -> Any:
        back, forth = (
            rule.pullback(rule.raw, moving, data, [u])[1][0],
            rule.pushforward(rule.raw, moving, data, [v])[1][0],
        )
        return back, _dot(u, forth) - _dot(back, v)

    rows: list[Row] = []
    notes: list[str] = []
    try:
        exact = measure(
            plain,
            moving,
            data,
            u,
            v,
            dtype=given.working,
            samples=trial.samples,
            seed=trial.seed,
        )
        witness = "jax.vjp of the plain function"
        wanted = (exact.value[0], exact.tolerance[0])
        rows += against(given.moving_paths, pulled, wanted, "transposed: ", kind="contract", witness=witness)
        allowed = exact.tolerance[1]
    except Exception as error:  # a plain function without reverse mode (a while loop) has no transpose to compare
        notes.append(f"the transpose is held against J alone: the plain function has none ({faults.one_line(error)})")
        pairs = zip(u, measured.tolerance[1][0], strict=True)
        allowed = 2 * sum(float(np.sum(np.abs(np.asarray(a, np.float64)) * tol)) for a, tol in pairs)
    sides = (float(_dot(_wide(u), _wide(pushed))), float(_dot(_wide(pulled), _wide(v))))
    row = compare_leaf("<u, J v> = <J^T u, v>", *sides, allowed, kind="contract", witness="its transpose")
    return [*rows, row], notes


def _wide(leaves: Vector) -> Vector:
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def _dot(a: Vector, b: Vector) -> Any:
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


def _silent(nones: Sequence[str], measured: Measured, given: Arguments) -> tuple[list[str], dict[str, str]]:
    """Notes on None cotangents that are rightly zero, and for those that are not the cause of failure, by path."""
    notes, causes = [], {}
    for i, path in enumerate(given.moving_paths):
        if path not in nones:
            continue
        if any(np.any(results[i]) for results in measured.value[1]):
            causes[path] = f"bwd returns None for {path}, which JAX takes for zero; its cotangent is not zero"
        else:
            notes.append(f"bwd returns None for {path}; its cotangent is zero here, as None says")
    return notes, causes


def _report(check: str, what: str, rule: Rule, rows: Sequence[Row], notes: Sequence[str], seed: int) -> Report:
    name, dtype = faults.name_of(rule.f), str(rule.given.working)
    return Report(
        rows=tuple(rows),
        dtype=dtype,
        subject=f"the {what} rule of {name}",
        notes=(*rule.given.notes(), *notes),
        reproduce=f"{check}({name}, ..., dtype={dtype!r}, seed={seed})",
    )
