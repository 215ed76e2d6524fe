"""Results of a layer's methods and sweeps along seeded directions, and the pairs of them that must agree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.layers import AffineLayer, Factor, Layer, LayerTrace
from manual_backprop.sweep import backward_sweep, forward_sweep
from manual_backprop.tangent import Pair, Tangent, tangent_sweep
from reference.checks.layer_rows import described
from reference.checks.layer_witness import Draws

Tree = Any
Found = dict[str, Tree]

DERIVATIVES = (
    ("pushforward, da_in alone", "pushforward of a_in", "pushforward is not the derivative of net_input in a_in"),
    ("pushforward, dparams alone", "pushforward of params", "pushforward is not the derivative of net_input in params"),
    ("pushforward", "pushforward", "pushforward is not the derivative of net_input"),
    ("transport", "transport", "transport is not the transpose of pushforward in a_in"),
    ("factor.weighted_sum", "factor", "factor is not the transpose of pushforward in params"),
    ("factor.per_example", "factor.per_example", "per_example is not dL_n/dparams of each example"),
)
"""(path, quantity, cause): by hand against autodiff."""
PARTS = (
    ("pushforward of a_in", "transport", "transport, adjoint"),
    ("pushforward of params", "factor", "factor, adjoint"),
)
"""(quantity, its transpose, path of their adjoint identity)."""
CONSISTENCY = (
    ("pushforward, linear", "pushforward of sum", "sum of pushforwards", "pushforward is not linear"),
    ("transport, linear", "transport of sum", "sum of transports", "transport is not linear in delta"),
    ("factor, linear", "factor of sum", "sum of factors", "factor's weighted_sum is not linear in delta"),
    ("factor.weighted_sum(weights)", "weighted", "weighted per_example", "weighted_sum is not sum_n w_n per_example_n"),
    ("factor.weighted_sum(None)", "mean", "mean of per_example", "weighted_sum(None) is not the mean over examples"),
    ("factor.total", "total", "sum of per_example", "total is not the plain sum over examples"),
    ("factor.squared_norms", "squared_norms", "norms of per_example", "squared_norms are not those of per_example"),
    ("factor.squared_sum", "squared_sum", "squares of per_example", "squared_sum is not sum_n w_n per_example_n^2"),
    ("factor.gram", "gram", "products of per_example", "gram is not the products of per_example"),
    (
        "factor.tied",
        "tied",
        "sum over uses",
        "tied is not the sum over uses: its norms are not of the summed gradients",
    ),
    ("pushforward_params", "pushforward_params", "pushforward of params", "pushforward_params is not pushforward"),
)
"""(path, quantity, what it must equal, cause): by hand against by hand."""
CHANGES = {
    "transport, other parameters": "an AffineLayer's z is affine in params and in a_in, so that transport is linear in"
    " params and does not change with a_in: this one's is not",
    "change[0]": "the first of change is not how transport changes along (dparams, da_in)",
    "change[1].weighted_sum": "the second of change is not how the gradient changes along (dparams, da_in)",
    "change[1].weighted_sum(None)": "the second of change has a weighted_sum(None) that is not the mean over examples",
    "change[1].tied": "the second of change, tied, is not the sum over uses",
    "change[0], da_in None": "change with a da_in of None is not change with zeros",
    "change[1], da_in None": "change with a da_in of None is not change with zeros",
}
"""Path: cause, for `change` against jax.jvp of the transposes."""
SWEEPS = {
    "activation": "the activation's f is not the function that its name stands for",
    "forward.z": "forward does not keep the z of net_input",
    "forward.a": "forward does not keep a = f(z)",
    "forward.saved": "forward does not keep what net_input saved",
    "forward": "forward does not hand on a = f(z)",
    "error_term": "error_term is not f'(z) dL/da, or the activation's df is not the derivative of its f",
    "backward.delta": "backward does not find the delta of error_term",
    "backward.d_a_in": "backward does not hand down the transport of delta",
    "backward.gradient": "backward does not read the factor of delta",
    "forward, tangent": "forward does not hand on the change of a along (dparams, da_in)",
    "forward, tangent of params": "forward does not hand on the change of a along dparams alone",
    "backward, tangent of d_a_in": "backward does not hand down the change of dL/da_in, or the activation's d2f is not"
    " the derivative of its df",
    "backward, tangent of gradient": "backward does not find the change of the gradient",
}
"""Path: cause, for the sweeps at the layer against autodiff of f(net_input)."""


def autodiff_of(path: str) -> str:
    """The transformation that a row of `DERIVATIVES` is compared with."""
    return "jax.jvp of net_input" if path.startswith("pushforward") else "jax.vjp of net_input"


def combined(one: Tree, other: Tree) -> Tree:
    """2 one - 3 other."""
    return jax.tree.map(lambda a, b: 2 * a - 3 * b, one, other)


def has_change(layer: Layer) -> bool:
    """Whether the family has the method `change`."""
    return type(layer).change is not Layer.change


def by_hand(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    """All results of the layer's own methods."""
    saved = layer.net_input(params, a_in)[1]
    found = _maps(layer, params, a_in, saved, d) | _readings(
        layer.factor(saved, d.delta), layer.factor(saved, d.other), d
    )
    return found | (_changes(layer, params, saved, d) if has_change(layer) else {})


