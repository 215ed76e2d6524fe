"""The note's training loop: forward, backward, gradients and update, with any optax transformation (U1)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from manual_backprop import objective as by_hand
from manual_backprop.layers.base import Tree
from manual_backprop.objective import Objective
from manual_backprop.precision import accumulator
from manual_backprop.regularizers import Scalar

State = Any  # of the optimizer
ValueAndGrad = Callable[[Objective], Callable[..., tuple[Scalar, Any]]]


def _step(
    objective: Objective, optimizer: optax.GradientTransformation, value_and_grad: ValueAndGrad
) -> Callable[..., tuple[Tree, State, Scalar]]:
    gradient = value_and_grad(objective)

    def step(params: Tree, state: State, x: Array, y: Array, **given: Any) -> tuple[Tree, State, Scalar]:
        J, gradients = gradient(params, x, y, **given)  # steps 1, 2 and 3
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, J  # (U1)

    return step


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    value_and_grad: ValueAndGrad = by_hand.value_and_grad,
) -> Callable[..., tuple[Tree, State, Scalar]]:
    """One training step on one batch, compiled.

    Args:
        objective: what to minimise.
        optimizer: any optax transformation.
        value_and_grad: where the gradient comes from; `reference.value_and_grad` trains by jax.grad.

    Returns:
        step(params, state, x, y, *, lam=None, weights=None) -> (params, state, J before the update). It
        takes over the memory of the params and state that it is given (they must not be used again).
    """
    return jax.jit(_step(objective, optimizer, value_and_grad), donate_argnums=(0, 1))


def make_epoch(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    value_and_grad: ValueAndGrad = by_hand.value_and_grad,
) -> Callable[..., tuple[Tree, State, Float[Array, " batches"]]]:
    """One pass over all examples in random order, compiled as one scan over batches.

    Every example is seen exactly once: where the batches do not come out even, the last one is filled up
    with examples of weight 0.

    Args:
        objective: what to minimise.
        optimizer: any optax transformation.
        batch_size: examples a step.
        value_and_grad: where the gradient comes from, as for `make_step`.

    Returns:
        epoch(params, state, key, x, y) -> (params, state, J of every batch before its update). It takes
        over the memory of the params and state that it is given.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    step = _step(objective, optimizer, value_and_grad)

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(
        params: Tree,
        state: State,
        key: PRNGKeyArray,
        x: Float[Array, "N *features"],
        y: Shaped[Array, "N *targets"],
    ) -> tuple[Tree, State, Float[Array, " batches"]]:
        rows, weights = _batches(key, x.shape[0], batch_size, accumulator(x.dtype))

        def one(carry: tuple[Tree, State], batch: tuple[Array, Array]) -> tuple[tuple[Tree, State], Scalar]:
            at, w = batch
            params, state, J = step(*carry, x[at], y[at], weights=w)
            return (params, state), J

        (params, state), values = jax.lax.scan(one, (params, state), (rows, weights))
        return params, state, values

    return epoch


def _batches(key: PRNGKeyArray, n: int, size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """A random order of n examples cut into batches (batches, size), and their weights, which sum to 1."""
    size = min(size, n)
    count = -(-n // size)
    order = jnp.resize(jax.random.permutation(key, n), (count * size,)).reshape(count, size)
    present = (jnp.arange(count * size) < n).reshape(count, size).astype(dtype)
    return order, present / jnp.sum(present, axis=1, keepdims=True)
