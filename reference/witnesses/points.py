"""A scalar function as a function of a flat vector, directions to move it along, and the form of a derivative.

This is the part that all ways to differentiate share; nothing here differentiates. All is in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from reference.xla import quick

Tree = Any

EPS = float(np.finfo(np.float64).eps)
MOST = 2048
"""Up to this many elements, each has its own direction; above, there are `PROJECTIONS` seeded ones."""
PROJECTIONS = 64
_BUDGET = 2**21  # float64 numbers in one batch of points: 16 MiB


@dataclass(frozen=True)
class Witness:
    """A derivative by one way to differentiate.

    Attributes:
        name: the way: "forward mode", "complex step", "differences".
        value: the gradient, a tree of float64 NumPy arrays like the argument (float0 for leaves that are not
            floats, as by `jax.grad`); with `directions`, the slopes along them, shape (K,).
        error: a bound for the error of `value`, elementwise: rounding and truncation; inf where it is unknown.
        available: whether this way works for this function; if not, `value` and `error` are None.
        why: if not available, why not; otherwise a note on the result, or "".
        directions: None, or the unit vectors along which the slopes were taken, shape (K, n), over all float
            elements in the order of the tree.
    """

    name: str
    value: Tree
    error: Tree
    available: bool = True
    why: str = ""
    directions: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """A scalar function of one argument of many, as a function of a flat float64 vector.

    Attributes:
        fun: the function.
        args: its arguments, floats in float64.
        argnum: number of the argument that moves.

    Raises:
        ValueError: fun returns no scalar float, there is no such argument, or it holds no floats.
    """

    fun: Callable[..., Any]
    args: tuple
    argnum: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.argnum < len(self.args):
            raise ValueError(f"argnum is {self.argnum}, but there are {len(self.args)} arguments")
        object.__setattr__(self, "args", jax.tree.map(wide, self.args))
        if not self.x.size:
            raise ValueError(f"argument {self.argnum} holds no floats to differentiate with respect to")
        with jax.enable_x64(True):
            out = jax.eval_shape(self.fun, *self.args)
        if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"fun must return a scalar float, got {out}")

    @cached_property
    def x(self) -> np.ndarray:
        """Every float element of the argument, in the order of the tree."""
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(self.args[self.argnum]) if is_float(leaf)]
        return np.concatenate(leaves) if leaves else np.zeros(0)

    def tree(self, vector: Any) -> Tree:
        """A vector over the float elements as a tree like the argument, float0 for its other leaves."""
        return self._fill(vector, lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0))

    def vector(self, tree: Tree) -> np.ndarray:
        """The float elements of a tree like the argument; raise ValueError for any other tree."""
        argument = self.args[self.argnum]
        expected: Any = jax.tree.structure(argument)
        given_structure: Any = jax.tree.structure(tree)
        if given_structure != expected:
            raise ValueError(f"expected a tree like argument {self.argnum}, {expected}, got {given_structure}")
        pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(argument), strict=True))
        for given, leaf in pairs:
            if np.shape(given) != leaf.shape:
                raise ValueError(f"expected a leaf of shape {leaf.shape}, got {np.shape(given)}")
        return np.concatenate([np.asarray(g, np.float64).ravel() for g, leaf in pairs if is_float(leaf)])

    def moved(self, vector: Any, args: tuple | None = None) -> tuple:
        """`args` (ours if not given) with the argument's float elements replaced."""
        args = self.args if args is None else args
        argument = self._fill(vector, lambda leaf: leaf, args[self.argnum])
        return (*args[: self.argnum], argument, *args[self.argnum + 1 :])

    def _fill(self, vector: Any, other: Callable[[Any], Any], like: Tree = None) -> Tree:
        leaves, structure = jax.tree.flatten(self.args[self.argnum] if like is None else like)
        start, filled = 0, []
        for leaf in leaves:
            size = leaf.size if is_float(leaf) else 0
            filled.append(vector[start : start + size].reshape(leaf.shape) if is_float(leaf) else other(leaf))
            start += size
        return jax.tree.unflatten(structure, filled)

    def value(self, vector: Array) -> Array:
        """Fun at a flat vector."""
        return self.fun(*jax.tree.map(jnp.asarray, self.moved(vector)))

    @cached_property
    def along(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(direction, ts) -> fun at x + t direction for every t, compiled once for each number of ts."""
        line = jax.vmap(lambda d, t: self.value(self.x + t * d), in_axes=(None, 0))
        run = jax.jit(line, compiler_options=quick())

        def values(direction: np.ndarray, ts: np.ndarray) -> np.ndarray:
            with jax.enable_x64(True):
                return np.asarray(run(direction, ts))

        return values


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floats."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def wide(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array, floats in float64."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if is_float(leaf) else leaf


def seeded(n: int, count: int, seed: int) -> np.ndarray:
    """Seeded unit vectors in n dimensions, shape (count, n), without zero elements."""
    rows = np.random.default_rng(seed).normal(size=(count, n))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def directions_for(point: Point, most: int, seed: int) -> np.ndarray | None:
    """None if every element has its own direction; above `most` elements, seeded directions."""
    return None if point.x.size <= most else seeded(point.x.size, PROJECTIONS, seed)


def batches(directions: np.ndarray | None, n: int, points_each: int) -> Iterator[tuple[np.ndarray, int]]:
    """(directions, how many are valid) in batches of one size, so that one program serves all; the rest is padding."""
    total = n if directions is None else len(directions)
    size = min(total, max(1, _BUDGET // (points_each * n)))
    for start in range(0, total, size):
        index = np.minimum(np.arange(start, start + size), total - 1)
        if directions is None:
            rows = np.zeros((size, n))
            rows[np.arange(size), index] = 1.0
        else:
            rows = directions[index]
        yield rows, min(size, total - start)


def gathered(compute: Callable[..., Any], directions: np.ndarray | None, n: int, points_each: int) -> Any:
    """Run `compute` on every batch of directions and join the results, trees of arrays with a row per direction."""
    run, parts = jax.jit(compute, compiler_options=quick()), []
    for rows, count in batches(directions, n, points_each):
        parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], run(rows)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
