"""The product of two signals, entry by entry: gates, as in SwiGLU and LSTM."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxtyping import Array, Float

from manual_backprop import activations
from manual_backprop.activations import Activation
from manual_backprop.layers.base import ParameterFree
from manual_backprop.types import Shape, override

Two = tuple[Float[Array, "N *features"], Float[Array, "N *features"]]


@dataclass(frozen=True)
class Product(ParameterFree):
    """z = u * v, a = f(z), for a gate u and a value v. It has two inputs and no parameters.

    With `Parallel` in front, `Serial((Parallel((Dense(d, h, "silu"), Dense(d, h))), Product()))`, it is SwiGLU's gate
    (Shazeer, arXiv:2002.05202).

    Attributes:
        activation: f, a name or a row of `activations`.
    """

    activation: Activation | str = "identity"

    inputs = ("u", "v")
    operators = (("×", ()),)
    local_derivatives = MappingProxyType({"u": "diag {v}", "v": "diag {u}"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", activations.get(self.activation))

    def __str__(self) -> str:
        return f"Product({self.f.name})"

    @classmethod
    def specimen(cls, width: int, activation: Activation | str) -> "Product":
        """A product, which takes any width."""
        return cls(activation)

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of either input."""
        if len(in_shape) != 2 or in_shape[0] != in_shape[1]:
            raise ValueError(f"{self} takes two inputs of one shape, such as a Parallel of two gives, got {in_shape}")
        return in_shape[0]

    @override
    def tensor_specs(self, params: tuple[()], axis: str, parts: int, entered: Any) -> tuple[bool, None]:
        """Entries that are split stay so, where they are in both inputs."""
        return isinstance(entered, tuple) and all(entered), None

    def net_input(self, params: tuple[()], a_in: Two) -> tuple[Float[Array, "N *features"], Two]:
        """Net input z = u * v; the transposes need u and v."""
        u, v = a_in
        return u * v, a_in

    def transport(self, params: tuple[()], saved: Two, delta: Float[Array, "N *features"]) -> Two:
        """dL/du = v * delta and dL/dv = u * delta."""
        u, v = saved
        return v * delta, u * delta

    def pushforward(self, params: tuple[()], saved: Two, dparams: tuple[()], da_in: Two) -> Float[Array, "N *features"]:
        """Dz = v * du + u * dv."""
        (u, v), (du, dv) = saved, da_in
        return v * du + u * dv

    def change(
        self, params: tuple[()], saved: Two, dparams: tuple[()], da_in: Two, delta: Float[Array, "N *features"]
    ) -> tuple[Two, None]:
        """The transposes are linear in the inputs: dv * delta and du * delta."""
        du, dv = da_in
        return (dv * delta, du * delta), None
