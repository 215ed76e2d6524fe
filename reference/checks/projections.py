"""What is compared of a gradient too large to compare entry by entry: its projections on a few directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

DIRECTIONS = 4


@dataclass(frozen=True)
class Plan:
    """Which leaves of a gradient are projected, and on what.

    Attributes:
        paths: a name for every leaf.
        projected: whether it is compared by projections.
        seed: of the directions.
    """

    paths: tuple[str, ...]
    projected: tuple[bool, ...]
    seed: int

    @classmethod
    def of(cls, paths: Sequence[str], moving: Sequence[Any], limit: int, seed: int) -> "Plan":
        """As many leaves entry by entry as have `limit` entries together, the smallest first."""
        sizes = np.array([np.size(leaf) for leaf in moving])
        order = np.argsort(sizes, kind="stable")
        over = np.empty(len(sizes), bool)
        over[order] = np.cumsum(sizes[order]) > limit
        return cls(tuple(paths), tuple(bool(flag) for flag in over), seed)

    def seen(self, leaves: Sequence[Any]) -> list[Any]:
        """What is compared of gradient leaves: the leaf, or its projections in float64."""
        return [
            self._project(leaf, i) if over else leaf
            for i, (leaf, over) in enumerate(zip(leaves, self.projected, strict=True))
        ]

    def _project(self, leaf: Any, number: int) -> Any:
        """Dot products with DIRECTIONS random directions, no entry of which is small; summed row by row."""
        xp: Any = np if isinstance(leaf, np.ndarray) else jnp
        rows = max(1, int(leaf.size**0.5))
        pad = -leaf.size % rows
        flat = xp.pad(xp.reshape(leaf, -1).astype("float64"), (0, pad)).reshape(rows, -1)
        rng = np.random.default_rng((self.seed, number))
        sizes = (rng.uniform(0.5, 1.5, flat.shape) * rng.choice([-1.0, 1.0], flat.shape) for _ in range(DIRECTIONS))
        return xp.stack([xp.sum(xp.sum(flat * d, axis=1)) for d in sizes])

    def notes(self) -> list[str]:
        """What a reader must know about leaves that are projected."""
        large = [path for path, over in zip(self.paths, self.projected, strict=True) if over]
        if not large:
            return []
        return [
            f"{', '.join(large)}: too large to compare entry by entry; {DIRECTIONS} seeded projections are compared"
            " instead, which do not say which entry is wrong and miss an error that is small against the rounding"
            " of the whole leaf; raise max_elements to compare every entry"
        ]
