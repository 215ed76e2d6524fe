"""The note's remark as code: the whole gradient by forward propagation, one pass for each parameter."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.objective import Objective
from manual_backprop.tangent import tangent_sweep
from manual_backprop.types import Examples, Scalar, Targets, Tree


def directional_derivative(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    dparams: Tree,
) -> Scalar:
    """DJ along `dparams`, from one forward pass: (1/N) sum_n <dl/do_n, do_n> + <ds/dW, dW>."""
    params, x, y, _, _ = Objective.required(objective).checked(params, x, y, None, None)
    output, d_output, _ = tangent_sweep(objective.net, params, x, dparams, None)
    along_loss = jnp.vdot(objective.loss.checked_derivative(output, y), d_output) / validate.count(x)
    if objective.regularizer is None:
        return along_loss
    slope = objective.regularizer.gradient(params)
    return along_loss + sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, dparams)))


def gradient_by_forward_propagation(objective: Objective, params: Tree, x: Examples, y: Targets) -> Tree:
    """dJ/dparams, one parameter at a time: as many forward passes as there are parameters.

    The backward sweep gives the same in one pass. This function shows how much that saves, and it is a second way to
    compute the same numbers by hand.
    """
    Objective.required(objective)
    leaves, structure = jax.tree.flatten(params)

    def derivative(position: int, index: Array) -> Scalar:
        def one_hot(leaf: Array) -> Array:
            return jnp.zeros(leaf.size, leaf.dtype).at[index].set(1).reshape(leaf.shape)

        tangents = [one_hot(leaf) if i == position else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
        return directional_derivative(objective, params, x, y, jax.tree.unflatten(structure, tangents))

    def of_leaf(position: int, leaf: Array) -> Array:
        by_entry = jax.lax.map(lambda index: derivative(position, index), jnp.arange(leaf.size))
        return by_entry.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [of_leaf(i, leaf) for i, leaf in enumerate(leaves)])
