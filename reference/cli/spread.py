"""Training on the devices of several processes: a batch's rows lie over all of them, parameters on each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import manual_backprop as mb

Epoch = Callable[..., tuple[Any, Any, jax.Array]]


def _sharding(*axes: str | None) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec(*axes))


def everywhere(tree: Any) -> Any:
    """Process 0's arrays on every device of all processes, bit for bit; a single process keeps its own."""
    if jax.process_count() == 1:
        return tree

    def of_leaf(leaf: Any) -> jax.Array:
        own = np.asarray(leaf)
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(own.tobytes(), np.uint8))
        whole = np.frombuffer(np.asarray(sent).tobytes(), own.dtype).reshape(own.shape)
        return jax.make_array_from_callback(own.shape, _sharding(), lambda index: whole[index])

    return jax.tree.map(of_leaf, tree)


def here(tree: Any) -> Any:
    """Arrays that every process holds whole, as its own."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def rows(values: np.ndarray) -> Any:
    """A batch with its rows over all devices, each process putting its own there; a single process keeps it.

    Where their number does not divide that of the rows, rows of zeros follow: give these weight 0.
    """
    if jax.process_count() == 1:
        return values
    values = _filled(values, 0)
    return jax.make_array_from_callback(values.shape, _sharding("data"), lambda index: values[index])


def make_step(
    objective: mb.Objective, optimizer: optax.GradientTransformation, value_and_grad: mb.training.ValueAndGrad
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """`mb.training.make_step` for a batch of `rows`; parameters and state stay whole on every device."""
    step = mb.training.make_step(objective, optimizer, value_and_grad=value_and_grad)
    return step if jax.process_count() == 1 else jax.jit(step, donate_argnums=(0, 1), out_shardings=_sharding())


def make_epoch(
    objective: mb.Objective,
    optimizer: optax.GradientTransformation,
    size: int,
    value_and_grad: mb.training.ValueAndGrad,
) -> Epoch:
    """`mb.training.make_epoch`, in the same order; every process reads the rows of x and y for its own devices."""
    if jax.process_count() == 1:
        return mb.training.make_epoch(objective, optimizer, size, value_and_grad=value_and_grad)
    step = mb.training.make_step(objective, optimizer, value_and_grad=value_and_grad)

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=_sharding())
    def steps(params: Any, state: Any, *batches: jax.Array) -> tuple[Any, Any, jax.Array]:
        def one(carry: tuple[Any, Any], batch: tuple[jax.Array, ...]) -> tuple[tuple[Any, Any], jax.Array]:
            x, y, weights = batch
            params, state, J = step(*carry, x, y, weights=weights)
            return (params, state), J

        (params, state), values = jax.lax.scan(one, (params, state), batches)
        return params, state, values

    def epoch(params: Any, state: Any, key: jax.Array, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any, jax.Array]:
        order, weights = _batches(key, len(x), size, np.result_type(x.dtype, np.float32))
        return steps(params, state, _taken(x, order), _taken(y, order), _taken(weights.reshape(-1), _places(weights)))

    return epoch


def _batches(key: jax.Array, n: int, size: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The order and the weights of `mb.training.make_epoch`, (batches, size), with columns of weight 0 to fill up."""
    size = min(size, n)
    count = -(-n // size)
    order = np.resize(np.asarray(jax.random.permutation(key, n)), (count, size))
    present = (np.arange(count * size) < n).reshape(count, size).astype(dtype)
    return _filled(order, 1), _filled(present / present.sum(axis=1, keepdims=True), 1)


def _places(array: np.ndarray) -> np.ndarray:
    return np.arange(array.size).reshape(array.shape)


def _taken(values: np.ndarray, order: np.ndarray) -> jax.Array:
    """values[order], (batches, size, ...), with a batch's rows over all devices; nobody takes the rows of others."""
    shape = (*order.shape, *values.shape[1:])

    def read(index: Any) -> np.ndarray:
        return values[order[index[:2]]]

    return jax.make_array_from_callback(shape, _sharding(None, "data"), read)


def _filled(values: np.ndarray, axis: int) -> np.ndarray:
    """Zeros behind, to a multiple of the number of devices."""
    lacking = -values.shape[axis] % jax.device_count()
    return np.pad(values, [(0, lacking if k == axis else 0) for k in range(values.ndim)])
