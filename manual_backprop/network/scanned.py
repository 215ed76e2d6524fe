"""Chains of one block under `lax.scan`: `Repeat` has parameters for each block, `Tied` the same for all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from manual_backprop import explicit
from manual_backprop.node import Node, Step, Visit, Walk, Wrapper
from manual_backprop.types import Distinct, Flow, Leaf, Tree, came, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockInputs:
    """Every block's input, (n, N, *features): all that a recomputing `Repeat` keeps on a lean forward sweep."""

    x: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmentInputs:
    """All that a `Repeat` with segments keeps on a lean forward sweep.

    Attributes:
        x: the input of every segment but the last, (segments - 1, N, *features).
        last: what the last segment keeps, which the way back reaches first: its blocks' inputs, or their own values.
    """

    x: Leaf
    last: Tree


def scan(through: Callable[[Tree, Tree], tuple[Tree, Tree]], start: Tree, each: Tree, **options: Any) -> Any:
    """`jax.lax.scan` that takes and stacks every array once, at however many places of a tree it stands."""

    def distinct(carry: Tree, part: Distinct) -> tuple[Tree, Distinct]:
        carry, kept = through(carry, part.tree)
        return carry, Distinct.of(kept)

    end, stacked = jax.lax.scan(distinct, start, Distinct.of(each), **options)
    return end, stacked.tree


@dataclass(frozen=True)
class Chain(Wrapper):
    """Base of chains of n blocks.

    Attributes:
        n: how many.
        shared: whether all of them have the same parameters.
    """

    n: int
    shared: ClassVar[bool] = False
    drawn = "opened"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"{type(self).__name__} n must be an int >= 1, got {self.n!r}")

    def through(self, step: Step, x: Flow, own: Tree) -> tuple[Flow, Tree]:
        """Go up through one block, whose output is the next block's input."""
        left, kept = self.block.forward(step, x, own)
        return explicit.like(x, step.scannable(self.kept_shape(x, left))), kept

    def back(self, step: Step, d: Flow, own: Tree, kept: Tree) -> tuple[Flow, Tree]:
        """Go down through one block; what leaves a block lies on the devices as what enters the next."""
        below, found = self.block.backward(step, d, own, kept)
        return explicit.like(d, below), found

    @property
    @override
    def caption(self) -> str:
        return f"{type(self).__name__}: {self.n} blocks"

    @property
    @override
    def depth(self) -> int:
        return self.n * self.block.depth


