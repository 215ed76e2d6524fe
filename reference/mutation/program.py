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
HELD = 2**28  # bytes of the right run's values that are held for the mutants to take over
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


Made = dict[tuple[int, ...], tuple[Values, Values]]
"""(equation, inputs), by their ids -> the inputs, and what was made of them.

The inputs are held because, while they live, no other array can have the id of one of them.
"""


@dataclass
class _Course:
    """One run: turns of its while loops, against how many are `allowed`; what is known from the right run of before.

    An unbroken equation makes of the same inputs what it made then. With `keeps`, this is that right run.
    """

    made: Made
    allowed: int | None = None
    keeps: bool = False
    turns: int = 0
    held: int = 0

    def turn(self) -> None:
        self.turns += 1
        if self.allowed is not None and self.turns > self.allowed:
            raise RunawayError(f"a while loop does not end: stopped after {self.turns - 1} turns")

    def keep(self, key: tuple[int, ...], eqn: JaxprEqn, inputs: Values, outputs: Values) -> None:
        self.held += sum(shaped(var).size * shaped(var).dtype.itemsize for var in eqn.outvars)
        if not eqn.effects and self.held <= HELD:
            self.made[key] = (inputs, outputs)


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
        self._made: Made = {}
        self._right: list[Any] = []
        self._inputs = jax.tree.structure(args)
        self._out = jax.tree.structure(out)
        self._names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]

    def sites(self, nudge: float, seed: int) -> list[Site]:
        """Every fault of every equation, in the order of computation."""
        return list(_sites(self.jaxpr, (), "", ("unknown", ""), nudge, random.Random(seed)))

    def run(self, site: Site | None = None, course: _Course | None = None) -> Callable[..., Any]:
        """The function, right or with that one fault: arguments and results as the function traced has them."""
        this = _Course(self._made) if course is None else course
        return lambda *args: self._call(site, this, args)

    def _call(self, site: Site | None, course: _Course, args: tuple[Any, ...]) -> Any:
        if any(leaf.is_deleted() for leaf in self._right if isinstance(leaf, jax.Array)):
            self._made.clear()  # a check has deleted what it was given
        broken = None if site is None else (site.path, site.fault)
        outputs = _run(self.jaxpr, self._consts, self._checked(args), broken, course)
        if course.keeps:
            self._right = outputs
        return jax.tree.unflatten(self._out, outputs)

    def counting(self, args: tuple[Any, ...]) -> tuple[Any, int]:
        """The right result, and how many turns its while loops took; its values are kept for later runs on `args`."""
        course = _Course(self._made, keeps=True)
        return self.run(course=course)(*args), course.turns

    def limited(self, site: Site, turns: int) -> Callable[..., Any]:
        """`run(site)` for one call, that raises `RunawayError` where its while loops take far more than `turns`."""
        return self.run(site, _Course(self._made, allowed=10 * turns + 100))

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


def _run(jaxpr: Jaxpr, consts: Any, args: Values, broken: tuple[Path_, Fault] | None, course: _Course) -> Values:
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = [atom.val if isinstance(atom, Literal) else known[atom] for atom in eqn.invars]
        if broken is not None and broken[0][0] == i:
            path, fault = broken
            if len(path) == 1:
                outputs = fault.apply(partial(_bind, eqn, inner=None, course=course), inputs)
            else:
                outputs = _bind(eqn, inputs, (path[1:], fault), course)
        else:
            key = (id(eqn), *map(id, inputs))
            made = course.made.get(key)
            outputs = _bind(eqn, inputs, None, course) if made is None else made[1]
            if made is None and course.keeps:
                course.keep(key, eqn, inputs, outputs)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [atom.val if isinstance(atom, Literal) else known[atom] for atom in jaxpr.outvars]


def _bind(eqn: JaxprEqn, inputs: Values, inner: tuple[Path_, Fault] | None, course: _Course) -> Values:
    """The outputs of one equation; `inner` is the fault in one of its inner jaxprs."""
    name = eqn.primitive.name
    if name in CALLS:
        return _body(eqn, inner, course, 0, inputs)
    if name in _CONTROL:
        return _CONTROL[name](eqn, inputs, partial(_body, eqn, inner, course), course)
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _body(eqn: JaxprEqn, inner: tuple[Path_, Fault] | None, course: _Course, number: int, values: Values) -> Values:
    """What one of an equation's inner jaxprs makes of some values."""
    broken = (inner[0][1:], inner[1]) if inner is not None and inner[0][0] == number else None
    jaxpr, consts = _inner(eqn)[number]
    return _run(jaxpr, consts, values, broken, course)


def _known(values: Values) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _scan(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], course: _Course) -> Values:
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


def _while(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], course: _Course) -> Values:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    for_cond, for_body, carry = inputs[:n_cond], inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]
    if not _known(inputs):
        return list(
            jax.lax.while_loop(
                lambda carry: body(0, [*for_cond, *carry])[0], lambda carry: body(1, [*for_body, *carry]), carry
            )
        )
    while bool(body(0, [*for_cond, *carry])[0]):
        course.turn()
        carry = body(1, [*for_body, *carry])
    return carry


def _cond(eqn: JaxprEqn, inputs: Values, body: Callable[[int, Values], Values], course: _Course) -> Values:
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
