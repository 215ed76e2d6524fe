"""The check of a user's gradient, written by hand for a function, against jax.grad."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from reference.checks import faults
from reference.checks.arguments import Arguments, chosen, structure, take_apart
from reference.checks.projections import Plan
from reference.checks.witness_rows import chosen_ways, witness_rows
from reference.compare import compare_leaf
from reference.report import Report, Row
from reference.tolerance.rounding import Measured, measure, require_samples

Tree = Any
TRANSFORMS = ("eager", "jit", "vmap")
NEEDS_VALUES = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


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
) -> Report:
    """Compare a gradient written by hand with jax.grad, every entry of every leaf.

    `fun` and its jax.grad run in float64; `grad_fun` runs in the precision under test, on copies of the
    arguments. The tolerance of an entry is measured: it is how far rounding in that precision can move the entry.

    Args:
        fun: returns one real number; traceable by JAX.
        grad_fun: called like `fun`, returns the same as jax.grad(fun, argnums): the tree of that argument, or a
            tuple of trees if argnums is a sequence. It may be plain NumPy. Leaves that are no float arrays
            (functions in a model, integers) may be None in it.
        args: pytrees; most faults show at a point where no parameter is zero and nothing is symmetric.
        argnums: which arguments to differentiate by.
        dtype: to round float arguments to and to run `grad_fun` in; None leaves each as it is.
        samples: of Monte Carlo arithmetic.
        seed: of the rounding noise, and of the directions or points that the notes mention.
        max_elements: how many entries to compare one by one, smallest leaves first. For a leaf beyond that,
            projections on a few seeded directions are compared, and a note says so.
        value: whether `grad_fun` returns (value, gradient), as jax.value_and_grad does.
        transforms: any of "eager", "jit" and "vmap": each way of calling `grad_fun` is compared with the
            reference ("vmap" at two points, `args` and one nearby). None means eager, and also jit unless
            `grad_fun` needs concrete values; a note then says so.
        witnesses: "all", or names of further ways to differentiate `fun` (`reference.witnesses`).

    Returns:
        Rows for every leaf, eager first, then rows on types, jit, vmap, determinism and unchanged arguments.

    Raises:
        TypeError: `fun` does not return one real number, nothing is to be differentiated, or argnums is no integers.
        ValueError: trees that do not match, values that are not finite, arguments on another device.
        reference.CallFailed: `fun` or `grad_fun` raised.
    """
    names = known_transforms(TRANSFORMS[:2] if transforms is None else transforms)
    require_samples(samples)
    if witnesses:
        chosen_ways(witnesses)
    numbers = chosen(argnums, len(args))
    given = take_apart(args, numbers, dtype)
    subject = _Subject(fun, grad_fun, given, numbers, isinstance(argnums, int), value)
    subject.require_value()
    points = [given.fresh("moving")]
    plan = Plan.of(given.moving_paths, points[0], max_elements, seed)
    if witnesses and any(plan.projected):
        raise ValueError("witnesses are held against every entry: raise max_elements, or leave them out")
    if "vmap" in names:
        points.append(nearby(points[0], seed))
    measured = _reference(subject, points, plan, samples, seed)
    with given.precision():
        rows, notes = _rows(subject, points, plan, measured, names, lenient=transforms is None)
        if witnesses:
            more, text = _witnessed(subject, points[0], measured, witnesses, seed)
            rows, notes = rows + more, notes + text
    return Report(
        rows=tuple(rows),
        dtype=str(given.working),
        subject=f"{faults.name_of(grad_fun)}, the gradient of {faults.name_of(fun)}",
        notes=(*given.notes(), *plan.notes(), *degenerate(given, measured.value[0][1]), *notes),
        reproduce=f"check_gradient({faults.name_of(fun)}, {faults.name_of(grad_fun)}, ..., argnums={argnums!r},"
        f" dtype={str(given.working)!r}, seed={seed}{'' if transforms is None else f', transforms={names!r}'})",
    )


@dataclass(frozen=True)
class _Subject:
    """The two functions and their arguments."""

    fun: Callable[..., Any]
    grad_fun: Callable[..., Any]
    given: Arguments
    argnums: tuple[int, ...]
    single: bool
    with_value: bool

    def loss(self, moving: list[Any], data: list[Any]) -> Any:
        return self.fun(*self.given.build(moving, data))

    def by_hand(self, moving: list[Any], data: list[Any]) -> Any:
        return self.grad_fun(*self.given.build(moving, data))

    def require_value(self) -> None:
        """Raise an error unless fun returns one finite number here."""
        with self.given.precision():
            moving, data = self.given.fresh("moving"), self.given.fresh("data")
            role = f"fun ({faults.name_of(self.fun)})"
            result = faults.call(self.fun, self.given.build(moving, data), role)
            faults.require_scalar(result, role)
            faults.require_finite([result], ["its value"], role, self.loss, moving, data)

    def flat(self, result: Any) -> tuple[Any, list[Any]]:
        """(value or None, gradient leaves in the order of the arguments), from the result of grad_fun."""
        value = None
        if self.with_value:
            if not isinstance(result, tuple) or len(result) != 2:
                raise ValueError(f"with value=True grad_fun returns (value, gradient), got {type(result).__name__}")
            value, result = result
        if not self.single and (not isinstance(result, tuple | list) or len(result) != len(self.argnums)):
            raise ValueError(
                f"argnums has {len(self.argnums)} numbers, so grad_fun returns a tuple of as many gradients,"
                f" got {structure(result)}"
            )
        args = self.given.build(self.given.fresh("moving"), self.given.fresh("data"))
        due = structure(args[self.argnums[0]])
        pair = self.single and isinstance(result, tuple) and len(result) == 2
        if pair and structure(result[1]) == due != structure(result):
            raise ValueError(
                "grad_fun returns a pair: for (value, gradient), as from jax.value_and_grad, say value=True"
            )
        trees = dict(zip(self.argnums, [result] if self.single else result, strict=True))
        for i, tree in trees.items():
            faults.same_structure(tree, args[i], f"args[{i}]")
        return value, [leaf for i in sorted(trees) for leaf in jax.tree.leaves(faults.floats_only(trees[i]))]


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


def _reference(subject: _Subject, points: list[list[Any]], plan: Plan, samples: int, seed: int) -> Measured:
    """For every point (value, the parts of the gradient that the plan compares), in float64 and finite."""
    data = subject.given.fresh("data")

    def everything(points: list[list[Any]], data: list[Any]) -> list[tuple[Any, list[Any]]]:
        found = [jax.value_and_grad(subject.loss)(moving, data) for moving in points]
        return [(value, plan.seen(gradient)) for value, gradient in found]

    def run(*points_and_data: Any) -> Measured:
        with subject.given.precision():
            return measure(everything, *points_and_data, dtype=subject.given.working, samples=samples, seed=seed)

    hint = "arrays that it closes over keep their own dtype: pass them as arguments"
    measured = faults.call(run, (points, data), f"jax.grad of {faults.name_of(subject.fun)} in float64", hint)
    with jax.enable_x64(True):
        leaves = measured.value[0][1]
        faults.require_finite(leaves, plan.paths, "jax.grad of fun", jax.grad(subject.loss), points[0], data)
    return measured


def _rows(
    subject: _Subject,
    points: list[list[Any]],
    plan: Plan,
    measured: Measured,
    names: Sequence[str],
    lenient: bool,
) -> tuple[list[Row], list[str]]:
    role = f"grad_fun ({faults.name_of(subject.grad_fun)})"
    notes: list[str] = []
    first = faults.watched_call(subject.grad_fun, subject.given, role)
    second = faults.watched_call(subject.grad_fun, subject.given, role)
    flat = subject.flat(first.result)
    wrong = list(_type_rows(plan.paths, flat[1], points[0]))
    if any(np.shape(got) != np.shape(due) for got, due in zip(flat[1], points[0], strict=True)):
        return [*wrong, *faults.behaviour(role, first, second)], notes
    rows: list[Row] = []
    if "eager" in names:
        rows += _compared(subject, plan, [flat], measured, "")
    rows += wrong or [faults.contract("shapes and dtypes")]
    for name in names:
        if name == "eager":
            continue
        try:
            rows += _compared(subject, plan, _transformed(subject, points, name), measured, f"under {name}: ")
        except NEEDS_VALUES as error:
            if lenient:
                notes.append(f"not checked under {name}: {role} needs concrete values ({faults.one_line(error)})")
            else:
                rows.append(faults.contract(f"under {name}", f"{role} raised {faults.one_line(error)}"))
        except Exception as error:  # an error under a transformation is the finding
            rows.append(faults.contract(f"under {name}", f"{role} raised {faults.one_line(error)}"))
    return rows + faults.behaviour(role, first, second), notes


def _type_rows(paths: Sequence[str], got: Sequence[Any], due: Sequence[Any]) -> Iterator[Row]:
    for path, ours, argument in zip(paths, got, due, strict=True):
        row = faults.type_mismatch(path, ours, argument)
        if not row.passed:
            yield row


def _transformed(subject: _Subject, points: list[list[Any]], name: str) -> list[tuple[Any, list[Any]]]:
    """(value, gradient leaves) for every point at which the transformed function is evaluated."""
    data = subject.given.fresh("data")

    def flat(moving: list[Any], data: list[Any]) -> tuple[Any, list[Any]]:
        return subject.flat(subject.by_hand(moving, data))

    if name == "jit":
        return [jax.jit(flat)(points[0], data)]
    stacked = [jnp.stack([jnp.asarray(leaf) for leaf in pair]) for pair in zip(*points, strict=True)]
    value, leaves = jax.vmap(flat, in_axes=(0, None))(stacked, data)
    return [(None if value is None else value[i], [leaf[i] for leaf in leaves]) for i in range(len(points))]


def _compared(
    subject: _Subject, plan: Plan, results: list[tuple[Any, list[Any]]], measured: Measured, prefix: str
) -> Iterator[Row]:
    """A row for the value, if there is one, and for each leaf; points are stacked in front of its shape."""
    n = len(results)
    wanted, allowed = measured.value[:n], measured.tolerance[:n]
    ours = [(value, plan.seen([np.asarray(leaf) for leaf in leaves])) for value, leaves in results]
    names = [f"{path} projected" if over else path for path, over in zip(plan.paths, plan.projected, strict=True)]
    columns = [*([("value", -1)] if subject.with_value else []), *((name, i) for i, name in enumerate(names))]
    for name, i in columns:
        parts = []
        for side in (ours, wanted, allowed):
            stack = np.stack([np.asarray(value if i < 0 else leaves[i], np.float64) for value, leaves in side])
            parts.append(stack[0] if n == 1 else stack)
        kind, leading = "contract" if prefix else "end to end", "at point" if n > 1 else ""
        row = compare_leaf(prefix + name, *parts, kind=kind, leading=leading)
        if row.verdict == "fail" and not np.isfinite(parts[0]).all():
            moving, data = subject.given.fresh("moving"), subject.given.fresh("data")
            where = faults.made_by(subject.by_hand, moving, data)
            row = replace(row, cause=f"not finite by hand though it is by jax.grad{where}")
        yield row


def degenerate(given: Arguments, gradient: Sequence[Any]) -> list[str]:
    """Notes on leaves for which a check is weak: gradients that vanish, and arguments that are all zero."""
    notes = []
    for path, leaf, slope in zip(given.moving_paths, given.fresh("moving"), gradient, strict=True):
        if not np.size(leaf):
            notes.append(f"{path} is empty: there is nothing to compare")
        elif not np.any(slope):
            notes.append(f"the gradient for {path} is zero here: only a fault that makes it other than zero can show")
        elif not np.asarray(leaf, np.float64).any():
            notes.append(f"{path} is all zeros: a term that multiplies it cannot show; check with other values")
    return notes


def _witnessed(
    subject: _Subject, point: list[Any], measured: Measured, witnesses: str | Sequence[str], seed: int
) -> tuple[list[Row], list[str]]:
    given = subject.given
    data = given.fresh("data")
    result = faults.watched_call(subject.grad_fun, given, "grad_fun").result
    value, allowed = measured.value[0][1], measured.tolerance[0][1]
    finer = float(jnp.finfo("float64").eps / jnp.finfo(given.working).eps)
    by = {"manual": (subject.flat(result)[1], allowed), "jax.grad": (value, [finer * bars for bars in allowed])}

    def loss(moving: list[Any]) -> Any:
        return subject.loss(moving, data)

    return witness_rows(loss, point, given.moving_paths, by, witnesses, seed)
