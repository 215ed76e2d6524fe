"""The names of what travels: trees that mirror a network, batches, weights and scalars."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Array, Float, Shaped

if TYPE_CHECKING:
    from typing_extensions import override as override
else:

    def override(method):
        """Mark a method whose docstring is the one that it inherits; Python's own from 3.12 on."""
        return method


Tree = Any
"""A pytree that mirrors the network: parameters, a trace, deltas, gradients."""

Flow = Any
"""What goes from node to node: an array, a tuple of arrays where a node has several inputs, or pairs of these."""

Leaf = Any
"""An array in a registered dataclass, or what a transformation of trees puts in its place."""

Shape = tuple[Any, ...]
"""Of one example, without the batch axis: a tuple of numbers; of several inputs, a tuple of shapes."""

Examples = Any
"""A batch: floats or integers (N, *features), or a tuple of such."""

Targets = Shaped[Array, "N *targets"]
Weights = Float[Array, " N"]
Scalar = Float[Array, ""]
Coefficient = float | Scalar
