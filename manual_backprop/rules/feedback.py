"""Transports other than W^T: rules by which error terms travel down, for `backward`, `backprop` and `value_and_grad`.

Only step 2 changes. Every reading of (a, delta), the gradients among them, works under any rule; and since delta is
a value, two rules run on one trace can be compared: `angle(deltas, other_deltas)`.

A rule is a pytree: its feedback may be traced, stacked, or updated like parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from manual_backprop import validate
from manual_backprop.layers.base import Layer, LayerTrace, Leaf, Node, Parameters, Rule, backpropagation
from manual_backprop.layers.factor import Tree
from manual_backprop.network import Serial
from manual_backprop.precision import accumulator

backprop = backpropagation
"""The default: (W^(l+1))^T delta^(l+1) (B2)."""


def angle(deltas: Tree, other: Tree) -> Tree:
    """Degrees between two error terms of every example, layer by layer: arccos of their cosine over the last axis.

    How alignment is measured since Lillicrap et al. (doi:10.1038/ncomms13276).

    Args:
        deltas: of one rule.
        other: of another, on the same trace; the same structure.

    Returns:
        The structure of `deltas`, without each leaf's last axis, in the precision of sums: 0 for the same
        direction, 90 for none in common. nan where either is zero, so average a layer by `jnp.nanmean`.

    Raises:
        ValueError: structures or shapes that differ.
        TypeError: dtypes that differ.
    """
    validate.like("deltas", deltas, "the others", other)

    def of_layer(a: Array, b: Array) -> Array:
        a, b = (_unit(leaf.astype(accumulator(leaf.dtype))) for leaf in (a, b))
        # atan2 of |a - b| and |a + b|: exact near 0 and 180, where arccos of the cosine loses half the digits.
        apart, along = (jnp.linalg.norm(v, axis=-1) for v in (a - b, a + b))
        return 2 * jnp.degrees(jnp.arctan2(apart, along))

    return jax.tree.map(of_layer, deltas, other)


def _unit(rows: Array) -> Array:
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)  # so that no square underflows
    rows = rows / largest
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def _require_bilinear(rule: Rule, net: Node) -> None:
    for layer in net.layers():
        if not layer.bilinear:
            raise ValueError(
                f"{type(rule).__name__} replaces W by other numbers, which has a meaning where z is affine in W;"
                f" it does not know the layer {layer}"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """B^T delta in place of W^T delta, with B fixed and random (Lillicrap et al., doi:10.1038/ncomms13276).

    Attributes:
        feedback: B, in the structure and shapes of the parameters (biases are not used); `net.init(key)` draws one.

    Raises (when used):
        ValueError: feedback of other structure or shapes than the parameters; a layer whose z is not affine in W.
        TypeError: another dtype.
    """

    feedback: Tree

    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Array) -> Tree:  # noqa: D102
        _require_bilinear(self, net)
        validate.like("feedback", self.feedback, "params (net.init draws such a tree)", params)
        return self.feedback


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """Feedback alignment whose B learns: B gets W's own update and decay (Akrout et al., arXiv:1904.05391).

    Then W - B shrinks by the decay at every step and the two come to agree, without W ever being copied.
    `training.make_kolen_pollack_step` does both updates.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SignSymmetry(Rule):
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

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int | float) and 0 < self.scale < float("inf")):
            raise ValueError(f"SignSymmetry scale must be a positive number, got {self.scale!r}")

    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Array) -> Tree:  # noqa: D102
        _require_bilinear(self, net)
        if self.magnitudes is None:
            return jax.tree.map(lambda W: self.scale * jnp.sign(W), params)
        validate.like("magnitudes", self.magnitudes, "params (net.init draws such a tree)", params)
        return jax.tree.map(lambda M, W: jnp.abs(M) * jnp.sign(W), self.magnitudes, params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Broadcast:
    """What DFA carries to one layer: its B, delta^(L) of the output layer, and its own carried parameters."""

    B: Leaf | None
    error: Leaf
    params: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
    """Every hidden layer hears the output's error directly: delta^(l) = f_l'(z^(l)) * (B_l^T delta^(L)).

    Nothing travels from layer to layer (Nokland, arXiv:1609.01596). The network must end in a layer, whose own
    delta is true. dL/dx is what layer 1 would send down, (W^(1))^T delta^(1).

    Attributes:
        feedback: an array B_l (M_L, M_l) for every layer, blocks in front under `Repeat`, and None for the last;
            `direct_feedback` draws them.

    Raises (when used):
        ValueError: B of another shape; a network that does not end in a layer; positions that differ.
    """

    feedback: Tree

    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Array) -> Tree:  # noqa: D102
        last, at = _last_layer(net, trace)
        error = last.error_term(at, d_output)
        leaves = jax.tree.leaves(self.feedback, is_leaf=lambda node: node is None or isinstance(node, Parameters))
        if any(isinstance(leaf, Parameters) for leaf in leaves):
            raise ValueError(
                "DirectFeedbackAlignment feedback has the parameters' form; it takes an array (M_L, M_l) for every"
                " layer, and None for the last: rules.direct_feedback(net, key) draws it"
            )
        if [leaf is None for leaf in leaves] != [False] * (len(leaves) - 1) + [True]:
            raise ValueError(
                "DirectFeedbackAlignment feedback must be None for the last layer and an array for every other, got"
                f" None at {[i for i, leaf in enumerate(leaves) if leaf is None]} of {len(leaves)} layers"
            )

        def entry(B: Array | None, of_layer: Tree) -> _Broadcast:
            blocks = () if B is None else B.shape[:-2]
            if B is not None and B.dtype != error.dtype:
                raise TypeError(f"feedback is {B.dtype} but the error terms are {error.dtype}; convert it with .astype")
            return _Broadcast(B, jnp.broadcast_to(error, (*blocks, *error.shape)), of_layer)

        try:
            return jax.tree.map(entry, self.feedback, params, is_leaf=lambda node: node is None)
        except ValueError as wrong:
            raise ValueError(
                "DirectFeedbackAlignment feedback must have one array for every layer, and None for the last, in"
                f" the network's structure, got {jax.tree.structure(self.feedback, is_leaf=lambda n: n is None)};"
                " rules.direct_feedback draws it"
            ) from wrong

    def delta(self, layer: Layer, carried: _Broadcast, trace: LayerTrace, d_a: Array) -> Array:  # noqa: D102
        if carried.B is None:
            return layer.error_term(trace, d_a)
        expected = (carried.error.shape[-1], trace.z.shape[-1])
        if carried.B.shape != expected:
            raise ValueError(f"{layer}: feedback is {list(carried.B.shape)}, expected {list(expected)}: (M_L, M_l)")
        if carried.error.shape[:-1] != trace.z.shape[:-1]:
            raise ValueError(
                f"{layer}: direct feedback goes from position to position, but the error is"
                f" {list(carried.error.shape)} and z is {list(trace.z.shape)}"
            )
        return layer.error_term(trace, carried.error @ carried.B)

    def transport(self, layer: Layer, carried: _Broadcast, saved: Tree, delta: Array) -> Array:  # noqa: D102
        return layer.transport(carried.params, saved, delta)


