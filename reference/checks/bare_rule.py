"""Call the two rules of a jax.custom_vjp directly, since JAX itself turns None into zero and accepts wrong dtypes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.arguments import Arguments, kind_of
from reference.checks.held_rule import Held
from reference.report import Row

Tree = Any


@dataclass
class Findings:
    """The findings from calling the bare rules.

    Attributes:
        rows: on the errors that they raised, and on the types of their results.
        nones: paths of the float leaves for which the backward rule returned None.
        notes: oddities that do no harm.
    """

    rows: list[Row] = field(default_factory=list)
    nones: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if not row.passed]


def bare_vjp(held: Held, given: Arguments, cotangent: Sequence[Any], output: Tree) -> Findings:
    """Call a custom_vjp's forward rule, then its backward rule on one cotangent, with arrays of JAX as JAX does.

    Only types are looked at, so they are traced, which compiles nothing; rules that need values get them.

    Args:
        held: the jax.custom_vjp.
        given: the arguments.
        cotangent: an array for every float leaf of the output.
        output: the plain function's result.
    """
    found: list[Findings] = []

    def abstract(moving: Sequence[Any], data: Sequence[Any]) -> None:
        found.append(_called(held, given, given.build(moving, data), cotangent, output, traced=True))

    leaves = [[jnp.asarray(leaf) for leaf in given.fresh(kind)] for kind in ("moving", "data")]
    try:
        jax.eval_shape(abstract, *leaves)
    except Exception:  # it needs values, or what it keeps does not outlive the trace
        return _called(held, given, given.build(*leaves), cotangent, output, traced=False)
    return found[0]


def _called(
    held: Held, given: Arguments, args: tuple[Any, ...], cotangent: Sequence[Any], output: Tree, traced: bool
) -> Findings:
    found = Findings()
    rule, bound = held.rule, held.bound(args)
    names = list(bound)
    static = [bound[names[i]] for i in rule.nondiff_argnums if i < len(names)]
    free = {name: bound[name] for i, name in enumerate(names) if i not in rule.nondiff_argnums}
    entering = free
    if rule.symbolic_zeros:
        entering = jax.tree.map(lambda leaf: jax.custom_derivatives.CustomVJPPrimal(leaf, True), free)
    try:
        pair = rule.fwd(*(bound | entering).values())
    except Exception as error:  # the error is the finding, unless it is that of tracing
        if traced:
            raise
        found.rows.append(faults.contract("fwd", f"the forward rule raised {faults.one_line(error)}"))
        return found
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        told = f"the forward rule must return (output, residuals), got {type(pair).__name__}"
        found.rows.append(faults.contract("fwd", told))
        return found
    try:
        cotangents = rule.bwd(*static, pair[1], _whole(cotangent, output))
    except Exception as error:
        if traced:
            raise
        found.rows.append(faults.contract("bwd", f"the backward rule raised {faults.one_line(error)}"))
        return found
    _inspect(found, cotangents, free, given)
    return found


def _whole(cotangent: Sequence[Any], output: Tree) -> Tree:
    """The cotangent in the output's tree, with JAX's float0 zeros for outputs that are not floats."""
    values = iter(cotangent)

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(next(values))
        return np.zeros(np.shape(leaf), jax.dtypes.float0)

    return jax.tree.map(one, output)


def _inspect(found: Findings, cotangents: Any, free: dict[str, Any], given: Arguments) -> None:
    if not isinstance(cotangents, tuple | list) or len(cotangents) != len(free):
        got = f"{len(cotangents)}" if isinstance(cotangents, tuple | list) else f"a {type(cotangents).__name__}"
        told = f"the backward rule must return a tuple of {len(free)}, one cotangent for each argument, got {got}"
        found.rows.append(faults.contract("bwd", told))
        return
    rows: list[Row] = []
    for (name, arg), cotangent in zip(free.items(), cotangents, strict=True):
        rows += _one_argument(found, name, cotangent, arg, set(given.moving_paths))
    broken = [row for row in rows if not row.passed]
    found.rows += broken or [faults.contract("types of cotangents")]


def _one_argument(found: Findings, path: str, cotangent: Tree, argument: Tree, moving: set[str]) -> list[Row]:
    """Rows on the cotangent of one argument; its None leaves are noted."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(argument, is_leaf=_is_none)
    rows: list[Row] = []
    if cotangent is None:
        ours: list[Any] = [None] * len(leaves)
    else:
        ours = jax.tree.leaves(cotangent, is_leaf=_is_none)
        its: Any = jax.tree.structure(cotangent, is_leaf=_is_none)
        if its != tree:
            return [faults.contract(f"type of {path}", f"its cotangent has structure {its}, the argument {tree}")]
    for (keys, leaf), got in zip(leaves, ours, strict=True):
        name = path + jax.tree_util.keystr(keys)
        if got is None:
            found.nones += [name] if name in moving else []
        elif leaf is not None:
            rows.append(_one_leaf(found, name, got, leaf))
    return rows


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _one_leaf(found: Findings, name: str, got: Any, leaf: Any) -> Row:
    leaf = jnp.asarray(leaf) if isinstance(leaf, float) else leaf
    if isinstance(got, jax.custom_derivatives.SymbolicZero):
        got = jax.ShapeDtypeStruct(got.shape, got.dtype)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return faults.type_mismatch(name, got, leaf)
    if getattr(got, "dtype", None) == jax.dtypes.float0:
        return faults.contract(f"type of {name}")
    if not isinstance(got, jax.ShapeDtypeStruct) and np.any(np.asarray(got)):
        told = f"{name} is {kind_of(leaf)}, so its cotangent is None or float0 zeros; {kind_of(got)} is not zero"
        return faults.contract(f"type of {name}", told)
    found.notes.append(f"bwd returns {kind_of(got)} for {name}, which is no float; None says the same")
    return faults.contract(f"type of {name}")
