"""A traced function that can be run with one of its equations broken.

A plain interpreter of jaxprs: calls are run in line, loops and branches step by step where their values are
known, so that a run with a fault that changes nothing returns the very same bits.
"""

import linecache
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.interpreters import partial_eval

from reference.mutation.mutants import Fault, Values, faults, is_float, shaped

CALLS = {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
}
UNROLLED = 1000  # a scan longer than this runs compiled
Path_ = tuple[int, ...]  # equation, inner jaxpr, equation, ...: from the outermost to the broken one


class RunawayError(RuntimeError):
    """A while loop that a fault keeps from ending."""


@dataclass(frozen=True)
class Site:
    """One fault at one equation.

    Attributes:
        path: the equation's number, and where it lies deeper the number of the inner jaxpr and so on.
        where: the same in words: `12 scan > 3 mul`.
        primitive: of the equation.
        source: file:line (function) that the equation was traced from.
        code: the text of that line.
        fault: what is broken.
    """

    path: Path_
    where: str
    primitive: str
    source: str
    code: str
    fault: Fault


@dataclass
class _Loops:
    """Turns of while loops in one run, against how many are `allowed`."""

    allowed: int | None = None
    turns: int = 0

    def turn(self) -> None:
        self.turns += 1
        if self.allowed is not None and self.turns > self.allowed:
            raise RunawayError(f"a while loop does not end: stopped after {self.turns - 1} turns")


class Program:
    """A function as the jaxpr of one call, without what no output depends on.

    Attributes:
        jaxpr: the equations.
        unopened: primitives with equations inside that are broken as a whole alone.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        used = [True] * len(closed.jaxpr.outvars)
        self.jaxpr: Jaxpr = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)[0]
        self.unopened = tuple(sorted(_unopened(self.jaxpr)))
        self._consts = closed.consts
        self._inputs = jax.tree.structure(args)
        self._out = jax.tree.structure(out)
        self._names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]

    def sites(self, nudge: float, seed: int) -> list[Site]:
        """Every fault of every equation, in the order of computation."""
        return list(_sites(self.jaxpr, (), "", ("unknown", ""), nudge, random.Random(seed)))

    def run(self, site: Site | None = None, loops: _Loops | None = None) -> Callable[..., Any]:
        """The function, right or with that one fault: arguments and results as the function traced has them."""
        counted = _Loops() if loops is None else loops

        def function(*args: Any) -> Any:
            broken = None if site is None else (site.path, site.fault)
            flat = self._checked(args)
            return jax.tree.unflatten(self._out, _run(self.jaxpr, self._consts, flat, broken, counted))

        return function

    def counting(self, args: tuple[Any, ...]) -> tuple[Any, int]:
        """The right result, and how many turns its while loops took."""
        loops = _Loops()
        return self.run(loops=loops)(*args), loops.turns

    def limited(self, site: Site, turns: int) -> Callable[..., Any]:
        """`run(site)` for one call, that raises `RunawayError` where its while loops take far more than `turns`."""
        return self.run(site, _Loops(allowed=10 * turns + 100))

    def _checked(self, args: tuple[Any, ...]) -> Values:
        structure: Any = jax.tree.structure(args)
        if structure != self._inputs:
            raise ValueError(
                f"a mutant was called with arguments of structure\n  {structure}\nbut was traced with\n  {self._inputs}"
            )
        values = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
        for name, value, var in zip(self._names, values, self.jaxpr.invars, strict=True):
            due = shaped(var)
            if (value.shape, value.dtype) != (due.shape, due.dtype):
                raise ValueError(
                    f"a mutant was called with args{name} as {value.dtype}{list(value.shape)} but was traced with"
                    f" {due.dtype}{list(due.shape)}; trace it with arguments like those that the check uses"
                )
        return values


def _run(jaxpr: Jaxpr, consts: Any, args: Values, broken: tuple[Path_, Fault] | None, loops: _Loops) -> Values:
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = [atom.val if isinstance(atom, Literal) else known[atom] for atom in eqn.invars]
        here = broken is not None and broken[0][0] == i
        if here and broken is not None and len(broken[0]) == 1:
            outputs = broken[1].apply(partial(_bind, eqn, inner=None, loops=loops), inputs)
        else:
            inner = (broken[0][1:], broken[1]) if here and broken is not None else None
            outputs = _bind(eqn, inputs, inner, loops)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [atom.val if isinstance(atom, Literal) else known[atom] for atom in jaxpr.outvars]


def _bind(eqn: JaxprEqn, inputs: Values, inner: tuple[Path_, Fault] | None, loops: _Loops) -> Values:
    """The outputs of one equation; `inner` is the fault in one of its inner jaxprs."""
    name = eqn.primitive.name
    if name in CALLS:
        return _body(eqn, inner, loops, 0, inputs)
    if name in _CONTROL:
        return _CONTROL[name](eqn, inputs, partial(_body, eqn, inner, loops), loops)
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _body(eqn: JaxprEqn, inner: tuple[Path_, Fault] | None, loops: _Loops, number: int, values: Values) -> Values:
    """What one of an equation's inner jaxprs makes of some values."""
    broken = (inner[0][1:], inner[1]) if inner is not None and inner[0][0] == number else None
    jaxpr, consts = _inner(eqn)[number]
    return _run(jaxpr, consts, values, broken, loops)


