"""What a layer's methods say along seeded directions, what autodiff of net_input says, which belong together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.layers import Layer

Tree = Any

DERIVATIVES = (
    ("pushforward, da_in alone", "pushforward of a_in", "pushforward is not the derivative of net_input in a_in"),
    ("pushforward, dparams alone", "pushforward of params", "pushforward is not the derivative of net_input in params"),
    ("pushforward", "pushforward", "pushforward is not the derivative of net_input"),
    ("transport", "transport", "transport is not the transpose of pushforward in a_in"),
    ("factor.weighted_sum", "factor", "factor is not the transpose of pushforward in params"),
    ("factor.per_example", "factor.per_example", "per_example is not dL_n/dparams of each example"),
    (
        "gradient_tangent",
        "gradient_tangent",
        "gradient_tangent is not the change of weighted_sum along (da_in, ddelta)",
    ),
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


READINGS = (
    "factor.per_example", "weighted", "weighted per_example", "mean", "mean of per_example", "squared_norms",
    "norms of per_example", "squared_sum", "squares of per_example", "gram", "products of per_example", "tied",
    "sum over uses", "gradient_tangent",
)  # fmt: skip
"""What a layer without parameters has none of."""


def autodiff_of(path: str) -> str:
    """Which transformation a row of `DERIVATIVES` is held against."""
    return "jax.jvp of net_input" if path.startswith("pushforward") else "jax.vjp of net_input"


def _draws(params: Tree, a_in: Array, z: Array, seed: int) -> tuple[Any, ...]:
    """(delta, another delta, dparams, da, weights)."""
    n = a_in.shape[0]
    weights = jnp.asarray(np.random.default_rng(seed + 4).uniform(0.5, 1.5, n))
    return like(z, seed), like(z, seed + 3), like(params, seed + 1), like(a_in, seed + 2), weights


def by_hand(layer: Layer, params: Tree, a_in: Array, seed: int) -> dict[str, Tree]:
    """Everything that the layer's own methods say."""
    z, saved = layer.net_input(params, a_in)
    u, v, dparams, da, weights = _draws(params, a_in, z, seed)
    ones = jnp.ones(a_in.shape[0])
    none, still = jax.tree.map(jnp.zeros_like, (dparams, da))

    def push(dp: Tree, d: Array) -> Array:
        return layer.pushforward(params, saved, dp, d)

    def pull(delta: Array) -> tuple[Array, Tree]:
        return layer.transport(params, saved, delta), layer.factor(saved, delta).weighted_sum(ones)

    (tu, fu), (tv, fv), (tsum, fsum) = pull(u), pull(v), pull(2 * u - 3 * v)
    factor = layer.factor(saved, u)
    found = {
        "pushforward of a_in": push(none, da),
        "pushforward of params": push(dparams, still),
        "pushforward": push(dparams, da),
        "pushforward_params": layer.pushforward_params(params, a_in, saved, dparams),
        "transport": tu,
        "factor": fu,
        "pushforward of sum": push(jax.tree.map(lambda leaf: 2 * leaf, dparams), -3 * da),
        "sum of pushforwards": 2 * push(dparams, still) - 3 * push(none, da),
        "transport of sum": tsum,
        "sum of transports": 2 * tu - 3 * tv,
        "factor of sum": fsum,
        "sum of factors": jax.tree.map(lambda a, b: 2 * a - 3 * b, fu, fv),
    }
    if not jax.tree.leaves(params):
        return found | dict.fromkeys(READINGS, ())
    found["gradient_tangent"] = layer.gradient_tangent(saved, u, da, v, weights) if layer.bilinear else ()
    each, other = factor.per_example(), layer.factor(saved, v)
    uses = jax.tree.map(lambda *leaves: jnp.stack(leaves), factor, other)
    both = jax.tree.map(jnp.add, each, other.per_example())

    def summed(w: Array) -> Tree:
        return jax.tree.map(lambda leaf: jnp.tensordot(w, leaf, 1), each)

    rows, theirs, of_both = (_rows(tree) for tree in (each, other.per_example(), both))
    return found | {
        "factor.per_example": each,
        "weighted": factor.weighted_sum(weights),
        "weighted per_example": summed(weights),
        "mean": factor.weighted_sum(),
        "mean of per_example": summed(ones / ones.size),
        "squared_norms": factor.squared_norms(),
        "norms of per_example": jnp.sum(jnp.square(rows), axis=1),
        "squared_sum": factor.squared_sum(weights),
        "squares of per_example": jax.tree.map(lambda leaf: jnp.tensordot(weights, jnp.square(leaf), 1), each),
        "gram": factor.gram(other),
        "products of per_example": rows @ theirs.T,
        "tied": uses.tied().squared_norms(),
        "sum over uses": jnp.sum(jnp.square(of_both), axis=1),
    }


def _rows(per_example: Tree) -> Array:
    """(N, P): every example's gradient flat."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(per_example)], axis=1)


def by_autodiff(layer: Layer, params: Tree, a_in: Array, seed: int) -> dict[str, Tree]:
    """The derivatives of the layer's net_input along the same draws."""

    def forward(p: Tree, a: Array) -> Array:
        return layer.net_input(p, a)[0]

    z, pull = jax.vjp(forward, params, a_in)
    u, v, dparams, da, weights = _draws(params, a_in, z, seed)
    none, still = jax.tree.map(jnp.zeros_like, (dparams, da))

    def push(dp: Tree, d: Array) -> Array:
        return jax.jvp(forward, (params, a_in), (dp, d))[1]

    def weighted_gradient(a: Array, delta: Array) -> Tree:
        shares = weights.reshape(-1, *(1,) * (delta.ndim - 1))
        return jax.vjp(lambda p: forward(p, a), params)[1](shares * delta)[0]

    d_params, d_a = pull(u)
    alone = jnp.eye(len(u)).reshape(len(u), len(u), *(1,) * (u.ndim - 1)) * u[None]  # every delta but one zeroed
    return {
        "pushforward of a_in": push(none, da),
        "pushforward of params": push(dparams, still),
        "pushforward": push(dparams, da),
        "transport": d_a,
        "factor": d_params,
        "factor.per_example": jax.vmap(lambda delta: pull(delta)[0])(alone),
        "gradient_tangent": jax.jvp(weighted_gradient, (a_in, u), (da, v))[1] if layer.bilinear else (),
    }


def products(
    params: Tree, a_in: Array, hand: dict[str, Tree], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """The adjoint identity for a_in, for params and for both: path -> (products, products, cause)."""
    v, _, dparams, da, _ = _draws(params, a_in, hand["pushforward"], seed)
    of_a, of_params = _times(hand["transport"], da), _times(hand["factor"], dparams)

    def row(name: str, right: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray, str]:
        return _times(v, hand[name]), right, f"{which} not the transpose of pushforward: <v, dz> differs"

    return {
        "transport, adjoint": row("pushforward of a_in", of_a, "transport is"),
        "factor, adjoint": row("pushforward of params", of_params, "factor is"),
        "transport and factor, adjoint": row("pushforward", np.concatenate([of_a, of_params]), "together they are"),
    }


def _times(a: Tree, b: Tree) -> np.ndarray:
    """Every product of two trees' entries, flat."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(x) * np.asarray(y)) for x, y in pairs)])


def like(tree: Tree, seed: int) -> Tree:
    """Normal draws in the shapes of a tree of floats."""
    rng = np.random.default_rng([seed, 7])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)
