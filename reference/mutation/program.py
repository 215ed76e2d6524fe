"""A traced function that can be run with one of its equations broken.

Calls are run in line, and loops and branches step by step if their values are known. So a run with a fault that
changes nothing returns the same bits.
"""

import linecache
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

from reference.jaxprs import CALLS, Values, evaluate, inside, parted, source, through
from reference.mutation.mutants import Fault, faults, is_float, shaped

UNROLLED = 1000  # a scan longer than this runs compiled
HELD = 2**28  # bytes of the right run's values that are kept for the mutants to reuse
Path_ = tuple[int, ...]  # equation, inner jaxpr, equation, and so on, from the outermost to the broken one


class RunawayError(RuntimeError):
    """A while loop that a fault keeps from ending."""


@dataclass(frozen=True)
class Site:
    """One fault at one equation.

    Attributes:
        path: the equation's number; deeper down, also the number of the inner jaxpr, and so on.
        where: the path in words: `12 scan > 3 mul`.
        primitive: of the equation.
        source: file:line (function) that the equation was traced from.
        code: the text of that line.
        fault: the fault there.
    """

    path: Path_
    where: str
    primitive: str
    source: str
    code: str
    fault: Fault


Made = dict[tuple[int, ...], tuple[Values, Values]]
"""(equation, inputs), by their ids -> the inputs and the outputs; of a scan also (scan, turn, x) -> x and its slice.

The inputs are kept because, while they live, no other array can have the id of one of them.
"""


@dataclass
class _Course:
    """One run, right or with the fault of a `site`. It counts the turns of while loops, up to those `allowed`.

    An unbroken equation with the same inputs as in the earlier right run returns the outputs kept in `made`. With
    `keeps`, this run is that right run.
    """

    made: Made
    site: Site | None = None
    allowed: int | None = None
    keeps: bool = False
    turns: int = 0
    held: int = 0

    def run(self, closed: ClosedJaxpr, inputs: Values, path: Path_ = ()) -> Values:
        """The outputs of a jaxpr; `path` leads from here to the fault, and is empty if there is none."""
        broken = closed.jaxpr.eqns[path[0]] if path else None
        return evaluate(
            closed,
            inputs,
            lambda eqn, given: self._broken(eqn, given, path) if eqn is broken else self._right(eqn, given),
        )

    def _broken(self, equation: JaxprEqn, inputs: Values, path: Path_) -> Values:
        if self.site is None or len(path) > 1:
            return self._computed(equation, inputs, path[1:])
        return self.site.fault.apply(partial(self._right, equation), inputs)

    def _right(self, equation: JaxprEqn, inputs: Values) -> Values:
        key = (id(equation), *map(id, inputs))
        if key in self.made:
            return self.made[key][1]
        outputs = self._computed(equation, inputs)
        if self.keeps:
            self.held += sum(shaped(var).size * shaped(var).dtype.itemsize for var in equation.outvars)
            if not equation.effects and self.held <= HELD:
                self.made[key] = (inputs, outputs)
        return outputs

    def _computed(self, equation: JaxprEqn, inputs: Values, path: Path_ = ()) -> Values:
        return through(equation, inputs, partial(self._within, equation, inputs, path), UNROLLED)

    def _within(self, equation: JaxprEqn, entered: Values, path: Path_, k: int, inputs: Values, turn: Any) -> Values:
        if equation.primitive.name == "while" and k == 1 and isinstance(turn, int):
            self._count()
        if equation.primitive.name == "scan" and isinstance(turn, int):
            inputs = self._with_known_slices(equation, parted(equation, entered)[2], inputs, turn)
        return self.run(inside(equation)[k], inputs, path[1:] if path[:1] == (k,) else ())

    def _with_known_slices(self, equation: JaxprEqn, xs: Values, inputs: Values, turn: int) -> Values:
        """The inputs of one turn of a scan, with the right run's own slices of what it runs over where that is known.

        A slice that is cut anew is another array, of which no equation would know that it has met it before.
        """
        first = len(inputs) - len(xs)
        slices = []
        for x, cut in zip(xs, inputs[first:], strict=True):
            key = (id(equation), turn, id(x))
            if self.keeps and key not in self.made and self.held <= HELD:
                self.held += cut.size * cut.dtype.itemsize
                self.made[key] = [x], [cut]
            slices.append(self.made[key][1][0] if key in self.made else cut)
        return [*inputs[:first], *slices]

    def _count(self) -> None:
        self.turns += 1
        if self.allowed is not None and self.turns > self.allowed:
            raise RunawayError(f"a while loop does not end: stopped after {self.turns - 1} turns")


