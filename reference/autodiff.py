"""Every quantity of the note by jax.grad of `reference.model`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop.objective import Objective, Step
from reference import model

Tree = Any


def value_and_grad(objective: Objective, argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Array, Any]]:
    """jax.value_and_grad of the reference's objective: the counterpart of `manual_backprop.value_and_grad`.

    Returns:
        A function (params, x, y, *, lam=None, weights=None) -> (J, gradient).
    """

    def J(params: Tree, x: Array, y: Array, *, lam: Any = None, weights: Any = None) -> Array:
        return model.value(objective, params, x, y, lam=lam, weights=weights)

    return jax.value_and_grad(J, argnums)


def deltas(objective: Objective, params: Tree, x: Array, y: Array) -> Tree:
    """delta^(l) = dL_n/dz^(l) of every example, unscaled: the derivative with respect to a zero added to z."""
    return _deltas_and_d_x(objective, params, x, y)[0]


def d_x(objective: Objective, params: Tree, x: Array, y: Array) -> Array:
    """dL_n/dx_n of every example, unscaled."""
    return _deltas_and_d_x(objective, params, x, y)[1]


def _deltas_and_d_x(objective: Objective, params: Tree, x: Array, y: Array) -> tuple[Tree, Array]:
    def summed(added: Tree, x: Array) -> Array:
        return model.example_losses(objective, params, x, y, added)[0].sum()

    return jax.grad(summed, argnums=(0, 1))(model.zero_probes(objective.net, params, x), x)


def d_lam(objective: Objective, params: Tree, lam: Any = None) -> Array:
    """ds/dlam; zero without a regulariser."""
    if objective.regularizer is None:
        return jnp.zeros_like(model.penalty(objective, params))
    return jax.grad(lambda lam: model.penalty(objective, params, lam))(_lam(objective, params, lam))


def _lam(objective: Objective, params: Tree, lam: Any) -> Array:
    """Lambda as an array to differentiate by: the one given, the regulariser's, or zero without one."""
    if lam is None:
        lam = 0.0 if objective.regularizer is None else objective.regularizer.lam
    return jnp.asarray(lam, jax.tree.leaves(params)[0].dtype)


def backprop(
    objective: Objective,
    params: Tree,
    x: Array,
    y: Array,
    *,
    lam: Any = None,
    weights: Any = None,
) -> Step:
    """The counterpart of `manual_backprop.backprop`: the same fields, every derivative by JAX's vjp.

    One forward pass, pulled back from J to the parameters, lambda, every z and x. Of the mean, an example's
    share of what reaches z and x is 1/N; where weights are given, one of them may be 0, so the sum of the losses
    is pulled back as well.
    """
    n, given = x.shape[0], weights is not None
    weights = weights if given else jnp.full(n, 1 / n, x.dtype)

    def everything(params: Tree, lam: Any, added: Tree, x: Array) -> tuple[tuple[Array, Array], Step]:
        losses, (output, values) = model.example_losses(objective, params, x, y, added)
        loss, penalty = jnp.dot(weights, losses), model.penalty(objective, params, lam)
        step = Step(loss + penalty, loss, penalty, output, values, None, None, None, None)
        return (loss + penalty, losses.sum()), step

    lam = _lam(objective, params, lam)
    added = model.zero_probes(objective.net, params, x)
    (J, _), pull, step = jax.vjp(everything, params, lam, added, x, has_aux=True)
    one, none = jnp.ones_like(J), jnp.zeros_like(J)
    gradients, d_lam, deltas, d_x = pull((one, none))
    if given:
        _, _, deltas, d_x = pull((none, one))
    else:
        deltas, d_x = jax.tree.map(lambda leaf: n * leaf, (deltas, d_x))
    return replace(step, gradients=gradients, d_lam=d_lam, deltas=deltas, d_x=d_x)


def per_example_gradients(objective: Objective, params: Tree, x: Array, y: Array) -> Tree:
    """dL_n/dparams of every example by vmap of jax.grad: N in front of every leaf's shape."""

    def one(params: Tree, x: Array, y: Array) -> Array:
        probes = model.zero_probes(objective.net, params, x[None])
        return model.example_losses(objective, params, x[None], y[None], probes)[0][0]

    return jax.vmap(jax.grad(one), (None, 0, 0))(params, x, y)


def hessian_vector_product(
    objective: Objective, params: Tree, x: Array, y: Array, v: Tree, *, lam: Any = None, weights: Any = None
) -> Tree:
    """H v by jax.jvp of jax.grad."""

    def gradient(params: Tree) -> Tree:
        return jax.grad(model.value, argnums=1)(objective, params, x, y, lam=lam, weights=weights)

    return jax.jvp(gradient, (params,), (v,))[1]


def gauss_newton_vector_product(
    objective: Objective, params: Tree, x: Array, y: Array, v: Tree, *, lam: Any = None, weights: Any = None
) -> Tree:
    """G v: jvp of the outputs, the loss's Hessian by jvp of its gradient, vjp of the outputs, and the penalty's own."""
    weights = jnp.full(x.shape[:1], 1 / x.shape[0], x.dtype) if weights is None else weights

    def outputs(params: Tree) -> Array:
        return model.apply(objective.net, params, x, model.zero_probes(objective.net, params, x))[0]

    def of_loss(output: Array) -> Array:
        return jnp.dot(weights, model.losses(objective.loss, output, y))

    output, d_output = jax.jvp(outputs, (params,), (v,))
    curved = jax.jvp(jax.grad(of_loss), (output,), (d_output,))[1]
    (product,) = jax.vjp(outputs, params)[1](curved)
    of_penalty = jax.jvp(jax.grad(lambda p: model.penalty(objective, p, lam)), (params,), (v,))[1]
    return jax.tree.map(jnp.add, product, of_penalty)
