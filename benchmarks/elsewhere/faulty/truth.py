"""Whether a fault changes the derivative by more than its rounding: judged here, without the harness.

The wrong derivative and the right one are computed in float64 at the very arguments, for several normal directions, one
by one and in a batch. A fault is real where an entry changes by more than

    4 eps |entry|  +  the most that the right derivative in float32 is off at that entry,

with eps = 1.2e-7 of float32. Storing the entry alone costs half an eps, so that 4 are as good as right; the second
term is what the right program itself loses on the way there, where large terms cancel. What changes less is equivalent.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.elsewhere.faulty.linear_map import Map, Subject

DIRECTIONS = 6
ULPS = 4


def in_precision(tree: Any, dtype: str) -> Any:
    """The same numbers in another precision; float64 takes jax.enable_x64."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), tree)


def _directions(subject: Subject, args: tuple[Any, ...]) -> list[Any]:
    draw = np.random.default_rng((2, 7))
    kinds = subject.enters(args)
    return [jax.tree.map(lambda x: draw.normal(size=x.shape).astype("float32"), kinds) for _ in range(DIRECTIONS)]


def _answers(derivative: Map, args: tuple[Any, ...], directions: list[Any], dtype: str) -> list[np.ndarray]:
    """What comes out, a leaf after the other: for each direction, and for all of them under vmap."""
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        args, directions = in_precision(args, dtype), in_precision(directions, dtype)
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)
        one_by_one = [jax.jit(derivative)(args, given) for given in directions]
        together = jax.jit(jax.vmap(derivative, (None, 0)))(args, batch)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
        return [np.asarray(leaf, np.float64) for tree in (stacked, together) for leaf in jax.tree.leaves(tree)]


class Truth:
    """The right derivative of a subject, and how far rounding takes it."""

    def __init__(self, subject: Subject, args: tuple[Any, ...]) -> None:
        self._args, self._directions = args, _directions(subject, args)
        self._right = self._of(subject.right)
        if not all(np.all(np.isfinite(leaf)) for leaf in self._right):
            raise ValueError("the right derivative is not finite, so that nothing can be judged by it")
        narrow = _answers(subject.right, args, self._directions, "float32")
        self._rounding = [
            ULPS * np.finfo("float32").eps * np.abs(right) + np.max(np.abs(rounded - right), axis=0)
            for right, rounded in zip(self._right, narrow, strict=True)
        ]

    def _of(self, derivative: Map) -> list[np.ndarray]:
        return _answers(derivative, self._args, self._directions, "float64")

    def excess(self, derivative: Map) -> float:
        """The largest change in units of the rounding: above 1 the fault is real; nan where something is not finite."""
        worst = 0.0
        for wrong, right, rounding in zip(self._of(derivative), self._right, self._rounding, strict=True):
            change = np.abs(wrong - right)
            if not np.all(np.isfinite(change)):
                return np.nan
            with np.errstate(divide="ignore", invalid="ignore"):
                units = np.where(change == 0, 0, change / rounding)  # where the right one is 0 it has no rounding
            worst = max(worst, float(np.max(units, initial=0)))
        return worst