class Program:
    """A function as the jaxpr of one call, without equations that no output depends on.

    Attributes:
        closed: the equations.
        unopened: primitives with equations inside that are only broken as a whole.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        used = [True] * len(closed.jaxpr.outvars)
        jaxpr: Jaxpr = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)[0]
        self.closed = ClosedJaxpr(jaxpr, closed.consts)
        self.unopened = tuple(sorted(_unopened(jaxpr)))
        self._made: Made = {}
        self._right: list[Any] = []
        self._inputs = jax.tree.structure(args)
        self._out = jax.tree.structure(out)
        self._names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]

    def sites(self, nudge: float, seed: int) -> list[Site]:
        """Every fault of every equation, in the order of computation."""
        return list(_sites(self.closed.jaxpr, (), "", ("unknown", ""), nudge, random.Random(seed)))

    def run(self, site: Site | None = None) -> Callable[..., Any]:
        """The function, right or with one fault, with the arguments and results of the traced function."""
        course = _Course(self._made, site)
        return lambda *args: self._call(course, args)

    def counting(self, args: tuple[Any, ...]) -> tuple[Any, int]:
        """The right result and how many turns its while loops took; values are kept for later runs on `args`."""
        course = _Course(self._made, keeps=True)
        return self._call(course, args), course.turns

    def limited(self, site: Site, turns: int) -> Callable[..., Any]:
        """`run(site)` for one call, which raises `RunawayError` if its while loops take far more than `turns`."""
        course = _Course(self._made, site, allowed=10 * turns + 100)
        return lambda *args: self._call(course, args)

    def _call(self, course: _Course, args: tuple[Any, ...]) -> Any:
        if any(leaf.is_deleted() for leaf in self._right if isinstance(leaf, jax.Array)):
            self._made.clear()  # a check has deleted its arguments
        outputs = course.run(self.closed, self._checked(args), course.site.path if course.site else ())
        if course.keeps:
            self._right = outputs
        return jax.tree.unflatten(self._out, outputs)

    def _checked(self, args: tuple[Any, ...]) -> Values:
        structure: Any = jax.tree.structure(args)
        if structure != self._inputs:
            raise ValueError(
                f"a mutant was called with arguments of structure\n  {structure}\nbut was traced with\n  {self._inputs}"
            )
        values = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
        for name, value, var in zip(self._names, values, self.closed.jaxpr.invars, strict=True):
            due = shaped(var)
            if (value.shape, value.dtype) != (due.shape, due.dtype):
                raise ValueError(
                    f"a mutant was called with args{name} as {value.dtype}{list(value.shape)} but was traced with"
                    f" {due.dtype}{list(due.shape)}; trace it with arguments like those that the check uses"
                )
        return values


def _sites(
    jaxpr: Jaxpr, prefix: Path_, words: str, outer: tuple[str, str], nudge: float, draw: random.Random
) -> Iterator[Site]:
    for i, eqn in enumerate(jaxpr.eqns):
        name = eqn.primitive.name
        where = f"{words}{i} {name}"
        line, code = source_of(eqn) or outer
        inner = inside(eqn)
        for number, body in enumerate(inner):
            part = f"[{number}]" if len(inner) > 1 else ""
            yield from _sites(body.jaxpr, (*prefix, i, number), f"{where}{part} > ", (line, code), nudge, draw)
        if name not in CALLS:  # the result of a call is the result of the equations inside it
            for fault in faults(eqn, nudge, draw):
                yield Site((*prefix, i), where, name, line, code, fault)


def _unopened(jaxpr: Jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        inner = inside(eqn)
        for body in inner:
            yield from _unopened(body.jaxpr)
        if not inner and any(is_float(var) for var in eqn.outvars) and any(jaxprs_in_params(eqn.params)):
            yield eqn.primitive.name


def source_of(eqn: JaxprEqn) -> tuple[str, str] | None:
    """`file:line (function)` that an equation was traced from, and the text of that line; None for JAX's own.

    A file below the current folder is given relative to it. For a function that is traced inline
    (`jax.jit(inline=True)`), it is the line that calls the function.
    """
    found = source(eqn)
    if found is None:
        return None
    file, line, function = found
    here = Path.cwd()
    shown = Path(file).relative_to(here) if Path(file).is_relative_to(here) else Path(file)
    return f"{shown}:{line} ({function})", linecache.getline(file, line).strip()
