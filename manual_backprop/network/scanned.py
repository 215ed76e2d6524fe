"""Chains of one block under `lax.scan`: `Repeat` gives each its own parameters, `Tied` the same to all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from manual_backprop.layers.base import (
    Batch,
    Drawer,
    Layer,
    Leaf,
    Node,
    Reader,
    Shape,
    Visitor,
    Way,
)
from manual_backprop.layers.factor import Factor, Tree


def require_node(owner: str, node: object) -> None:
    """Refuse what is no node.

    Raises:
        TypeError: says what came.
    """
    if not isinstance(node, Node):
        raise TypeError(f"{owner} is made of layers and composites, got {type(node).__name__} {node!r}")


def same_shape(owner: str, block: Node, in_shape: Shape) -> Shape:
    """The shape that `block` keeps.

    Raises:
        ValueError: it changes it.
    """
    out = block.out_shape(in_shape)
    if out != in_shape:
        raise ValueError(f"{owner} needs a block that keeps the shape, but {block} maps {in_shape} to {out}")
    return out


def _require_chain(owner: str, block: object, n: object) -> None:
    require_node(owner, block)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{owner} n must be an int >= 1, got {n!r}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockInputs:
    """What a recomputing `Repeat` keeps on a lean forward sweep: every block's input, (n, N, *features)."""

    x: Leaf


@dataclass(frozen=True)
class Repeat(Node):
    """A chain of n blocks of one kind with parameters of their own, under `lax.scan`.

    Every leaf of the parameters, trace and deltas is the block's with n in front, so compile time does not
    grow with n.

    Attributes:
        block: keeps the shape of its input.
        n: how many.
        recompute: where no trace is asked for (`value_and_grad`), keep only the blocks' inputs and run each
            block forward again on the way back: least memory, for one more forward sweep.
    """

    block: Node
    n: int
    recompute: bool = True

    def __post_init__(self) -> None:
        _require_chain("Repeat", self.block, self.n)

    def __str__(self) -> str:
        return f"{self.n} x [{self.block}]"

    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:  # noqa: D102
        return jax.vmap(lambda k: self.block.draw(k, drawer))(jax.random.split(key, self.n))

    def layers(self) -> Iterator[Layer]:  # noqa: D102
        return self.block.layers()

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        return same_shape("Repeat", self.block, in_shape)

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        return jax.lax.scan(lambda a, p: self.block.forward(p, a), x, params)

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        if not self.recompute:
            return jax.lax.scan(lambda a, p: self.block.lean_forward(p, a), x, params)
        a, inputs = jax.lax.scan(lambda a, p: (self.block.lean_forward(p, a)[0], a), x, params)
        return a, BlockInputs(inputs)

    def backward(  # noqa: D102
        self, params: Tree, trace: Tree, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Tree]:
        rebuild = self.recompute and isinstance(trace, BlockInputs)
        same = way is None or way.carried is params  # then they are scanned once

        def step(d_a: Array, block: Tree) -> tuple[Array, Tree]:
            p, t, c = block
            if rebuild:
                _, t = self.block.lean_forward(p, t.x)
            here = None if way is None else way.with_carried(p if same else c)
            return self.block.backward(p, t, d_a, reader, here)

        blocks = (params, trace, None if way is None or same else way.carried)
        return jax.lax.scan(step, d_a, blocks, reverse=True)

    def read(self, reader: Reader, *batches: Batch) -> Tree:  # noqa: D102
        return jax.vmap(lambda *each: self.block.read(reader, *each))(*batches)

    def visit(self, trace: Tree, other: Tree, visitor: Visitor) -> Tree:  # noqa: D102
        return jax.vmap(lambda t, o: self.block.visit(t, o, visitor))(trace, other)

    def tangent(  # noqa: D102
        self, params: Tree, x: Array, dparams: Tree, dx: Array | None
    ) -> tuple[Array, Array, Tree, Tree]:
        def step(carry: tuple[Array, Array], block: Tree) -> tuple[tuple[Array, Array], Tree]:
            (x, dx), (p, dp) = carry, block
            a, da, trace, dtrace = self.block.tangent(p, x, dp, dx)
            return (a, da), (trace, dtrace)

        start = (x, jnp.zeros_like(x) if dx is None else dx)
        (a, da), (trace, dtrace) = jax.lax.scan(step, start, (params, dparams))
        return a, da, trace, dtrace

    def backward_tangent(  # noqa: D102
        self, params: Tree, dparams: Tree, trace: Tree, dtrace: Tree, d_a: Array, dd_a: Array, weights: Array | None
    ) -> tuple[Array, Array, Tree]:
        def step(carry: tuple[Array, Array], block: Tree) -> tuple[tuple[Array, Array], Tree]:
            (p, dp, t, dt), (d_a, dd_a) = block, carry
            d_a, dd_a, dgradient = self.block.backward_tangent(p, dp, t, dt, d_a, dd_a, weights)
            return (d_a, dd_a), dgradient

        blocks = (params, dparams, trace, dtrace)
        (d_a, dd_a), dgradients = jax.lax.scan(step, (d_a, dd_a), blocks, reverse=True)
        return d_a, dd_a, dgradients