def _known(values: Values) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _scan(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], loops: _Loops) -> Values:
    n_consts, n_carry, length = (eqn.params[key] for key in ("num_consts", "num_carry", "length"))
    consts, carry, xs = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    if not _known(inputs) or not 0 < length <= UNROLLED:

        def turn(carry: Values, x: Values) -> tuple[Values, Values]:
            outputs = body(0, [*consts, *carry, *x])
            return outputs[:n_carry], outputs[n_carry:]

        carry, ys = jax.lax.scan(turn, carry, xs, length, reverse=eqn.params["reverse"])
        return [*carry, *ys]
    rows: list[Values] = []
    for t in reversed(range(length)) if eqn.params["reverse"] else range(length):
        x = [jax.lax.dynamic_index_in_dim(value, t, keepdims=False) for value in xs]
        outputs = body(0, [*consts, *carry, *x])
        carry = outputs[:n_carry]
        rows.append(outputs[n_carry:])
    ordered = rows[::-1] if eqn.params["reverse"] else rows
    return [*carry, *(jnp.stack(column) for column in zip(*ordered, strict=True))]


def _while(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], loops: _Loops) -> Values:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    for_cond, for_body, carry = inputs[:n_cond], inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]
    if not _known(inputs):
        return list(
            jax.lax.while_loop(
                lambda carry: body(0, [*for_cond, *carry])[0], lambda carry: body(1, [*for_body, *carry]), carry
            )
        )
    while bool(body(0, [*for_cond, *carry])[0]):
        loops.turn()
        carry = body(1, [*for_body, *carry])
    return carry


def _cond(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], loops: _Loops) -> Values:
    index, *operands = inputs
    last = len(eqn.params["branches"]) - 1
    if _known([index]):
        return body(min(max(int(index), 0), last), operands)
    return list(jax.lax.switch(index, [partial(body, i) for i in range(last + 1)], operands))


_CONTROL: dict[str, Callable[..., Values]] = {"scan": _scan, "while": _while, "cond": _cond}


def _inner(eqn: JaxprEqn) -> list[tuple[Jaxpr, Any]]:
    """(jaxpr, constants) of every jaxpr inside an equation that this interpreter opens."""
    name = eqn.primitive.name
    if name in CALLS:
        found = [eqn.params[CALLS[name]]]
    elif name == "scan":
        found = [eqn.params["jaxpr"]]
    elif name == "while":
        found = [eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]]
    elif name == "cond":
        found = list(eqn.params["branches"])
    else:
        found = []
    return [(each.jaxpr, each.consts) if isinstance(each, ClosedJaxpr) else (each, ()) for each in found]


def _sites(
    jaxpr: Jaxpr, prefix: Path_, words: str, outer: tuple[str, str], nudge: float, draw: random.Random
) -> Iterator[Site]:
    for i, eqn in enumerate(jaxpr.eqns):
        name = eqn.primitive.name
        where = f"{words}{i} {name}"
        source, code = source_of(eqn) or outer
        inner = _inner(eqn)
        for number, (body, _) in enumerate(inner):
            part = f"[{number}]" if len(inner) > 1 else ""
            yield from _sites(body, (*prefix, i, number), f"{where}{part} > ", (source, code), nudge, draw)
        if name not in CALLS:  # the result of a call is that of the equations inside it
            for fault in faults(eqn, nudge, draw):
                yield Site((*prefix, i), where, name, source, code, fault)


def _unopened(jaxpr: Jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        inner = _inner(eqn)
        for body, _ in inner:
            yield from _unopened(body)
        if not inner and any(is_float(var) for var in eqn.outvars) and any(jaxprs_in_params(eqn.params)):
            yield eqn.primitive.name


def source_of(eqn: JaxprEqn) -> tuple[str, str] | None:
    """`file:line (function)` that an equation was traced from, and the text of that line.

    The file is relative to the current folder where it lies below it. None for an equation of JAX's own, inside
    one of its functions; for a function that is traced inline (`jax.jit(inline=True)`), the line that calls it.
    """
    found = re.match(r"(.*?):(\d+)(?::\d+)? \((.*)\)$", source_info_util.summarize(eqn.source_info))
    if found is None:
        return None
    file, line, function = found.groups()
    here = Path.cwd()
    shown = Path(file).relative_to(here) if Path(file).is_relative_to(here) else Path(file)
    return f"{shown}:{line} ({function})", linecache.getline(file, int(line)).strip()
