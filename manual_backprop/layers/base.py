"""The leaf of a network, a layer: its family's map a^(l-1) -> z^(l), then the elementwise f_l.

A new family subclasses `Layer` and gives the map with its transposes, in a file of its own. The note's steps, which
compute z, a and delta with them, stand in `manual_backprop.sweep`, once for all families.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop import activations
from manual_backprop.activations import Activation
from manual_backprop.layers.factor import Difference, Factor, NoParameters
from manual_backprop.node import Node, Step, Visit, Walk
from manual_backprop.types import Flow, Leaf, Part, Shape, Tree, override

Operators = tuple[tuple[str, tuple[str, ...]], ...]
"""How a graph draws z^(l) (G1): the sign of each circle, and the names of the parameters that enter it."""


class Parameters:
    """Base of a layer family's parameters; each is a frozen dataclass registered as a pytree.

    Attributes:
        weights: the fields that the regulariser counts; it leaves out the others (biases) (J2).
    """

    weights: ClassVar[tuple[str, ...]] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTrace:
    """The values of one layer that the forward sweep keeps: z^(l), a^(l), and `saved` for the layer's transposes."""

    z: Leaf
    a: Leaf
    saved: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LeanTrace(LayerTrace):
    """The values of one layer on a sweep that shows nobody its trace: what f' does not use is never stored."""


class Layer(Node):
    """A layer of the note.

    A family gives `init`, `out_shape`, the three maps below and `pushforward`; with parameters also `factor`. The
    input may be a tuple of arrays. It may hold integers; `transport` returns None for these. `saved` is the least that
    the transposes need besides the parameters.

    Attributes:
        activation: f_l, a name or a row of `activations`.
    """

    activation: Activation | str = "identity"

    takes_integers: ClassVar[bool] = False
    """Whether the input may be integers, such as the indices of rows (an embedding)."""

    shifts: ClassVar[bool] = False
    """Whether the parameters are only added to what enters, so that none of them is in the transport."""

    inputs: ClassVar[tuple[str, ...]] = ("a_in",)
    """The names of the inputs, as `local_derivatives` calls them; one where the family takes one array."""

    local_derivatives: ClassVar[Mapping[str, str]] = {}
    """The local derivatives on the backward graph's arrows, by input or parameter, with labels {W} and {a_in}."""

    @classmethod
    def specimen(cls, width: int, activation: Activation | str) -> Node | None:
        """Return a small network with the family in it, whose inputs and output all have `width` features.

        The catalogue of `manual-backprop check` proves and breaks it, with every activation and in every composite.
        A family that returns None stays out of the catalogue.
        """
        return None

    def __str__(self) -> str:
        names = [name for name in getattr(self, "__dataclass_fields__", ()) if name != "activation"]
        said = [f"{name}={getattr(self, name)}" for name in names]
        row = getattr(self.activation, "name", self.activation)
        return f"{type(self).__name__}({', '.join([*said, str(row)])})"

    @abstractmethod
    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Any:
        """Draw parameters; () where there are none."""

    @override
    @abstractmethod
    def out_shape(self, in_shape: Shape) -> Shape: ...

    @abstractmethod
    def net_input(self, params: Any, a_in: Any) -> tuple[Array, Tree]:
        """(z^(l), saved) (F1)."""

    @abstractmethod
    def transport(self, params: Any, saved: Tree, delta: Array) -> Any:
        """dL/da^(l-1) from delta^(l): for a dense layer (W^(l))^T delta^(l) (B2)."""

    @abstractmethod
    def factor(self, saved: Tree, delta: Array) -> Factor:
        """The pair of arrays from which this layer's parameter gradients are contracted (C2)."""

    @abstractmethod
    def pushforward(self, params: Any, saved: Tree, dparams: Any, da_in: Any) -> Array:
        """dz^(l) along (dparams, da_in): the transpose of `transport` and of `factor` together."""

    def pushforward_params(self, params: Any, a_in: Any, saved: Tree, dparams: Any) -> Array:
        """dz^(l) along dparams alone: `pushforward` along a zero, unless a family has a cheaper form."""
        return self.pushforward(params, saved, dparams, jax.tree.map(zero_like, a_in))

    def change(self, params: Any, saved: Tree, dparams: Any, da_in: Any, delta: Array) -> tuple[Any, Factor | None]:
        """The change of the transposes along (dparams, da_in) at a fixed delta, for Hessian-vector products.

        Returns:
            (the change of `transport`, a factor whose weighted sum is the change of the gradient). The second is None
            where the gradient does not change.

        Raises:
            ValueError: the family has no `change`.
        """
        raise ValueError(
            f"{self}: no Hessian-vector product by hand, since {type(self).__name__} has no method `change`"
        )

    def tensor_specs(self, params: Any, axis: str, parts: int, entered: Any) -> tuple[Any, Any]:
        """How tensor parallelism splits the parameters over a mesh axis; by default they are whole everywhere.

        Args:
            params: the layer's parameters, or their shapes.
            axis: the name of the mesh axis.
            parts: its size.
            entered: whether the features that enter are split over it; a tuple for several inputs.

        Returns:
            (whether the features that leave are split, a tree of `jax.sharding.PartitionSpec` in the structure of
            `params`, or None where all of them are whole).
        """
        return False, None

    @override
    def check_input(self, x: Flow) -> None:
        """Refuse what cannot enter this layer, such as integers; it is called with arrays, or with tracers of these.

        A family that takes only some values looks at them where they are known, in a network at its input alone.

        Raises:
            TypeError: integers, unless the family takes them.
        """
        for part in () if self.takes_integers else jax.tree.leaves(x):
            if not jnp.issubdtype(part.dtype, jnp.floating):
                took = f"convert it with .astype, for {self} takes no integers"
                raise TypeError(f"x must hold floats, got {part.dtype}; {took}")

    @property
    def draws(self) -> bool:
        """Whether the layer draws at random on a sweep that is given a key, as dropout does."""
        return False

    def drawing(self, key: PRNGKeyArray) -> "Layer":
        """The layer for one use on one sweep, which draws with this key: `net_input` has its draws in z and `saved`.

        It is asked where `draws` is true. The transposes are asked of the layer itself: what they need is in `saved`.
        """
        return self

    def drawing_for(self, part: Part, key: PRNGKeyArray) -> "Layer":
        """The layer on a sweep over a part of a batch: it draws what it draws for these examples of the whole batch.

        A pipeline asks for it, whose sweeps are over microbatches.

        Raises:
            NotImplementedError: this layer does not say.
        """
        raise NotImplementedError(
            f"{self} draws at random, and does not say what it draws for a part of a batch; write"
            " drawing_for(self, part, key), or leave key out"
        )

    @property
    def operators(self) -> Operators:
        """How a graph draws z^(l) (G1): each circle's sign and the parameters that enter it; () is one circle.

        A family for which it is always the same says so by an attribute.
        """
        return ()

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the layer's `Parameters.weights`; none where it has no parameters."""
        return _weights(self)

    @property
    def f(self) -> Activation:
        """The row of f_l in the table of activations."""
        return activations.get(self.activation)

    def error_term(self, trace: LayerTrace, d_a: Array) -> Array:
        """delta^(l) = f_l'(z^(l)) * dL/da^(l): (B1) at the output, (B2) below it."""
        f = self.f.lean(trace.z.dtype) if isinstance(trace, LeanTrace) else self.f
        return f.slope(trace.z, trace.a) * d_a

    @override
    def forward(self, step: Step, x: Flow, owned: Any) -> tuple[Flow, Any]:
        return step.forward(self, x, owned)

    @override
    def backward(self, step: Step, d: Flow, owned: Any, kept: Any) -> tuple[Flow, Any]:
        return step.backward(self, d, owned, kept)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Any) -> Any:
        return visit(self, how.uses, *trees)

    @override
    def keys(self, key: PRNGKeyArray) -> PRNGKeyArray:
        return key

    def require_like_z(self, name: str, value: Array, trace: LayerTrace) -> None:
        """Refuse a value that is not of z's shape and dtype.

        Raises:
            ValueError: says both.
        """
        if value.shape != trace.z.shape or value.dtype != trace.z.dtype:
            same = value.shape == trace.z.shape
            must = "it must have z's dtype" if same else "it must be of the trace's batch, and as wide as the layer"
            raise ValueError(
                f"{self}: {name} is {value.dtype}{list(value.shape)} but z is {trace.z.dtype}{list(trace.z.shape)};"
                f" {must}"
            )


