"""The rows that hold a derivative rule against the reference where JAX calls it as it stands: right, and linear."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.approximation import hinted
from reference.checks.arguments import Arguments
from reference.checks.near import near_points
from reference.compare import compare_leaf
from reference.report import Row
from reference.tolerance.rounding import Measured, measure

Vector = list[Any]  # a cotangent for every float output, or a tangent for every float argument
A, B = 0.75, -1.25  # u, v and A u + B v: exact in every binary precision
DRAWN = 2  # number of drawn vectors; their combination is a third
FACTORS = ((32, (1024.0, 1 / 1024)), (16, (32.0,)), (0, (2.0,)))
"""(bits of the narrowest float, powers of two to scale a vector by, exactly): 16 bits underflow soon."""

Apply = Callable[[Callable[..., Any], Vector, Vector, list[Vector]], tuple[Vector, list[Vector]]]
"""(function, moving, data, vectors) -> (float outputs, the derivative applied to every vector)."""


@dataclass(frozen=True)
class Rule:
    """A function with a derivative rule of its own, the plain function, and the arguments to compare them at.

    Attributes:
        f: the function under test.
        raw: the plain function, differentiable by JAX.
        given: the arguments.
        value: the plain function's result, at the arguments that were given first.
        outputs: path and type of every float output.
        bits: of the narrowest float that the plain function computes with.
    """

    f: Callable[..., Any]
    raw: Callable[..., Any]
    given: Arguments
    value: Any
    outputs: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    bits: int

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
    rng = np.random.default_rng([seed, 1])  # a caller's own arguments may be the first numbers that the seed gives
    return combined([[rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in like] for _ in range(DRAWN)])


def combined(vectors: list[Vector]) -> list[Vector]:
    """The vectors, and A times the first plus B times the last."""
    pairs = zip(vectors[0], vectors[-1], strict=True)
    mixed = [(A * np.asarray(u, np.float64) + B * np.asarray(v, np.float64)).astype(u.dtype) for u, v in pairs]
    return [*vectors, mixed]


def arrays(leaves: Sequence[Any]) -> Vector:
    """The leaves as arrays of JAX, which is what JAX itself hands to a rule."""
    return [jnp.asarray(leaf) for leaf in leaves]


@dataclass(frozen=True)
class Truth:
    """The reference at the point and beside it.

    Attributes:
        outputs: (values, tolerances) of the function.
        results: for every vector, (values, tolerances) of its result.
        near: a second point.
        beside: (values, tolerances) of the result at the second point for the vector before the last.
        notes: on how it was had.
    """

    outputs: tuple[Vector, Vector]
    results: list[tuple[Vector, Vector]]
    near: Vector
    beside: tuple[Vector, Vector]
    notes: Sequence[str] = ()

    def leaf(self, i: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(values, tolerances) of one leaf, for the first vectors, stacked in front."""
        chosen = self.results[:count]
        return np.stack([values[i] for values, _ in chosen]), np.stack([allowed[i] for _, allowed in chosen])


