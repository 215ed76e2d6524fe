"""Find a function's kinks: record which branch every equation of its program takes, and where that changes.

A difference across a kink is no derivative, and at the kink itself there are only slopes from the two sides. So the
branch taken is recorded, equation by equation, and compared between points. The insides of a `while`, whose length is
not known beforehand, and of a `cond` are not examined, but the branch that a `cond` takes is recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from reference.jaxprs import CALLS, Values, bind, evaluate, inside, source, through
from reference.xla import quick

Tree = Any
Trail = tuple[Any, ...]
"""The calls around an equation, outermost first, then the equation itself."""
Rule = Callable[[Trail, list[Any]], Sequence[Any]]
"""(an equation's trail, its inputs) -> its outputs."""

_COMPARISONS = {"max", "min", "gt", "ge", "lt", "le", "eq", "ne"}
_STEPS = {"floor", "ceil", "round", "argmax", "argmin"}
_NUDGE = 2.0**-20  # step to a point next to x; any other point would break a tie too


def walk(closed: Any, inputs: Sequence[Any], rule: Rule, callers: Trail = ()) -> list[Any]:
    """Evaluate a jaxpr with `rule` in place of every equation, including those inside calls.

    For a function with a derivative rule of its own (custom_jvp, custom_vjp) the plain function is walked, so a
    derivative of the walk does not use that rule.

    Args:
        closed: a ClosedJaxpr.
        inputs: a value for each of its inputs, flat.
        rule: what to do with each equation that is not a call.
        callers: the calls around the jaxpr.
    """

    def at(equation: JaxprEqn, values: Values) -> Sequence[Any]:
        trail = (*callers, equation)
        if equation.primitive.name in CALLS:
            return walk(inside(equation)[0], values, rule, trail)
        return rule(trail, values)

    return evaluate(closed, inputs, at)


def plain(trail: Trail, values: Sequence[Any], **changed: Any) -> list[Any]:
    """The rule that computes an equation unchanged, except for the parameters `changed`."""
    return bind(trail[-1], values, **changed)


def scan(trail: Trail, values: Sequence[Any], body: Callable[[Any, list[Any]], tuple[list[Any], Any]]) -> Any:
    """Evaluate a `scan` by `body` -> (outputs, a list of more or None); return (outputs, the rest stacked)."""
    (jaxpr,), count = inside(trail[-1]), len(trail[-1].outvars)

    def turn(k: int, given: Values, t: Any) -> Values:
        outputs, more = body(jaxpr, given)
        return [*outputs, *(more or ())]

    found = through(trail[-1], list(values), turn)
    return found[:count], found[count:]


def place(trail: Trail) -> str:
    """The file and line of an equation, "losses.py:31"; if unknown, those of the innermost call that has them."""
    found = next(filter(None, map(source, reversed(trail))), None)
    return f"{Path(found[0]).name}:{found[1]}" if found else "an unknown line"


@dataclass(frozen=True)
class Kink:
    """An equation with a branch, and how many of its entries are affected.

    Attributes:
        primitive: its name in JAX: max, select_n, ...
        place: file and line.
        entries: how many of its entries change branch, or lie exactly on the kink.
        of: the number of its entries.
    """

    primitive: str
    place: str
    entries: int
    of: int

    def __str__(self) -> str:
        return f"{self.primitive} at {self.place}, {self.entries} of {self.of} entries"


def _recorded(trail: Trail, values: Sequence[Any]) -> Array | None:
    """The branch that each entry takes, as small integers, 0 exactly on a kink; None if there is no branch."""
    eqn = trail[-1]
    name, first = eqn.primitive.name, values[0] if values else None
    if first is not None:
        first = jnp.asarray(first)
    floats = first is not None and jnp.issubdtype(first.dtype, jnp.floating)
    if name in _COMPARISONS and floats:
        return _side(first, values[1])
    if name in {"abs", "sign"} and floats:
        return _side(first, jnp.zeros_like(values[0]))
    if name == "clamp" and floats:
        low, x, high = (jnp.broadcast_to(v, jnp.shape(values[1])) for v in values)
        return jnp.stack([_side(x, low), _side(x, high)])
    if name in {"reduce_max", "reduce_min"} and floats:
        assert first is not None
        best = getattr(jnp, name[7:])(first, axis=eqn.params["axes"], keepdims=True)
        chosen = first == jnp.broadcast_to(best, first.shape)
        alone = jnp.sum(chosen, axis=eqn.params["axes"], keepdims=True) == 1
        return jnp.where(chosen, jnp.where(jnp.broadcast_to(alone, chosen.shape), 1, 0), -1)
    if name in _STEPS and floats:
        return jnp.asarray(plain(trail, values)[0]).astype("int64") + 1  # shifted by 1, since 0 stands for a kink
    if name == "sort" and floats:
        return jnp.argsort(jnp.asarray(first), axis=eqn.params["dimension"]) + 1
    if name in {"select_n", "cond"}:
        return jnp.asarray(first).astype("int64") + 1
    return None


def _side(a: Any, b: Any) -> Array:
    return jnp.where(a > b, 1, 0) - jnp.where(a < b, 1, 0)


def _record(
    closed: Any, inputs: Sequence[Any], callers: Trail = ()
) -> tuple[list[Any], list[tuple[str, str]], list[Array]]:
    """(outputs, (primitive, place) of every equation with a branch, the branch of each of its entries)."""
    names: list[tuple[str, str]] = []
    branches: list[Array] = []

    def rule(trail: Trail, values: list[Any]) -> Sequence[Any]:
        name = trail[-1].primitive.name
        if name == "scan":
            inner: list[tuple[str, str]] = []

            def body(jaxpr: Any, given: list[Any]) -> tuple[list[Any], list[Array]]:
                outputs, inner[:], taken = _record(jaxpr, given, trail)
                return outputs, taken

            outputs, taken = scan(trail, values, body)
            names.extend(inner)
            branches.extend(taken)
            return outputs
        taken = _recorded(trail, values)
        if taken is not None:
            names.append((name, place(trail)))
            branches.append(taken)
        return plain(trail, values)

    return walk(closed, inputs, rule, callers), names, branches


def shifted(args: Tree, direction: Tree, step: Any) -> Tree:
    """The arguments moved by step * direction, leaf by leaf; leaves that are not floats stay unchanged."""

    def one(leaf: Any, change: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf + step * jnp.asarray(change, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, args, direction)


def changes(
    fun: Callable[..., Any], args: tuple, directions: Tree, steps: Array, *, ties_only: bool = False
) -> tuple[tuple[Kink, ...], Array, Any]:
    """Find the equations that take another branch when the arguments move.

    It is for float64 arguments inside `jax.enable_x64(True)`, and may be compiled.

    Args:
        fun: any JAX-traceable function.
        args: the starting point.
        directions: a tree like `args`, every leaf with K in front: K directions.
        steps: how far along each; shape (K,).
        ties_only: count only entries that lie exactly on their kink at `args`.

    Returns:
        Every equation with a branch, with `entries` 0; the number of its entries that change branch, shape
        (K, equations); and the function's first result at each of the K points.
    """
    closed = jax.make_jaxpr(fun)(*args)
    _, names, before = _record(closed, jax.tree.leaves(args))
    kinks = tuple(Kink(*name, entries=0, of=int(b.size)) for name, b in zip(names, before, strict=True))

    def count(direction: Tree, step: Array) -> tuple[Array, Any]:
        outputs, _, after = _record(closed, jax.tree.leaves(shifted(args, direction, step)))
        differ = [(a != b) & ((b == 0) | (not ties_only)) for a, b in zip(after, before, strict=True)]
        return jnp.stack([jnp.sum(d) for d in differ]) if differ else jnp.zeros(0, int), outputs[0]

    return kinks, *jax.vmap(count)(directions, steps)


def _changed(fun: Callable[..., Any], args: tuple, direction: Tree, step: Any, **only: bool) -> tuple[Kink, ...]:
    """`changes` along one direction, compiled; only the equations that change branch."""
    found: list[Kink] = []

    def count(args: tuple, direction: Tree) -> Array:
        found[:], counts, _ = changes(fun, args, direction, jnp.full(1, step, "float64"), **only)
        return counts[0]

    counts = jax.jit(count, compiler_options=quick())(
        args, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], direction)
    )
    return tuple(replace(kink, entries=int(n)) for kink, n in zip(found, counts.tolist(), strict=True) if n)


def crossed(fun: Callable[..., Any], args: tuple, direction: Tree, step: Any) -> tuple[Kink, ...]:
    """The kinks between args and args + step * direction, in order of computation.

    Args:
        fun: any JAX-traceable function.
        args: where it is differentiated.
        direction: a tree like `args`.
        step: how far.
    """
    with jax.enable_x64(True):
        args = jax.tree.map(_wide, args)
        return _changed(fun, args, direction, step)


def ties(fun: Callable[..., Any], *args: Any, seed: int = 0) -> tuple[Kink, ...]:
    """The kinks on which fun(*args) lies exactly, in order of computation: any move takes such entries off them."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        args = jax.tree.map(_wide, args)
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), args)
        return _changed(fun, args, direction, _NUDGE, ties_only=True)


def _wide(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype("float64") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
