"""What every node of a network answers, and the note's step, written once for every family of layers.

A node (a layer, or a composite of nodes) is a frozen dataclass without arrays. Parameters, traces, deltas
and gradients are pytrees that mirror it. A new family of layers subclasses `Layer` and gives the affine (or
other) map a^(l-1) -> z^(l) with its transposes; a new composite subclasses `Node`. Nothing else changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.layers.factor import Factor, Tree

Shape = tuple[int, ...]  # of one example: without the batch axis
Leaf = Any  # an array in a registered dataclass, or what a tree transformation puts in its place


class Parameters:
    """Base of a layer family's parameters; each is a frozen dataclass registered as a pytree.

    Attributes:
        weights: the fields that the regulariser counts; the others (biases) are free (J2).
    """

    weights: ClassVar[tuple[str, ...]] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTrace:
    """What the forward sweep keeps of one layer: z^(l), a^(l), and what the layer's transposes need."""

    z: Leaf
    a: Leaf
    saved: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTangent:
    """The directional derivatives of one layer's values: of z^(l), and of what entered it.

    Attributes:
        z: R{z^(l)}, in z's shape.
        a_in: R{a^(l-1)}, or None where the input does not change along the direction (the first layer).
    """

    z: Leaf
    a_in: Leaf | None


Batch = tuple[Tree, Tree]
"""(trace, deltas), from one sweep forward and one back."""

Reader = Callable[..., Any]
"""What to keep of a layer's parameters: a contraction of its `Factor`, or of its factors in several batches."""

Drawer = Callable[["Layer", PRNGKeyArray], Any]
"""What to draw for a layer from a key of its own."""

Visitor = Callable[["Layer", LayerTrace, Any], Any]
"""What to make of one use of one layer, its trace and its entry in a tree that mirrors the network."""


@dataclass(frozen=True)
class Rule:
    """How error terms travel from a layer to the one below. This one is backpropagation; `rules` has others.

    A rule is a pytree. What it needs at a layer (here W) it lays out once a sweep, in a tree that mirrors the
    parameters, and composites take that tree apart as they do the parameters.
    """

    def way(self, net: "Node", params: Tree, trace: Tree, d_output: Array) -> "Way":
        """For one sweep down `net`."""
        return Way(self, self.carried(net, params, trace, d_output))

    def carried(self, net: "Node", params: Tree, trace: Tree, d_output: Array) -> Tree:
        """One entry for every layer, in the structure of `params` down to the layers; here the parameters."""
        return params

    def child(self, index: int) -> "Rule":
        """The rule for node `index` of a `Serial`."""
        return self

    def at_use(self, carried: Tree, use: Array) -> Tree:
        """What is carried for one use of parameters that are used several times (`Tied`)."""
        return carried

    def delta(self, layer: "Layer", carried: Any, trace: LayerTrace, d_a: Array) -> Array:
        """delta^(l), from the dL/da^(l) that arrives from above (B1) (B2)."""
        return layer.error_term(trace, d_a)

    def transport(self, layer: "Layer", carried: Any, saved: Tree, delta: Array) -> Array:
        """What arrives at the layer below: (W^(l))^T delta^(l) (B2)."""
        return layer.transport(carried, saved, delta)


jax.tree_util.register_static(Rule)
backpropagation = Rule()


@dataclass(frozen=True)
class Way:
    """A rule on its way through a network: what it carries is cut to the node where it is."""

    rule: Rule
    carried: Tree

    def at(self, index: int) -> "Way":
        """For node `index` of a `Serial`."""
        return Way(self.rule.child(index), self.carried[index])

    def with_carried(self, carried: Tree) -> "Way":
        """For one block, or one use."""
        return Way(self.rule, carried)


