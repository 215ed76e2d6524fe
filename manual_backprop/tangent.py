"""The sweep differentiated along a direction: forward propagation of a derivative, Pearlmutter's R-operator back."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from manual_backprop import validate
from manual_backprop.drawing import drawn, layer_keys
from manual_backprop.layers.base import AffineLayer, Layer, LayerTrace, LeanTrace, zero_like
from manual_backprop.layers.factor import Factor
from manual_backprop.node import Node, Step
from manual_backprop.sweep import Reader
from manual_backprop.types import Examples, Flow, Leaf, Tree, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    """A value and its change along a direction; None for a change is a zero that costs nothing."""

    value: Leaf
    change: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value, which is that of the change."""
        return self.value.shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TangentTrace:
    """The values of one layer that the forward sweep with a tangent keeps.

    Attributes:
        trace: its z, a and saved.
        dz: R{z^(l)}, in z's shape.
        da: R{a^(l)}.
        da_in: R{a^(l-1)}, or None where the input does not change along the direction (the first layer).
    """

    trace: LayerTrace
    dz: Leaf
    da: Leaf
    da_in: Tree


def changed(read: Reader) -> Reader:
    """The reader of R{delta} a^T + delta R{a}^T, the change of the gradient that `read` sums over examples."""

    def contract(along_delta: Factor, moved: Factor | None) -> Tree:
        terms = [read(factor) for factor in (along_delta, moved) if factor is not None]
        return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *terms)

    return contract


MEAN_CHANGE = changed(lambda factor: factor.weighted_sum())


@dataclass(frozen=True)
class Tangent(Step):
    """The sweep differentiated along a direction: forward propagation of a derivative, and the R-operator back.

    Between nodes flow `Pair`s, and `own` is the pair (parameters, direction). R{.} is Pearlmutter's operator
    (doi:10.1162/neco.1994.6.1.147).

    Attributes:
        reader: contracts two factors, whose gradients add up to R{dL/dparams}; the second may be None.
        short: whether f' is taken in the form of sweeps that show nobody their trace, which keeps less.
    """

    reader: Reader = MEAN_CHANGE
    short: bool = False

    @override
    def forward(self, layer: Layer, x: Flow, own: Pair) -> tuple[Pair, TangentTrace]:
        (a_in, da_in), (params, dparams) = parts(x), (own.value, own.change)
        z, saved = layer.net_input(params, a_in)
        a = layer.f.value(z)
        if da_in is None and isinstance(layer, AffineLayer):
            dz = layer.pushforward_params(params, a_in, saved, dparams)
        else:
            da_in = parts(self.scannable(x))[1]
            dz = layer.pushforward(params, saved, dparams, da_in)
        trace = LeanTrace(z, a, saved) if self.short else LayerTrace(z, a, saved)
        da = layer.error_term(trace, dz)
        return Pair(a, da), TangentTrace(trace, dz, da, da_in)

    @override
    def backward(self, layer: Layer, d: Pair, own: Pair, kept: TangentTrace) -> tuple[Flow, Any]:
        trace, da_in, params, dparams = kept.trace, kept.da_in, own.value, own.change
        f = layer.f.lean(trace.z.dtype) if self.short else layer.f
        if f.d2f is None:
            raise ValueError(f"{layer}: no Hessian-vector product by hand, its activation {f.name} has no d2f")
        delta = layer.error_term(trace, d.value)
        # R{f'(z) d_a} = f'(z) R{d_a} + R{f'(z)} d_a
        ddelta, dslope = layer.error_term(trace, d.change), f.slope_change(trace.z, trace.a, kept.dz, kept.da)
        ddelta = ddelta if dslope is None else ddelta + dslope * d.value
        # R{W^T delta} = W^T R{delta} + V^T delta
        d_in = layer.transport(params, trace.saved, delta)
        along = layer.transport(params, trace.saved, ddelta)
        bent, moved = layer.change(params, trace.saved, dparams, da_in, delta)
        # R{delta a^T} = R{delta} a^T + delta R{a}^T
        d_flow = pairs(d_in, jax.tree.map(jnp.add, along, bent))
        return d_flow, self.reader(layer.factor(trace.saved, ddelta), moved)

    @override
    def scannable(self, flow: Flow) -> Flow:
        return jax.tree.map(_with_zero, flow, is_leaf=_is_pair)

    @override
    def read(self, block: Node, kept: Tree, found: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), found)  # a reader is linear, so the uses add up

    @override
    def joined(self, layer: Any, kept: tuple[Any, ...], found: tuple[Any, ...]) -> Any:
        return jax.tree.map(lambda *uses: sum(uses[1:], uses[0]), *found)


def _is_pair(node: object) -> bool:
    return isinstance(node, Pair)


def _with_zero(pair: Pair) -> Pair:
    """The pair, with an array of zeros where its change is None; integers keep None."""
    return Pair(pair.value, zero_like(pair.value)) if pair.change is None else pair


def pairs(values: Flow, changes: Flow) -> Flow:
    """One flow of pairs from two flows; None where there is no value, such as the error term of integers."""

    def pair(value: Any, change: Any) -> Pair | None:
        return None if value is None else Pair(value, change)

    return jax.tree.map(pair, values, changes, is_leaf=lambda leaf: leaf is None)


def parts(flow: Flow) -> tuple[Flow, Flow]:
    """The values and the changes of a flow of pairs; the changes are None where each of them is None."""
    values, changes = (
        jax.tree.map(lambda p, of=of: getattr(p, of), flow, is_leaf=_is_pair) for of in ("value", "change")
    )
    return values, changes if jax.tree.leaves(changes) else None


def tangent_sweep(
    net: Node, params: Tree, x: Examples, dparams: Tree, dx: Flow, *, short: bool = False, keys: Tree | None = None
) -> tuple[Flow, Flow, Tree]:
    """(output, its change, what is kept for the way back); a dx of None is a zero that costs nothing.

    `keys` are from `layer_keys`; what is drawn does not change along the direction.
    """
    changes = jax.tree.map(lambda leaf: None, x) if dx is None else dx
    step, owned = drawn(net, Tangent(short=short), along(net, params, dparams), keys)
    output, kept = net.forward(step, pairs(x, changes), owned)
    return *parts(output), kept


def along(net: Node, params: Tree, dparams: Tree) -> Tree:
    """Parameters and a direction as pairs, one for each layer."""
    return net.map(lambda layer, p, dp: Pair(p, dp), params, dparams)


def pushforward(
    net: Node, params: Tree, x: Examples, dparams: Tree, dx: Examples, *, key: PRNGKeyArray | None = None
) -> tuple[Flow, Flow]:
    """Forward propagation of a derivative: (output, its change along (dparams, dx)), the differential of (F3).

    One pass gives one directional derivative; hence the note's remark on why one propagates backward instead.
    A key is that of `forward`.

    Raises:
        ValueError: a tangent whose structure or shapes differ from those of its primal.
        TypeError: a tangent whose dtypes differ from those of its primal.
    """
    params, x = validate.inputs(net, params, x)
    validate.like("dparams", dparams, "params", params)
    validate.like("dx", dx, "x", x)
    output, d_output, _ = tangent_sweep(net, params, x, dparams, dx, keys=layer_keys(net, key))
    return output, d_output
