"""The interface of every part of a network: a layer is a node, and so is a composite of nodes.

A node is a frozen dataclass without arrays. Parameters, traces, deltas and gradients are trees that mirror it. A
composite says in `forward` and `backward` how its parts are joined, and nothing else. A `Step` does the work at every
layer, whatever flows: values up and error terms down (`sweep.Sweep`), tangents and their R-operator
(`tangent.Tangent`), or shapes. So each sweep is one small class, and a new composite works with every sweep.

The base class of a composite decides how trees mirror it: `Branches` has a tuple with one entry per node, `Wrapper`
the entries of its block. Where a network shares parameters (`Tied`), there are two kinds of trees. Some mirror the
parameters; others, such as a trace, mirror the uses of the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop.types import Flow, Shape, Tree, came, override


class Step(ABC):
    """The work of one sweep at one layer. Composites pass a step on and need to know nothing else about it.

    Attributes:
        lean: whether the caller needs no trace. A node may then keep less, as long as its own backward can use it.
    """

    lean: bool = False

    @abstractmethod
    def forward(self, layer: Any, x: Flow, own: Any) -> tuple[Flow, Any]:
        """Return a layer's output and what to keep for the way down; `own` is the layer's entry in a tree."""

    @abstractmethod
    def backward(self, layer: Any, d: Flow, own: Any, kept: Any) -> tuple[Flow, Any]:
        """Return the error term that arrives below a layer, and the result found at the layer."""

    def at_use(self, owned: Tree, use: Array) -> Tree:
        """Return the part of a tree for one use of a block that is used several times; by default all of it."""
        return owned

    def scannable(self, flow: Flow) -> Flow:
        """Return the flow in the form that it has between the blocks of a scan."""
        return flow

    @property
    def unread(self) -> "Step":
        """The step to run inside a block that is used several times: it keeps all, and does not sum over the uses."""
        return self

    def read(self, block: "Node", kept: Tree, found: Tree) -> Tree:
        """Turn what `unread` found at every use of a block's layers into this step's result for their parameters."""
        return found

    def joined(self, layer: Any, kept: tuple[Any, ...], found: tuple[Any, ...]) -> Any:
        """Turn what `unread` found at several layers into this step's result for the parameters that they share.

        `layer` has the `factor` of all of them. None where results are of the uses: these stay apart.
        """
        return None


@dataclass(frozen=True)
class Walk:
    """How a walk over the layers takes trees apart.

    Attributes:
        of_uses: whether the trees mirror the uses of layers, as a trace does, or the parameters.
        mirrored: whether the result mirrors the uses too. If not, several layers that share parameters
            (`TiedReadout`) are visited at once, and every leaf of their entries is a tuple with one for each.
        uses: how many `Tied` enclose this part. Every leaf of a tree that mirrors uses has as many axes in front.
    """

    of_uses: bool = False
    mirrored: bool = False
    uses: int = 0

    def within_tied(self) -> "Walk":
        """Return the walk to use inside a `Tied`."""
        return replace(self, uses=self.uses + 1) if self.of_uses else self


Visit = Callable[..., Any]
"""(layer, number of axes of uses in front, its entries in the trees) -> its entry in the result."""


class Node(ABC):
    """A network, or a part of one."""

    drawn: ClassVar[str] = "closed"
    """How a graph draws a composite (G1). "closed" is a box with its `caption` and suits any composite. `Branches` may
    say "in turn" or "beside", for how their nodes stand. A `Wrapper` may say "opened", where the block's output is its
    own, or "added", where the input is added to the block's output."""

    @property
    def caption(self) -> str:
        """Return the text on the node's box in a graph."""
        return type(self).__name__

    @property
    def depth(self) -> int:
        """The number of layers when the node is written out, every use counted."""
        return len(list(self.layers()))

    @abstractmethod
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        """Go up: return the node's output and what its layers keep; `owned` mirrors the parameters."""

    @abstractmethod
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        """Go down: return the error term at the node's input, and the results found at its layers."""

    @abstractmethod
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        """Call `visit` at every layer with its entries in trees that mirror the node."""

    @abstractmethod
    def keys(self, key: PRNGKeyArray) -> Tree:
        """Split a key into one for every layer, in a tree that mirrors the parameters."""

    def map(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        """Call f(layer, *its entries) at every layer; the trees and the result mirror the parameters."""
        return self.walk(lambda layer, uses, *entries: f(layer, *entries), Walk(), *trees)

    def visit(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        """Call f(layer, *its entries) at every use of every layer; the trees and the result mirror the uses."""

        def each(layer: Any, uses: int, *entries: Any) -> Any:
            return vmapped(lambda *one: f(layer, *one), uses)(*entries)

        return self.walk(each, Walk(of_uses=True, mirrored=True), *trees)

    def layers(self) -> Iterator[Any]:
        """Iterate over the node's layers in the order of their first use."""
        found: list[Any] = []
        self.map(found.append)
        return iter(found)

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:
        """Draw parameters; `dtype` defaults to JAX's default float."""
        require_key(key)
        return self.map(lambda layer, own: layer.init(own, dtype), self.keys(key))

    def out_shape(self, in_shape: Shape) -> Shape:
        """Shape of one example's output, from the shape of its input.

        Raises:
            ValueError: they do not fit; says which layer.
        """
        return shape_of(jax.eval_shape(partial(self._outlined, _Shapes(of_any_kind=True)), of_shape(in_shape)))

    def output(self, x: Flow) -> Flow:
        """Shape and dtype of the output, from those of a batch: `jax.ShapeDtypeStruct` in and out, nothing computed.

        Raises:
            ValueError: shapes that do not fit; says at which layer.
            TypeError: integers where a layer takes floats.
        """
        return jax.eval_shape(partial(self._outlined, _Shapes()), x)

    def check_input(self, x: Flow) -> None:
        """Let the layers that a batch enters refuse its values, where these are known; nothing is computed."""
        jax.eval_shape(partial(self._outlined, _Shapes(), x))  # no argument: the layers that x enters see its values

    def _outlined(self, step: Step, x: Flow) -> Flow:
        return self.forward(step, x, self.map(lambda layer: ()))[0]


@dataclass(frozen=True)
class _Shapes(Step):
    """Arrays of the right shape, under `jax.eval_shape`: no layer computes anything.

    Attributes:
        of_any_kind: whether layers take floats and integers alike, where nothing but shapes is known.
    """

    of_any_kind: bool = False

    @override
    def forward(self, layer: Any, x: Flow, own: Any) -> tuple[Flow, Any]:
        parts = jax.tree.leaves(x)
        floats = [part for part in parts if jnp.issubdtype(part.dtype, jnp.floating)]
        if not self.of_any_kind:
            layer.check_input(x)
        dtype = floats[0].dtype if floats else jnp.zeros(()).dtype
        return jnp.zeros((parts[0].shape[0], *layer.out_shape(shape_of(x))), dtype), ()

    @override
    def backward(self, layer: Any, d: Flow, own: Any, kept: Any) -> tuple[Flow, Any]:
        raise TypeError("shapes are propagated forward alone")


def of_shape(shape: Shape) -> Flow:
    """A batch of one example of this shape, as `jax.ShapeDtypeStruct`."""
    if any(isinstance(part, tuple) for part in shape):
        return tuple(of_shape(part) for part in shape)
    return jax.ShapeDtypeStruct((1, *shape), jnp.zeros(()).dtype)


def shape_of(flow: Flow) -> Shape:
    """The shape of one example of a batch; for several arrays, a tuple of shapes."""
    return tuple(shape_of(part) for part in flow) if isinstance(flow, tuple) else tuple(flow.shape[1:])


class Composite(Node):
    """Base of nodes that are made of other nodes."""

    @classmethod
    def specimen(cls, block: Node, n: int) -> Node | None:
        """Return a small network with the composite in it, `n` blocks deep, that keeps the shape which `block` keeps.

        The catalogue of `manual-backprop check` proves and breaks that network, with every family of layers in it. A
        composite that returns None stays out of the catalogue.
        """
        return None


@dataclass(frozen=True)
class Branches(Composite):
    """Base of composites that have a tuple of nodes: trees that mirror them are tuples.

    Attributes:
        nodes: at least one.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.nodes, Iterable):
            one_tuple = f"the nodes of {type(self).__name__} are one tuple, {type(self).__name__}((first, second))"
            raise TypeError(f"{one_tuple}, got {came(self.nodes)}")
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not self.nodes:
            raise ValueError(f"{type(self).__name__} needs at least one node, got none")
        for node in self.nodes:
            require_node(type(self).__name__, node)

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(str(node) for node in self.nodes)})"

    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        """Walk node by node."""
        return tuple(node.walk(visit, how, *each) for node, *each in zip(self.nodes, *trees, strict=True))

    def keys(self, key: PRNGKeyArray) -> Tree:
        """Split a key into one for each node."""
        return tuple(
            node.keys(own) for node, own in zip(self.nodes, jax.random.split(key, len(self.nodes)), strict=True)
        )

    @property
    @override
    def depth(self) -> int:
        return sum(node.depth for node in self.nodes)


@dataclass(frozen=True)
class Wrapper(Composite):
    """Base of composites around one block: trees that mirror them are the block's.

    Attributes:
        block: what is inside.
    """

    block: Node

    def __post_init__(self) -> None:
        require_node(type(self).__name__, self.block)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.block})"

    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        """Walk over the block."""
        return self.block.walk(visit, how, *trees)

    def keys(self, key: PRNGKeyArray) -> Tree:
        """Split a key as the block does."""
        return self.block.keys(key)

    @property
    @override
    def depth(self) -> int:
        return self.block.depth

    def kept_shape(self, entered: Flow, left: Flow) -> Flow:
        """Return the block's output, checked to have the shape of its input.

        Raises:
            ValueError: the shapes differ.
        """
        before, after = shape_of(entered), shape_of(left)
        if before != after:
            name = type(self).__name__
            raise ValueError(f"{name} needs a block that keeps the shape, but {self.block} maps {before} to {after}")
        return left


def require_node(owner: str, node: object) -> None:
    """Refuse anything that is not a node.

    Raises:
        TypeError: says what came.
    """
    if not isinstance(node, Node):
        hint = "; several in turn are one node, Serial((first, second))" if isinstance(node, tuple | list) else ""
        raise TypeError(f"{owner} is made of layers and composites, got {came(node)}{hint}")


def require_key(key: Any) -> None:
    """Refuse anything but a key, such as the number of a seed.

    Raises:
        TypeError: says what came.
    """
    kind = getattr(key, "dtype", None)
    if kind is None or not (jnp.issubdtype(kind, jax.dtypes.prng_key) or kind == jnp.uint32):
        raise TypeError(f"key must be a JAX key, such as jax.random.key(0), got {came(key)}")


def add(one: Flow, other: Flow) -> Flow:
    """Add two flows; None is a zero that costs nothing, as an error term that reaches integers.

    Raises:
        ValueError: arrays of different shapes; nothing is broadcast.
    """

    def of_leaf(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b if a is None else a
        if a.shape != b.shape:
            raise ValueError(f"what is added must have one shape, got {list(a.shape)} and {list(b.shape)}")
        return a + b

    return jax.tree.map(of_leaf, one, other, is_leaf=lambda leaf: leaf is None)


def vmapped(f: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """The function mapped over the first `axes` axes."""
    return f if axes == 0 else jax.vmap(vmapped(f, axes - 1))
