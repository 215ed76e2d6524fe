"""Every quantity of the note by jax.grad of `reference.model`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop.objective import Objective, Step
from reference import model
from reference.masks import masks

Tree = Any


def value_and_grad(objective: Objective, argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Array, Any]]:
    """jax.value_and_grad of the reference's objective: the counterpart of `manual_backprop.value_and_grad`.

    Returns:
        A function (params, x, y, *, lam=None, weights=None, key=None) -> (J, gradient).
    """
    Objective.required(objective)

    def J(params: Tree, x: Any, y: Array, *, lam: Any = None, weights: Any = None, key: Any = None) -> Array:
        drawn = masks(objective.net, params, x, key)
        return model.value(objective, params, x, y, lam=lam, weights=weights, masks=drawn)

    return jax.value_and_grad(J, argnums)


def deltas(objective: Objective, params: Tree, x: Any, y: Array) -> Tree:
    """delta^(l) = dL_n/dz^(l) of every example, unscaled: the derivative with respect to a zero added to z."""
    return _deltas_and_d_x(objective, params, x, y)[0]


def d_x(objective: Objective, params: Tree, x: Any, y: Array) -> Array:
    """dL_n/dx_n of every example, unscaled."""
    return _deltas_and_d_x(objective, params, x, y)[1]


def _deltas_and_d_x(objective: Objective, params: Tree, x: Any, y: Array) -> tuple[Tree, Array]:
    Objective.required(objective)

    def summed(added: Tree, x: Any) -> Array:
        return model.example_losses(objective, params, x, y, added)[0].sum()

    probes = model.zero_probes(objective.net, params, x)
    losses, pull = jax.vjp(summed, probes, x)
    deltas, d_x = pull(jnp.ones_like(losses))
    return deltas, _of_floats(d_x)


def _of_floats(d_x: Any) -> Any:
    """The derivative with None in place of JAX's float0 for integers."""
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, d_x)


def d_lam(objective: Objective, params: Tree, lam: Any = None) -> Array:
    """ds/dlam; zero without a regulariser."""
    if Objective.required(objective).regularizer is None:
        return jnp.zeros_like(model.penalty(objective, params))
    return jax.grad(lambda lam: model.penalty(objective, params, lam))(_lam(objective, params, (), lam))


def _lam(objective: Objective, params: Tree, x: Any, lam: Any) -> Array:
    """Lambda as an array to differentiate by: the given one, else the regulariser's, else zero."""
    if lam is None:
        lam = 0.0 if objective.regularizer is None else objective.regularizer.lam
    return jnp.asarray(lam, model.float_type(params, x))


def backprop(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Array,
    *,
    lam: Any = None,
    weights: Any = None,
    key: Any = None,
) -> Step:
    """The counterpart of `manual_backprop.backprop`: the same fields, every derivative by JAX's vjp.

    One forward pass is pulled back from J to the parameters, lambda, every z and x. J has the mean of the losses, so
    the derivatives at z and x are divided by the example's share, 1/N. Where weights are given, one of them may be 0,
    so the sum of the losses is pulled back instead.
    """
    drawn = masks(Objective.required(objective).net, params, x, key)
    return backprop_at(objective, params, x, y, drawn, lam=lam, weights=weights)


def backprop_at(
    objective: Objective, params: Tree, x: Any, y: Array, masks: Tree | None, *, lam: Any = None, weights: Any = None
) -> Step:
    """`backprop` at given masks of dropout, as from `reference.masks`; None is without dropout."""
    n, given = model.examples(x), weights is not None
    weights = weights if given else jnp.full(n, 1 / n, model.float_type(params, x))

    def everything(params: Tree, lam: Any, added: Tree, x: Array) -> tuple[tuple[Array, Array], Step]:
        losses, (output, values) = model.example_losses(objective, params, x, y, added, masks)
        loss, penalty = jnp.dot(weights, losses), model.penalty(objective, params, lam)
        step = Step(loss + penalty, loss, penalty, output, values, None, None, None, None)
        return (loss + penalty, losses.sum()), step

    lam = _lam(objective, params, x, lam)
    added = model.zero_probes(objective.net, params, x)
    (J, _), pull, step = jax.vjp(everything, params, lam, added, x, has_aux=True)
    one, none = jnp.ones_like(J), jnp.zeros_like(J)
    gradients, d_lam, deltas, d_x = pull((one, none))
    d_x = _of_floats(d_x)
    if given:
        _, _, deltas, d_x = pull((none, one))
        d_x = _of_floats(d_x)
    else:
        deltas, d_x = jax.tree.map(lambda leaf: n * leaf, (deltas, d_x))
    return replace(step, gradients=gradients, d_lam=d_lam, deltas=deltas, d_x=d_x)


def per_example_gradients(objective: Objective, params: Tree, x: Any, y: Array) -> Tree:
    """dL_n/dparams of every example by vmap of jax.grad: N in front of every leaf's shape."""
    Objective.required(objective)

    def one(params: Tree, x: Any, y: Array) -> Array:
        x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
        probes = model.zero_probes(objective.net, params, x)
        return model.example_losses(objective, params, x, y, probes)[0][0]

    return jax.vmap(jax.grad(one), (None, 0, 0))(params, x, y)


def hessian_vector_product(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Array,
    v: Tree,
    *,
    lam: Any = None,
    weights: Any = None,
    key: Any = None,
) -> Tree:
    """H v by jax.jvp of jax.grad."""
    drawn = masks(Objective.required(objective).net, params, x, key)

    def gradient(params: Tree) -> Tree:
        return jax.grad(model.value, argnums=1)(objective, params, x, y, lam=lam, weights=weights, masks=drawn)

    return jax.jvp(gradient, (params,), (v,))[1]


def gauss_newton_vector_product(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Array,
    v: Tree,
    *,
    lam: Any = None,
    weights: Any = None,
    key: Any = None,
) -> Tree:
    """G v by jvp of the outputs, jvp of the loss's gradient and vjp of the outputs, plus the penalty's own part."""
    drawn = masks(Objective.required(objective).net, params, x, key)
    n = model.examples(x)
    weights = jnp.full(n, 1 / n, model.float_type(params, x)) if weights is None else weights

    def outputs(params: Tree) -> Array:
        return model.outputs(objective.net, params, x, drawn)

    def of_loss(output: Array) -> Array:
        return jnp.dot(weights, model.losses(objective.loss, output, y))

    output, d_output = jax.jvp(outputs, (params,), (v,))
    curved = jax.jvp(jax.grad(of_loss), (output,), (d_output,))[1]
    (product,) = jax.vjp(outputs, params)[1](curved)
    of_penalty = jax.jvp(jax.grad(lambda p: model.penalty(objective, p, lam)), (params,), (v,))[1]
    return jax.tree.map(jnp.add, product, of_penalty)
