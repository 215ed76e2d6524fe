"""The check of a user's gradient, written by hand for a function, against jax.grad."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from reference.checks import faults
from reference.checks.approximation import allowed_text, require_approximation
from reference.checks.arguments import chosen, take_apart
from reference.checks.beyond import narrower
from reference.checks.culprit import naming_lost
from reference.checks.disputes import explained
from reference.checks.gradient_beyond import elsewhere_too, in_double, without_vacuous
from reference.checks.gradient_trial import NEEDS_VALUES, Subject, Trial
from reference.checks.named import by_name, errors_by_name
from reference.checks.projections import Plan
from reference.checks.witness_rows import chosen_ways, witness_rows
from reference.report import Report, Row
from reference.tolerance.rounding import Measured, require_samples
from reference.tolerance.side_by_side import widened

Tree = Any
TRANSFORMS = ("eager", "jit", "vmap")


@errors_by_name
def check_gradient(
    fun: Callable[..., Any],
    grad_fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    dtype: DTypeLike | None = None,
    samples: int = 16,
    seed: int = 0,
    max_elements: int = 1_000_000,
    value: bool = False,
    transforms: str | Sequence[str] | None = None,
    witnesses: str | Sequence[str] = (),
    approximation: float = 0.0,
    thorough: bool = False,
) -> Report:
    """Compare a gradient written by hand with jax.grad, every entry of every leaf.

    `fun` and its jax.grad run in float64; `grad_fun` runs in the precision under test, on copies of the
    arguments. The tolerance of an entry is measured: it is how far rounding in that precision can move the entry.
    Where JAX cannot differentiate `fun`, the slopes of its values stand for jax.grad, and a note says so.
    Where the two differ, `fun`'s own values are asked before the gradient is called wrong: at a kink any slope between
    the two sides passes, with a note.

    Args:
        fun: returns one real number; traceable by JAX.
        grad_fun: called like `fun`, returns the same as jax.grad(fun, argnums): the tree of that argument, or a
            tuple of trees if argnums is a sequence. It may be plain NumPy. Leaves that are no float arrays
            (functions in a model, integers) may be None in it.
        args: pytrees; most faults show at a point where no parameter is zero and nothing is symmetric.
        argnums: which arguments to differentiate by.
        dtype: to round float arguments to and to run `grad_fun` in. None leaves each as it is, and repeats the
            comparison in float64, where a small fault shows that rounding hides, if `grad_fun` can be run in it.
        samples: of Monte Carlo arithmetic.
        seed: of the rounding noise, and of the directions or points that the notes mention.
        max_elements: how many entries to compare one by one, smallest leaves first. For a leaf beyond that,
            projections on a few seeded directions are compared, and a note says so.
        value: whether `grad_fun` returns (value, gradient), as jax.value_and_grad does.
        transforms: any of "eager", "jit" and "vmap": each way of calling `grad_fun` is compared with the
            reference ("vmap" at two points, `args` and one nearby). None means eager, and also jit unless
            `grad_fun` needs concrete values; a note then says so.
        witnesses: "all", or names of further ways to differentiate `fun` (`reference.witnesses`).
        approximation: how far the gradient may be off by intent, relative to the largest entry of a leaf: the tolerance
            of a solver behind it.
        thorough: whether to compare also at other points, with larger and smaller arguments, and the second derivative.

    Returns:
        Rows for every leaf, eager first, then rows on types, jit, vmap, determinism and unchanged arguments.

    Raises:
        TypeError: `fun` does not return one real number, nothing is to be differentiated, or argnums is no integers.
        ValueError: trees that do not match, values that are not finite, arguments on another device, or an
            approximation that is no number from 0 to 1.
        reference.CallFailed: `fun` or `grad_fun` raised.
    """
    names = known_transforms(TRANSFORMS[:2] if transforms is None else transforms)
    require_samples(samples)
    require_approximation(approximation)
    if witnesses:
        chosen_ways(witnesses)
    numbers = chosen(argnums, len(args))

    def prepared(dtype: DTypeLike | None) -> Subject:
        given = take_apart(args, numbers, dtype)
        return Subject(fun, grad_fun, given, numbers, isinstance(argnums, int), value)

    subject = prepared(dtype)
    given = subject.given
    subject.require_value()
    plan = Plan.of(given.moving_paths, given.fresh("moving"), max_elements, seed)
    if witnesses and any(plan.projected):
        raise ValueError("witnesses are held against every entry: raise max_elements, or leave them out")
    trial = Trial(subject, plan, samples, seed, approximation)
    trial, points, measured, asked = trial.reference("vmap" in names)
    with given.precision():
        rows, notes = _rows(trial, points, measured, names, lenient=transforms is None)
        if witnesses and trial.valued:
            notes.append("witnesses are left out: JAX cannot differentiate fun, and its values are asked already")
        elif witnesses:
            more, text = _witnessed(subject, points[0], measured, witnesses, seed)
            rows, notes = rows + more, notes + text
        if not trial.valued:
            at = points[0], given.fresh("data")
            differentiated = jax.value_and_grad(subject.loss)
            rows = naming_lost(rows, differentiated, *at, dtype=given.working, samples=samples, seed=seed)
    if not any(row.verdict == "fail" for row in rows):
        if dtype is None:
            more, text = in_double(trial, prepared)
            rows, notes = rows + more, notes + text
        if thorough:
            with given.precision():
                more, text = elsewhere_too(trial)
            rows, notes = rows + more, notes + text
    rows, text = without_vacuous(trial, rows, measured)
    notes = [*asked, *notes, *text, *([allowed_text(approximation)] if approximation else [])]
    options = {
        "argnums": argnums or None,
        "dtype": dtype and str(given.working),
        "seed": seed,
        "transforms": None if transforms is None else names,
        "approximation": approximation,
        "witnesses": witnesses or None,
        "thorough": thorough,
    }
    report = Report(
        rows=tuple(rows),
        dtype=str(given.working),
        subject=f"{faults.name_of(grad_fun)}, the gradient of {faults.name_of(fun)}",
        notes=(*given.notes(), *plan.notes(), *notes),
        reproduce=faults.call_of("check_gradient", [fun, grad_fun], len(args), **options),
    )
    return by_name(report, fun, len(args))


def known_transforms(given: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the requested transformations; a plain string is one name.

    Raises:
        ValueError: no name, or an unknown one.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or not set(names) <= set(TRANSFORMS):
        raise ValueError(f"transforms are some of {', '.join(TRANSFORMS)}, got {given!r}")
    return names


def nearby(moving: Sequence[Any], seed: int) -> list[Any]:
    """A nearby point: every entry is shrunk by up to 2 %, so that signs and bounds still hold."""
    rng = np.random.default_rng(seed)
    return [
        (np.asarray(leaf, np.float64) * (1 - 0.02 * rng.uniform(size=np.shape(leaf)))).astype(leaf.dtype)
        for leaf in moving
    ]


def _rows(
    trial: Trial, points: list[list[Any]], measured: Measured, names: Sequence[str], lenient: bool
) -> tuple[list[Row], list[str]]:
    subject, plan = trial.subject, trial.plan
    role = f"grad_fun ({faults.name_of(subject.grad_fun)})"
    notes: list[str] = []
    first = faults.watched_call(subject.grad_fun, subject.given, role)
    second = faults.watched_call(subject.grad_fun, subject.given, role)
    flat = subject.flat(first.result)
    wrong = list(_type_rows(plan.paths, flat[1], points[0]))
    if any(np.shape(got) != np.shape(due) for got, due in zip(flat[1], points[0], strict=True)):
        trial.require_finite(measured)
        return [*wrong, *faults.behaviour(role, first, second)], notes
    measured, notes, judged = trial.settled(flat, measured, points)
    trial.require_finite(measured)
    rows: list[Row] = []
    if "eager" in names:
        rows += trial.compared([flat], measured, "")
    rows += wrong or [faults.contract("shapes and dtypes")]
    for name in names:
        if name == "eager":
            continue
        try:
            results = _transformed(subject, points, name)
            for k, result in enumerate(results[1:], start=1):  # a kink at 0 is one at a second point, too
                measured, more, _ = trial.settled(result, measured, points, k)
                notes += [f"at point {k}: {note}" for note in more if note not in notes]
            rows += trial.compared(results, measured, f"under {name}: ")
        except NEEDS_VALUES as error:
            if lenient:
                notes.append(f"not checked under {name}: {role} needs concrete values ({faults.one_line(error)})")
            else:
                rows.append(faults.contract(f"under {name}", f"{role} raised {faults.one_line(error)}"))
        except Exception as error:  # an error under a transformation is the finding
            rows.append(faults.contract(f"under {name}", f"{role} raised {faults.one_line(error)}"))
    rows = [explained(row, judged) for row in rows + faults.behaviour(role, first, second)]
    return trial.hinted(rows), notes


def _type_rows(paths: Sequence[str], got: Sequence[Any], due: Sequence[Any]) -> Iterator[Row]:
    for path, ours, argument in zip(paths, got, due, strict=True):
        row = faults.type_mismatch(path, ours, argument)
        if not row.passed:
            yield row


def _transformed(subject: Subject, points: list[list[Any]], name: str) -> list[tuple[Any, list[Any]]]:
    """(value, gradient leaves) for every point at which the transformed function is evaluated."""
    data = subject.given.fresh("data")

    def flat(moving: list[Any], data: list[Any]) -> tuple[Any, list[Any]]:
        return subject.flat(subject.by_hand(moving, data))

    if name == "jit":
        return [jax.jit(flat)(points[0], data)]
    stacked = [jnp.stack([jnp.asarray(leaf) for leaf in pair]) for pair in zip(*points, strict=True)]
    value, leaves = jax.vmap(flat, in_axes=(0, None))(stacked, data)
    return [(None if value is None else value[i], [leaf[i] for leaf in leaves]) for i in range(len(points))]


def _bars_of_jax(
    loss: Callable[[list[Any]], Any], point: list[Any], value: list[np.ndarray], allowed: list[np.ndarray]
) -> list[np.ndarray]:
    """The error bars of the reference beside witnesses that trace the function anew in float64.

    It is the derivative of the program as the given precision traces it, whose own numbers (1/5, of five examples) are
    rounded to that. So the bars have the difference to the derivative of the program that the witnesses evaluate; where
    there is none in float64, they are the tolerance of the given precision.
    """
    try:
        with jax.enable_x64(True):
            anew = jax.grad(loss)([jnp.asarray(leaf, "float64") for leaf in point])
    except Exception:  # such as a function that mixes precisions where promotion is strict
        return allowed
    finer = float(jnp.finfo("float64").eps / jnp.finfo(point[0].dtype).eps)
    return [finer * a + np.abs(np.asarray(w) - v) for a, w, v in zip(allowed, anew, value, strict=True)]


def _witnessed(
    subject: Subject, point: list[Any], measured: Measured, witnesses: str | Sequence[str], seed: int
) -> tuple[list[Row], list[str]]:
    given = subject.given
    data = [widened(leaf) for leaf in given.fresh("data")]  # float64 goes with float64 where promotion is strict
    result = faults.watched_call(subject.grad_fun, given, "grad_fun").result
    value, allowed = measured.value[0][1], measured.tolerance[0][1]

    def loss(moving: list[Any]) -> Any:
        return subject.loss(moving, data)

    with jax.enable_x64(True), suppress(Exception):  # one that JAX cannot trace there is for the witnesses to refuse
        if narrow := narrower({"fun": loss}, [widened(leaf) for leaf in point]):
            return [], [f"witnesses are left out, since their error bars are of float64: {narrow}"]
    by = {"manual": (subject.flat(result)[1], allowed), "jax.grad": (value, _bars_of_jax(loss, point, value, allowed))}

    return witness_rows(loss, point, given.moving_paths, by, witnesses, seed)