def _maps(layer: Layer, params: Tree, a_in: Tree, saved: Tree, d: Draws) -> Found:
    (none, still), u, v = d.still, d.delta, d.other
    ones = jnp.ones_like(d.weights)

    def push(dp: Tree, da: Tree) -> Array:
        return layer.pushforward(params, saved, dp, da)

    def pull(delta: Array) -> tuple[Tree, Tree]:
        return layer.transport(params, saved, delta), layer.factor(saved, delta).weighted_sum(ones)

    (tu, fu), (tv, fv), (tsum, fsum) = pull(u), pull(v), pull(combined(u, v))
    doubled, negated = jax.tree.map(lambda leaf: 2 * leaf, d.dparams), jax.tree.map(lambda leaf: -3 * leaf, d.da_in)
    return {
        "pushforward of a_in": push(none, d.da_in),
        "pushforward of params": push(d.dparams, still),
        "pushforward": push(d.dparams, d.da_in),
        "pushforward_params": layer.pushforward_params(params, a_in, saved, d.dparams),
        "transport": tu,
        "factor": fu,
        "pushforward of sum": push(doubled, negated),
        "sum of pushforwards": combined(push(d.dparams, still), push(none, d.da_in)),
        "transport of sum": tsum,
        "sum of transports": combined(tu, tv),
        "factor of sum": fsum,
        "sum of factors": combined(fu, fv),
    }


def _readings(factor: Factor, other: Factor, d: Draws) -> Found:
    each, theirs, n = factor.per_example(), other.per_example(), d.weights.size

    def summed(weights: Array, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), tree)

    rows, of_other, of_both = (_rows(tree, n) for tree in (each, theirs, jax.tree.map(jnp.add, each, theirs)))
    return {
        "factor.per_example": each,
        "weighted": factor.weighted_sum(d.weights),
        "weighted per_example": summed(d.weights, each),
        "mean": factor.weighted_sum(),
        "mean of per_example": summed(jnp.ones(n) / n, each),
        "total": factor.total(),
        "sum of per_example": summed(jnp.ones(n), each),
        "squared_norms": factor.squared_norms(),
        "norms of per_example": jnp.sum(jnp.square(rows), axis=1),
        "squared_sum": factor.squared_sum(d.weights),
        "squares of per_example": summed(d.weights, jax.tree.map(jnp.square, each)),
        "gram": factor.gram(other),
        "products of per_example": rows @ of_other.T,
        "tied": stacked(factor, other).tied().squared_norms(),
        "sum over uses": jnp.sum(jnp.square(of_both), axis=1),
    }


def stacked(*factors: Factor) -> Factor:
    """Factors stacked in front, like several uses of the same parameters."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *factors)


def _rows(per_example: Tree, n: int) -> Array:
    """(N, P): every example's gradient, flattened."""
    return jnp.concatenate([jnp.zeros((n, 0)), *(leaf.reshape(n, -1) for leaf in jax.tree.leaves(per_example))], axis=1)


def _moved(factor: Factor | None, params: Tree, weights: Array | None) -> Tree:
    """The gradient of the factor that `change` returns; zeros for None."""
    return jax.tree.map(jnp.zeros_like, params) if factor is None else factor.weighted_sum(weights)


