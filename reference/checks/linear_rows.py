"""Checks of a derivative rule, for pullbacks and pushforwards: right, linear, and the same when transformed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.arguments import Arguments
from reference.checks.gradient import nearby
from reference.compare import compare_leaf
from reference.report import Row
from reference.tolerance.rounding import Measured, measure

Vector = list[Any]  # a cotangent for every float output, or a tangent for every float argument
A, B = 0.75, -1.25  # u, v and A u + B v: exact in every binary precision
DRAWN = 2  # number of drawn vectors; their combination is a third


Apply = Callable[[Callable[..., Any], Vector, Vector, list[Vector]], tuple[Vector, list[Vector]]]
"""(function, moving, data, vectors) -> (float outputs, the derivative applied to every vector)."""


@dataclass(frozen=True)
class Rule:
    """A function with a derivative rule of its own, the plain function, and the arguments to compare them at.

    Attributes:
        f: the function under test.
        raw: the plain function, differentiable by JAX.
        given: the arguments.
        outputs: path and type of every float output.
    """

    f: Callable[..., Any]
    raw: Callable[..., Any]
    given: Arguments
    outputs: tuple[tuple[str, jax.ShapeDtypeStruct], ...]

    def floats(self, function: Callable[..., Any], moving: Vector, data: Vector) -> Vector:
        """The float leaves of a function's result."""
        return floats(function(*self.given.build(moving, data)))

    def pullback(
        self, function: Callable[..., Any], moving: Vector, data: Vector, vectors: list[Vector]
    ) -> tuple[Vector, list[Vector]]:
        """Apply jax.vjp: a result for every differentiated leaf."""
        out, pull = jax.vjp(lambda moving: self.floats(function, moving, data), moving)
        return out, [pull(vector)[0] for vector in vectors]

    def pushforward(
        self, function: Callable[..., Any], moving: Vector, data: Vector, vectors: list[Vector]
    ) -> tuple[Vector, list[Vector]]:
        """Apply jax.jvp: a result for every float output."""
        pairs = [jax.jvp(lambda m: self.floats(function, m, data), (moving,), (v,)) for v in vectors]
        return pairs[0][0], [tangents for _, tangents in pairs]


def floats(tree: Any) -> Vector:
    """The float leaves of a tree."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def drawn(like: Sequence[Any], seed: int) -> list[Vector]:
    """Normal vectors u and v like these, all entries different, and A u + B v, each rounded to its leaf's dtype."""
    rng = np.random.default_rng(seed)
    return combined([[rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in like] for _ in range(DRAWN)])


def combined(vectors: list[Vector]) -> list[Vector]:
    """The vectors, and A times the first plus B times the last."""
    pairs = zip(vectors[0], vectors[-1], strict=True)
    mixed = [(A * np.asarray(u, np.float64) + B * np.asarray(v, np.float64)).astype(u.dtype) for u, v in pairs]
    return [*vectors, mixed]