@dataclass(frozen=True)
class Repeat(Chain):
    """A chain of n blocks of one kind with parameters of their own, under `lax.scan`.

    Every leaf of the parameters, trace and deltas is the block's with n in front, so compile time does not
    grow with n.

    Attributes:
        block: keeps the shape of its input.
        n: how many.
        recompute: where no trace is asked for (`value_and_grad`), keep only the blocks' inputs and run each
            block forward again on the way back. This takes the least memory and one more forward sweep.
        segments: where no trace is asked for, keep only the inputs of so many segments of the chain, and run each
            forward again on the way back, except the last, which comes first there. `recompute` then says what a
            segment keeps meanwhile: its blocks' inputs, at the cost of one more forward sweep, or what the blocks keep
            themselves. A segment has ceil(n / segments) blocks, the last one what is left; 2 segments become 3. None
            or 1 is the whole chain at once. Memory is least near the square root of n.

    Both have their effect in a block that is itself run forward again, too.

    Raises:
        TypeError: a recompute that is no bool, or segments that are no int.
        ValueError: n below 1, or segments below 1 or above n.
    """

    block: Node
    n: int
    recompute: bool = True
    segments: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.recompute, bool):
            raise TypeError(f"Repeat recompute must be True or False, got {came(self.recompute)}")
        if self.segments is None:
            return
        if not isinstance(self.segments, int) or isinstance(self.segments, bool):
            raise TypeError(f"Repeat segments must be an int or None, got {came(self.segments)}")
        if not 1 <= self.segments <= self.n:
            raise ValueError(f"Repeat segments must be from 1 to n = {self.n}, got {self.segments}")

    def __str__(self) -> str:
        return f"{self.n} x [{self.block}]"

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> "Repeat":
        return cls(block, n)

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        x = step.scannable(x)
        if step.lean and self._early:
            return self._forward_by_segments(step, x, owned)
        return scan(partial(self._up, step, recompute=step.lean and self.recompute), x, owned, length=self.n)

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        if self._early and isinstance(kept, SegmentInputs):
            return self._backward_by_segments(step, d, owned, kept)
        return scan(partial(self._down, step), d, (owned, kept), length=self.n, reverse=True)

    def _up(self, step: Step, x: Flow, own: Tree, recompute: bool) -> tuple[Flow, Tree]:
        """Go up through one block; keep its input to recompute it, or what it keeps itself."""
        left, kept = self.through(step, x, own)
        return left, BlockInputs(x) if recompute else kept

    def _down(self, step: Step, d: Flow, of_block: tuple[Tree, Tree]) -> tuple[Flow, Tree]:
        """Go down through one block, after it is run forward again where only its input is kept."""
        own, kept = of_block
        if self.recompute and isinstance(kept, BlockInputs):
            _, kept = self.block.forward(step, kept.x, own)
        return self.back(step, d, own, kept)

    @property
    def _length(self) -> int:
        """The number of blocks in every segment but the last: ceil(n / segments).

        Two segments become three. XLA would write a scan over the one that is run again as if there were no scan, and
        run it before the way back, so that both were in memory at once.
        """
        if self.segments in (None, 1):
            return self.n
        return max(1, min(-(-self.n // self.segments), (self.n - 1) // 2))

    @property
    def _early(self) -> int:
        """The number of blocks in all segments but the last, which has at least one."""
        return (self.n - 1) // self._length * self._length

    def _places(self) -> tuple[Array, Array]:
        """The blocks' numbers: a row for every segment but the last, and those of the last."""
        places = jnp.arange(self.n)
        return places[: self._early].reshape(-1, self._length), places[self._early :]

    def _forward_by_segments(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, SegmentInputs]:
        early, last = self._places()

        def through(x: Flow, i: Array) -> tuple[Flow, None]:
            return self.through(step, x, _at(owned, i))[0], None

        def segment(x: Flow, places: Array) -> tuple[Flow, Flow]:
            return jax.lax.scan(through, x, places)[0], x

        x, inputs = jax.lax.scan(segment, x, early)
        left, kept = scan(partial(self._up_at, step, owned), x, last)
        return left, SegmentInputs(inputs, kept)

    def _backward_by_segments(self, step: Step, d: Flow, owned: Tree, kept: SegmentInputs) -> tuple[Flow, Tree]:
        early, last = self._places()

        def down(d: Flow, of_block: tuple[Array, Tree]) -> tuple[Flow, Tree]:
            i, kept = of_block
            return self._down(step, d, (_at(owned, i), kept))

        def write(carry: tuple[Flow, Tree], of_block: tuple[Array, Tree]) -> tuple[tuple[Flow, Tree], None]:
            d, found = carry
            d, here = down(d, of_block)
            return (d, _put(found, of_block[0], here)), None

        def segment(carry: tuple[Flow, Tree], of_segment: tuple[Array, Flow]) -> tuple[tuple[Flow, Tree], None]:
            places, x = of_segment
            _, kept = scan(partial(self._up_at, step, owned), x, places)
            return scan(write, carry, (places, kept), reverse=True)

        d, found = scan(down, d, (last, kept.last), reverse=True)
        carry = d, _behind(self._early, found)
        return jax.lax.scan(segment, carry, (early, kept.x), reverse=True)[0]

    def _up_at(self, step: Step, owned: Tree, x: Flow, i: Array) -> tuple[Flow, Tree]:
        return self._up(step, x, _at(owned, i), self.recompute)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        if not trees:
            return self.block.walk(visit, how)
        out = how.uses if how.mirrored else 0
        return jax.vmap(partial(self.block.walk, visit, how), how.uses, out, axis_size=self.n)(*trees)

    @override
    def keys(self, key: PRNGKeyArray) -> Tree:
        return jax.vmap(self.block.keys)(jax.random.split(key, self.n))


def _at(tree: Tree, i: Array) -> Tree:
    """The part of block i of a tree with blocks in front. To cut out a segment's part would copy it."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def _put(tree: Tree, i: Array, part: Tree) -> Tree:
    """The tree with this part for block i; in a scan XLA writes it in place."""
    return jax.tree.map(lambda leaf, own: jax.lax.dynamic_update_index_in_dim(leaf, own, i, 0), tree, part)


def _behind(n: int, tree: Tree) -> Tree:
    """The tree of the last blocks behind zeros for the n before them."""
    return jax.tree.map(lambda leaf: jnp.pad(leaf, ((n, 0), *((0, 0),) * (leaf.ndim - 1))), tree)


@dataclass(frozen=True)
class Tied(Chain):
    """One block applied n times with the same parameters: weight tying in depth, under `lax.scan`.

    Parameters and gradients are the block's own; the trace and deltas have the uses in front. The gradient is the sum
    over uses, so a reading first sums each example's gradient over the uses, and then squares or multiplies. Norms and
    products thus include the cross terms between uses.

    Attributes:
        block: keeps the shape of its input.
        n: how often it is used.
    """

    block: Node
    n: int

    shared = True

    def __str__(self) -> str:
        return f"{self.n} times the same [{self.block}]"

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> "Tied":
        return cls(block, n)

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        def one(x: Flow, use: Array) -> tuple[Flow, Tree]:
            return self.through(step.unread, x, step.at_use(owned, use))

        return scan(one, step.scannable(x), jnp.arange(self.n))

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        def one(d: Flow, of_use: tuple[Array, Tree]) -> tuple[Flow, Tree]:
            use, kept = of_use
            return self.back(step.unread, d, step.at_use(owned, use), kept)

        d_x, found = scan(one, d, (jnp.arange(self.n), kept), reverse=True)
        return d_x, step.read(self.block, kept, found)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        return self.block.walk(visit, how.within_tied(), *trees)
