"""The note's training loop: forward, backward, gradients and update, with any optax transformation (U1)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from manual_backprop import explicit, validate
from manual_backprop import objective as by_hand
from manual_backprop.drawing import draws
from manual_backprop.node import require_key
from manual_backprop.objective import Objective
from manual_backprop.precision import accumulator
from manual_backprop.readings.gradients import gradients
from manual_backprop.rules.feedback import KolenPollack
from manual_backprop.types import Scalar, Tree, came, require_number

State = Any  # of the optimizer
ValueAndGrad = Callable[[Objective], Callable[..., tuple[Scalar, Any]]]


def _step(
    objective: Objective, optimizer: optax.GradientTransformation, value_and_grad: ValueAndGrad
) -> Callable[..., tuple[Tree, State, Scalar]]:
    gradient = value_and_grad(Objective.required(objective))
    _require_optimizer(optimizer)

    def step(params: Tree, state: State, x: Array, y: Array, **given: Any) -> tuple[Tree, State, Scalar]:
        J, dJ = gradient(params, x, y, **given)  # steps 1, 2 and 3
        updates, state = optimizer.update(dJ, state, params)
        return optax.apply_updates(params, updates), state, J  # (U1)

    return step


def _require_optimizer(optimizer: Any) -> None:
    """Refuse anything but an optax transformation, such as the function that makes one."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax transformation, such as optax.sgd(0.1), got {came(optimizer)}")


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
        step(params, state, x, y, *, lam=None, weights=None, rule=..., key=None) -> (params, state, J before the
        update). The memory of the given params and state is donated: they must not be used again. A network with
        dropout takes a new key at every step.

    Raises:
        TypeError: no objective, or no optax transformation.
    """
    return jax.jit(_step(objective, optimizer, value_and_grad), donate_argnums=(0, 1))


def make_kolen_pollack_step(
    objective: Objective, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Tree, Tree, State, Scalar]]:
    """One training step by the Kolen-Pollack rule, compiled: W and its feedback B get the same update and decay.

    Both get the loss's part of the gradient, delta a^T; the regulariser adds lam W for W and lam B for B (B6). With
    plain SGD, W - B shrinks by the factor 1 - rate lam at every step.

    Args:
        objective: what to minimise.
        optimizer: any optax transformation; its state is that of `optimizer.init((params, feedback))`.

    Returns:
        step(params, feedback, state, x, y) -> (params, feedback, state, J before the update). The memory of all
        arguments but x and y is donated: they must not be used again.

    Raises:
        TypeError: no objective, or no optax transformation.
    """
    Objective.required(objective)
    _require_optimizer(optimizer)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Tree, feedback: Tree, state: State, x: Array, y: Array) -> tuple[Tree, Tree, State, Scalar]:
        at = by_hand.backprop(objective, params, x, y, rule=KolenPollack(feedback))
        shared = gradients(objective.net, at.trace, at.deltas)
        both = tuple(objective.add_penalty_gradient(shared, own, None) for own in (params, feedback))
        updates, state = optimizer.update(both, state, (params, feedback))
        params, feedback = optax.apply_updates((params, feedback), updates)
        return params, feedback, state, at.value

    return step


def private_noise(max_norm: float, noise_multiplier: float, key: PRNGKeyArray) -> optax.GradientTransformation:
    """The Gaussian noise of DP-SGD, of deviation noise_multiplier max_norm, as an optax transformation.

    Apply it to the sum that `clipped_gradients` gives, before the division by the (expected) batch size:
    `optax.chain(private_noise(C, sigma, key), optax.scale(1 / N), optax.sgd(rate))`. This library does not compute the
    privacy that results; a privacy accountant does.

    Args:
        max_norm: C, as given to `clipped_gradients`.
        noise_multiplier: sigma >= 0.
        key: the key that the noise is drawn with; every update draws new noise.

    Raises:
        ValueError: a max_norm or noise_multiplier that is negative or nan.
        TypeError: one that is no number.

    Source: Abadi et al., arXiv:1607.00133.
    """
    for name, value in (("max_norm", max_norm), ("noise_multiplier", noise_multiplier)):
        require_number(name, value)
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and >= 0, got {value}")
    return optax.add_noise(eta=(noise_multiplier * max_norm) ** 2, gamma=0.0, key=key)


def make_epoch(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    value_and_grad: ValueAndGrad = by_hand.value_and_grad,
) -> Callable[..., tuple[Tree, State, Float[Array, " batches"]]]:
    """One pass over all examples in random order, compiled as one scan over batches.

    Every example is seen exactly once: where the batch size does not divide their number, the last batch is filled up
    with examples of weight 0. The epoch's key draws the order; where the network has dropout, every batch gets a key of
    its own from it as well. Where x and y are split over devices, every batch is split as they are, if the batch size
    is a multiple of the devices; if not, every device does the whole work.

    Args:
        objective: what to minimise.
        optimizer: any optax transformation.
        batch_size: examples a step.
        value_and_grad: where the gradient comes from, as for `make_step`.

    Returns:
        epoch(params, state, key, x, y) -> (params, state, J of every batch before its update). The memory of the
        given params and state is donated: they must not be used again.

    Raises:
        ValueError: a batch size below 1.
        TypeError: no objective, no optax transformation, or a batch size that is no int.
    """
    step = _step(objective, optimizer, value_and_grad)
    if not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int, got {came(batch_size)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")

    @partial(jax.jit, donate_argnums=(0, 1), static_argnums=5)
    def compiled(
        params: Tree,
        state: State,
        key: PRNGKeyArray,
        x: Shaped[Array, "N *features"],
        y: Shaped[Array, "N *targets"],
        lies: tuple[NamedSharding | None, ...],
    ) -> tuple[Tree, State, Float[Array, " batches"]]:
        require_key(key)
        order, for_dropout = jax.random.split(key) if draws(objective.net) else (key, None)
        rows, weights = _batches(order, x.shape[0], batch_size, accumulator(validate.dtype_of(params, x)))
        keys = {} if for_dropout is None else {"key": jax.random.split(for_dropout, len(rows))}

        def one(
            carry: tuple[Tree, State], batch: tuple[Array, Array, dict[str, Array]]
        ) -> tuple[tuple[Tree, State], Scalar]:
            at, w, key = batch
            drawn = (_placed(_drawn(rows, at), of) for rows, of in zip((x, y), lies, strict=True))
            params, state, J = step(*carry, *drawn, weights=_placed(w, _first(lies[1])), **key)
            return (params, state), J

        (params, state), values = jax.lax.scan(one, (params, state), (rows, weights, keys))
        return params, state, values

    def epoch(params: Tree, state: State, key: PRNGKeyArray, x: Any, y: Any) -> tuple[Tree, State, Array]:
        """One pass over all examples: (params, state, J of every batch before its update) (`make_epoch`)."""
        lies = tuple(_lies(rows, min(batch_size, x.shape[0])) for rows in (x, y))
        return compiled(params, state, key, x, y, lies)

    return epoch


def _lies(rows: Any, size: int) -> NamedSharding | None:
    """How a batch of so many rows is to lie: as all of them, if the devices divide it. None leaves it to JAX."""
    held = getattr(rows, "sharding", None)
    if not isinstance(held, NamedSharding) or not isinstance(held.mesh, Mesh) or explicit.is_explicit(rows):
        return None
    return None if size % (rows.shape[0] // held.shard_shape(rows.shape)[0]) else held


def _placed(batch: Array, lies: NamedSharding | None) -> Array:
    """The batch where automatic axes have it to lie. Left to itself, a gather is whole on every device."""
    return batch if lies is None else jax.lax.with_sharding_constraint(batch, lies)


def _first(lies: NamedSharding | None) -> NamedSharding | None:
    return None if lies is None else NamedSharding(lies.mesh, PartitionSpec(*lies.spec[:1]))


def _drawn(rows: Array, at: Array) -> Array:
    """Rows in any order."""
    return explicit.automatic(lambda rows, at: rows[at], explicit.lies_as(rows), rows, at)


def _batches(key: PRNGKeyArray, n: int, size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """A random order of n examples cut into batches (batches, size), and their weights, which sum to 1."""
    size = min(size, n)
    count = -(-n // size)
    order = jnp.resize(jax.random.permutation(key, n), (count * size,)).reshape(count, size)
    present = (jnp.arange(count * size) < n).reshape(count, size).astype(dtype)
    return order, present / jnp.sum(present, axis=1, keepdims=True)