def _changes(layer: Layer, params: Tree, saved: Tree, d: Draws) -> Found:
    def total(factor: Factor | None, weights: Array | None) -> Tree:
        return _moved(factor, params, weights)

    (bent, moved), (_, again) = (layer.change(params, saved, d.dparams, d.da_in, delta) for delta in (d.delta, d.other))
    uses = None if moved is None or again is None else stacked(moved, again).tied()
    found = {
        "change[0]": bent,
        "change[1].weighted_sum": total(moved, d.weights),
        "change[1].weighted_sum(None)": total(moved, None),
        "change[1].tied": total(uses, d.weights),
    }
    if not isinstance(layer, AffineLayer):
        return found
    bent, moved = layer.change(params, saved, d.dparams, None, d.delta)
    return found | {
        "transport, other parameters": layer.transport(d.dparams, saved, d.delta),
        "change[0], da_in None": bent,
        "change[1], da_in None": total(moved, d.weights),
    }


def products(hand: Found, d: Draws) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """The adjoint identity for a_in, for params and for both: path -> (products, products, cause)."""
    of_a, of_params = _times(hand["transport"], d.da), _times(hand["factor"], d.dparams)

    def row(name: str, right: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray, str]:
        return _times(d.delta, hand[name]), right, f"{which} not the transpose of pushforward: <v, dz> differs"

    return {
        "transport, adjoint": row("pushforward of a_in", of_a, "transport is"),
        "factor, adjoint": row("pushforward of params", of_params, "factor is"),
        "transport and factor, adjoint": row("pushforward", np.concatenate([of_a, of_params]), "together they are"),
    }


def _times(a: Tree, b: Tree) -> np.ndarray:
    """All products of two trees' entries, flattened."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(x) * np.asarray(y)) for x, y in pairs)])


def sweeps(layer: Layer, curved: bool) -> dict[str, Callable[..., Found]]:
    """The sweeps, functions of (layer, params, a_in, draws), each by the path that its failure is reported under."""
    found: dict[str, Callable[..., Found]] = {
        "activation": _activation,
        "forward": _forward,
        "error_term": _error_term,
        "backward": _backward,
        "forward, tangent": _forward_tangent,
    }
    return found | ({"backward, tangent": _backward_tangent} if curved else {})


def _activation(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    return {"activation": layer.f.f(layer.net_input(params, a_in)[0])}


def _forward(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    returned = forward_sweep(layer, params, a_in)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], LayerTrace)):
        raise TypeError(f"it must return (a, LayerTrace) as step.forward does, got {described(returned)}")
    a, trace = returned
    saved = jax.tree.map(jnp.asarray, trace.saved)
    return {"forward.z": trace.z, "forward.a": trace.a, "forward.saved": saved, "forward": a}


def _error_term(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    return {"error_term": layer.error_term(forward_sweep(layer, params, a_in)[1], d.delta)}


def _backward(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    trace = forward_sweep(layer, params, a_in)[1]
    d_in, delta = backward_sweep(layer, params, trace, d.delta)
    _, gradient = backward_sweep(layer, params, trace, d.delta, reader=lambda factor: factor.weighted_sum(d.weights))
    return {"backward.delta": delta, "backward.d_a_in": d_in, "backward.gradient": gradient}


def _forward_tangent(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    _, along_both, _ = tangent_sweep(layer, params, a_in, d.dparams, d.da_in)
    _, along_params, _ = tangent_sweep(layer, params, a_in, d.dparams, None)
    return {"forward, tangent": along_both, "forward, tangent of params": along_params}


def _backward_tangent(layer: Layer, params: Tree, a_in: Tree, d: Draws) -> Found:
    def gradient(along_delta: Factor, moved: Factor | None) -> Tree:
        return jax.tree.map(jnp.add, along_delta.weighted_sum(d.weights), _moved(moved, params, d.weights))

    _, _, kept = tangent_sweep(layer, params, a_in, d.dparams, d.da_in)
    own = Pair(params, d.dparams)
    d_in, found = layer.backward(Tangent(gradient), Pair(d.delta, d.other), own, kept)
    changes = jax.tree.map(lambda pair: pair.change, d_in, is_leaf=lambda node: isinstance(node, Pair))
    return {"backward, tangent of d_a_in": changes, "backward, tangent of gradient": found}
