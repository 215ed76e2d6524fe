"""The masks of dropout, drawn a second time: the reference is given them as data, so rounding cannot change them.

The keys are laid out anew from what the composites say of them: split among the nodes of a composite and the blocks of
a `Repeat`, and with the number of the use folded in for a block that is used several times.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.layers import Drawn, Dropout
from manual_backprop.network import Repeat, Tied, TiedReadout
from manual_backprop.node import Branches, Node, Wrapper
from reference import model

Tree = Any


def masks(net: Node, params: Tree, x: Any, key: Any) -> Tree:
    """The mask of every use of a `Dropout`, True where an entry is kept, and () for other layers.

    Args:
        net: a layer or composite.
        params: its parameters, which give the shapes.
        x: a batch.
        key: as `manual_backprop.backprop` takes it.

    Returns:
        A tree that mirrors the uses, as a trace does; None without a key, or where nothing draws.
    """
    if key is None or not any(isinstance(layer, Dropout) and layer.rate for layer in net.layers()):
        return None

    def at(layer: Any, x: Any, own: Any, key: Any) -> tuple[Any, Any]:
        mask = of_layer(layer, key, x.shape) if isinstance(layer, Dropout) and layer.rate else ()
        return model.unprobed(layer, x, own, mask)[0], mask

    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    keys = keys_of_uses(net, key)
    return jax.jit(lambda *data: model.through(net, at, *data, keys)[1])(x, params)  # of the forward, shapes alone


def of_layer(layer: Dropout, key: Any, shape: tuple[int, ...]) -> Array:
    """The mask of one use of a `Dropout`: the draw of jax.random.bernoulli in float32, with x64 and without it."""
    return jax.random.bernoulli(key, np.float32(1 - layer.rate), shape)


@model.apply.register
def _(layer: Drawn, params: tuple[()], a_in: Array) -> Array:
    return model.apply(Dropout(layer.rate), of_layer(layer, layer.key, a_in.shape), a_in)


def keys_of_uses(node: Node, key: Any, uses: tuple[Any, ...] = ()) -> Tree:
    """A key for every use of every layer; `uses` are the numbers of the uses of the blocks around it, outermost first.

    Raises:
        TypeError: a composite of an unknown kind.
    """
    if isinstance(node, Branches):
        each = zip(node.nodes, jax.random.split(key, len(node.nodes)), strict=True)
        return tuple(keys_of_uses(child, own, uses) for child, own in each)
    if isinstance(node, TiedReadout):
        of_table, of_body = jax.random.split(key)
        numbered = zip(node.parts, (of_table, of_body, of_table), ((0,), (), (1,)), strict=True)
        return tuple(keys_of_uses(part, own, (*uses, *use)) for part, own, use in numbered)
    if isinstance(node, Repeat):
        return jax.vmap(partial(keys_of_uses, node.block, uses=uses))(jax.random.split(key, node.n))
    if isinstance(node, Tied):
        return jax.vmap(lambda use: keys_of_uses(node.block, key, (*uses, use)))(jnp.arange(node.n))
    if isinstance(node, Wrapper):
        return keys_of_uses(node.block, key, uses)
    if isinstance(node, Node) and not hasattr(node, "draws"):
        raise TypeError(f"how {type(node).__name__} splits a key is not known")
    for use in uses:
        key = jax.random.fold_in(key, use)
    return key
