"""The last affine map and softmax cross-entropy in one: the logits of a chunk of rows are all that ever exists.

With V classes and R rows (positions of all examples), the logits and their error terms are two arrays (R, V), often
the largest of a whole step. Here a scan goes through the rows: it makes the logits of a chunk, takes from them the
losses, W^T delta and the chunk's part of dW and db, and forgets them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from manual_backprop import activations, explicit
from manual_backprop.layers.dense import Affine, Dense
from manual_backprop.layers.embedding import Embedding, Lookup, Table
from manual_backprop.losses import SoftmaxCrossEntropy
from manual_backprop.losses.base import sum_outputs
from manual_backprop.network import Readout, Serial, TiedReadout
from manual_backprop.node import Node
from manual_backprop.precision import accumulator
from manual_backprop.shards import zeros_beside
from manual_backprop.types import Tree, override


@dataclass(frozen=True)
class Split:
    """A network as a body and the affine map that makes the logits of its output.

    Attributes:
        body: the network without that map; None where nothing stands before it.
        of_body: takes the body's part out of a tree that mirrors the network's parameters.
        readout: takes the map out of the network's parameters.
        join: (the body's results, of_readout, of_both) -> results in the structure of the network's parameters.
            `of_readout()` is the readout's; where it shares the body's table, `of_both(the table's in the body)` is the
            result for both uses.
        by_table: whether the map's parameters are an embedding's `Table`.
    """

    body: Node | None
    of_body: Callable[[Tree], Tree]
    readout: Callable[[Tree], Affine]
    join: Callable[[Tree, Callable[[], Tree], Callable[[Tree], Tree]], Tree]
    by_table: bool = False

    def joined(self, body: Tree, of_readout: Affine) -> Tree:
        """Gradients of both together."""
        own = Table(of_readout.W) if self.by_table else of_readout
        return self.join(body, lambda: own, lambda table: Table(table.W + of_readout.W))


@singledispatch
def split(net: Node) -> Split | None:
    """A network's body and readout, or None where it does not end in an affine map.

    A composite that ends in an affine map of its own registers here how it is taken apart.
    """
    return None


@split.register
def _(net: Dense) -> Split | None:
    if type(net) is not Dense or net.f != activations.identity:
        return None
    return Split(None, lambda tree: (), lambda params: params, lambda body, own, both: own())


@split.register
def _(net: Readout) -> Split | None:
    return Split(None, lambda tree: (), lambda params: Affine(params.W), lambda body, own, both: own(), by_table=True)


@split.register
def _(net: Serial) -> Split | None:
    last = split(net.nodes[-1])
    if last is None:
        return None
    own = () if last.body is None else (last.body,)  # the part of the last node that belongs to the body
    before = (*net.nodes[:-1], *own)

    def of_body(tree: Tree) -> Tree:
        return (*tree[:-1], *((last.of_body(tree[-1]),) if own else ()))

    def join(body: Tree, of_readout: Callable[[], Tree], of_both: Callable[[Tree], Tree]) -> Tree:
        return (*(body[:-1] if own else body), last.join(body[-1] if own else (), of_readout, of_both))

    body = Serial(before) if before else None
    return Split(body, of_body, lambda params: last.readout(params[-1]), join, last.by_table)


@split.register
def _(net: TiedReadout) -> Split | None:
    if net.embedding.f != activations.identity:
        return None

    def join(body: Tree, of_readout: Callable[[], Tree], of_both: Callable[[Tree], Tree]) -> Tree:
        of_table, of_body = body
        return of_both(of_table), of_body

    first = SharedEmbedding(net.embedding.vocab, net.embedding.d)
    return Split(Serial((first, net.body)), lambda tree: tree, lambda params: Affine(params[0].W), join)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedLookup(Lookup):
    """The pair of an embedding whose table is the readout's too: a reading adds up the two uses first."""


@dataclass(frozen=True)
class SharedEmbedding(Embedding):
    """An embedding whose table is the readout's too."""

    @override
    def factor(self, saved: Array, delta: Array) -> SharedLookup:
        return SharedLookup(saved, delta, self.vocab)


def required_split(net: Node, loss: SoftmaxCrossEntropy) -> Split:
    """The split of a network whose loss asks for chunks.

    Raises:
        ValueError: a network that does not end in an affine map.
    """
    found = split(net)
    if found is None:
        raise ValueError(
            f"{loss} makes logits in chunks, so the network must end in a Dense without activation, but it is {net};"
            " end it in one, or leave out chunk"
        )
    return found


def losses(
    loss: SoftmaxCrossEntropy, readout: Affine, x: Float[Array, "N *positions d"], y: Int[Array, "N *positions"]
) -> Float[Array, " N"]:
    """The loss of every example, summed over its positions, from the rows that enter the readout and their labels."""
    return sum_outputs(explicit.automatic(partial(row_losses, loss), explicit.lies_as(y), readout, x, y))


def losses_and_gradients(
    loss: SoftmaxCrossEntropy,
    readout: Affine,
    x: Float[Array, "N *positions d"],
    y: Int[Array, "N *positions"],
    weights: Float[Array, " N"] | None,
    *,
    weigh_x: bool,
) -> tuple[Float[Array, " N"], Float[Array, "N *positions d"], Affine]:
    """(the loss of every example, dl/dx of every example, and the readout's gradient summed by the weights).

    None is the mean, 1/N each. With `weigh_x`, dl/dx carries the weights too.
    """
    wide = accumulator(x.dtype)
    each = jnp.full(y.shape[:1], 1 / y.shape[0], wide) if weights is None else weights
    per_row = jax.lax.broadcast_in_dim(each, y.shape, (0,))
    values, d_x, total = explicit.automatic(
        partial(row_gradients, loss, weigh_x=weigh_x),
        (*map(explicit.lies_as, (y, x)), jax.tree.map(explicit.lies_as, readout)),
        readout,
        x,
        y,
        per_row,
    )
    return sum_outputs(values), d_x, jax.tree.map(lambda leaf: leaf.astype(x.dtype), total)


Labels = Int[Array, "*rows"]
PerRow = Float[Array, "*rows"]


def row_losses(loss: SoftmaxCrossEntropy, readout: Affine, x: Float[Array, "*rows d"], y: Labels) -> PerRow:
    """The loss of every row, in the precision of sums, by chunks of `loss.chunk` rows."""

    def of_chunk(carry: None, chunk: tuple[Array, ...]) -> tuple[None, Array]:
        rows, labels = chunk
        return None, loss.value(logits(readout, rows), labels)

    _, values = jax.lax.scan(of_chunk, None, _chunks(loss, x, y))
    return _rows(values, y.shape)


def row_gradients(
    loss: SoftmaxCrossEntropy,
    readout: Affine,
    x: Float[Array, "*rows d"],
    y: Labels,
    weights: PerRow,
    *,
    weigh_x: bool = True,
) -> tuple[PerRow, Float[Array, "*rows d"], Affine]:
    """One pass over the rows, three products each: the logits, W^T delta (B2), and delta a^T (B4) with delta (B3).

    The logits and all sums are in float32 or wider: in 16 bits they are not rounded on their way to the loss, as those
    of a `Dense` are. There delta is rounded before it enters the products, as it is in a sweep.

    Args:
        loss: with a chunk.
        readout: W (V, d) and b (V,), or None for no bias.
        x: rows that enter W, (..., d).
        y: their labels.
        weights: one for each row, in the precision of sums.
        weigh_x: whether d loss/dx of a row carries its weight too.

    Returns:
        (the loss of every row; d loss/dx of every row; dW and db, summed over rows by the weights, in the precision of
        sums).
    """
    wide = accumulator(x.dtype)
    # The weights enter with x, of d columns, and not with delta, of V. In 16 bits, 1/N would underflow there: what is
    # common to all enters after the sums.
    common = None if x.dtype == wide else jnp.max(jnp.abs(weights))
    own = weights if common is None else weights / jnp.where(common > 0, common, 1)

    def of_chunk(total: Affine, chunk: tuple[Array, ...]) -> tuple[Affine, tuple[Array, Array]]:
        rows, labels, w = chunk
        o = logits(readout, rows)
        wide_delta = loss.chunk_derivative(o, labels)
        delta = wide_delta.astype(rows.dtype)
        weighted = (w[:, None] * rows.astype(wide)).astype(rows.dtype)
        dW = _plus_product(total.W, delta, weighted)
        db = None if total.b is None else total.b + w @ wide_delta
        d_x = jax.lax.dot_general(delta, readout.W, (((1,), (0,)), ((), ())), preferred_element_type=wide)
        if weigh_x:
            d_x = (w if common is None else common * w)[:, None] * d_x
        return Affine(dW, db), (loss.value(o, labels), d_x.astype(rows.dtype))

    start = jax.tree.map(lambda leaf: zeros_beside((readout, x, y, own), leaf.shape, wide), readout)
    total, (values, d_x) = jax.lax.scan(of_chunk, start, _chunks(loss, x, y, own))
    if common is not None:
        total = jax.tree.map(lambda leaf: common * leaf, total)
    return _rows(values, y.shape), _rows(d_x, x.shape), total


BLOCK = 2**19  # entries of dW that are formed and added at once: 2 MiB in float32, which caches hold


def _plus_product(total: Float[Array, "V d"], delta: Float[Array, "chunk V"], rows: Float[Array, "chunk d"]) -> Array:
    """Total + delta^T rows, in place and by blocks of classes, so that no second array of dW's size is ever made."""
    (classes, d), wide = total.shape, total.dtype
    size = max(1, BLOCK // d)
    blocks = classes // size

    def add(total: Array, start: int | Array, size: int) -> Array:
        part = jax.lax.dynamic_slice_in_dim(delta, start, size, axis=1)
        product = jax.lax.dot_general(part, rows, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        here = jax.lax.dynamic_slice_in_dim(total, start, size)
        return jax.lax.dynamic_update_slice_in_dim(total, here + product, start, axis=0)

    if blocks > 1:
        total = jax.lax.fori_loop(0, blocks, lambda i, total: add(total, i * size, size), total)
    done = blocks * size if blocks > 1 else 0
    return total if done == classes else add(total, done, classes - done)


def logits(readout: Affine, rows: Float[Array, "chunk d"]) -> Float[Array, "chunk V"]:
    """W a + b of every row, in float32 or wider."""
    wide = accumulator(rows.dtype)
    z = jax.lax.dot_general(rows, readout.W, (((1,), (1,)), ((), ())), preferred_element_type=wide)
    return z if readout.b is None else z + jax.lax.broadcast_in_dim(readout.b.astype(wide), z.shape, (1,))


def _chunks(loss: SoftmaxCrossEntropy, x: Array, y: Array, *per_row: Array) -> tuple[Array, ...]:
    """Rows, labels and the like as (chunks, rows of a chunk, ...); rows of zeros fill up the last chunk.

    The chunks are as even as their number allows, so that few rows are added.
    """
    count = y.size
    some = max(1, count)
    number = -(-some // min(loss.chunk or some, some))
    size = -(-some // number)

    def cut(leaf: Array, of_row: tuple[int, ...]) -> Array:
        leaf = leaf.reshape(count, *of_row)
        if missing := number * size - count:
            leaf = jnp.concatenate([leaf, jnp.zeros((missing, *of_row), leaf.dtype)])
        return leaf.reshape(number, size, *of_row)

    return cut(x, x.shape[-1:]), *(cut(leaf, ()) for leaf in (y, *per_row))


def _rows(chunks: Array, shape: tuple[int, ...]) -> Array:
    """The results of all chunks in that shape, without the rows that filled up the last one."""
    of_row = chunks.shape[2:]
    count = math.prod(shape[: len(shape) - len(of_row)])
    return chunks.reshape(-1, *of_row)[:count].reshape(shape)
