"""A gradient by hand at one point: the two functions, their reference, and the rows that compare them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import jax
import numpy as np

from reference.checks import faults
from reference.checks.approximation import hinted
from reference.checks.arbiter import Arbiter, NoSay
from reference.checks.arguments import Arguments, structure
from reference.checks.by_values import borne_out
from reference.checks.disputes import Judged, disputed, settled
from reference.checks.near import near_points
from reference.checks.projections import Plan
from reference.compare import compare_leaf
from reference.report import Row
from reference.tolerance.rounding import Measured, measure

NEEDS_VALUES = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


@dataclass(frozen=True)
class Subject:
    """The two functions and their arguments."""

    fun: Callable[..., Any]
    grad_fun: Callable[..., Any]
    given: Arguments
    argnums: tuple[int, ...]
    single: bool
    with_value: bool

    def loss(self, moving: list[Any], data: list[Any]) -> Any:
        """`fun` of the leaves, in a program of JAX even where it is NumPy's or other code's."""
        try:
            return self.fun(*self.given.build(moving, data))
        except NEEDS_VALUES:
            kind = jax.ShapeDtypeStruct((), self.given.working)
            outside = lambda *given: np.asarray(self.fun(*self.given.build(*given)), kind.dtype)  # noqa: E731
            return jax.pure_callback(outside, kind, moving, data)

    def by_hand(self, moving: list[Any], data: list[Any]) -> Any:
        """`grad_fun` of the leaves."""
        return self.grad_fun(*self.given.build(moving, data))

    def gradient(self, moving: list[Any], data: list[Any]) -> list[Any]:
        """The gradient leaves of `grad_fun`, in a program of JAX even where it is NumPy's or other code's."""
        try:
            return self.flat(self.by_hand(moving, data))[1]
        except NEEDS_VALUES:
            kinds = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in moving]
            outside = lambda *given: [np.asarray(leaf) for leaf in self.flat(self.by_hand(*given))[1]]  # noqa: E731
            return list(jax.pure_callback(outside, kinds, moving, data))

    def require_value(self) -> None:
        """Raise an error unless fun returns one finite number here."""
        self.given.require_finite()
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


@dataclass(frozen=True)
class Trial:
    """A gradient under test, and how to look at it.

    Attributes:
        subject: the functions and their arguments.
        plan: which entries are compared one by one.
        samples: of Monte Carlo arithmetic.
        seed: of the rounding noise and the second point.
        approximation: how far, relative to the largest entry, the gradient may be off by intent.
        valued: whether the reference is the slopes of fun's values, since JAX cannot differentiate it.
    """

    subject: Subject
    plan: Plan
    samples: int
    seed: int
    approximation: float = 0.0
    valued: bool = False

    def reference(self, two: bool) -> tuple["Trial", list[list[Any]], Measured, list[str]]:
        """(the trial, points, what was measured there, notes); by fun's values where JAX cannot differentiate it.

        Args:
            two: as for `measured`.

        Raises:
            reference.CallFailed: JAX cannot differentiate fun, and its values or grad_fun cannot be had in float64.
        """
        try:
            points, measured = self.measured(two)
            return self, points, measured, measured.notes
        except faults.CallFailed as error:
            valued, why = replace(self, valued=True), faults.one_line(error.__cause__ or error)
            try:
                points, measured = valued.measured(two)
            except Exception:  # the first error is the finding
                raise error from error.__cause__
        said = f"JAX cannot differentiate fun ({why}): grad_fun is held against the slopes of its values"
        return valued, points, measured, [said]

    def measured(self, two: bool) -> tuple[list[list[Any]], Measured]:
        """The points, and for each (value, the parts of the gradient that the plan compares) in float64.

        Args:
            two: whether to take a second point, the first of those nearby at which the gradient is finite.
        """
        here = self.subject.given.fresh("moving")
        if not two:
            return [here], self._measured([here])
        for near in near_points(here, self.seed):
            points = [here, near]
            measured = self._measured(points)
            if all(np.isfinite(leaf).all() for leaf in (*measured.value[1][1], *measured.tolerance[1][1])):
                break
        return points, measured

    def _measured(self, points: list[list[Any]]) -> Measured:
        given, working = self.subject.given, self.subject.given.working

        def everything(points: list[list[Any]], data: list[Any]) -> list[tuple[Any, list[Any]]]:
            found = [self._differentiated(moving, data) for moving in points]
            return [(value, self.plan.seen(gradient)) for value, gradient in found]

        def run(*points_and_data: Any) -> Measured:
            with given.precision():
                return measure(everything, *points_and_data, dtype=working, samples=self.samples, seed=self.seed)

        hint = "arrays that it closes over keep their own dtype: pass them as arguments"
        role = f"jax.grad of {faults.name_of(self.subject.fun)} in float64"
        found = faults.call(run, (points, given.fresh("data")), role, hint)
        return (self._with_slopes(points, found) if self.valued else found).loosened(self.approximation)

    def _differentiated(self, moving: list[Any], data: list[Any]) -> tuple[Any, list[Any]]:
        """(value, gradient) by JAX, or the gradient by grad_fun, which the slopes are then held against."""
        if not self.valued:
            return jax.value_and_grad(self.subject.loss)(moving, data)
        return self.subject.loss(moving, data), self.subject.gradient(moving, data)

    def _with_slopes(self, points: list[list[Any]], measured: Measured) -> Measured:
        """The slopes of fun's values in the place of the numbers by hand; of a leaf that is projected they stay."""
        slopes = [self._slopes(*each) for each in zip(points, measured.value, measured.tolerance, strict=True)]
        value, tolerance = (list(side) for side in zip(*slopes, strict=True))
        return Measured(value, tolerance)

    def _slopes(self, moving: list[Any], found: tuple[Any, list[Any]], bars: tuple[Any, list[Any]]) -> Any:
        """((value, slopes), (tolerance, tolerances)) at one point."""
        arbiter, leaves, allowed = self._arbiter(moving)(), [*found[1]], [*bars[1]]
        for i, name in enumerate(self.plan.paths):
            if not self.plan.projected[i]:
                slopes = partial(arbiter.by_entries, i, vectors=[[np.ones(())]])
                own, bar, _ = borne_out(name, leaves[i][None], allowed[i][None], slopes, self.seed)
                leaves[i], allowed[i] = own[0], bar[0]
        return (found[0], leaves), (bars[0], allowed)

    def require_finite(self, measured: Measured) -> None:
        """Raise ValueError unless the reference is finite: it names the leaf, the entry and the operation at fault."""
        given = self.subject.given
        with jax.enable_x64(True):
            again = jax.grad(self.subject.loss), given.fresh("moving"), given.fresh("data")
            faults.require_finite(measured.value[0][1], self.plan.paths, "jax.grad of fun", *again)

    def settled(
        self, result: tuple[Any, list[Any]], measured: Measured, points: list[list[Any]], at: int = 0
    ) -> tuple[Measured, list[str], dict[str, Judged]]:
        """Ask fun's values about entries that differ: (what was measured with those borne out, notes, the rest).

        Args:
            result: (value, gradient leaves) by hand at one of the points.
            measured: at all of them.
            points: the values of the leaves.
            at: which of them.
        """
        if self.valued:
            return measured, [], {}
        (value, leaves), (bar, bars) = measured.value[at], measured.tolerance[at]
        leaves, bars, notes, judged = list(leaves), list(bars), list[str](), dict[str, Judged]()
        arbiter = self._arbiter(points[at])
        for i, (name, ours) in enumerate(zip(self.plan.paths, map(np.asarray, result[1]), strict=True)):
            wide = ours.astype(np.float64)
            if self.plan.projected[i] or not disputed(wide, leaves[i], bars[i]).any():
                continue
            try:
                slopes = partial(arbiter().by_entries, i, vectors=[[np.ones(())]])
                rounds = lambda i=i: self._rounding[i][None]  # noqa: E731
                found = settled(name, ours[None], (leaves[i][None], bars[i][None]), slopes, arbiter().kinks, rounds)
            except NoSay:
                continue
            leaves[i], bars[i] = found.values[0], found.allowed[0]
            notes += found.notes
            judged |= {name: found.judged} if found.judged else {}
        values, tolerances = [*measured.value], [*measured.tolerance]
        values[at], tolerances[at] = (value, leaves), (bar, bars)
        return replace(measured, value=values, tolerance=tolerances), notes, judged

    @cached_property
    def _rounding(self) -> list[np.ndarray]:
        """The tolerances of the leaves by hand that are due to the rounding of `grad_fun`."""
        given = self.subject.given
        at = given.fresh("moving"), given.fresh("data")
        return list(
            measure(self.subject.gradient, *at, dtype=given.working, samples=self.samples, seed=self.seed).tolerance
        )

    def _arbiter(self, moving: list[Any] | None = None) -> Callable[[], Arbiter]:
        """Makes the arbiter at a point when it is first asked for."""
        given = self.subject.given

        @cache
        def made() -> Arbiter:
            function = lambda moving, data: [self.subject.loss(list(moving), list(data))]  # noqa: E731
            return Arbiter.of(function, moving or given.fresh("moving"), given.fresh("data"))

        return made

    def hinted(self, rows: list[Row]) -> list[Row]:
        """The rows; one that fails by little, where fun iterates, says that this may be meant."""
        if not any(row.verdict == "fail" for row in rows):
            return rows
        given = self.subject.given
        return hinted(rows, jax.make_jaxpr(self.subject.loss)(given.fresh("moving"), given.fresh("data")))

    def compared(self, results: list[tuple[Any, list[Any]]], measured: Measured, prefix: str) -> Iterator[Row]:
        """A row for the value, if there is one, and for each leaf; points are stacked in front of its shape."""
        n, plan, subject = len(results), self.plan, self.subject
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
            witness = "the slopes of fun's values" if self.valued else "jax.grad"
            row = compare_leaf(prefix + name, *parts, kind=kind, leading=leading, witness=witness)
            if row.verdict == "fail" and not np.isfinite(parts[0]).all():
                moving, data = subject.given.fresh("moving"), subject.given.fresh("data")
                where = faults.made_by(subject.by_hand, moving, data)
                row = replace(row, cause=f"not finite by hand though it is by jax.grad{where}")
            yield row
