"""Sequences drawn from a network that gives logits of the next id, such as `gpt`."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from manual_backprop import validate
from manual_backprop.node import Node, require_key
from manual_backprop.precision import accumulator
from manual_backprop.sweep import forward_sweep
from manual_backprop.types import Tree, came, require_number


def sampled(
    net: Node,
    params: Tree,
    key: PRNGKeyArray,
    ids: Int[Array, "N start"],
    count: int,
    *,
    length: int,
    temperature: float = 1.0,
) -> Int[Array, "N count"]:
    """Draw `count` more ids after each row of ids, one at a time, each from softmax(logits / temperature).

    The net reads the last `length` ids at every step, so no keys and values are kept. What stands behind the last id
    must not change its logits, as under a causal attention: a shorter start is filled up there with zeros.

    Args:
        net: maps ids (N, T) to logits (N, T, vocab) of the next id at every position.
        params: its parameters, as from `net.init`.
        key: draws the ids; rows draw independently of each other.
        ids: integers, what the sequences begin with.
        count: the number of ids to draw.
        length: the most ids that the net reads at a time, such as the `length` of a `gpt`.
        temperature: 0 takes the most probable id each time.

    Raises:
        ValueError: a count or length below 1, a temperature that is negative or not finite, no ids to begin with, ids
            out of range, or a net whose outputs are no logits of every position.
        TypeError: ids that are no integers, or arguments of another type.
    """
    for name, number in (("count", count), ("length", length)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"sampled {name} must be an int, got {came(number)}")
        if number < 1:
            raise ValueError(f"sampled {name} must be >= 1, got {number}")
    require_number("sampled temperature", temperature)
    if not 0 <= float(temperature) < float("inf"):
        raise ValueError(f"sampled temperature must be finite and >= 0, got {temperature}")
    require_key(key)
    ids = validate.array("ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must hold integers, got {ids.dtype}; convert it with .astype(int)")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"ids must be (N, start) with an example and an id at least, got {list(ids.shape)}")
    params, ids = validate.inputs(net, params, ids[:, -length:])
    logits = validate.output(net, params, jnp.zeros((ids.shape[0], length), ids.dtype))
    if logits.ndim != 3 or logits.shape[1] != length:
        gave = f"(N, {length}) becomes {list(logits.shape)}"
        raise ValueError(f"{net} must map ids (N, T) to logits (N, T, vocab) to be sampled from, but {gave}")
    return _sampled(net, params, key, ids, count, length, jnp.asarray(temperature, accumulator(logits.dtype)))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _sampled(
    net: Node, params: Tree, key: PRNGKeyArray, ids: Array, count: int, length: int, temperature: Float[Array, ""]
) -> Array:
    """The loop: a window of `length` ids, `known` of which are known; it moves on by one when it is full."""

    def one(state: tuple[Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array], Array]:
        window, known = state
        logits, _ = forward_sweep(net, params, window, lean=True)
        last = jax.lax.dynamic_index_in_dim(logits, known - 1, axis=1, keepdims=False).astype(temperature.dtype)
        # The largest of logits / temperature + Gumbel noise is drawn from the softmax; times temperature, 0 is allowed.
        noise = jax.random.gumbel(key, last.shape, last.dtype, mode="high")
        drawn = jnp.argmax(last + temperature * noise, axis=-1).astype(window.dtype)
        full = known == length
        window = jnp.where(full, jnp.roll(window, -1, axis=1), window)
        at = jnp.where(full, length - 1, known)
        window = jax.lax.dynamic_update_index_in_dim(window, drawn, at, axis=1)
        return (window, at + 1), drawn

    window = jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    start = window, jnp.asarray(ids.shape[1], "int32")
    _, drawn = jax.lax.scan(one, start, jax.random.split(key, count))
    return drawn.T