@dataclass(frozen=True)
class Trial:
    """One derivative of one rule, at `args` and at a point near them.

    Attributes:
        rule: the functions.
        apply: `rule.pullback` or `rule.pushforward`.
        names: paths of its results.
        vectors: the vectors to apply it to; the last is the combination of the first and the last before it.
        word: "cotangent" or "tangent".
        seed: of the nearby point and of the rounding noise.
        samples: of Monte Carlo arithmetic.
    """

    rule: Rule
    apply: Apply
    names: Sequence[str]
    vectors: list[Vector]
    word: str
    seed: int
    samples: int

    def reference(self) -> Measured:
        """(outputs, results for every vector, results at the nearby point for the vector before the last)."""
        moving, data = self._moving, self.rule.given.fresh("data")

        def everything(moving: Vector, near: Vector, data: Vector, vectors: list[Vector]) -> Any:
            out, results = self.apply(self.rule.raw, moving, data, vectors)
            _, beside = self.apply(self.rule.raw, near, data, vectors[-2:-1])
            return out, results, beside[0]

        given = (moving, self._near, data, self.vectors)
        working = self.rule.given.working
        return measure(everything, *given, dtype=working, samples=self.samples, seed=self.seed)

    @property
    def _moving(self) -> Vector:
        return self.rule.given.fresh("moving")

    @property
    def _near(self) -> Vector:
        return nearby(self._moving, self.seed)

    def by_rule(self, moving: Vector, data: Vector, vectors: list[Vector]) -> tuple[Vector, list[Vector]]:
        """The derivative by the rule under test."""
        return self.apply(self.rule.f, moving, data, vectors)

    def rows(self, measured: Measured, transforms: Sequence[str]) -> Iterator[Row]:
        """Rows on the rule's outputs and results against the reference, then on its promises."""
        data = self.rule.given.fresh("data")
        out, results = self.by_rule(self._moving, data, self.vectors)
        again = self.by_rule(self._moving, data, self.vectors)
        names = [name for name, _ in self.rule.outputs]
        yield from against(names, out, (measured.value[0], measured.tolerance[0]), "the rule's value of ")
        if "eager" in transforms:
            yield from self._results(results, measured)
        yield from self._linear(results, measured)
        yield self._zero(data)
        drift = "" if faults.same_bits((out, results), again) else "a second call gave other numbers"
        yield faults.contract("second call the same", drift)
        if "jit" in transforms:
            yield from self._jitted(data, measured)
        if "vmap" in transforms:
            yield from self._vmapped(data, measured)

    def _results(self, results: list[Vector], measured: Measured, prefix: str = "") -> Iterator[Row]:
        """A row for every leaf, with the vectors, except their combination, on its first axis."""
        last = len(self.vectors) - 1
        for i, name in enumerate(self.names):
            sides = (results[:last], measured.value[1][:last], measured.tolerance[1][:last])
            ours, theirs, allowed = (np.stack([np.asarray(one[i], np.float64) for one in side]) for side in sides)
            kind: Any = "contract" if prefix else "end to end"
            leading = f"for {self.word}"
            yield compare_leaf(prefix + name, ours, theirs, allowed, kind=kind, witness=self._witness, leading=leading)

    @property
    def _witness(self) -> str:
        return "jax.vjp of the plain function" if self.word == "cotangent" else "jax.jvp of the plain function"

    def _linear(self, results: list[Vector], measured: Measured) -> Iterator[Row]:
        """Rows on D(A u + B v) = A D(u) + B D(v); the tolerance includes the exact rounding of A u + B v."""
        first, last, mixed = 0, len(self.vectors) - 2, len(self.vectors) - 1
        for i, name in enumerate(self.names):
            ours, exact, allowed = (
                [np.asarray(side[k][i], np.float64) for k in (first, last, mixed)]
                for side in (results, measured.value[1], measured.tolerance[1])
            )
            rounded = np.abs(A * exact[0] + B * exact[1] - exact[2])
            tolerance = abs(A) * allowed[0] + abs(B) * allowed[1] + allowed[2] + rounded
            yield compare_leaf(
                f"linear in the {self.word}: {name}",
                ours[2],
                A * ours[0] + B * ours[1],
                tolerance,
                kind="contract",
                witness="its own linear combination",
            )

    def _zero(self, data: Vector) -> Row:
        zeros = [np.zeros_like(leaf) for leaf in self.vectors[0]]
        results = self.by_rule(self._moving, data, [zeros])[1][0]
        wrong = [name for name, leaf in zip(self.names, results, strict=True) if np.asarray(leaf, np.float64).any()]
        broken = f"a zero {self.word} gives something other than zero for {', '.join(wrong)}" if wrong else ""
        return faults.contract(f"zero {self.word}", broken)

    def _jitted(self, data: Vector, measured: Measured) -> Iterator[Row]:
        try:
            _, results = jax.jit(self.by_rule)(self._moving, data, self.vectors)
        except Exception as error:  # an error under a transformation is the finding
            yield faults.contract("under jit", f"raised {faults.one_line(error)}")
            return
        yield from self._results(results, measured, "under jit: ")

    def _vmapped(self, data: Vector, measured: Measured) -> Iterator[Row]:
        """Rows on two points and two vectors at once, each against the reference at its own point."""
        points = _stacked(self._moving, self._near)
        vectors = _stacked(self.vectors[0], self.vectors[-2])
        try:
            _, (results,) = jax.vmap(lambda m, v: self.by_rule(m, data, [v]))(points, vectors)
        except Exception as error:
            yield faults.contract("under vmap", f"raised {faults.one_line(error)}")
            return
        values, allowed = ([side[1][0], side[2]] for side in (measured.value, measured.tolerance))
        for i, name in enumerate(self.names):
            theirs, tolerance = (np.stack([one[i] for one in side]) for side in (values, allowed))
            yield compare_leaf(
                f"under vmap: {name}",
                results[i],
                theirs,
                tolerance,
                kind="contract",
                witness=self._witness,
                leading="at point",
            )


def _stacked(one: Vector, other: Vector) -> Vector:
    return [jnp.stack([jnp.asarray(a), jnp.asarray(b)]) for a, b in zip(one, other, strict=True)]


def against(
    names: Sequence[str],
    ours: Sequence[Any],
    wanted: tuple[Sequence[Any], Sequence[Any]],
    prefix: str = "",
    times: int = 1,
    kind: Any = "end to end",
    witness: str = "the plain function",
) -> Iterator[Row]:
    """A row for every leaf against its (value, tolerance), at `times` the tolerance."""
    for name, leaf, value, allowed in zip(names, ours, *wanted, strict=True):
        yield compare_leaf(prefix + name, leaf, value, times * allowed, kind=kind, witness=witness)
