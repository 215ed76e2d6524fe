"""Type names for trees that mirror a network, and for batches, weights and scalars."""

from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

if TYPE_CHECKING:
    from typing_extensions import override as override
else:

    def override(method):
        """Mark a method that overrides its base's and inherits its docstring; Python has its own from 3.12 on."""
        return method


Tree = Any
"""A pytree that mirrors the network: parameters, a trace, deltas, gradients."""

Flow = Any
"""A signal between nodes: an array, a tuple of arrays where a node has several inputs, or pairs of these."""

Leaf = Any
"""An array in a registered dataclass, or whatever a tree transformation puts in its place."""

Shape = tuple[Any, ...]
"""The shape of one example, without the batch axis: a tuple of numbers, or a tuple of shapes for several inputs."""

Examples = Any
"""A batch: floats or integers (N, *features), or a tuple of such."""

Targets = Shaped[Array, "N *targets"]
Weights = Float[Array, " N"]
Scalar = Float[Array, ""]
Coefficient = float | Scalar


@dataclass(frozen=True)
class Part:
    """Some examples of a batch, one after another.

    Attributes:
        start: the index of the first in the batch; it may be traced.
        total: how many examples the batch has.
    """

    start: Leaf
    total: int

    def of(self, batch: Array, count: int) -> Array:
        """The rows of so many of these examples, from those of the batch."""
        return jax.lax.dynamic_slice_in_dim(batch, self.start, count)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distinct:
    """A tree in which an array that stands at several places is a leaf only once.

    A scan stacks every leaf that leaves its body, the same array twice as two. Where several layers keep one array, as
    queries, keys and values keep what enters them, it takes memory, and is moved between devices, once.

    Attributes:
        leaves: the arrays, each once.
        places: which of them stands at each leaf of the tree.
        structure: of the tree.
    """

    leaves: list[Leaf]
    places: tuple[int, ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    @classmethod
    def of(cls, tree: Tree) -> "Distinct":
        """Find what is the same array, not what has the same values."""
        leaves, structure = jax.tree.flatten(tree)
        once = {id(leaf): leaf for leaf in leaves}
        number = {key: i for i, key in enumerate(once)}
        return cls(list(once.values()), tuple(number[id(leaf)] for leaf in leaves), structure)

    @property
    def tree(self) -> Tree:
        """The tree, with the array at each of its places."""
        return jax.tree.unflatten(self.structure, [self.leaves[i] for i in self.places])


def came(value: Any) -> str:
    """Say in a few words what was given in the place of something else, for the text of an error."""
    name = getattr(value, "__name__", None)
    if isinstance(value, type):
        return f"the class {name}"
    if isinstance(value, str | int | float | None):
        return f"{type(value).__name__} {value!r}" if value is not None else "None"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"the function {name}" if callable(value) and isinstance(name, str) else type(value).__name__


def values_here(array: Array | np.ndarray) -> np.ndarray:
    """The entries that lie on devices of this process, in one row where others have the rest.

    Where no process holds an array whole, each looks at its own part, so that together they look at every entry. An
    array that is being traced has no values to look at, and must not be given.
    """
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    shards = [np.asarray(shard.data).reshape(-1) for shard in array.addressable_shards]
    return np.concatenate([np.empty(0, array.dtype), *shards])


def require_number(name: str, value: Any) -> None:
    """Refuse anything but a number or a scalar array.

    Raises:
        TypeError: says what came.
    """
    if isinstance(value, bool) or not (isinstance(value, Real) or getattr(value, "shape", None) == ()):
        raise TypeError(f"{name} must be a number, got {came(value)}")
