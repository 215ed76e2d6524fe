"""What every node of a network answers, and the note's step, written once for every family of layers.

A node (a layer, or a composite of nodes) is a frozen dataclass without arrays. Parameters, traces, deltas
and gradients are pytrees that mirror it. A new family of layers subclasses `Layer` and gives the affine (or
other) map a^(l-1) -> z^(l) with its transposes; a new composite subclasses `Node`. Nothing else changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop.activations import Activation
from manual_backprop.precision import accumulator

Tree = Any  # a pytree that mirrors the network
Shape = tuple[int, ...]  # of one example: without the batch axis
Leaf = Any  # an array in a registered dataclass, or what a tree transformation puts in its place


class Parameters:
    """Base of a layer family's parameters; each is a frozen dataclass registered as a pytree.

    Attributes:
        weights: the fields that the regulariser counts; the others (biases) are free (J2).
    """

    weights: ClassVar[tuple[str, ...]] = ()


class Factor(ABC):
    """The pair (what entered a layer, its delta) from which that layer's parameter gradients follow.

    Subclasses give `weighted_sum`; the other readings have a general form here, and a family overrides
    them where it knows a faster one. Each is a frozen dataclass registered as a pytree, whose leaves have
    the examples on their first axis.
    """

    @abstractmethod
    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """Sum over examples n of weights[n] dL_n/dparams; weights None means the mean, 1/N each."""

    def per_example(self) -> Tree:
        """dL_n/dparams of every example n: the parameters' tree, with N in front of every leaf's shape."""
        return jax.vmap(lambda one: jax.tree.map(lambda leaf: leaf[None], one).weighted_sum())(self)

    def squared_norms(self) -> Float[Array, " N"]:
        """||dL_n/dparams||^2 of every example n, in the precision of sums."""

        def total(leaf: Array) -> Array:
            wide = leaf.astype(accumulator(leaf.dtype))
            return jnp.sum(jnp.square(wide), axis=tuple(range(1, leaf.ndim)))

        return jnp.sum(jnp.stack([total(leaf) for leaf in jax.tree.leaves(self.per_example())]), axis=0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTrace:
    """What the forward sweep keeps of one layer: z^(l), a^(l), and what the layer's transposes need."""

    z: Leaf
    a: Leaf
    saved: Tree


Reader = Callable[["Layer", Tree, Array], Any]
"""(layer, saved, delta) -> what to keep of that layer on the way back: delta itself, or a contraction."""


def read_delta(layer: "Layer", saved: Tree, delta: Array) -> Array:
    """The reader that keeps delta^(l) (C5)."""
    return delta


class Node(ABC):
    """A network, or a part of one."""

    @abstractmethod
    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:
        """Draw parameters; `dtype` defaults to JAX's default float."""

    @abstractmethod
    def out_shape(self, in_shape: Shape) -> Shape:
        """Shape of one example's output for that of its input; ValueError where they do not fit."""

    @abstractmethod
    def forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:
        """Step 1: (output, trace)."""

    @abstractmethod
    def backward(self, params: Tree, trace: Tree, d_a: Array, reader: Reader) -> tuple[Array, Tree]:
        """Step 2, from dL/d(output): (dL/d(input), what `reader` keeps of every layer)."""

    @abstractmethod
    def read(self, trace: Tree, deltas: Tree, reader: Reader) -> Tree:
        """Step 3, after the sweep: what `reader` makes of every layer's (saved, delta)."""

    @abstractmethod
    def tangent(self, params: Tree, x: Array, dparams: Tree, dx: Array) -> tuple[Array, Array]:
        """Forward propagation of a derivative: (output, its change along (dparams, dx))."""

    def lean_forward(self, params: Tree, x: Array) -> tuple[Array, Tree]:
        """`forward` for a caller that returns no trace: a node may keep less, if its backward knows how."""
        return self.forward(params, x)


class Layer(Node):
    """A leaf: the map a^(l-1) -> z^(l), then the elementwise f_l.

    A family gives `init`, `out_shape` and the four maps below. `saved` is the least that the transposes
    need besides the parameters.
    """

    activation: Activation | str

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

    @property
    def f(self) -> Activation:
        """The row of f_l in the table of activations."""
        assert isinstance(self.activation, Activation), "a Layer stores its activation as a row"
        return self.activation

    def forward(self, params: Any, x: Array) -> tuple[Array, LayerTrace]:  # noqa: D102
        z, saved = self.net_input(params, x)  # (F1)
        a = self.f.f(z)  # (F2)
        return a, LayerTrace(z, a, saved)

    def backward(  # noqa: D102
        self, params: Any, trace: LayerTrace, d_a: Array, reader: Reader
    ) -> tuple[Array, Any]:
        if d_a.shape != trace.z.shape or d_a.dtype != trace.z.dtype:
            raise ValueError(
                f"{self}: dL/da is {d_a.dtype}{list(d_a.shape)} but z is {trace.z.dtype}{list(trace.z.shape)};"
                " backward needs the derivative for the same batch as the trace"
            )
        delta = self.f.df(trace.z, trace.a) * d_a  # (B1) at the output, (B2) below it
        return self.transport(params, trace.saved, delta), reader(self, trace.saved, delta)

    def read(self, trace: LayerTrace, deltas: Array, reader: Reader) -> Any:  # noqa: D102
        return reader(self, trace.saved, deltas)

    def tangent(self, params: Any, x: Array, dparams: Any, dx: Array) -> tuple[Array, Array]:  # noqa: D102
        z, saved = self.net_input(params, x)
        a = self.f.f(z)
        return a, self.f.df(z, a) * self.pushforward(params, saved, dparams, dx)
