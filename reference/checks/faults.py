"""Find faults of a function under test other than wrong numbers, and say each in plain words."""

import functools
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks.arguments import Arguments, describe, kind_of, structure
from reference.checks.culprit import first_nonfinite
from reference.checks.named import parameter_names
from reference.report import Row

Tree = Any
_HERE = re.escape(str(Path(__file__).parent.parent))
_OURS = re.compile(rf"^{_HERE}|[/\\\\](jax|jaxlib|numpy|beartype|jaxtyping)[/\\\\]|^<")


class CallFailed(RuntimeError):  # noqa: N818
    """A function under test raised an error, which is chained (`__cause__`)."""


def name_of(function: Any) -> str:
    """The name of a function, without that of the function it stands in; of a partial, that of the function inside."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or function
    return str(name).rpartition("<locals>.")[2]


def call_of(check: str, functions: Sequence[Any], args: int, **options: Any) -> str:
    """A call of a check as one would write it, with the names of the first function's parameters for its arguments.

    Args:
        check: its name.
        functions: what it is called on.
        args: how many arguments follow.
        options: keywords; those that are None, 0.0 or False are left out.
    """
    names = parameter_names(functions[0], args)
    given = {key: value for key, value in options.items() if value is not None and repr(value) not in ("0.0", "False")}
    said = [f"{key}={name_of(value) if callable(value) else repr(value)}" for key, value in given.items()]
    return f"{check}({', '.join([*map(name_of, functions), *names, *said])})"


def one_line(error: BaseException) -> str:
    """An error's type, the first line of its text, and the innermost line that raised it, outside of JAX and us."""
    text = str(error).strip()
    said = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _OURS.search(frame.filename)]
    return f"{said} at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else said


def call(function: Callable[..., Any], args: tuple[Any, ...], role: str, hint: str = "") -> Any:
    """Return `function(*args)`.

    Raises:
        CallFailed: the function raised. The text says what it was called on; its error is chained.
    """
    try:
        return function(*args)
    except Exception as error:
        told = f"; {hint}" if hint else ""
        raise CallFailed(f"{role} raised {one_line(error)}, called on {describe(args)}{told}") from error


@dataclass(frozen=True)
class Outcome:
    """The result of a call, and the damage to its arguments.

    Attributes:
        result: the return value.
        harm: paths of the arguments that it wrote into or restructured.
    """

    result: Any
    harm: tuple[str, ...]


def watched_call(function: Callable[..., Any], given: Arguments, role: str) -> Outcome:
    """Call `function` on copies of the arguments, and note which copies it changed.

    Raises:
        CallFailed: as `call`.
    """
    moving, data = given.fresh("moving"), given.fresh("data")
    args = given.build(moving, data)
    before_moving, before_data = given.fresh("moving"), given.fresh("data")
    result = call(function, args, role)
    pairs = [*zip(moving, before_moving, strict=True), *zip(data, before_data, strict=True)]
    names = [
        path for kind in ("moving", "data") for path, its in zip(given.paths, given.kinds, strict=True) if its == kind
    ]
    harm = [name for name, (after, before) in zip(names, pairs, strict=True) if _changed(after, before)]
    if structure(args) != given.treedef:
        harm.append("the containers that hold args")
    return Outcome(result, tuple(harm))


def _changed(after: Any, before: Any) -> bool:
    """Whether an argument was written into; one that was donated is gone by agreement."""
    return not (isinstance(after, jax.Array) and after.is_deleted()) and not same_bits(after, before)


def same_bits(a: Tree, b: Tree) -> bool:
    """Whether two trees have one structure and leaves of the same dtype, shape and bits."""

    def same(x: Any, y: Any) -> bool:
        x, y = np.asarray(x), np.asarray(y)
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()

    if structure(a) != structure(b):
        return False
    return all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))


def contract(path: str, broken: str = "") -> Row:
    """A row on a promise: `broken` says how it is broken, or is "" if it is kept."""
    size = float("inf") if broken else 0.0
    return Row(
        path=path,
        shape=(),
        error=size,
        scale=0.0,
        tolerance=0.0,
        used=size,
        power=0.0,
        where=(),
        manual=float("nan") if broken else 0.0,
        reference=0.0,
        verdict="fail" if broken else "pass",
        kind="contract",
        witness="its promise",
        cause=broken,
    )