def direct_feedback(net: Node, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Tree:
    """Random B_l (M_L, M_l) with entries of variance 1/M_L for every layer of `net`, None for the last.

    Raises:
        ValueError: `net` does not end in a layer, or has layers that are not dense.
    """
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    last, _ = _last_layer(net, None)
    if not all(hasattr(layer, "d_out") for layer in net.layers()):
        raise ValueError(f"direct_feedback knows the width of dense layers alone, got {net}; make the arrays yourself")
    rows = last.d_out  # type: ignore[attr-defined]

    def draw(layer: Layer, own: PRNGKeyArray) -> Array:
        B = jax.random.normal(own, (rows, layer.d_out), dtype)  # type: ignore[attr-defined]
        return B / jnp.sqrt(jnp.asarray(rows, dtype))

    def draw_hidden(node: Node, own: PRNGKeyArray) -> Tree:
        """For every layer but the last, which is where it stands: the same layer may stand elsewhere too."""
        if not isinstance(node, Serial):
            return None
        *keys, of_last = jax.random.split(own, len(node.nodes))
        hidden = (child.draw(k, draw) for child, k in zip(node.nodes[:-1], keys, strict=True))
        return (*hidden, draw_hidden(node.nodes[-1], of_last))

    return draw_hidden(net, key)


def _last_layer(net: Node, trace: Tree) -> tuple[Layer, Any]:
    while isinstance(net, Serial):
        net, trace = net.nodes[-1], None if trace is None else trace[-1]
    if not isinstance(net, Layer):
        raise ValueError(f"direct feedback starts from the delta of the last layer, but the network ends in {net}")
    return net, trace


@dataclass(frozen=True)
class Site:
    """What an edit sees at a layer.

    Attributes:
        layer: the layer.
        trace: its z, a and saved.
        d_a: dL/da^(l) that arrived from above.
        delta: the error term that the rule beneath made of it.
        key: a key of this layer's own; None where the rule was given none.
    """

    layer: Layer
    trace: LayerTrace
    d_a: Array
    delta: Array
    key: Any


Edit = Callable[[Site], Array]
"""A pure function from what is known at a layer to the delta that takes the old one's place."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Keyed:
    key: Any
    beneath: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnDelta(Rule):
    """Edits every delta as it comes by, and what is edited travels on: top-k, noise, quantising, straight-through.

    An edit is a function of a `Site` that returns the new delta: `lambda site: jnp.clip(site.delta, -1, 1)`. A few
    from the literature are in `edits`.

    Attributes:
        edits: one edit for all layers, or a tuple as a `Serial` has nodes, nested likewise, None for no edit:
            `(None, my_edit, None)`. Static under jit: define it once, since a fresh lambda compiles anew.
        key: for edits that draw; every layer, block and use gets one of its own.
        beneath: the rule that is edited.

    Raises (when used):
        ValueError: edits that do not mirror the network; a delta of another shape or dtype; a key that is missing.
    """

    edits: Any = field(metadata={"static": True})
    key: Any = None
    beneath: Rule = backpropagation

    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Array) -> Tree:  # noqa: D102
        _require_edits(self.edits, net)
        beneath = self.beneath.carried(net, params, trace, d_output)
        if self.key is None:
            keys = net.draw(jax.random.key(0), lambda layer, own: None)
        else:
            typed = jnp.issubdtype(self.key.dtype, jax.dtypes.prng_key)
            keys = net.draw(self.key if typed else jax.random.wrap_key_data(self.key), lambda layer, own: own)
        return jax.tree.map(_Keyed, keys, beneath, is_leaf=lambda node: node is None)

    def child(self, index: int) -> "OnDelta":  # noqa: D102
        edits = self.edits[index] if isinstance(self.edits, tuple) else self.edits
        return OnDelta(edits, self.key, self.beneath.child(index))

    def at_use(self, carried: Tree, use: Array) -> Tree:  # noqa: D102
        def of_layer(keyed: _Keyed) -> _Keyed:
            beneath = self.beneath.at_use(keyed.beneath, use)
            if keyed.key is None:
                return _Keyed(None, beneath)
            each = jax.vmap(jax.random.fold_in, (0, None))(keyed.key.reshape(-1), use)
            return _Keyed(each.reshape(keyed.key.shape), beneath)

        return jax.tree.map(of_layer, carried, is_leaf=lambda node: isinstance(node, _Keyed))

    def delta(self, layer: Layer, carried: _Keyed, trace: LayerTrace, d_a: Array) -> Array:  # noqa: D102
        delta = self.beneath.delta(layer, carried.beneath, trace, d_a)
        if self.edits is None:
            return delta
        edited = self.edits(Site(layer, trace, d_a, delta, carried.key))
        if edited.shape != delta.shape or edited.dtype != delta.dtype:
            raise ValueError(
                f"{layer}: the edit made {edited.dtype}{list(edited.shape)} of a delta that is"
                f" {delta.dtype}{list(delta.shape)}; it must keep both"
            )
        return edited

    def transport(self, layer: Layer, carried: _Keyed, saved: Tree, delta: Array) -> Array:  # noqa: D102
        return self.beneath.transport(layer, carried.beneath, saved, delta)


on_delta = OnDelta
"""`OnDelta` by the name of what it does."""


def _require_edits(edits: Any, net: Node) -> None:
    if edits is None or callable(edits):
        return
    if not isinstance(edits, tuple):
        raise ValueError(f"edits are a function, None, or a tuple of these, got {type(edits).__name__}")
    while not isinstance(net, Serial | Layer):
        net = net.block  # type: ignore[attr-defined]
    if not isinstance(net, Serial) or len(net.nodes) != len(edits):
        raise ValueError(f"{len(edits)} edits in a tuple do not mirror {net}: one for each node of a Serial")
    for edit, node in zip(edits, net.nodes, strict=True):
        _require_edits(edit, node)
