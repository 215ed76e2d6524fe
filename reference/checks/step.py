"""The proof of every number of a hand-written step, equation by equation and end to end, in any precision."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike

import manual_backprop as mb
from manual_backprop.drawing import typed
from manual_backprop.layers import Parameters
from manual_backprop.objective import Objective, Step
from reference import autodiff, causes, model
from reference.checks import blind_spots
from reference.checks.inputs import require_finite, require_something, require_whole
from reference.checks.placement import Layout, Placement, gathered
from reference.compare import as_float64, compare_leaf, require_same_structure
from reference.equations.bounds import Arithmetic
from reference.equations.chain import layer_values
from reference.equations.rows import Equation, equations
from reference.masks import masks
from reference.reductions import Shards
from reference.report import Report, Row
from reference.tolerance.formats import require_floats
from reference.tolerance.rounding import SAMPLES, Measured, measure, require_samples
from reference.tolerance.side_by_side import widened

Tree = Any
Backprop = Callable[..., Step]
ValueAndGrad = Callable[[Objective], Callable[..., tuple[Any, Any]]]


def check(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Any,
    *,
    lam: Any = None,
    weights: Any = None,
    key: Any = None,
    dtype: DTypeLike = "float64",
    backprop: Backprop = mb.backprop,
    value_and_grad: ValueAndGrad = mb.value_and_grad,
    samples: int = SAMPLES,
    seed: int = 0,
    compiler_options: dict[str, Any] | None = None,
    generic: bool = True,
    mesh: Mesh | None = None,
    layout: Layout = None,
) -> Report:
    """Prove one hand-written step right, or say which equation of it is wrong.

    Inputs are rounded to `dtype` and the step under test runs in it, compiled. Then every value is compared twice:

    - equation by equation: the value is recomputed in float64 from the stored values that enter its equation, and the
      tolerance is a derived rounding bound of that one equation. A fault shows in its own equation and nowhere else;
    - end to end: `jax.grad` of an objective written independently computes it from the inputs alone. The tolerance
      is measured, entry by entry, by Monte Carlo arithmetic.

    A verdict is about the values it was reached at; the report's notes say which faults cannot show at these.

    Args:
        objective: what to check.
        params: its parameters. Where a leaf hides faults, such as the zero biases of a fresh `init`, it is moved first.
        x: a batch; N >= 2 lets a missing 1/N show.
        y: targets.
        lam: as for the objective.
        weights: as for the objective.
        key: as for the objective. The reference draws what dropout draws from it a second time.
        dtype: the precision to test in.
        backprop: the step under test, in the form of `manual_backprop.backprop`.
        value_and_grad: the gradient under test, in the form of `manual_backprop.value_and_grad`.
        samples: of Monte Carlo arithmetic.
        seed: of its noise, and of the values that leaves are moved to.
        compiler_options: for XLA, as `jax.jit` takes them.
        generic: whether to move leaves that hide faults (all zeros, all ones, equal entries, a symmetric matrix) to
            seeded values near them. The notes name them; with False, they say what cannot show there.
        mesh: devices to run the step under test on; its inputs are placed there, and where its results are wrong the
            report says which reduction over devices is. The reference stays on one device.
        layout: how inputs lie on the mesh: a name as for `manual_backprop.sharding.specs`, by default "data", or a
            tree of specs for the parameters, with the batch split over the axis "data" where the mesh has one.

    Returns:
        A report with the rows of every equation in the order of computation, then those end to end. The first
        equation that fails is the cause.

    Raises:
        ValueError, TypeError: no objective, inputs that the objective refuses, values that are nan or inf, weights
            that are all zero, no precision, samples below 1, a step of the wrong structure or shapes, a layout without
            a mesh, or one that does not fit.
    """
    judge = prepare(
        objective,
        params,
        x,
        y,
        lam=lam,
        weights=weights,
        key=key,
        dtype=dtype,
        samples=samples,
        seed=seed,
        generic=generic,
        mesh=mesh,
        layout=layout,
    )
    return judge.report(*by_hand(judge, backprop, value_and_grad, compiler_options))


def by_hand(
    judge: "Judge",
    backprop: Backprop = mb.backprop,
    value_and_grad: ValueAndGrad = mb.value_and_grad,
    compiler_options: dict[str, Any] | None = None,
) -> tuple[Step, tuple[Any, Any]]:
    """The step under test, and its value and gradient, on the inputs of a judge; arguments as for `check`."""

    def under_test(p: Tree, x: Any, y: Any, given: dict[str, Any]) -> tuple[Step, Any]:
        return backprop(judge.objective, p, x, y, **given), value_and_grad(judge.objective)(p, x, y, **given)

    given = judge.given if judge.key is None else {**judge.given, "key": judge.key}
    program = jax.jit(under_test, compiler_options=compiler_options)
    with jax.enable_x64(True):
        if judge.placement is None:
            return jax.device_get(program(*judge.inputs, given))
        inputs, given = judge.placement.place(judge.inputs, given)
        with jax.set_mesh(judge.placement.mesh):
            step, pair = program(*inputs, given)
    known = judge.measured.value
    return gathered(step, known), gathered(pair, (known.value, known.gradients))


@dataclass(frozen=True, eq=False)
class Judge:
    """The reference's side of a check, computed once, to compare any number of steps with.

    Attributes:
        objective: the objective to check.
        inputs: (params, x, y), floats rounded to the precision under test; steps are compared at these.
        given: lam and weights, if they were given.
        dtype: the precision under test.
        measured: the reference's step in float64, and the tolerance of every entry.
        notes: on parameters that hide faults, or that were moved since they did.
        key: of what the step draws, if it was given.
        masks: what dropout draws with it, by the reference.
        placement: where the step under test runs, if on several devices.
    """

    objective: Objective
    inputs: tuple[Tree, Any, Any]
    given: dict[str, Any]
    dtype: str
    measured: Measured
    notes: tuple[str, ...] = ()
    key: Any = None
    masks: Tree | None = None
    placement: Placement | None = None

    def report(self, step: Step, value_and_grad: tuple[Any, Any] | None = None) -> Report:
        """The verdict on a step, and on a value and gradient if given."""
        n, lam = model.examples(self.inputs[1]), self._coefficient()
        context = causes.Context(n, lam or 0.0, blocks=() if self.placement is None else self.placement.sizes)
        rows = [*self._equation_rows(step, context), *self._end_to_end_rows(step, value_and_grad, context)]
        where = () if self.placement is None else (self.placement.words,)
        notes = (*where, *self.notes, *blind_spots.of_batch(n, self.given.get("weights"), lam))
        return Report(tuple(rows), self.dtype, str(self.objective.net), n, lam or 0.0, notes)

    @cached_property
    def _by_shard(self) -> dict[str, Shards]:
        """The part of the gradient of L that each shard's rows add, by the leaf's place; nothing on one device."""
        placed = self.placement
        if placed is None or placed.shards == 1:
            return {}
        n = model.examples(self.inputs[1])
        weights = np.asarray(self.given.get("weights", np.full(n, 1 / n)), np.float64)
        of_shard = np.arange(n) * placed.shards // n
        plain = replace(self.objective, regularizer=None)
        with jax.enable_x64(True):
            inputs = jax.tree.map(lambda leaf: widened(np.asarray(leaf)), (*self.inputs, self.masks))
            program = jax.jit(lambda *args, weights: autodiff.backprop_at(plain, *args, weights=weights).gradients)
            each = [program(*inputs, weights=np.where(of_shard == k, weights, 0)) for k in range(placed.shards)]
        by_path = [dict(_named("gradients", jax.device_get(tree))) for tree in each]
        return {path: Shards([as_float64(of[path]) for of in by_path], placed.mesh.size) for path in by_path[0]}

    def _coefficient(self) -> float | None:
        """Lambda; None without a regulariser, where there is nothing to be hidden."""
        regularizer, lam = self.objective.regularizer, self.given.get("lam")
        return None if regularizer is None else float(regularizer.lam if lam is None else lam)

    def _shards(self, path: str) -> Shards | None:
        return self._by_shard.get(path)

    def _equation_rows(self, step: Step, context: causes.Context) -> Iterator[Row]:
        require_same_structure("gradients", step.gradients, self.measured.value.gradients)
        require_same_structure("deltas", step.deltas, self.measured.value.deltas)
        arithmetic = replace(Arithmetic.of(self.dtype), devices=context.blocks)
        found = equations(self.objective, *self.inputs, step, arithmetic, **self.given, masks=self.masks)
        for equation in found:
            shards = partial(self._shards, equation.path)
            yield compare_leaf(
                equation.path,
                equation.manual,
                equation.known.value,
                equation.known.bound,
                cause=_cause(equation, replace(context, shards=shards)),
                kind="equation",
                equation=equation.tag,
                layer=equation.layer,
                by=" and ".join(map(str, equation.by)),
                witness="this equation",
            )

    def _end_to_end_rows(self, step: Step, pair: tuple[Any, Any] | None, context: causes.Context) -> Iterator[Row]:
        value, allowed, overflows = self.measured.value, self.measured.tolerance, self.measured.overflows
        triples = list(zip(_leaves(step), _leaves(value), _leaves(allowed), strict=True))
        if pair is not None:
            require_same_structure("value_and_grad.gradients", pair[1], value.gradients)
            whole = [
                [("value_and_grad.value", of[0]), *_named("value_and_grad.gradients", of[1])]
                for of in (pair, (value.value, value.gradients), (allowed.value, allowed.gradients))
            ]
            triples += list(zip(*whole, strict=True))
        parameters = {path: (leaf, counted) for path, leaf, counted in _parameters(self.inputs[0])}
        for (path, ours), (_, theirs), (_, tolerance) in triples:
            leaf, counted = parameters.get(path.partition("gradients")[2], (None, False))
            shards = partial(self._shards, path.removeprefix("value_and_grad."))
            cause = causes.of_leaf(replace(context, parameter=leaf, counted=counted, shards=shards))
            yield compare_leaf(path, ours, theirs, tolerance, cause=cause, overflows=overflows)


def prepare(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Any,
    *,
    lam: Any = None,
    weights: Any = None,
    key: Any = None,
    dtype: DTypeLike = "float64",
    samples: int = SAMPLES,
    seed: int = 0,
    generic: bool = False,
    mesh: Mesh | None = None,
    layout: Layout = None,
) -> Judge:
    """The reference's side of `check`, for callers that check many steps; arguments as there.

    Here `generic` is off, since a step that comes from elsewhere is at the caller's parameters. With it, compute every
    step at the judge's `inputs`.
    """
    Objective.required(objective)
    if mesh is None and layout is not None:
        raise ValueError("a layout says how inputs lie on a mesh: give mesh= too, as from jax.make_mesh")
    require_samples(samples)
    require_floats(dtype)
    require_whole((params, x, y, lam, weights))
    with jax.enable_x64(True):
        (params, x, y), given = _checked(objective, (params, x, y), {"lam": lam, "weights": weights}, dtype)
        hiding = blind_spots.degenerate_leaves(params)
        if generic and hiding:
            params = blind_spots.moved(params, seed)

        def step(p: Tree, x: Any, y: Any, drawn: Tree | None, given: dict[str, Any]) -> Step:
            return autodiff.backprop_at(objective, p, x, y, drawn, **given)

        placement = None if mesh is None else Placement.of(objective.net, params, mesh, layout or "data")
        if placement is not None:
            placement.place((params, x, y), given)  # refused before the reference is at work
        drawn = jax.device_get(masks(objective.net, params, x, None if key is None else typed(key)))
        wide = jax.tree.map(lambda leaf: widened(np.asarray(leaf)), (params, x, y, drawn, given))
        measured = measure(step, *wide, dtype=dtype, samples=samples, seed=seed)
    notes = tuple(blind_spots.of_parameters(hiding, generic))
    return Judge(objective, (params, x, y), given, str(jnp.dtype(dtype)), measured, notes, key, drawn, placement)


def _checked(
    objective: Objective, inputs: tuple[Tree, Any, Any], named: dict[str, Any], dtype: DTypeLike
) -> tuple[tuple[Tree, Any, Any], dict[str, Any]]:
    """(params, x, y) and what is given of lam and weights, rounded, or the error that says what is wrong with them."""
    params, x, y = rounded = _cast(inputs, dtype)
    given = {name: _as_sums(value, dtype) for name, value in named.items() if value is not None}
    for name, values, kept in zip(("params", "x", "y"), inputs, rounded, strict=True):
        require_finite(name, values, kept, str(jnp.dtype(dtype)))
    lam, weights = given.get("lam"), given.get("weights")
    objective.checked(params, x, y, lam, weights)
    if weights is not None:
        require_finite("weights", named["weights"], weights, str(weights.dtype))
    require_something(x, weights)
    return rounded, given


def _cause(equation: Equation, context: causes.Context) -> Any:
    return causes.of_leaf(
        replace(context, parameter=equation.parameter, counted=equation.counted, mistakes=equation.mistakes)
    )


def _cast(tree: Tree, dtype: DTypeLike) -> Tree:
    """Float leaves in `dtype` and integers unchanged, as NumPy arrays, so that nothing is compiled."""

    def one(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf.astype(jnp.dtype(dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    with np.errstate(over="ignore"):  # what does not fit is refused by name
        return jax.tree.map(one, tree)


def _as_sums(value: Any, dtype: DTypeLike) -> Any:
    """Lambda and weights in the precision of sums, float32 or wider; what is no number is left to be refused."""
    if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return value
    return np.asarray(value, "float64" if jnp.dtype(dtype) == jnp.float64 else "float32")


def _parameters(params: Tree) -> Iterator[tuple[str, np.ndarray, bool]]:
    """(path, values, whether the regulariser counts it) of every parameter."""
    blocks = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, Parameters))
    for path, block in blocks:
        for inner, leaf in jax.tree_util.tree_leaves_with_path(block):
            name = jax.tree_util.keystr(inner)
            counted = isinstance(block, Parameters) and name.lstrip(".") in block.weights
            yield jax.tree_util.keystr(path) + name, np.asarray(leaf, np.float64), counted


def _named(name: str, tree: Tree) -> list[tuple[str, Any]]:
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _leaves(step: Step) -> list[tuple[str, Any]]:
    """(path, value) of every value in a step, in the order of computation."""
    return [
        *_named("trace", layer_values(step.trace)),
        ("output", step.output),
        ("loss", step.loss),
        ("penalty", step.penalty),
        ("value", step.value),
        *reversed(_named("deltas", step.deltas)),
        *_named("d_x", step.d_x),
        *_named("gradients", step.gradients),
        ("d_lam", step.d_lam),
    ]
