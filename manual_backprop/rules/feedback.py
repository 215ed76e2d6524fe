"""Transports other than W^T: rules by which error terms travel down, for `backward`, `backprop` and `value_and_grad`.

Only step 2 changes. Every reading of (a, delta), including the gradients, works under any rule. Since delta is a
value, two rules run on one trace can be compared: `angle(deltas, other_deltas)`.

A rule is a pytree: its feedback may be traced, stacked, or updated like parameters. Under any rule, error terms pass
a layer without weights (a gate, a norm) by its true transpose, and positions that are added by the identity.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.layers.base import AffineLayer, Layer
from manual_backprop.node import Node
from manual_backprop.sweep import Rule, backpropagation
from manual_backprop.types import Flow, Tree, override

backprop = backpropagation
"""The default: (W^(l+1))^T delta^(l+1) (B2)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carried:
    """The entry for one layer in a rule with weights of its own: the parameters, and those that stand in for them."""

    params: Tree
    instead: Tree


@dataclass(frozen=True)
class OtherWeights(Rule):
    """Base of rules that transport by other numbers than W; `stand_ins` gives them."""

    linear = True

    def stand_ins(self, params: Tree) -> Tree:
        """Return the numbers that take the place of the parameters, in their structure."""
        raise TypeError(f"{type(self).__name__} gives no stand_ins")

    @override
    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Flow) -> Tree:
        return net.map(self._of_layer, params, self.stand_ins(params))

    def _of_layer(self, layer: Layer, params: Any, instead: Any) -> Carried:
        if not layer.weights or layer.shifts:
            return Carried(params, params)
        if not isinstance(layer, AffineLayer):
            raise ValueError(
                f"{type(self).__name__} replaces W by other numbers, which has a meaning where z is affine in W;"
                f" it does not know the layer {layer}"
            )
        return Carried(params, instead)

    @override
    def params(self, carried: Carried) -> Any:
        return carried.params

    @override
    def transport(self, layer: Layer, carried: Carried, saved: Tree, delta: Array) -> Any:
        return layer.transport(carried.instead, saved, delta)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeedbackAlignment(OtherWeights):
    """B^T delta in place of W^T delta, with B fixed and random (Lillicrap et al., doi:10.1038/ncomms13276).

    Attributes:
        feedback: B, in the structure and shapes of the parameters (biases are not used); `net.init(key)` draws one.

    Raises (when used):
        ValueError: feedback of other structure or shapes than the parameters; a layer whose z is not affine in W.
        TypeError: another dtype.
    """

    feedback: Tree

    linear = True

    @override
    def stand_ins(self, params: Tree) -> Tree:
        validate.like("feedback", self.feedback, "params (net.init draws such a tree)", params)
        return self.feedback


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """Feedback alignment whose B learns: B gets W's own update and decay (Akrout et al., arXiv:1904.05391).

    Then W - B shrinks by the decay at every step and the two come to agree, without W ever being copied.
    `training.make_kolen_pollack_step` does both updates.
    """

    linear = True


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SignSymmetry(OtherWeights):
    """The sign of W at a magnitude of its own: sign(W)^T delta (Liao et al., arXiv:1510.05067).

    Attributes:
        magnitudes: None for the uniform rule, sign(W) times `scale`; or a tree like the parameters, such as
            `net.init(key)`, for frozen random magnitudes, |M| sign(W).
        scale: of the uniform rule. 1 makes delta grow by about sqrt(M_l) a layer.

    Raises:
        ValueError: a scale that is not a positive number; when used, magnitudes of another structure or shape.
    """

    magnitudes: Tree | None = None
    scale: float = field(default=1.0, metadata={"static": True})

    linear = True

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int | float) and 0 < self.scale < float("inf")):
            raise ValueError(f"SignSymmetry scale must be a positive number, got {self.scale!r}")

    @override
    def stand_ins(self, params: Tree) -> Tree:
        if self.magnitudes is None:
            return jax.tree.map(lambda W: self.scale * jnp.sign(W), params)
        validate.like("magnitudes", self.magnitudes, "params (net.init draws such a tree)", params)
        return jax.tree.map(lambda M, W: jnp.abs(M) * jnp.sign(W), self.magnitudes, params)