@dataclass(frozen=True)
class Called:
    """The results of a rule.

    Attributes:
        out: the float outputs.
        results: for every vector.
        zero: the result for zero.
        scaled: the results for the first vector times each of `FACTORS`.
        steady: whether a second call gave the same bits.
    """

    out: Vector
    results: list[Vector]
    zero: Vector
    scaled: list[Vector]
    steady: bool


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
        approximation: how far, relative to the largest entry, the rule may be off by intent.
        valued: the plain function where JAX cannot differentiate it; see `by_values`.
    """

    rule: Rule
    apply: Apply
    names: Sequence[str]
    vectors: list[Vector]
    word: str
    seed: int
    samples: int
    approximation: float = 0.0
    valued: Callable[..., Any] | None = None

    def truth(self) -> Truth:
        """The reference, at the first second point that is in the function's domain."""
        for near in near_points(self.moving, self.seed):
            found = self._truth(near)
            if all(np.isfinite(leaf).all() for leaf in (*found.beside[0], *found.beside[1])):
                break
        return found

    def _truth(self, near: Vector) -> Truth:
        def everything(moving: Vector, near: Vector, data: Vector, vectors: list[Vector]) -> Any:
            out, results = self.apply(self.rule.raw, moving, data, vectors)
            _, beside = self.apply(self.rule.raw, near, data, vectors[-2:-1])
            return out, results, beside[0]

        found = self.measured(everything, self.moving, near, self.data, self.vectors)
        (out, results, beside), (out_bars, bars, beside_bars) = found.value, found.tolerance
        return Truth((out, out_bars), list(zip(results, bars, strict=True)), near, (beside, beside_bars), found.notes)

    @staticmethod
    def truth_from(found: Measured) -> Truth:
        """A truth without a second point, from (outputs, results)."""
        (out, results), (out_bars, bars) = found.value, found.tolerance
        return Truth((out, out_bars), list(zip(results, bars, strict=True)), [], ([], []))

    def measured(self, function: Callable[..., Any], *args: Any) -> Measured:
        """A function of the plain function in float64, and its tolerances."""
        found = measure(function, *args, dtype=self.rule.given.working, samples=self.samples, seed=self.seed)
        return found.loosened(self.approximation)

    @property
    def moving(self) -> Vector:
        """Copies of what is differentiated: a rule may take its arguments for good."""
        return self.rule.given.fresh("moving")

    @property
    def data(self) -> Vector:
        """Copies of the other arrays."""
        return self.rule.given.fresh("data")

    @property
    def witness(self) -> str:
        """The reference, in words."""
        return self.program if self.valued is None else "the slopes of the plain function's values"

    @property
    def program(self) -> str:
        """The derivative that `rule.raw` has in float64, in words."""
        if self.valued is not None:
            return "the rule's own program in float64"
        return "jax.vjp of the plain function" if self.word == "cotangent" else "jax.jvp of the plain function"

    def by_rule(self, vectors: list[Vector]) -> tuple[Vector, list[Vector]]:
        """(outputs, results for every vector) of the rule under test."""
        moving, data = arrays(self.moving), arrays(self.data)
        return self.apply(self.rule.f, moving, data, [arrays(vector) for vector in vectors])

    def called(self) -> Called:
        """Call the rule as it stands on every vector, on zero and on scaled vectors, and once more on the first."""
        first = self.vectors[0]
        zeros = [np.zeros_like(leaf) for leaf in first]
        scaled = [[leaf * np.asarray(factor, leaf.dtype) for leaf in first] for factor in self._factors()]
        out, results = self.by_rule([*self.vectors, zeros, *scaled])
        again = self.by_rule([first])
        n = len(self.vectors)
        return Called(out, results[:n], results[n], results[n + 1 :], faults.same_bits((out, results[:1]), again))

    def rows(self, called: Called, truth: Truth, eager: bool) -> Iterator[Row]:
        """Rows on the rule's outputs and results, then on what follows from linearity."""
        names = [name for name, _ in self.rule.outputs]
        yield from against(names, called.out, truth.outputs, "the rule's value of ")
        if eager:
            yield from self.results(called.results, truth)
        yield from self._linear(called.results, truth)
        wrong = [name for name, leaf in zip(self.names, called.zero, strict=True) if np.asarray(leaf, np.float64).any()]
        broken = f"a zero {self.word} gives something other than zero for {', '.join(wrong)}" if wrong else ""
        yield faults.contract(f"zero {self.word}", broken)
        for factor, result in zip(self._factors(), called.scaled, strict=True):
            yield from self._scaled(factor, result, called.results[0], truth)
        yield faults.contract("second call the same", "" if called.steady else "a second call gave other numbers")

    def hinted(self, rows: list[Row]) -> list[Row]:
        """The rows; one that fails by little, where the function iterates, says that this may be meant."""
        if not any(row.verdict == "fail" for row in rows):
            return rows
        rule, programs = self.rule, list[Any]()
        for function in (rule.raw, rule.f):  # either may be the one that iterates
            with suppress(Exception):  # one that JAX cannot trace has no program to look at
                traced = jax.make_jaxpr(lambda m, d, v, f=function: self.apply(f, m, d, [v]))
                programs.append(traced(self.moving, self.data, self.vectors[0]))
        return hinted(rows, *programs)

    def results(self, results: list[Vector], truth: Truth, prefix: str = "") -> Iterator[Row]:
        """A row for every leaf, with the vectors, except their combination, on its first axis."""
        count = len(self.vectors) - 1
        kind: Any = "contract" if prefix else "end to end"
        for i, name in enumerate(self.names):
            ours = np.stack([np.asarray(one[i], np.float64) for one in results[:count]])
            described: Any = {"kind": kind, "witness": self.witness, "leading": f"for {self.word}"}
            yield compare_leaf(prefix + name, ours, *truth.leaf(i, count), **described)

    def _linear(self, results: list[Vector], truth: Truth) -> Iterator[Row]:
        """Rows on D(A u + B v) = A D(u) + B D(v); the tolerance includes the exact rounding of A u + B v."""
        first, last, mixed = 0, len(self.vectors) - 2, len(self.vectors) - 1
        for i, name in enumerate(self.names):
            ours = [np.asarray(results[k][i], np.float64) for k in (first, last, mixed)]
            exact, allowed = ([truth.results[k][side][i] for k in (first, last, mixed)] for side in (0, 1))
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

    def _factors(self) -> Sequence[float]:
        bits = min(self.rule.bits, *(8 * leaf.dtype.itemsize for leaf in self.vectors[0]))
        return next(factors for least, factors in FACTORS if bits >= least)

    def _bent(self, *_: Any) -> tuple[str, str]:
        return "", f"not proportional to the {self.word}: something is clipped, thresholded or added"

    def _scaled(self, factor: float, result: Vector, once: Vector, truth: Truth) -> Iterator[Row]:
        """Rows on D(c u) = c D(u), exact for a power of two: nothing is clipped, and no constant is added."""
        for name, ours, one, exact, allowed in zip(self.names, result, once, *truth.results[0], strict=True):
            info = jnp.finfo(jnp.result_type(ours))
            if factor * np.max(np.abs(exact), initial=0) > float(info.max) / 16:
                continue  # the precision would overflow: that is no fault of the rule
            tolerance = factor * allowed + float(info.tiny)
            times = f"{factor:g} times" if factor > 1 else f"1/{1 / factor:g} of"
            bent = np.any(np.abs(np.asarray(ours, np.float64) - factor * np.asarray(one, np.float64)) > 2 * tolerance)
            told: Any = {"kind": "contract", "witness": self.witness, "cause": self._bent if bent else None}
            yield compare_leaf(f"for {times} the {self.word}: {name}", ours, factor * exact, tolerance, **told)


def against(
    names: Sequence[str],
    ours: Sequence[Any],
    wanted: tuple[Sequence[Any], Sequence[Any]],
    prefix: str = "",
    times: int = 1,
    kind: Any = "end to end",
    witness: str = "the plain function",
    cause: Any = None,
) -> Iterator[Row]:
    """A row for every leaf against its (value, tolerance), at `times` the tolerance."""
    for name, leaf, value, allowed in zip(names, ours, *wanted, strict=True):
        yield compare_leaf(prefix + name, leaf, value, times * allowed, kind=kind, witness=witness, cause=cause)
