"""Seeded directions for one layer, and the derivatives of its own net_input along them by autodiff.

Only floats move. Integer inputs have no direction, no error term and no derivative; None stands in their place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from reference import model
from reference.witnesses.points import is_float

Tree = Any
Found = dict[str, Tree]


@dataclass(frozen=True)
class Draws:
    """Seeded directions, error terms and weights; `da` has None for integers.

    Attributes:
        delta: an error term, or a dL/da.
        other: a second one, also a direction for `delta`.
        dparams: a direction of the parameters.
        da: a direction of the input.
        weights: one for each example.
    """

    delta: Array
    other: Array
    dparams: Tree
    da: Tree
    weights: Array

    @property
    def da_in(self) -> Tree:
        """The direction as a sweep gives it to a layer: None if no input moves."""
        return self.da if jax.tree.leaves(self.da) else None

    @property
    def still(self) -> tuple[Tree, Tree]:
        """Zeros for (dparams, da_in)."""
        return jax.tree.map(jnp.zeros_like, (self.dparams, self.da_in))

    def shared(self, delta: Array) -> Array:
        """A delta times the examples' weights."""
        return self.weights.reshape(-1, *(1,) * (delta.ndim - 1)) * delta


def draws(params: Tree, a_in: Tree, z: Array, seed: int) -> Draws:
    """Draw for the shapes of these arrays."""
    weights = jnp.asarray(np.random.default_rng(seed + 4).uniform(0.5, 1.5, len(z)))
    return Draws(like(z, seed), like(z, seed + 3), like(params, seed + 1), like(floats(a_in), seed + 2), weights)


def like(tree: Tree, seed: int) -> Tree:
    """Normal draws in the shapes of a tree of floats."""
    rng = np.random.default_rng([seed, 7])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


def another(a_in: Tree, seed: int) -> Tree:
    """Another valid input: other floats, and the integers of other examples, which are in range."""
    return joined(like(floats(a_in), seed), jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), a_in))


def floats(a_in: Tree) -> Tree:
    """The float arrays of the input; None for integers."""
    return jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, a_in)


def joined(moving: Tree, a_in: Tree) -> Tree:
    """The input with other floats."""
    return jax.tree.map(lambda leaf, m: leaf if m is None else m, a_in, moving)


def by_autodiff(layer: Any, params: Tree, a_in: Tree, d: Draws, *, curved: bool) -> Found:
    """The derivatives of the layer's net_input along the draws; with `curved`, those of its transposes too."""

    def forward(p: Tree, moving: Tree) -> Array:
        return layer.net_input(p, joined(moving, a_in))[0]

    def push(dp: Tree, da: Tree) -> Array:
        return jax.jvp(forward, at, (dp, da))[1]

    at, u = (params, floats(a_in)), d.delta
    none, still = jax.tree.map(jnp.zeros_like, (d.dparams, d.da))
    pull = jax.vjp(forward, *at)[1]
    d_params, d_a = pull(u)
    alone = jnp.eye(len(u)).reshape(len(u), len(u), *(1,) * (u.ndim - 1)) * u[None]  # one delta a row, the rest 0
    found = {
        "pushforward of a_in": push(none, d.da),
        "pushforward of params": push(d.dparams, still),
        "pushforward": push(d.dparams, d.da),
        "transport": d_a,
        "factor": d_params,
        "factor.per_example": jax.vmap(lambda delta: pull(delta)[0])(alone),
    }
    return found | (_changes(forward, at, d) if curved else {})


def _changes(forward: Callable[..., Array], at: tuple[Tree, Tree], d: Draws) -> Found:
    def change(direction: Tree, delta: Array) -> tuple[Tree, Tree]:
        return jax.jvp(lambda *at: jax.vjp(forward, *at)[1](delta), at, (d.dparams, direction))[1]

    still = jax.tree.map(jnp.zeros_like, d.da)
    u, v = d.shared(d.delta), d.shared(d.other)
    return {
        "transport, other parameters": change(d.da, d.delta)[1],
        "change[0]": change(d.da, d.delta)[1],
        "change[1].weighted_sum": change(d.da, u)[0],
        "change[1].weighted_sum(None)": change(d.da, d.delta / len(u))[0],
        "change[1].tied": change(d.da, u + v)[0],
        "change[0], da_in None": change(still, d.delta)[1],
        "change[1], da_in None": change(still, u)[0],
    }


def sweeps_by_autodiff(layer: Any, params: Tree, a_in: Tree, d: Draws) -> tuple[Found, dict[str, Array]]:
    """The derivatives of f(net_input), and the sizes that their rounding is relative to.

    f' may be far below 1 at every entry and still have the rounding of a number near 1, as 1 - tanh^2 has. So the
    error of an error term is relative to the size of dL/da, and that of every later quantity to its value for dL/da.
    """

    def net(p: Tree, moving: Tree) -> Array:
        return layer.net_input(p, joined(moving, a_in))[0]

    def forward(p: Tree, moving: Tree) -> Array:
        return model.activated(layer, net(p, moving))

    def pulled(function: Callable[..., Array], p: Tree, moving: Tree, d_a: Array) -> tuple[Tree, Tree]:
        """(dL/da_in of every example, the weighted gradient)."""
        pull = jax.vjp(function, p, moving)[1]
        return pull(d_a)[1], pull(d.shared(d_a))[0]

    at, still = (params, floats(a_in)), jax.tree.map(jnp.zeros_like, d.da)
    z, saved = layer.net_input(params, a_in)
    a, pull = jax.vjp(lambda z: model.activated(layer, z), z)
    delta = pull(d.delta)[0]
    d_a_in, gradient = pulled(forward, *at, d.delta)
    dz, da = (jax.jvp(function, at, (d.dparams, d.da))[1] for function in (net, forward))
    bent, moved = jax.jvp(lambda *moving: pulled(forward, *moving), (*at, d.delta), (d.dparams, d.da, d.other))[1]
    found = {
        "activation": a,
        "forward.z": z,
        "forward.a": a,
        "forward.saved": saved,
        "forward": a,
        "error_term": delta,
        "backward.delta": delta,
        "backward.d_a_in": d_a_in,
        "backward.gradient": gradient,
        "forward, tangent": da,
        "forward, tangent of params": jax.jvp(forward, at, (d.dparams, still))[1],
        "backward, tangent of d_a_in": bent,
        "backward, tangent of gradient": moved,
    }
    return found, _sizes(z, d.delta, dz, *pulled(net, *at, d.delta))


def _sizes(z: Array, d_a: Array, dz: Array, d_a_in: Tree, gradient: Tree) -> dict[str, Array]:
    """The largest entries for an f' and an f'' of 1, by path."""
    of_z, of_delta, of_dz, of_d_a_in, of_gradient = map(_largest, (z, d_a, dz, d_a_in, gradient))
    return {
        "activation": of_z,
        "forward.a": of_z,
        "forward": of_z,
        "error_term": of_delta,
        "backward.delta": of_delta,
        "backward.d_a_in": of_d_a_in,
        "backward.gradient": of_gradient,
        "forward, tangent": of_dz,
        "forward, tangent of params": of_dz,
        "backward, tangent of d_a_in": of_d_a_in * (1 + of_dz),
        "backward, tangent of gradient": of_gradient * (1 + of_dz),
    }


def _largest(tree: Tree) -> Array:
    return jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree))]))
