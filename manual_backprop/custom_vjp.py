"""Our backward sweep as a custom JAX rule: jax.grad of a function from `as_custom_vjp` runs no autodiff through it.

This is the one file of the package that names `jax.custom_vjp`. That function differentiates nothing: it registers
a derivative that is written by hand.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import validate
from manual_backprop.node import Node
from manual_backprop.objective import Objective, lean_backward, per_example_scaled
from manual_backprop.precision import accumulator
from manual_backprop.readings.gradients import total
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
        function: an objective, for (params, x, y, lam=None, weights=None) -> J; or a network, for
            (params, x) -> output.
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
    def apply(rule: Rule, params: Tree, x: Examples) -> Flow:
        return forward_sweep(net, params, x, lean=True)[0]

    def forward(rule: Rule, params: Tree, x: Examples) -> tuple[Flow, Any]:
        output, trace = forward_sweep(net, params, x, lean=True)
        return output, (rule, params, x, trace)

    def backward(saved: Any, d_output: Any) -> tuple[None, Tree, Flow]:
        rule, params, x, trace = saved
        d_x, gradients = backward_sweep(net, params, trace, d_output, reader=total, rule=rule, lean=True)
        return None, _varying_like(params, gradients), _varying_like(x, d_x)

    by_hand = jax.custom_vjp(apply)
    by_hand.defvjp(forward, backward)

    def network(params: Tree, x: Examples) -> Flow:
        """The network's output; reverse mode through it is our backward sweep (`as_custom_vjp`)."""
        return by_hand(rule, *validate.inputs(net, params, x))

    return network


def _objective(objective: Objective, rule: Rule) -> Callable[..., Array]:
    net, loss = objective.net, objective.loss

    def value(output: Array, params: Tree, y: Array, lam: Any, weights: Array | None) -> Array:
        of_loss, penalty = objective.terms(params, output, y, lam, weights)
        return of_loss + penalty

    def apply(rule: Rule, params: Tree, x: Array, y: Array, lam: Any, weights: Array | None) -> Array:
        return value(forward_sweep(net, params, x, lean=True)[0], params, y, lam, weights)

    def forward(rule: Rule, params: Tree, x: Array, y: Array, lam: Any, weights: Array | None) -> tuple[Array, Any]:
        output, trace = forward_sweep(net, params, x, lean=True)
        return value(output, params, y, lam, weights), (rule, params, x, y, lam, weights, output, trace)

    def backward(saved: Any, g: Any) -> tuple[Any, ...]:
        rule, params, x, y, lam, weights, output, trace = saved
        g = jnp.asarray(g)
        d_output = loss.checked_derivative(output, y)
        d_x, gradients = lean_backward(net, params, trace, d_output, weights, rule)
        gradients = objective.add_penalty_gradient(gradients, params, lam)
        d_y = d_lam = d_weights = None
        if jnp.issubdtype(y.dtype, jnp.floating):
            d_y = per_example_scaled(loss.target_derivative(output, y), weights)
        if lam is not None:
            d_lam = objective.regularizer.d_lam(params)  # type: ignore[union-attr]
        if weights is not None:
            d_weights = loss.checked_value(output, y)
        scaled = jax.tree.map(lambda leaf: _times(g, leaf), (gradients, d_x, d_y, d_lam, d_weights))
        return None, *map(_varying_like, (params, x, y, lam, weights), scaled)

    by_hand = jax.custom_vjp(apply)
    by_hand.defvjp(forward, backward)

    def J(params: Tree, x: Array, y: Array, lam: Any = None, weights: Any = None) -> Float[Array, ""]:
        """The objective; reverse mode through it is our backward sweep (`as_custom_vjp`)."""
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        lam = None if lam is None else jnp.asarray(lam, accumulator(validate.dtype_of(params, x)))
        return by_hand(rule, params, x, y, lam, weights)

    return J


def _times(g: Array, leaf: Array) -> Array:
    """The product, computed in g's precision, that of sums, and rounded to the leaf's dtype."""
    return (g * leaf.astype(g.dtype)).astype(leaf.dtype)


def _varying_like(primal: Tree, cotangent: Tree) -> Tree:
    """The cotangent as shard_map wants it: summed over the axes along which its argument is replicated."""
    if cotangent is None:
        return None

    def of_leaf(primal: Array, cotangent: Array) -> Array:
        axes, own = _varying_axes(primal), _varying_axes(cotangent)
        if own - axes:
            cotangent = jax.lax.psum(cotangent, tuple(sorted(own - axes)))
        if axes - own:
            cotangent = jax.lax.pcast(cotangent, tuple(sorted(axes - own)), to="varying")
        return cotangent

    return jax.tree.map(of_leaf, primal, cotangent)


def _varying_axes(leaf: Array) -> frozenset[Any]:
    """The mesh axes along which shard_map holds different values of the leaf."""
    kind = jax.typeof(leaf)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