class Node(ABC):
    """A network, or a part of one."""

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:
        """Draw parameters; `dtype` defaults to JAX's default float."""
        return self.draw(key, lambda layer, own: layer.init(own, dtype))

    @abstractmethod
    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:
        """What `drawer` makes of every layer and a key of its own: a tree that mirrors the parameters."""

    @abstractmethod
    def layers(self) -> Iterator["Layer"]:
        """The layers that it is made of, in the order of their first use."""

    @abstractmethod
    def out_shape(self, in_shape: Shape) -> Shape:
        """Shape of one example's output for that of its input; ValueError where they do not fit."""

    @abstractmethod
    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:
        """Step 1: (output, trace)."""

    @abstractmethod
    def backward(
        self, params: Tree, trace: Tree, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Tree]:
        """Step 2, from dL/d(output): (dL/d(input), what `reader` keeps of every layer; without one its delta).

        `way` is how the error terms travel; None is backpropagation.
        """

    @abstractmethod
    def read(self, reader: Reader, *batches: Batch) -> Tree:
        """Step 3, after the sweep: what `reader` makes of every layer's factor, in the parameters' structure.

        With several batches, each a (trace, deltas), it is given a factor of each.
        """

    @abstractmethod
    def visit(self, trace: Tree, other: Tree, visitor: Visitor) -> Tree:
        """What `visitor` makes of every use of every layer, in the trace's structure; `other` mirrors it."""

    @abstractmethod
    def tangent(self, params: Tree, x: Array, dparams: Tree, dx: Array | None) -> tuple[Array, Array, Tree, Tree]:
        """Forward propagation of a derivative along (dparams, dx); dx None is a zero that costs nothing.

        Returns:
            (output, its change, trace, the tangents: a `LayerTangent` for every use of a layer).
        """

    @abstractmethod
    def backward_tangent(
        self, params: Tree, dparams: Tree, trace: Tree, dtrace: Tree, d_a: Array, dd_a: Array, weights: Array | None
    ) -> tuple[Array, Array, Tree]:
        """The change of `backward` along dparams, its R-operator.

        Args:
            params: parameters.
            dparams: the direction.
            trace: from `tangent`.
            dtrace: likewise.
            d_a: dL/d(output).
            dd_a: its change, R{dL/d(output)}.
            weights: of the examples, as for `Factor.weighted_sum`.

        Returns:
            (dL/d(input), its change, the change of the gradient).
        """

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:
        """`forward` for a caller that returns no trace: a node may keep less, if its backward knows how."""
        return self.forward(params, x)


