"""The proof: every number of a hand-written step against the reference's, in float64 or a working precision."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

import manual_backprop as mb
from manual_backprop.layers import Dense, LayerTrace, Node, Parameters
from manual_backprop.network import Repeat, Residual, Serial
from manual_backprop.objective import Objective, Step
from reference import autodiff, causes
from reference.model import LayerValues
from reference.report import Report, Row
from reference.rounding import Tolerance, tolerance

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
    dtype: DTypeLike = "float64",
    backprop: Backprop = mb.backprop,
    value_and_grad: ValueAndGrad = mb.value_and_grad,
    compiler_options: dict[str, Any] | None = None,
) -> Report:
    """Prove one hand-written step right, or say where it is wrong.

    Compares z and a of every layer, loss, penalty, J, every delta, every dW and db, dL/dx and ds/dlam, entry
    by entry, with jax.grad of an objective that is written independently. Inputs are rounded to `dtype`, the
    step under test runs in it, and the reference runs in float64 on the same rounded inputs. In a working
    precision each layer of the reference starts from the z and a that the step under test found below it: a
    rounding that crosses a kink, or that the layers above magnify, is then no difference, and a wrong z still is.

    Args:
        objective: what to check.
        params: its parameters; a check can only fail where they are generic (b not zero, for one).
        x: a batch; N >= 2 lets a missing 1/N show.
        y: targets.
        lam: as for the objective.
        weights: as for the objective.
        dtype: the precision to test in.
        backprop: the step under test, in the form of `manual_backprop.backprop`.
        value_and_grad: the gradient under test, in the form of `manual_backprop.value_and_grad`.
        compiler_options: for XLA, as `jax.jit` takes them.

    Returns:
        A report with one row for each leaf, in the order of computation: the first that fails is the cause.

    Raises:
        ValueError, TypeError: inputs that the objective refuses.
    """
    in_double = jnp.dtype(dtype) == jnp.float64

    def under_test(p: Tree, x: Any, y: Any, given: dict[str, Any]) -> tuple[Step, tuple[Any, Any], Tree]:
        step = backprop(objective, p, x, y, **given)
        sums = None if in_double else summed_magnitudes(objective, step, given.get("weights"))
        return step, value_and_grad(objective)(p, x, y, **given), sums

    def by_autodiff(p: Tree, x: Any, y: Any, given: dict[str, Any], at: Tree | None) -> Step:
        return autodiff.backprop(objective, p, x, y, **given, at=at)

    with jax.enable_x64(True):
        rounded = _cast((params, x, y), dtype)
        named = {"lam": lam, "weights": weights}
        given = {name: _as_sums(value, dtype) for name, value in named.items() if value is not None}
        objective.checked(rounded[0], rounded[1], rounded[2], given.get("lam"), given.get("weights"))
        manual = jax.jit(under_test, compiler_options=compiler_options)(*rounded, given)
        at = None if in_double else layer_values(manual[0].trace)
        wide = _cast((*rounded, given, at), "float64")
        witness = jax.jit(by_autodiff, compiler_options=compiler_options)(*wide)
        manual, witness = jax.device_get((manual, witness))
    return compare(objective, params, len(x), manual, witness, lam=lam, dtype=dtype)


def _cast(tree: Tree, dtype: DTypeLike) -> Tree:
    """Float leaves in `dtype`, integers as they are, as NumPy arrays: nothing to compile."""

    def one(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf.astype(jnp.dtype(dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def _as_sums(value: Any, dtype: DTypeLike) -> Any:
    """Lambda and weights in the precision of sums, float32 or wider."""
    return np.asarray(value, "float64" if jnp.dtype(dtype) == jnp.float64 else "float32")


def compare(
    objective: Objective,
    params: Tree,
    n_examples: int,
    manual: tuple[Step, Any, Tree],
    witness: Step,
    *,
    lam: Any = None,
    dtype: DTypeLike = "float64",
) -> Report:
    """The report on (the step, its value and gradient, `summed_magnitudes` or None) and the reference's step."""
    step, (value, gradients), sums = manual
    layers = list(dense_layers(objective.net))
    tol = tolerance(dtype, sum(n for _, n in layers), max(layer.d_in for layer, _ in layers))
    coefficient = 0.0 if objective.regularizer is None else float(objective.regularizer.lam if lam is None else lam)
    same_params = {path: (leaf, is_weight) for path, leaf, is_weight in _parameters(params)}
    magnitudes = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(sums)}
    rows = []
    pairs = [
        *_pairs(step, witness),
        ("value_and_grad.value", value, witness.value),
        *_leaf_pairs("value_and_grad.gradients", gradients, witness.gradients),
    ]
    for path, ours, theirs in pairs:
        leaf = path.partition("gradients")[2]
        parameter, is_weight = same_params.get(leaf, (None, False))
        summed = float(np.max(np.asarray(magnitudes[leaf], np.float64))) if leaf in magnitudes else 0.0
        rows.append(compare_leaf(path, ours, theirs, tol, n_examples, coefficient, parameter, is_weight, summed))
    return Report(tuple(rows), str(jnp.dtype(dtype)), n_examples, str(objective.net), coefficient)