@dataclass(frozen=True)
class Tied(Node):
    """One block applied n times with the same parameters: weight tying in depth, under `lax.scan`.

    Parameters and gradients are the block's own; the trace and deltas have the uses in front. A reading of its
    parameters first sums over the uses what is linear in them, since the gradient is the sum over uses: norms
    and products have the cross terms that adding up use by use would lose.

    Attributes:
        block: keeps the shape of its input.
        n: how often it is used.
    """

    block: Node
    n: int

    def __post_init__(self) -> None:
        _require_chain("Tied", self.block, self.n)

    def __str__(self) -> str:
        return f"{self.n} times the same [{self.block}]"

    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:  # noqa: D102
        return self.block.draw(key, drawer)

    def layers(self) -> Iterator[Layer]:  # noqa: D102
        return self.block.layers()

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        return same_shape("Tied", self.block, in_shape)

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        return jax.lax.scan(lambda a, _: self.block.forward(params, a), x, length=self.n)

    def backward(  # noqa: D102
        self, params: Tree, trace: Tree, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Tree]:
        def step(d_a: Array, use: tuple[Tree, Array]) -> tuple[Array, Tree]:
            t, i = use
            here = None if way is None else way.with_carried(way.rule.at_use(way.carried, i))
            return self.block.backward(params, t, d_a, None, here)

        d_x, deltas = jax.lax.scan(step, d_a, (trace, jnp.arange(self.n)), reverse=True)
        return d_x, deltas if reader is None else self.read(reader, (trace, deltas))

    def read(self, reader: Reader, *batches: Batch) -> Tree:  # noqa: D102
        axis = _Uses()

        def read_together(*factors: Factor) -> Any:
            return reader(*(jax.lax.all_gather(factor, axis).tied() for factor in factors))

        def over_uses(*each: Batch) -> Tree:
            return self.block.read(read_together, *each)

        return jax.vmap(over_uses, axis_name=axis, out_axes=None)(*batches)

    def visit(self, trace: Tree, other: Tree, visitor: Visitor) -> Tree:  # noqa: D102
        return jax.vmap(lambda t, o: self.block.visit(t, o, visitor))(trace, other)

    def tangent(  # noqa: D102
        self, params: Tree, x: Array, dparams: Tree, dx: Array | None
    ) -> tuple[Array, Array, Tree, Tree]:
        def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Tree]:
            a, da, trace, dtrace = self.block.tangent(params, carry[0], dparams, carry[1])
            return (a, da), (trace, dtrace)

        start = (x, jnp.zeros_like(x) if dx is None else dx)
        (a, da), (trace, dtrace) = jax.lax.scan(step, start, length=self.n)
        return a, da, trace, dtrace

    def backward_tangent(  # noqa: D102
        self, params: Tree, dparams: Tree, trace: Tree, dtrace: Tree, d_a: Array, dd_a: Array, weights: Array | None
    ) -> tuple[Array, Array, Tree]:
        def step(carry: tuple[Array, Array], use: Tree) -> tuple[tuple[Array, Array], Tree]:
            (t, dt), (d_a, dd_a) = use, carry
            d_a, dd_a, dgradient = self.block.backward_tangent(params, dparams, t, dt, d_a, dd_a, weights)
            return (d_a, dd_a), dgradient

        (d_a, dd_a), dgradients = jax.lax.scan(step, (d_a, dd_a), (trace, dtrace), reverse=True)
        return d_a, dd_a, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), dgradients)


class _Uses:
    """The name of a mapped axis, one for every reading: a `Tied` may stand inside another."""
