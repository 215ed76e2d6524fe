"""The readout's pair (a, delta) where the logits never exist at once: delta is made again, chunk by chunk.

Every reading goes through the examples in groups whose rows fill a chunk. Where one example has more rows than that,
its gradient is formed from its chunks, and the reading is taken from the gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from manual_backprop.layers.dense import Affine, OuterProduct
from manual_backprop.layers.embedding import looked_up
from manual_backprop.layers.factor import Factor
from manual_backprop.losses import SoftmaxCrossEntropy
from manual_backprop.network.tied_readout import OfReadout
from manual_backprop.precision import accumulator
from manual_backprop.readout import logits, losses_and_gradients, row_gradients
from manual_backprop.shards import zeros_beside
from manual_backprop.types import Leaf, Tree

Read = Callable[..., Tree]  # of a group's factor, and what stands beside the group's examples


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Formed(Factor):
    """The examples' gradients themselves, with N in front of every leaf, in the precision of sums."""

    gradients: Affine

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """Summed over examples with `weights`."""
        each = jnp.full(self.examples, 1 / self.examples, self.dtype) if weights is None else weights
        return jax.tree.map(lambda leaf: jnp.tensordot(each, leaf, 1), self.gradients)

    def per_example(self) -> Affine:
        """As they are."""
        return self.gradients


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfRows(Factor):
    """(a, delta) of a readout under softmax cross-entropy with a chunk, with delta = loss'(W a + b) never kept.

    Attributes:
        a_in: what entered the readout, shape (N, *positions, d).
        y: labels, shape (N, *positions).
        readout: W and b.
        loss: with a chunk.
    """

    a_in: Leaf
    y: Leaf
    readout: Affine
    loss: SoftmaxCrossEntropy = field(metadata={"static": True})

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """(B4) and (B3), summed over examples with `weights`, by chunks of rows."""
        return losses_and_gradients(self.loss, self.readout, self.a_in, self.y, weights, weigh_x=False)[2]

    def per_example(self) -> Affine:
        """delta_n a_n^T and delta_n, summed over positions."""
        return jax.tree.map(lambda g: g.astype(self.dtype), self._each(lambda pair: pair.per_example()))

    def squared_norms(self) -> Float[Array, " N"]:
        """As of a dense layer, for one group of examples after the other."""
        return self._each(lambda pair: pair.squared_norms())

    def squared_sum(self, weights: Float[Array, " N"] | None = None) -> Affine:
        """The same, added up over the groups."""
        wide = accumulator(self.dtype)
        each = jnp.full(self.examples, 1 / self.examples, wide) if weights is None else weights

        def add(total: Affine, group: tuple[Array, ...]) -> tuple[Affine, None]:
            a, y, w = group
            return jax.tree.map(jnp.add, total, self._pair(a, y).squared_sum(w)), None

        start = jax.tree.map(lambda leaf: zeros_beside(self, leaf.shape, wide), self.readout)
        return jax.lax.scan(add, start, self._groups(each))[0]

    def gram(self, other: Factor) -> Float[Array, "N M"]:
        """Every group with every group of the other, whose deltas are made again for each of these groups."""
        if not isinstance(other, OfRows):
            raise TypeError(f"gram of an OfRows with {type(other).__name__}: both must be of one layer")
        return self._each(lambda mine: other._each(lambda theirs: _gram(theirs, mine)).T)

    def rows(self, ids: Integer[Array, "N *positions"]) -> Float[Array, "N positions d"]:
        """The rows of every example's dL/dW at its own ids, in the precision of sums."""
        return self._each(_rows_at, ids.reshape(self.examples, -1))

    @property
    def _positions(self) -> int:
        return math.prod(self.y.shape[1:])

    def _pair(self, a: Array, y: Array) -> Factor:
        """The factor of a group of examples, whose logits exist meanwhile, or the gradient of one that is too large."""
        if self._positions > self._chunk:
            _, _, one = row_gradients(self.loss, self.readout, a, y, jnp.ones(y.shape, accumulator(a.dtype)))
            return Formed(jax.tree.map(lambda leaf: leaf[None], one))
        rows = a.reshape(-1, a.shape[-1])
        delta = self.loss.chunk_derivative(logits(self.readout, rows), y.reshape(-1)).astype(a.dtype)
        return OuterProduct(a, delta.reshape(*a.shape[:-1], -1), None if self.readout.b is None else 1)

    def _each(self, read: Read, *beside: Array) -> Tree:
        """A reading of every example, from its group's factor and from the group's part of what stands beside."""
        found = jax.lax.map(lambda group: read(self._pair(*group[:2]), *group[2:]), self._groups(*beside))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: self.examples], found)

    def _groups(self, *beside: Array) -> tuple[Array, ...]:
        """The rows, the labels and more as (groups, examples of a group, ...); zeros fill up the last group."""
        n = self.examples
        number = -(-n // max(1, self._chunk // max(1, self._positions)))
        size = -(-n // number)

        def cut(leaf: Array) -> Array:
            filled = jnp.pad(leaf, ((0, number * size - n), *((0, 0),) * (leaf.ndim - 1)))
            return filled.reshape(number, size, *leaf.shape[1:])

        return tuple(cut(leaf) for leaf in (self.a_in, self.y, *beside))

    @property
    def _chunk(self) -> int:
        return self.loss.chunk or self.y.size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfTiedRows(OfReadout):
    """The same for a readout by an embedding's table; the pair is an `OfRows`."""

    def rows(self, ids: Array) -> Float[Array, "N positions d"]:
        """Those of the pair."""
        return self.pair.rows(ids)


def _gram(one: Factor, other: Factor) -> Array:
    return one.gram(other) if type(one) is type(other) else Factor.gram(one, other)


def _rows_at(pair: Factor, ids: Array) -> Array:
    if isinstance(pair, Formed):
        return jax.vmap(looked_up)(pair.gradients.W, ids)
    return OfReadout(pair).rows(ids)