def compare_leaf(
    path: str,
    manual: Any,
    reference: Any,
    tol: Tolerance,
    n_examples: int,
    lam: float,
    parameter: np.ndarray | None = None,
    is_weight: bool = False,
    summed: float = 0.0,
) -> Row:
    """One row: the worst entry of a leaf, and what the pattern of its differences says.

    `summed` is the size of what was added up to make the leaf, where that may be more than what is left.
    """
    ours, theirs = np.asarray(manual, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{path} is {list(ours.shape)} by hand but {list(theirs.shape)} by jax.grad")
    with np.errstate(invalid="ignore"):
        errors = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    errors = np.where(np.isnan(errors), np.inf, errors)
    worst = np.unravel_index(np.argmax(errors), errors.shape) if errors.size else ()
    finite = theirs[np.isfinite(theirs)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    error = float(errors[worst]) if errors.size else 0.0
    allowed = tol.allowed(max(scale, summed))
    passed = bool(error <= allowed)
    pattern = cause = ""
    if not passed:
        pattern = causes.ratio_pattern(ours, theirs)[1]
        cause = causes.probable_cause(
            ours, theirs, n_examples=n_examples, lam=lam, parameter=parameter, is_weight=is_weight
        )
    return Row(
        path=path,
        shape=ours.shape,
        error=error,
        scale=scale,
        tolerance=allowed,
        where=tuple(int(i) for i in worst),
        manual=float(ours[worst]) if ours.size else 0.0,
        reference=float(theirs[worst]) if theirs.size else 0.0,
        passed=passed,
        pattern=pattern,
        cause=cause,
    )


def summed_magnitudes(objective: Objective, step: Step, weights: Any) -> Tree:
    """sum_n w_n |delta_n| |a_n| for every gradient: what its rounding errors are relative to.

    Examples may cancel to a gradient far smaller than any of them; their rounding errors do not.
    """
    trace, deltas = jax.tree.map(jnp.abs, (step.trace, step.deltas))
    return mb.gradients(objective.net, trace, deltas, weights=None if weights is None else jnp.abs(weights))


def layer_values(trace: Tree) -> Tree:
    """The z and a of every layer of a trace."""
    return jax.tree.map(lambda t: LayerValues(t.z, t.a), trace, is_leaf=lambda node: isinstance(node, LayerTrace))


def dense_layers(node: Node) -> Iterator[tuple[Dense, int]]:
    """Every dense layer of a network, with how often it stands there."""
    if isinstance(node, Serial):
        for child in node.nodes:
            yield from dense_layers(child)
    elif isinstance(node, Residual):
        yield from dense_layers(node.block)
    elif isinstance(node, Repeat):
        for layer, count in dense_layers(node.block):
            yield layer, count * node.n
    elif isinstance(node, Dense):
        yield node, 1


def _parameters(params: Tree) -> Iterator[tuple[str, np.ndarray, bool]]:
    """(path, values, whether the regulariser counts it) of every parameter."""
    blocks = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, Parameters))
    for path, block in blocks:
        for inner, leaf in jax.tree_util.tree_leaves_with_path(block):
            name = jax.tree_util.keystr(inner)
            counted = isinstance(block, Parameters) and name.lstrip(".") in block.weights
            yield jax.tree_util.keystr(path) + name, np.asarray(leaf, np.float64), counted


def _leaf_pairs(name: str, ours: Tree, theirs: Tree) -> list[tuple[str, Any, Any]]:
    """(path, by hand, by jax.grad) of every leaf of two trees that must have one structure."""
    by_hand: Any = jax.tree.structure(ours)
    by_grad: Any = jax.tree.structure(theirs)
    if by_hand != by_grad:
        raise ValueError(f"{name} has structure\n  {by_hand}\nby hand but\n  {by_grad}\nby jax.grad")
    left, right = jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    return [(name + jax.tree_util.keystr(path), a, b) for (path, a), b in zip(left, right, strict=True)]


def _pairs(step: Step, witness: Step) -> list[tuple[str, Any, Any]]:
    """Every leaf of two steps in the order of computation, so that the first that differs is the cause."""
    forward = _leaf_pairs("trace", layer_values(step.trace), witness.trace)
    backward = _leaf_pairs("deltas", step.deltas, witness.deltas)
    return [
        *forward,
        ("output", step.output, witness.output),
        ("loss", step.loss, witness.loss),
        ("penalty", step.penalty, witness.penalty),
        ("value", step.value, witness.value),
        *reversed(backward),
        ("d_x", step.d_x, witness.d_x),
        *_leaf_pairs("gradients", step.gradients, witness.gradients),
        ("d_lam", step.d_lam, witness.d_lam),
    ]
