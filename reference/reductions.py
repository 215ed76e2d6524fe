"""How a gradient looks when the reduction over devices is wrong: every value that a known mistake gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_BLOCKS = 8  # whose exchange is looked for


@dataclass(frozen=True, eq=False)
class Shards:
    """A leaf of the gradient by the shards of the batch.

    Attributes:
        parts: what the rows of every shard add to the gradient of L, each weighted as in L; they sum to it.
        devices: of the whole mesh, which may hold a shard several times.
    """

    parts: Sequence[np.ndarray]
    devices: int

    def mistakes(self, penalty: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(a mistake in words, the leaf that it gives); `penalty` is the regulariser's part of the right leaf."""
        n, loss = len(self.parts), np.sum(self.parts, axis=0)
        counts = dict.fromkeys(count for count in (n, self.devices, self.devices // n) if count > 1)
        yield from self._of_one(penalty)
        for count in counts:
            more, less = f"{count} times over", f"divided by {count}"
            yield f"{more}: a sum over devices where a mean is meant, or a second sum", count * loss + penalty
            yield f"{more}, penalty and all: a sum over devices where a mean is meant", count * (loss + penalty)
            yield f"{less} once too often: a mean over devices where the sum is meant", loss / count + penalty
            if penalty.any():
                yield f"the penalty {more}: every device adds it before the sum (B6)", loss + count * penalty
                yield f"the penalty {less}: a mean over devices of which one adds it (B6)", loss + penalty / count
        most = np.max(self.parts, axis=0)
        yield "the largest over the shards where their sum is meant", most + penalty
        yield "the largest over the shards where their mean is meant", n * most + penalty

    def _of_one(self, penalty: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        n, loss = len(self.parts), np.sum(self.parts, axis=0)
        for k, part in enumerate(self.parts):
            never = f"the rows of shard {k} alone: the sum over the shards of the batch is missing"
            yield never, part + penalty
            yield never, n * part + penalty
            yield never, part + penalty / n
            lacking = f"the rows of shard {k} are missing in the sum over shards"
            yield lacking, loss - part + penalty
            yield lacking, loss - part + penalty * (n - 1) / n
            yield lacking, (loss - part) * n / max(n - 1, 1) + penalty
            yield f"the rows of shard {k} are counted twice", loss + part + penalty


def of_features(counts: Sequence[int], rows: np.ndarray, W: np.ndarray, rest: Any = 0.0) -> dict[str, np.ndarray]:
    """Values of rows W + rest under wrong sums over the devices that share the features of `rows`, by the mistake."""
    whole, size, found = rows @ W, len(W), dict[str, np.ndarray]()
    for n in counts:
        if not 1 < n <= MOST_BLOCKS or size % n:
            continue
        for k, (some, of_W) in enumerate(zip(np.split(rows, n, -1), np.split(W, n), strict=True)):
            found[f"the features of device {k} of {n} alone: the sum over devices is missing"] = some @ of_W + rest
        found[f"the product {n} times over: a second sum over devices, or features that every device has"] = (
            n * whole + rest
        )
        if np.any(rest):
            found[f"the bias {n} times over: every device adds it before the sum"] = whole + n * rest
    return found


def exchanged(manual: np.ndarray, reference: np.ndarray, counts: Sequence[int], near: float) -> str | None:
    """Say that the leaf is the reference with blocks of an axis in another order, or one block in all places."""
    for axis, size in enumerate(reference.shape):
        for count in counts:
            if not 1 < count <= MOST_BLOCKS or size % count:
                continue
            ours, theirs = (np.split(leaf, count, axis) for leaf in (manual, reference))
            order = [next((j for j in range(count) if np.all(np.abs(own - theirs[j]) <= near)), None) for own in ours]
            if None in order or order == list(range(count)):
                continue
            if len(set(order)) == 1:
                return f"axis {axis} holds the block of device {order[0]} in the place of all {count}"
            if len(set(order)) == count:
                return f"the blocks of axis {axis} stand in the order {', '.join(map(str, order))}"
    return None
