"""Who is right where a rule and JAX's derivative of the plain function differ: the function's values are asked.

At a kink, such as relu at 0, a tie of max or the edge of a clip, there are two slopes, and any between them is a
derivative by some convention. Where the program has a kink and the function has none, or where JAX's derivative is nan
though the function has one, JAX stands alone. The values are those of the same program in float64, at points on a
ladder of steps to both sides, so no derivative rule has a part in them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from reference.checks import ladder
from reference.jaxprs import inside
from reference.tolerance.formats import Format
from reference.tolerance.monte_carlo import exact, perturbed
from reference.tolerance.noise import noises
from reference.tolerance.rounding import SAMPLES, spread
from reference.tolerance.side_by_side import in_its_own_types, widened
from reference.witnesses.kinks import ties
from reference.witnesses.points import EPS

Leaves = Sequence[Any]
FIRST = 8  # disputed entries that are looked at before all others: where one of them is wrong, so is the rule
BUDGET = 1 << 22  # numbers in one batch of points
MOST = 4096  # disputed entries of one leaf
CLEAR = 0.1  # of a slope: one of a larger error tells nothing
FAR = 8.0  # times the error of the slopes: so far is JAX off before it is said to stand alone


class NoSay(Exception):  # noqa: N818
    """The function cannot be evaluated this way, so its values are not asked."""


@dataclass(frozen=True)
class Sides:
    """Slopes of a function from the left and from the right, and the error of either; arrays of one shape."""

    left: np.ndarray
    right: np.ndarray
    error: np.ndarray

    def nearest(self, value: float, at: tuple[Any, ...]) -> tuple[float, float]:
        """(the derivative between the two sides that is next to a value, the error of the slopes) of one entry."""
        low, high = sorted((float(self.left[at]), float(self.right[at])))
        return min(max(low, value), high), float(self.error[at])  # low, where the value is nan

    def far_from(self, theirs: np.ndarray) -> np.ndarray:
        """Where the slopes do not bear out JAX's derivative."""
        with np.errstate(invalid="ignore"):
            near = FAR * (self.error + np.abs(self.right - self.left))
            return np.asarray(~(np.abs(theirs - (self.left + self.right) / 2) <= near))

    def rule_on(self, ours: np.ndarray, theirs: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every entry, whether the slopes bear out `ours` against `theirs`, and what they say, in words."""
        with np.errstate(invalid="ignore"):
            low, high = np.minimum(self.left, self.right), np.maximum(self.left, self.right)
            slack = self.error + np.where(np.isfinite(allowed), allowed, 0.0)
            kink = high - low > FAR * self.error + 1e-9 * np.maximum(np.abs(low), np.abs(high))
            inside = (ours >= low - slack) & (ours <= high + slack)
            theirs_off = self.far_from(theirs)
            right = np.where(kink, inside, inside & theirs_off)
            neither = theirs_off & ~((theirs >= low - slack) & (theirs <= high + slack))
            clear = self.error <= CLEAR * np.fmax(np.abs(theirs), np.maximum(np.abs(low), np.abs(high)))
        columns = kink, right, self.left, self.right, theirs, neither, clear
        told = zip(*map(np.ravel, columns), strict=True)
        return right, np.asarray([_in_words(*each) for each in told], object).reshape(right.shape)


def _in_words(kink: Any, right: Any, left: float, after: float, theirs: float, neither: Any, clear: Any) -> str:
    if not (np.isfinite(left) and np.isfinite(after)):
        return "the function's values show no slope there"
    if not (clear or right):
        return "the function's values show no clear slope there"
    if kink:
        return f"a kink of the function, with the one-sided derivatives {left:.6g} and {after:.6g}"
    middle = f"the function's values have the slope {(left + after) / 2:.9g} there"
    if right:
        return f"{middle}, and JAX's derivative of the plain function, {theirs:.6g}, is the odd one out"
    if not np.isfinite(theirs):
        return f"{middle}, which stands here for JAX's derivative of the plain function, since that is {theirs:.6g}"
    return f"{middle}, which is neither" if neither else f"{middle}, as JAX says"


@dataclass(frozen=True, eq=False)
class Arbiter:
    """A function's values in float64 around one point.

    Attributes:
        closed: the program: flat inputs, what moves first, to float outputs.
        moving: the inputs that move.
        data: the others.
        named: (moving) -> the kinks on which that point lies, in words.
        unit: the rounding of the values, relative to them.
    """

    closed: Any
    moving: Leaves
    data: Leaves
    named: Callable[[Leaves], str]
    unit: float = EPS

    @classmethod
    def of(cls, function: Callable[[Leaves, Leaves], Leaves], moving: Leaves, data: Leaves) -> "Arbiter":
        """For a function (moving, data) -> float outputs; it is traced with these arguments."""
        closed = jax.make_jaxpr(function)(moving, data)

        def named(moving: Leaves) -> str:
            try:
                found = ties(lambda moving: sum(leaf.sum() for leaf in function(moving, data)), moving)
            except Exception:  # a name is welcome, and not needed for the verdict
                return ""
            return "; ".join(map(str, found))

        unit = max(EPS, *_narrow_results(closed))
        return cls(closed, [widened(leaf) for leaf in moving], [widened(leaf) for leaf in data], named, unit)

    def kinks(self) -> str:
        """The operations whose kink the point lies on, with file and line, or ""."""
        return self.named(self.moving)

    def along(self, direction: Leaves) -> list[Sides]:
        """The slopes of every output along a direction."""
        parts = [np.asarray(part, np.float64) for part in direction]
        steps = ladder.steps(ladder.along([*self.moving], parts))
        rows, grain = [], 0.0
        for leaf, part in zip(self.moving, parts, strict=True):
            moved = part != 0
            grain = np.max(np.spacing(np.abs(leaf[moved])) / np.abs(part[moved]), initial=grain)
            moves = steps.reshape(-1, *(1,) * leaf.ndim) * part
            rows.append(np.concatenate([leaf[None], leaf + moves, leaf - moves]))

        def found(values: np.ndarray, known: np.ndarray) -> Sides:
            taken = steps.reshape(-1, *(1,) * (values.ndim - 1))
            return Sides(*ladder.sides(values, taken, self._noise(values[:1], known), grain))

        return [found(*each) for each in zip(self._values(rows), self.rounding, strict=True)]

    def by_entries(
        self, leaf: int, entries: np.ndarray, vectors: Sequence[Leaves]
    ) -> Iterator[tuple[np.ndarray, Sides]]:
        """(entries, slopes by them), batch by batch: of the outputs weighted by every vector, which is the first axis.

        Args:
            leaf: which of `moving`.
            entries: flat numbers of its entries.
            vectors: weights for every output.
        """
        x = self.moving[leaf]
        places = 1 + 4 * len(ladder.STEPS)
        largest = max(1, x.size, *(int(np.prod(v.aval.shape)) for v in self.closed.jaxpr.outvars))
        count = max(1, BUDGET // (places * largest))
        batches = [entries[:FIRST], *(entries[k : k + count] for k in range(FIRST, len(entries), count))]
        for batch in filter(len, batches):
            moved = x.ravel()[batch]
            taken = ladder.steps(ladder.sizes(moved))
            signed = np.concatenate([np.zeros((1, len(batch))), taken, -taken])
            points = np.tile(x.reshape(1, 1, -1), (len(batch), places, 1))
            points[np.arange(len(batch))[:, None], np.arange(places), batch[:, None]] += signed.T
            rows: list[Any] = [other[None] for other in self.moving]
            rows[leaf] = points.reshape(-1, *x.shape)
            total, noise = np.zeros((len(rows[leaf]), len(vectors))), np.zeros(len(vectors))
            for i, values in enumerate(self._values(rows)):
                weights = np.stack([np.asarray(vector[i], np.float64).ravel() for vector in vectors], axis=1)
                total += values.reshape(len(values), -1) @ weights
                noise += self.rounding[i].ravel() @ np.abs(weights)
            found = total.reshape(len(batch), places, -1).transpose(1, 2, 0)
            known = self._noise(found[:1], noise[None, :, None])
            yield batch, Sides(*ladder.sides(found, taken[:, None], known, np.spacing(np.abs(moved))))

    @cached_property
    def rounding(self) -> list[np.ndarray]:
        """How far the rounding of float64 may move every output, by Monte Carlo arithmetic; 0 where it is not known."""
        try:
            with jax.enable_x64(True):
                given = [leaf[None] for leaf in (*self.moving, *self.data)]
                found = perturbed(self.closed, noises(Format.of("float64"), SAMPLES, 0), given)
                return [spread(widened(values))[1] for values in found]
        except Exception:  # noise breaks what it checks
            return [np.zeros(variable.aval.shape) for variable in self.closed.jaxpr.outvars]

    def _noise(self, at: np.ndarray, known: Any) -> np.ndarray:
        return np.maximum(2 * self.unit * np.abs(at), known)

    def _values(self, rows: Leaves) -> list[np.ndarray]:
        try:
            with jax.enable_x64(True):
                found = exact(self.closed, [*rows, *(leaf[None] for leaf in self.data)])
        except Exception as error:
            raise NoSay from error
        return [np.asarray(values, np.float64) for values in found]


def _narrow_results(closed: ClosedJaxpr) -> Iterator[float]:
    """0, and the rounding of what a callback returns, or another that is asked in the types of the program."""
    yield 0.0
    for equation in closed.jaxpr.eqns:
        if in_its_own_types(equation):
            avals: list[Any] = [variable.aval for variable in equation.outvars]
            yield from (float(jnp.finfo(a.dtype).eps) for a in avals if jnp.issubdtype(a.dtype, jnp.floating))
        for part in inside(equation):
            yield from _narrow_results(part)
