"""Composites of layers, and `mlp`, the fully connected network of the note (F3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.layers.base import Leaf, Node, Reader, Shape, Tree
from manual_backprop.layers.dense import Dense


def _require_node(owner: str, node: object) -> None:
    if not isinstance(node, Node):
        raise TypeError(f"{owner} is made of layers and composites, got {type(node).__name__} {node!r}")


def _same_shape(owner: str, block: Node, in_shape: Shape) -> Shape:
    out = block.out_shape(in_shape)
    if out != in_shape:
        raise ValueError(f"{owner} needs a block that keeps the shape, but {block} maps {in_shape} to {out}")
    return out


@dataclass(frozen=True)
class Serial(Node):
    """Nodes one after the other: the composition (F3). Parameters, trace and deltas are tuples."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not self.nodes:
            raise ValueError("Serial needs at least one node, got none")
        for node in self.nodes:
            _require_node("Serial", node)

    def __str__(self) -> str:
        return " > ".join(str(node) for node in self.nodes)

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:  # noqa: D102
        keys = jax.random.split(key, len(self.nodes))
        return tuple(node.init(k, dtype) for node, k in zip(self.nodes, keys, strict=True))

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        for node in self.nodes:
            in_shape = node.out_shape(in_shape)
        return in_shape

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        return self._forward(params, x, lean=False)

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        return self._forward(params, x, lean=True)

    def _forward(self, params: Tree, a: Array, lean: bool) -> tuple[Array, Tree]:
        trace = []
        for node, p in zip(self.nodes, params, strict=True):
            a, t = node.lean_forward(p, a) if lean else node.forward(p, a)
            trace.append(t)
        return a, tuple(trace)

    def backward(self, params: Tree, trace: Tree, d_a: Array, reader: Reader) -> tuple[Array, Tree]:  # noqa: D102
        readings = []
        for node, p, t in zip(reversed(self.nodes), reversed(params), reversed(trace), strict=True):
            d_a, reading = node.backward(p, t, d_a, reader)
            readings.append(reading)
        return d_a, tuple(reversed(readings))

    def read(self, trace: Tree, deltas: Tree, reader: Reader) -> Tree:  # noqa: D102
        return tuple(n.read(t, d, reader) for n, t, d in zip(self.nodes, trace, deltas, strict=True))

    def tangent(self, params: Tree, x: Array, dparams: Tree, dx: Array) -> tuple[Array, Array]:  # noqa: D102
        for node, p, dp in zip(self.nodes, params, dparams, strict=True):
            x, dx = node.tangent(p, x, dp, dx)
        return x, dx


@dataclass(frozen=True)
class Residual(Node):
    """x + block(x). Parameters, trace and deltas are the block's."""

    block: Node

    def __post_init__(self) -> None:
        _require_node("Residual", self.block)

    def __str__(self) -> str:
        return f"x + [{self.block}]"

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:  # noqa: D102
        return self.block.init(key, dtype)

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        return _same_shape("Residual", self.block, in_shape)

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        a, trace = self.block.forward(params, x)
        return x + a, trace

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        a, trace = self.block.lean_forward(params, x)
        return x + a, trace

    def backward(self, params: Tree, trace: Tree, d_a: Array, reader: Reader) -> tuple[Array, Tree]:  # noqa: D102
        d_x, readings = self.block.backward(params, trace, d_a, reader)
        return d_a + d_x, readings

    def read(self, trace: Tree, deltas: Tree, reader: Reader) -> Tree:  # noqa: D102
        return self.block.read(trace, deltas, reader)

    def tangent(self, params: Tree, x: Array, dparams: Tree, dx: Array) -> tuple[Array, Array]:  # noqa: D102
        a, da = self.block.tangent(params, x, dparams, dx)
        return x + a, dx + da


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
        _require_node("Repeat", self.block)
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"Repeat n must be an int >= 1, got {self.n!r}")

    def __str__(self) -> str:
        return f"{self.n} x [{self.block}]"

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:  # noqa: D102
        return jax.vmap(lambda k: self.block.init(k, dtype))(jax.random.split(key, self.n))

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        return _same_shape("Repeat", self.block, in_shape)

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        return jax.lax.scan(lambda a, p: self.block.forward(p, a), x, params)

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        if not self.recompute:
            return jax.lax.scan(lambda a, p: self.block.lean_forward(p, a), x, params)
        a, inputs = jax.lax.scan(lambda a, p: (self.block.lean_forward(p, a)[0], a), x, params)
        return a, BlockInputs(inputs)

    def backward(self, params: Tree, trace: Tree, d_a: Array, reader: Reader) -> tuple[Array, Tree]:  # noqa: D102
        rebuild = self.recompute and isinstance(trace, BlockInputs)

        def step(d_a: Array, block: Tree) -> tuple[Array, Tree]:
            p, t = block
            if rebuild:
                _, t = self.block.lean_forward(p, t.x)
            return self.block.backward(p, t, d_a, reader)

        return jax.lax.scan(step, d_a, (params, trace), reverse=True)

    def read(self, trace: Tree, deltas: Tree, reader: Reader) -> Tree:  # noqa: D102
        return jax.vmap(lambda t, d: self.block.read(t, d, reader))(trace, deltas)

    def tangent(self, params: Tree, x: Array, dparams: Tree, dx: Array) -> tuple[Array, Array]:  # noqa: D102
        def step(carry: tuple[Array, Array], block: Tree) -> tuple[tuple[Array, Array], None]:
            return self.block.tangent(block[0], carry[0], block[1], carry[1]), None

        return jax.lax.scan(step, (x, dx), (params, dparams))[0]


def mlp(
    sizes: Sequence[int],
    activation: str | Activation | Sequence[str | Activation] = "tanh",
    output_activation: str | Activation = "identity",
) -> Serial:
    """The note's fully connected feedforward network, L = len(sizes) - 1 layers.

    Args:
        sizes: M_0, M_1, ..., M_L: inputs, neurons of every layer, outputs.
        activation: f_1 .. f_(L-1): one for all hidden layers, or one each.
        output_activation: f_L; the identity where the loss takes logits.

    Raises:
        ValueError: fewer than two sizes, a size below 1, or as many activations as there are not hidden
            layers.
    """
    sizes = tuple(sizes)
    if len(sizes) < 2:
        raise ValueError(f"mlp sizes must name at least inputs and outputs, got {sizes}")
    hidden = len(sizes) - 2
    if isinstance(activation, str | Activation):
        activation = (activation,) * hidden
    if len(activation) != hidden:
        raise ValueError(f"mlp{sizes} has {hidden} hidden layers, got {len(activation)} activations for them")
    rows = (*activation, output_activation)
    return Serial(tuple(Dense(i, o, f) for i, o, f in zip(sizes[:-1], sizes[1:], rows, strict=True)))
