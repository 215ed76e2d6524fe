"""Further points to check at: near the given one, in the function's domain if the given one is."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

MOVES = (0.02, 1e-3)


def like(value: Any, leaf: Any) -> Any:
    """A value in the dtype of a leaf; a weak one stays weak."""
    if getattr(leaf, "weak_type", False):
        return jnp.asarray(float(value))
    return np.asarray(value).astype(leaf.dtype)


def nearby(moving: Sequence[Any], seed: int, most: float = MOVES[0]) -> list[Any]:
    """A nearby point: every entry is shrunk by up to `most` of it, so that signs and bounds still hold."""
    rng = np.random.default_rng(seed)
    return [like(np.asarray(leaf, np.float64) * (1 - most * rng.uniform(size=np.shape(leaf))), leaf) for leaf in moving]


def scaled(moving: Sequence[Any], factor: float) -> list[Any]:
    """Every entry times a number."""
    return [like(np.asarray(leaf, np.float64) * factor, leaf) for leaf in moving]


def shuffled(moving: Sequence[Any], seed: int) -> list[Any]:
    """Other values of the same size: each leaf's own, in another order, and moved a little."""
    rng = np.random.default_rng(seed)
    return nearby(
        [like(rng.permutation(np.asarray(leaf).ravel()).reshape(np.shape(leaf)), leaf) for leaf in moving], seed
    )


def near_points(moving: Sequence[Any], seed: int) -> Iterator[list[Any]]:
    """Nearby points in the order of trial, for where one may lie outside the function's domain; the point itself last.

    Scaling as a whole keeps a matrix definite, and a larger argument keeps acosh(1.001) defined.
    """
    yield nearby(moving, seed)
    yield scaled(moving, 1 - MOVES[0])
    yield scaled(moving, 1 + MOVES[0])
    yield nearby(moving, seed, MOVES[1])
    yield list(moving)