def behaviour(role: str, first: Outcome, second: Outcome) -> list[Row]:
    """Rows on two calls with the same arguments: equal bits, and unchanged arguments."""
    drift = (
        ""
        if same_bits(first.result, second.result)
        else (
            f"{role} gave another result on a second call with the same arguments: it depends on something that is not"
            " an argument (a counter, a global, random numbers without a key)"
        )
    )
    harm = "" if not first.harm else f"{role} changed its arguments in place: {', '.join(first.harm)}; copy them first"
    return [contract("second call the same", drift), contract("arguments unchanged", harm)]


def require_scalar(value: Any, role: str) -> None:
    """Raise an error unless a value is one real number.

    Raises:
        TypeError: it is a tree, has a shape, or is not of a float type. The text says what to use instead.
    """
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        raise TypeError(
            f"{role} must return one number, got {structure(value)}: return the loss alone, or check a"
            " function with several outputs with check_vjp"
        )
    if np.shape(value) != ():
        raise TypeError(
            f"{role} must return one number, got {kind_of(value)}: sum it with weights that differ from one another"
            " (a plain sum hides errors that cancel), or check it with check_vjp"
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(f"{role} must return a float to be differentiated, got {kind_of(value)}")


def require_finite(
    values: Sequence[Any], names: Sequence[str], role: str, function: Callable[..., Any], *args: Any
) -> None:
    """Raise an error if a value is nan or inf.

    Args:
        values: arrays.
        names: the name of each.
        role: the function that computed them, in words.
        function: a traceable function that computes the same, to find the operation at fault.
        args: its arguments.

    Raises:
        ValueError: names the leaf, its first element that is not finite, and the operation that made it.
    """
    for value, name in zip(values, names, strict=True):
        bad = np.argwhere(~np.isfinite(np.asarray(value, np.float64)))
        if len(bad):
            at = f"[{', '.join(map(str, bad[0]))}]" if np.ndim(value) else ""
            number = float(np.asarray(value, np.float64)[tuple(bad[0])])
            raise ValueError(
                f"{role} is {number} in {name}{at} ({len(bad)} of {np.size(value)} entries are not finite)"
                f"{made_by(function, *args)}; check at a point where it is finite"
            )


def made_by(function: Callable[..., Any], *args: Any) -> str:
    """`; first made by log at file:line`, or a text that the place is unknown because JAX cannot trace the function."""
    try:
        culprit = first_nonfinite(function, *args)
    except Exception as error:  # the search is optional, so its failure must not hide the finding
        return f"; where it arises is not known, since tracing it raises {one_line(error)}"
    return (
        f"; first made by {culprit}"
        if culprit
        else "; it is a number of the function's own, or comes from outside of what JAX traces"
    )


def same_structure(gradient: Tree, argument: Tree, path: str) -> None:
    """Raise an error unless a gradient has its argument's tree; leaves that are not floats may be None.

    Raises:
        ValueError: names the leaves that are missing or too many, and prints both structures.
    """
    ours, due = floats_only(gradient), floats_only(argument)
    if structure(ours) == structure(due):
        return
    have, want = _names(ours, path), _names(due, path)
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (
            ("missing", [n for n in want if n not in have]),
            ("not expected", [n for n in have if n not in want]),
        )
        if names
    ]
    raise ValueError(
        f"the gradient for {path} does not have its argument's structure: {'; '.join(parts) or 'containers differ'}"
        f"\n  gradient: {structure(gradient)}\n  argument: {structure(argument)}"
    )


def floats_only(tree: Tree) -> Tree:
    """The tree with None in place of every leaf that does not hold floats."""

    def keep(leaf: Any) -> Any:
        if isinstance(leaf, float):
            return leaf
        dtype = getattr(leaf, "dtype", None)
        return leaf if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else None

    return jax.tree.map(keep, tree)


def _names(tree: Tree, path: str) -> list[str]:
    return [path + jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def type_mismatch(path: str, cotangent: Any, argument: Any) -> Row:
    """A row on whether a derivative has its argument's shape and dtype."""
    got, due = kind_of(cotangent), kind_of(argument)
    if isinstance(cotangent, float):
        got = due if np.shape(argument) == () else "float"
    if got == due:
        return contract(f"type of {path}")
    told = f"the derivative for {path} is {got} but the argument is {due}; nothing broadcasts or casts it"
    return contract(f"type of {path}", told + _unsummed(np.shape(cotangent), np.shape(argument)))


def _unsummed(got: tuple[int, ...], due: tuple[int, ...]) -> str:
    """A hint where a derivative has the shape that its argument was broadcast to."""
    try:
        spread = got != due and np.broadcast_shapes(got, due) == got
    except ValueError:
        spread = False
    told = f"; where {list(due)} was broadcast to {list(got)}, its derivative is summed over the new axes"
    return told if spread else ""
