"""Chains of one block under `lax.scan`: `Repeat` has parameters for each block, `Tied` the same for all."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from manual_backprop.node import Node, Step, Visit, Walk, Wrapper
from manual_backprop.types import Flow, Leaf, Tree, came, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockInputs:
    """Every block's input, (n, N, *features): all that a recomputing `Repeat` keeps on a lean forward sweep."""

    x: Leaf


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
        return step.scannable(self.kept_shape(x, left)), kept

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
    """

    block: Node
    n: int
    recompute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.recompute, bool):
            raise TypeError(f"Repeat recompute must be True or False, got {came(self.recompute)}")

    def __str__(self) -> str:
        return f"{self.n} x [{self.block}]"

    @classmethod
    @override
    def specimen(cls, block: Node, n: int) -> "Repeat":
        return cls(block, n)

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        def one(x: Flow, own: Tree) -> tuple[Flow, Tree]:
            left, kept = self.through(step, x, own)
            return left, BlockInputs(x) if step.lean and self.recompute else kept

        return jax.lax.scan(one, step.scannable(x), owned, length=self.n)

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        def one(d: Flow, of_block: tuple[Tree, Tree]) -> tuple[Flow, Tree]:
            own, kept = of_block
            if self.recompute and isinstance(kept, BlockInputs):
                _, kept = self.block.forward(step, kept.x, own)
            return self.block.backward(step, d, own, kept)

        return jax.lax.scan(one, d, (owned, kept), length=self.n, reverse=True)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        if not trees:
            return self.block.walk(visit, how)
        out = how.uses if how.mirrored else 0
        return jax.vmap(partial(self.block.walk, visit, how), how.uses, out, axis_size=self.n)(*trees)

    @override
    def keys(self, key: PRNGKeyArray) -> Tree:
        return jax.vmap(self.block.keys)(jax.random.split(key, self.n))


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

        return jax.lax.scan(one, step.scannable(x), jnp.arange(self.n))

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        def one(d: Flow, of_use: tuple[Array, Tree]) -> tuple[Flow, Tree]:
            use, kept = of_use
            return self.block.backward(step.unread, d, step.at_use(owned, use), kept)

        d_x, found = jax.lax.scan(one, d, (jnp.arange(self.n), kept), reverse=True)
        return d_x, step.read(self.block, kept, found)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        return self.block.walk(visit, how.within_tied(), *trees)
