"""Our backward sweep as a custom JAX rule: jax.grad of a function from `as_custom_vjp` runs no autodiff through it.

Only this file and `functions.custom_vjp` name `jax.custom_vjp`. That function differentiates nothing: it registers
a derivative that is written by hand.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import validate
from manual_backprop.drawing import layer_keys
from manual_backprop.node import Node
from manual_backprop.objective import Objective, lean_backward, lean_gradients, per_example_scaled
from manual_backprop.precision import accumulator
from manual_backprop.readings.gradients import total
from manual_backprop.shards import varying_like
from manual_backprop.sweep import Rule, backpropagation, backward_sweep, checked_rule, forward_sweep
from manual_backprop.types import Examples, Flow, Tree, came


def as_custom_vjp(function: Objective | Node, rule: Rule | None = None) -> Callable[..., Array]:
    """A plain function whose reverse-mode derivative is our backward sweep, (B1) to (B6), under any rule.

    jax.grad, jit, vmap of grad, jax.hessian (forward over reverse) and shard_map work on it. Every float argument
    gets a cotangent: params, x, float targets, lam and weights. Under another rule than backpropagation, the
    cotangents of params and x are the rule's. Plain forward mode (jax.jvp, jax.jacfwd) raises TypeError, as for every
    jax.custom_vjp; use `pushforward` for it. In shard_map the cotangent of a replicated argument is summed over the
    devices that hold it, as by jax.grad: take `jax.lax.pmean` of J for the mean over shards.
    To check it: `reference.check_vjp(as_custom_vjp(objective), params, x, y, raw=objective)`.

    Args:
        function: an objective, for (params, x, y, lam=None, weights=None, key=None) -> J; or a network, for
            (params, x, key=None) -> output.
        rule: how error terms travel down; None is backpropagation.

    Raises:
        TypeError: neither an objective nor a network, or a `rule` that is no rule.
        NotImplementedError: when differentiated with float targets, a loss of one's own without
            `target_derivative`.
    """
    rule = backpropagation if rule is None else checked_rule(rule)
    if isinstance(function, Objective):
        return _objective(function, rule)
    if isinstance(function, Node):
        return _network(function, rule)
    raise TypeError(f"as_custom_vjp takes an Objective or a network, got {came(function)}")


def _network(net: Node, rule: Rule) -> Callable[..., Array]:
    def apply(rule: Rule, key: Any, params: Tree, x: Examples) -> Flow:
        return forward_sweep(net, params, x, lean=True, keys=layer_keys(net, key))[0]

    def forward(rule: Rule, key: Any, params: Tree, x: Examples) -> tuple[Flow, Any]:
        output, trace = forward_sweep(net, params, x, lean=True, keys=layer_keys(net, key))
        return output, (rule, key, params, x, trace)

    def backward(saved: Any, d_output: Any) -> tuple[None, None, Tree, Flow]:
        rule, key, params, x, trace = saved
        keys = layer_keys(net, key)
        d_x, gradients = backward_sweep(net, params, trace, d_output, reader=total, rule=rule, lean=True, keys=keys)
        return None, None, varying_like(params, gradients), varying_like(x, d_x)

    by_hand = jax.custom_vjp(apply)
    by_hand.defvjp(forward, backward)

    def network(params: Tree, x: Examples, key: Any = None) -> Flow:
        """The network's output; reverse mode through it is our backward sweep (`as_custom_vjp`)."""
        return by_hand(rule, key, *validate.inputs(net, params, x))

    return network


def _objective(objective: Objective, rule: Rule) -> Callable[..., Array]:
    net, loss = objective.net, objective.loss

    def value(losses: Array, params: Tree, lam: Any, weights: Array | None) -> Array:
        of_loss, penalty = objective.summed(losses, params, lam, weights)
        return of_loss + penalty

    def apply(rule: Rule, key: Any, params: Tree, x: Array, y: Array, lam: Any, weights: Array | None) -> Array:
        return objective(params, x, y, lam=lam, weights=weights, key=key)

    def forward(
        rule: Rule, key: Any, params: Tree, x: Array, y: Array, lam: Any, weights: Array | None
    ) -> tuple[Array, Any]:
        keys = layer_keys(net, key)
        if (
            objective.chunked(y, rule) is not None
        ):  # value and gradient in one go: the logits are not there to come back to
            losses, *found = lean_gradients(objective, params, x, y, weights, keys=keys)
            return value(losses, params, lam, weights), (rule, key, params, x, y, lam, weights, losses, tuple(found))
        output, trace = forward_sweep(net, params, x, lean=True, keys=keys)
        J = value(loss.checked_value(output, y), params, lam, weights)
        return J, (rule, key, params, x, y, lam, weights, output, trace)

    def backward(saved: Any, g: Any) -> tuple[Any, ...]:
        rule, key, params, x, y, lam, weights, *kept = saved
        g = jnp.asarray(g)
        d_y = d_lam = d_weights = None
        if objective.chunked(y, rule) is not None:
            losses, (gradients, d_x) = kept
        else:
            output, trace = kept
            d_output = loss.checked_derivative(output, y)
            d_x, gradients = lean_backward(net, params, trace, d_output, weights, rule, layer_keys(net, key))
            losses = loss.checked_value(output, y)
        gradients = objective.add_penalty_gradient(gradients, params, lam)
        if jnp.issubdtype(y.dtype, jnp.floating):
            d_y = per_example_scaled(loss.target_derivative(output, y), weights)
        if lam is not None:
            d_lam = objective.regularizer.d_lam(params)  # type: ignore[union-attr]
        if weights is not None:
            d_weights = losses
        scaled = jax.tree.map(lambda leaf: _times(g, leaf), (gradients, d_x, d_y, d_lam, d_weights))
        return None, None, *map(varying_like, (params, x, y, lam, weights), scaled)

    by_hand = jax.custom_vjp(apply)
    by_hand.defvjp(forward, backward)

    def J(params: Tree, x: Array, y: Array, lam: Any = None, weights: Any = None, key: Any = None) -> Float[Array, ""]:
        """The objective; reverse mode through it is our backward sweep (`as_custom_vjp`)."""
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        lam = None if lam is None else jnp.asarray(lam, accumulator(validate.dtype_of(params, x)))
        return by_hand(rule, key, params, x, y, lam, weights)

    return J


def _times(g: Array, leaf: Array) -> Array:
    """The product, computed in g's precision, that of sums, and rounded to the leaf's dtype."""
    return (g * leaf.astype(g.dtype)).astype(leaf.dtype)