class Layer(Node):
    """A leaf: the map a^(l-1) -> z^(l), then the elementwise f_l.

    A family gives `init`, `out_shape` and the four maps below. `saved` is the least that the transposes
    need besides the parameters.
    """

    activation: Activation | str
    bilinear: ClassVar[bool] = False
    """Whether z^(l) is affine in the parameters and in what entered, and `saved` is what entered (Dense).

    Then a transport with other parameters has a meaning (feedback alignment), and the tangents of the
    transposes follow from the transposes themselves (the R-operator).
    """

    operators: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()
    """How z^(l) is drawn in a graph (G1): each circle's sign and the parameters that enter it; () is one circle."""

    local_derivatives: ClassVar[Mapping[str, str]] = {}
    """What the backward graph writes on its arrows: for "a_in" and for parameters, with labels {W} and {a_in}."""

    @abstractmethod
    def net_input(self, params: Any, a_in: Array) -> tuple[Array, Tree]:
        """(z^(l), saved) (F1)."""

    @abstractmethod
    def transport(self, params: Any, saved: Tree, delta: Array) -> Array:
        """dL/da^(l-1) from delta^(l): for a dense layer (W^(l))^T delta^(l) (B2)."""

    @abstractmethod
    def factor(self, saved: Tree, delta: Array) -> Factor:
        """The pair that this layer's parameter gradients are contractions of (C2)."""

    @abstractmethod
    def pushforward(self, params: Any, saved: Tree, dparams: Any, da_in: Array) -> Array:
        """dz^(l) along (dparams, da_in): the transpose of `transport` and of `factor` together."""

    def pushforward_params(self, params: Any, a_in: Array, saved: Tree, dparams: Any) -> Array:
        """dz^(l) along dparams alone: `pushforward` along a zero, unless a family has a cheaper form."""
        return self.pushforward(params, saved, dparams, jnp.zeros_like(a_in))

    def gradient_tangent(
        self, saved: Tree, delta: Array, da_in: Array | None, ddelta: Array, weights: Array | None
    ) -> Any:
        """The change of `factor(saved, delta).weighted_sum(weights)` along (da_in, ddelta); da_in None is zero.

        For Hessian-vector products with a family that is `bilinear`: its gradient is then linear in delta and affine
        in `saved`, what entered. What it is at saved = 0 (a bias's delta) does not change with a_in.
        """

        def gradient(saved: Array, delta: Array) -> Any:
            return self.factor(saved, delta).weighted_sum(weights)

        along_delta = gradient(saved, ddelta)
        if da_in is None:
            return along_delta
        moved, constant = gradient(da_in, delta), gradient(jnp.zeros_like(da_in), delta)
        return jax.tree.map(lambda total, g, g_0: total + (g - g_0), along_delta, moved, constant)

    @abstractmethod
    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Any:
        """Draw parameters."""

    @property
    def f(self) -> Activation:
        """The row of f_l in the table of activations."""
        assert isinstance(self.activation, Activation), "a Layer stores its activation as a row"
        return self.activation

    def draw(self, key: PRNGKeyArray, drawer: Drawer) -> Tree:  # noqa: D102
        return drawer(self, key)

    def layers(self) -> Iterator["Layer"]:  # noqa: D102
        yield self

    def forward(self, params: Any, x: Array) -> tuple[Array, LayerTrace]:  # noqa: D102
        z, saved = self.net_input(params, x)  # (F1)
        a = self.f.f(z)  # (F2)
        return a, LayerTrace(z, a, saved)

    def error_term(self, trace: LayerTrace, d_a: Array) -> Array:
        """delta^(l) = f_l'(z^(l)) * dL/da^(l): (B1) at the output, (B2) below it."""
        return self.f.df(trace.z, trace.a) * d_a

    def backward(  # noqa: D102
        self, params: Any, trace: LayerTrace, d_a: Array, reader: Reader | None, way: Way | None = None
    ) -> tuple[Array, Any]:
        self._require_like_z("dL/da", d_a, trace)
        rule, carried = (backpropagation, params) if way is None else (way.rule, way.carried)
        delta = rule.delta(self, carried, trace, d_a)  # (B1) (B2)
        reading = delta if reader is None else reader(self.factor(trace.saved, delta))
        return rule.transport(self, carried, trace.saved, delta), reading

    def read(self, reader: Reader, *batches: Batch) -> Any:  # noqa: D102
        for trace, delta in batches:
            self._require_like_z("delta", delta, trace)
        return reader(*(self.factor(trace.saved, delta) for trace, delta in batches))

    def visit(self, trace: LayerTrace, other: Any, visitor: Visitor) -> Any:  # noqa: D102
        return visitor(self, trace, other)

    def tangent(  # noqa: D102
        self, params: Any, x: Array, dparams: Any, dx: Array | None
    ) -> tuple[Array, Array, LayerTrace, LayerTangent]:
        a, trace = self.forward(params, x)
        if dx is None:
            dz = self.pushforward_params(params, x, trace.saved, dparams)
        else:
            dz = self.pushforward(params, trace.saved, dparams, dx)
        return a, self.f.df(trace.z, trace.a) * dz, trace, LayerTangent(dz, dx)

    def backward_tangent(  # noqa: D102
        self,
        params: Any,
        dparams: Any,
        trace: LayerTrace,
        dtrace: LayerTangent,
        d_a: Array,
        dd_a: Array,
        weights: Array | None,
    ) -> tuple[Array, Array, Any]:
        if not self.bilinear or self.f.d2f is None:
            missing = f"its activation {self.f.name} has no d2f" if self.bilinear else "its family is not bilinear"
            raise ValueError(f"{self}: no Hessian-vector product by hand, since {missing}")
        delta = self.error_term(trace, d_a)
        # R{f'(z) d_a} = f''(z) R{z} d_a + f'(z) R{d_a}
        ddelta = self.f.d2f(trace.z, trace.a) * dtrace.z * d_a + self.error_term(trace, dd_a)
        dgradient = self.gradient_tangent(trace.saved, delta, dtrace.a_in, ddelta, weights)
        d_in = self.transport(params, trace.saved, delta)
        # R{W^T delta} = W^T R{delta} + V^T delta
        dd_in = self.transport(params, trace.saved, ddelta) + self.transport(dparams, trace.saved, delta)
        return d_in, dd_in, dgradient

    def _require_like_z(self, name: str, value: Array, trace: LayerTrace) -> None:
        if value.shape != trace.z.shape or value.dtype != trace.z.dtype:
            raise ValueError(
                f"{self}: {name} is {value.dtype}{list(value.shape)} but z is {trace.z.dtype}{list(trace.z.shape)};"
                " it must be of the same batch as the trace"
            )