def require_widths(layer: Layer, *names: str) -> None:
    """Refuse sizes of a layer that are not whole numbers from 1.

    Raises:
        ValueError: says which.
    """
    for name in names:
        width = getattr(layer, name)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"{type(layer).__name__} {name} must be an int >= 1, got {width!r}")


def zero_like(leaf: Array) -> Array | None:
    """A change of zero; None for integers, which do not change."""
    return jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else None


@lru_cache(maxsize=256)
def _weights(layer: Layer) -> tuple[str, ...]:
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
    return params.weights if isinstance(params, Parameters) else ()


class ParameterFree(Layer):
    """Base of families without parameters, such as gates."""

    @override
    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> tuple[()]:
        return ()

    @override
    def factor(self, saved: Tree, delta: Array) -> Factor:
        return NoParameters(delta)


class AffineLayer(Layer):
    """A family whose z^(l) is affine in the parameters and in the input, and whose `saved` is the input (Dense).

    So a transport with other parameters has a meaning (feedback alignment), and the change of the transposes follows
    from the transposes themselves.
    """

    @override
    def change(self, params: Any, saved: Tree, dparams: Any, da_in: Any, delta: Array) -> tuple[Any, Factor | None]:
        """V^T delta, and delta R{a}^T; a zero da_in may come as None.

        The gradient is linear in delta and affine in the input. Its part at an a_in of zero (a bias's delta) does not
        change with a_in, so it is subtracted.
        """
        moved = self.transport(dparams, saved, delta)
        if da_in is None:
            return moved, None
        return moved, Difference(self.factor(da_in, delta), self.factor(jax.tree.map(zero_like, da_in), delta))
