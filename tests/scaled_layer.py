"""A family of layers and a composite of somebody's own, each in one place: what the catalogue is to meet by itself."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import manual_backprop as mb
from manual_backprop import activations
from manual_backprop.layers import Factor, Layer, Parameters
from manual_backprop.node import Node, Step, Wrapper
from reference import model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales(Parameters):
    s: Any
    b: Any

    weights = ("s",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleFactor(Factor):
    a_in: Any
    delta: Any

    def weighted_sum(self, weights: Any = None) -> Scales:
        w = jnp.full(len(self.delta), 1 / len(self.delta), self.delta.dtype) if weights is None else weights
        return Scales(jnp.einsum("n,nd,nd->d", w, self.delta, self.a_in), jnp.einsum("n,nd->d", w, self.delta))


@dataclass(frozen=True)
class Scale(Layer):
    """z = s * a + b, entry by entry."""

    width: int
    activation: Any = activations.identity

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", activations.get(self.activation))

    @classmethod
    def specimen(cls, width: int, activation: Any) -> Node | None:
        return cls(width, activation)

    def init(self, key: Any, dtype: Any = None) -> Scales:
        return Scales(jnp.ones(self.width, dtype), jnp.zeros(self.width, dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def net_input(self, params: Scales, a_in: Any) -> Any:
        return params.s[None] * a_in + params.b[None], a_in

    def transport(self, params: Scales, saved: Any, delta: Any) -> Any:
        return params.s[None] * delta

    def factor(self, saved: Any, delta: Any) -> Factor:
        return ScaleFactor(saved, delta)

    def pushforward(self, params: Scales, saved: Any, dparams: Scales, da_in: Any) -> Any:
        return dparams.s[None] * saved + params.s[None] * da_in + dparams.b[None]


@model.apply.register
def _(layer: Scale, params: Scales, a_in: Any) -> Any:
    return a_in * jnp.broadcast_to(params.s, a_in.shape) + jnp.broadcast_to(params.b, a_in.shape)


@dataclass(frozen=True)
class TurnedAround(Wrapper):
    """-block(x)."""

    block: Node

    @classmethod
    def specimen(cls, block: Node, n: int) -> Node | None:
        return mb.Serial((cls(block),) * n)

    def forward(self, step: Step, x: Any, owned: Any) -> Any:
        left, kept = self.block.forward(step, x, owned)
        return jax.tree.map(jnp.negative, left), kept

    def backward(self, step: Step, d: Any, owned: Any, kept: Any) -> Any:
        return self.block.backward(step, jax.tree.map(jnp.negative, d), owned, kept)


@model.through.register
def _(node: TurnedAround, at: Any, x: Any, params: Any, *uses: Any) -> Any:
    output, found = model.through(node.block, at, x, params, *uses)
    return -output, found
