"""Projections on a few directions, for gradients too large to compare entry by entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DIRECTIONS = 4


@dataclass(frozen=True)
class Plan:
    """The choice of leaves to project, and the seed of the directions.

    Attributes:
        paths: a name for every leaf.
        projected: for every leaf, whether it is compared by projections.
        seed: of the directions.
    """

    paths: tuple[str, ...]
    projected: tuple[bool, ...]
    seed: int

    @classmethod
    def of(cls, paths: Sequence[str], moving: Sequence[Any], limit: int, seed: int) -> "Plan":
        """A plan that compares leaves entry by entry, the smallest first, up to `limit` entries together."""
        sizes = np.array([np.size(leaf) for leaf in moving])
        order = np.argsort(sizes, kind="stable")
        over = np.empty(len(sizes), bool)
        over[order] = np.cumsum(sizes[order]) > limit
        return cls(tuple(paths), tuple(bool(flag) for flag in over), seed)

    def seen(self, leaves: Sequence[Any]) -> list[Any]:
        """The values to compare for gradient leaves: the leaf, or its projections in float64."""
        return [
            self._project(leaf, i) if over else leaf
            for i, (leaf, over) in enumerate(zip(leaves, self.projected, strict=True))
        ]

    def _project(self, leaf: Any, number: int) -> Any:
        """Dot products with DIRECTIONS random directions without small entries, summed row by row."""
        xp: Any = np if isinstance(leaf, np.ndarray) else jnp
        rows = max(1, int(leaf.size**0.5))
        pad = -leaf.size % rows
        rng = np.random.default_rng((self.seed, number))
        with jax.enable_x64(True):
            flat = xp.pad(xp.reshape(leaf, -1).astype("float64"), (0, pad)).reshape(rows, -1)
            sizes = (rng.uniform(0.5, 1.5, flat.shape) * rng.choice([-1.0, 1.0], flat.shape) for _ in range(DIRECTIONS))
            return xp.stack([xp.sum(xp.sum(flat * d, axis=1)) for d in sizes])

    def notes(self) -> list[str]:
        """A note on the leaves that are projected, if any."""
        large = [path for path, over in zip(self.paths, self.projected, strict=True) if over]
        if not large:
            return []
        return [
            f"{', '.join(large)}: too large to compare entry by entry; {DIRECTIONS} seeded projections are compared"
            " instead, which do not say which entry is wrong and miss an error that is small against the rounding"
            " of the whole leaf; raise max_elements to compare every entry"
        ]
