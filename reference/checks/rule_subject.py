"""Validate the inputs of a check of a custom rule, and collect what the check needs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from reference import causes
from reference.checks import faults
from reference.checks.arguments import Arguments, chosen, kind_of, structure, take_apart
from reference.checks.donation import keeping
from reference.checks.held_rule import Held
from reference.checks.linear_rows import Rule, Truth, Vector, against, arrays
from reference.jaxprs import float_bits
from reference.report import Row
from reference.xla import quick

Tree = Any


def rule_under_test(
    f: Any,
    held: Held | None,
    raw: Any,
    args: tuple[Any, ...],
    argnums: Any,
    nondiff: Sequence[int],
    dtype: Any,
    called: bool = True,
) -> Rule:
    """The `Rule` that both checks need; the plain function is called, or else its value has types alone."""
    declared = () if held is None else held.static
    fixed = {*declared, *(chosen(nondiff, len(args)) if nondiff else ())}
    numbers = chosen([i for i in range(len(args)) if i not in fixed] if argnums is None else argnums, len(args))
    if set(numbers) & fixed:
        raise ValueError(
            f"argnums {argnums!r} names an argument that nondiff_argnums {tuple(sorted(fixed))} says is static"
        )
    given = take_apart(args, numbers, dtype, tuple(fixed))
    plain = raw if raw is not None or held is None else held.plain
    role = f"the plain function of {faults.name_of(f)}"
    given.require_finite()
    with given.precision():
        moving, data = arrays(given.fresh("moving")), arrays(given.fresh("data"))
        value, bits = _value(plain, given, role, called)
        leaves = jax.tree_util.tree_leaves_with_path(value)
        found = [("primal" + jax.tree_util.keystr(path), _typed(leaf)) for path, leaf in leaves]
        _require_real(found)
        outputs = [(name, leaf) for name, leaf in found if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not outputs:
            got = ", ".join(kind_of(leaf) for _, leaf in found) or "nothing"
            raise TypeError(f"{role} returns no float to differentiate: {got}")
        f = keeping(f, given.build(arrays(given.fresh("moving")), arrays(given.fresh("data"))))
        types = tuple((name, jax.ShapeDtypeStruct(x.shape, x.dtype)) for name, x in outputs)
        rule = Rule(f, plain, given, value, types, bits)
        if called:
            values, names = [leaf for _, leaf in outputs], [name for name, _ in outputs]
            faults.require_finite(values, names, role, lambda m, d: rule.floats(plain, m, d), moving, data)
    return rule


def _value(plain: Callable[..., Any], given: Arguments, role: str, called: bool) -> tuple[Any, int]:
    """The plain function's result, or its types; and the bits of the narrowest float that it computes with.

    It is compiled as one program if it can be, since one is quicker than many.
    """
    leaves = [arrays(given.fresh(kind)) for kind in ("moving", "data")]

    def whole(moving: Vector, data: Vector) -> Any:
        return plain(*given.build(moving, data))

    try:
        traced = jax.jit(whole, compiler_options=quick()).trace(*leaves)
        value = traced.lower().compile()(*leaves) if called else traced.out_info
        return value, float_bits(traced.jaxpr.jaxpr)
    except Exception:  # it needs values, returns no arrays, or raises; uncompiled it says which
        return faults.call(plain, given.build(*leaves), role), 8 * given.working.itemsize


def _typed(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _require_real(found: Sequence[tuple[str, Any]]) -> None:
    for name, leaf in found:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} is complex: check a function that returns its real and imaginary parts as two outputs"
            )


def like(tree: Tree, due: Tree, what: str, whose: str, dtype: DTypeLike | None) -> Vector:
    """The float leaves of a tree that must match another tree's, cast only if `dtype` is given.

    Raises:
        ValueError: another structure, shape or dtype.
    """
    ours, theirs = faults.floats_only(tree), faults.floats_only(due)
    if structure(ours) != structure(theirs):
        raise ValueError(f"{what} must have the structure of {whose}, {structure(due)}, got {structure(tree)}")
    leaves = []
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        leaf = np.asarray(leaf) if dtype is None else np.asarray(leaf).astype(like.dtype)
        if kind_of(leaf) != kind_of(like):
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} must be {kind_of(like)} as {whose} is, got {kind_of(leaf)}"
            )
        leaves.append(leaf)
    return leaves


def tangents_like(tangents: Tree, rule: Rule, argnums: Any, dtype: DTypeLike | None) -> Vector:
    """The float leaves of tangents, a tuple with one tree for each differentiated argument."""
    args = rule.given.build(rule.given.fresh("moving"), rule.given.fresh("data"))
    touched = sorted({int(path.split("[")[1].split("]")[0]) for path in rule.given.moving_paths})
    due = tuple(args[i] for i in (touched if argnums is None else chosen(argnums, len(args))))
    return like(tangents, due, "tangents", "the differentiated arguments", dtype)


_OF_VALUES = causes.of_leaf(causes.Context(vectors=True))


def primal_rows(rule: Rule, truth: Truth) -> list[Row]:
    """Rows on the value of f itself, including integer outputs, against the plain function's."""
    moving, data = arrays(rule.given.fresh("moving")), arrays(rule.given.fresh("data"))
    try:
        value = rule.f(*rule.given.build(moving, data))
    except Exception as error:  # f raises but its plain function does not: that is the finding
        return [faults.contract("primal", f"f raised {faults.one_line(error)}")]
    plain, broken = rule.value, ""
    kinds = [[kind_of(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (value, plain)]
    if structure(value) != structure(plain) or kinds[0] != kinds[1]:
        theirs = f"the plain function {structure(plain)} of {kinds[1]}"
        broken = f"f returns {structure(value)} of {kinds[0]}, {theirs}"
        return [faults.contract("type of primal", broken)]
    whole = [[leaf for leaf in jax.tree.leaves(tree) if not _is_float(leaf)] for tree in (value, plain)]
    if not faults.same_bits(*whole):
        broken = "an output that is not a float differs from the plain function's"
    names, wanted = [name for name, _ in rule.outputs], truth.outputs
    rows = list(against(names, [leaf for leaf in jax.tree.leaves(value) if _is_float(leaf)], wanted, cause=_OF_VALUES))
    return [*rows, faults.contract("type of primal", broken)]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
