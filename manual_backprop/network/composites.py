"""Composites of layers, and `mlp`, the fully connected network of the note (F3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
from jaxtyping import Array, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.layers.base import Batch, Drawer, Layer, Node, Reader, Shape, Visitor, Way
from manual_backprop.layers.dense import Dense
from manual_backprop.layers.factor import Tree
from manual_backprop.network.scanned import Repeat as Repeat
from manual_backprop.network.scanned import Tied as Tied
from manual_backprop.network.scanned import require_node, same_shape


@dataclass(frozen=True)
class Serial(Node):
    """Nodes one after the other: the composition (F3). Parameters, trace and deltas are tuples."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not self.nodes:
            raise ValueError("Serial needs at least one node, got none")
        for node in self.nodes:
            require_node("Serial", node)

    def __str__(self) -> str:
        return " > ".join(str(node) for node in self.nodes)

    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:  # noqa: D102
        keys = jax.random.split(key, len(self.nodes))
        return tuple(node.draw(k, drawer) for node, k in zip(self.nodes, keys, strict=True))

    def layers(self) -> Iterator[Layer]:  # noqa: D102
        return (layer for node in self.nodes for layer in node.layers())

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

    def backward(  # noqa: D102
        self, params: Tree, trace: Tree, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Tree]:
        readings = []
        for i in reversed(range(len(self.nodes))):
            here = None if way is None else way.at(i)
            d_a, reading = self.nodes[i].backward(params[i], trace[i], d_a, reader, here)
            readings.append(reading)
        return d_a, tuple(reversed(readings))

    def read(self, reader: Reader, *batches: Batch) -> Tree:  # noqa: D102
        of_nodes = (zip(trace, deltas, strict=True) for trace, deltas in batches)
        return tuple(node.read(reader, *each) for node, *each in zip(self.nodes, *of_nodes, strict=True))

    def visit(self, trace: Tree, other: Tree, visitor: Visitor) -> Tree:  # noqa: D102
        return tuple(n.visit(t, o, visitor) for n, t, o in zip(self.nodes, trace, other, strict=True))

    def tangent(  # noqa: D102
        self, params: Tree, x: Array, dparams: Tree, dx: Array | None
    ) -> tuple[Array, Array, Tree, Tree]:
        traces = []
        for node, p, dp in zip(self.nodes, params, dparams, strict=True):
            x, dx, *trace_and_tangent = node.tangent(p, x, dp, dx)
            traces.append(trace_and_tangent)
        assert dx is not None, "a node's output has a tangent"
        trace, dtrace = zip(*traces, strict=True)
        return x, dx, trace, dtrace

    def backward_tangent(  # noqa: D102
        self, params: Tree, dparams: Tree, trace: Tree, dtrace: Tree, d_a: Array, dd_a: Array, weights: Array | None
    ) -> tuple[Array, Array, Tree]:
        gradients = []
        for node, *trees in reversed(list(zip(self.nodes, params, dparams, trace, dtrace, strict=True))):
            d_a, dd_a, dgradient = node.backward_tangent(*trees, d_a, dd_a, weights)
            gradients.append(dgradient)
        return d_a, dd_a, tuple(reversed(gradients))


@dataclass(frozen=True)
class Residual(Node):
    """x + block(x). Parameters, trace and deltas are the block's."""

    block: Node

    def __post_init__(self) -> None:
        require_node("Residual", self.block)

    def __str__(self) -> str:
        return f"x + [{self.block}]"

    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:  # noqa: D102
        return self.block.draw(key, drawer)

    def layers(self) -> Iterator[Layer]:  # noqa: D102
        return self.block.layers()

    def out_shape(self, in_shape: Shape) -> Shape:  # noqa: D102
        return same_shape("Residual", self.block, in_shape)

    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        a, trace = self.block.forward(params, x)
        return x + a, trace

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:  # noqa: D102
        a, trace = self.block.lean_forward(params, x)
        return x + a, trace

    def backward(  # noqa: D102
        self, params: Tree, trace: Tree, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Tree]:
        d_x, readings = self.block.backward(params, trace, d_a, reader, way)
        return d_a + d_x, readings

    def read(self, reader: Reader, *batches: Batch) -> Tree:  # noqa: D102
        return self.block.read(reader, *batches)

    def visit(self, trace: Tree, other: Tree, visitor: Visitor) -> Tree:  # noqa: D102
        return self.block.visit(trace, other, visitor)

    def tangent(  # noqa: D102
        self, params: Tree, x: Array, dparams: Tree, dx: Array | None
    ) -> tuple[Array, Array, Tree, Tree]:
        a, da, trace, dtrace = self.block.tangent(params, x, dparams, dx)
        return x + a, da if dx is None else dx + da, trace, dtrace

    def backward_tangent(  # noqa: D102
        self, params: Tree, dparams: Tree, trace: Tree, dtrace: Tree, d_a: Array, dd_a: Array, weights: Array | None
    ) -> tuple[Array, Array, Tree]:
        d_x, dd_x, dgradient = self.block.backward_tangent(params, dparams, trace, dtrace, d_a, dd_a, weights)
        return d_a + d_x, dd_a + dd_x, dgradient


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
