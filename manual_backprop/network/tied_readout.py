"""The readout by an embedding's own table: one W, used at the input and, transposed, at the output."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from manual_backprop import explicit
from manual_backprop.layers.base import AffineLayer, LayerTrace
from manual_backprop.layers.dense import OuterProduct, affine, through
from manual_backprop.layers.embedding import Embedding, Lookup, Table, looked_up
from manual_backprop.layers.factor import Factor
from manual_backprop.node import Composite, Node, Step, Visit, Walk, require_node
from manual_backprop.precision import accumulator
from manual_backprop.types import Flow, Shape, Tree, came, override


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfReadout(Factor):
    """(a, delta) of a readout: their outer product is the gradient of its table.

    Attributes:
        pair: the two, as of a dense layer without bias: an `OuterProduct`, or another factor that takes its place.
    """

    pair: Any

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Table:
        """(B4), summed over examples with `weights`."""
        return Table(self.pair.weighted_sum(weights).W)

    def total(self) -> Table:
        """delta^T a."""
        return Table(self.pair.total().W)

    def per_example(self) -> Table:
        """delta_n^T a_n."""
        return Table(self.pair.per_example().W)

    def squared_norms(self) -> Float[Array, " N"]:
        """As for the pair."""
        return self.pair.squared_norms()

    def tied(self) -> "OfReadout":
        """As for the pair."""
        return OfReadout(self.pair.tied())

    def rows(self, ids: Array) -> Float[Array, "N positions d"]:
        """The rows of every example's gradient at its own ids, sum_s delta_s[id] a_s, in the precision of sums."""
        n, wide = ids.shape[0], accumulator(self.dtype)
        a, delta = (leaf.reshape(n, -1, leaf.shape[-1]) for leaf in (self.pair.a_in, self.pair.delta))
        at_ids = jax.vmap(partial(looked_up, axis=1))(delta, ids.reshape(n, -1))
        return explicit.einsum("nst,nsd->ntd", at_ids.astype(wide), a.astype(wide))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfBoth(Factor):
    """Both uses of one table: its gradient is the sum of theirs, formed before anything is squared."""

    embedding: Lookup
    readout: OfReadout

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Table:
        """The sum of both."""
        return _added(self.embedding.weighted_sum(weights), self.readout.weighted_sum(weights))

    def total(self) -> Table:
        """The sum of both."""
        return _added(self.embedding.total(), self.readout.total())

    def per_example(self) -> Table:
        """The sum of both, for every example."""
        return _added(self.embedding.per_example(), self.readout.per_example())

    def squared_norms(self) -> Float[Array, " N"]:
        """||E||^2 + ||R||^2 + 2 <E, R>, with <E, R> = sum_ts (delta_t . a_s) delta_s[ids_t]: no table is formed."""
        both = self.embedding.products(self.readout.rows(self.embedding.ids))
        return self.embedding.squared_norms() + self.readout.squared_norms() + 2 * both

    def tied(self) -> "OfBoth":
        """Both, over all uses."""
        return OfBoth(self.embedding.tied(), self.readout.tied())


def _added(one: Table, other: Table) -> Table:
    wide = accumulator(one.W.dtype)
    return Table((one.W.astype(wide) + other.W.astype(wide)).astype(one.W.dtype))


@dataclass(frozen=True)
class Readout(AffineLayer):
    """The use of an embedding's table at the output: logits z = W a, one for every id, without bias.

    Attributes:
        embedding: whose W it is.
    """

    embedding: Embedding

    operators = (("×", ("W",)),)

    def __str__(self) -> str:
        return f"Readout({self.embedding.d} -> {self.embedding.vocab}, by the embedding's W)"

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Table:
        """A table, as the embedding draws it."""
        return self.embedding.init(key, dtype)

    def out_shape(self, in_shape: Shape) -> Shape:
        """The last axis d becomes vocab."""
        if not in_shape or in_shape[-1] != self.embedding.d:
            d = self.embedding.d
            raise ValueError(f"{self} takes {d} features on the last axis, got an example of shape {in_shape}")
        return (*in_shape[:-1], self.embedding.vocab)

    def net_input(
        self, params: Table, a_in: Float[Array, "N *positions d"]
    ) -> tuple[Float[Array, "N *positions vocab"], Float[Array, "N *positions d"]]:
        """Net input z = W a (F1): the product of a with every id's row."""
        return affine(params.W, None, a_in), a_in

    def transport(
        self, params: Table, saved: Float[Array, "N *positions d"], delta: Float[Array, "N *positions vocab"]
    ) -> Float[Array, "N *positions d"]:
        """W^T delta."""
        return through(delta, params.W)

    def factor(self, saved: Float[Array, "N *positions d"], delta: Float[Array, "N *positions vocab"]) -> OfReadout:
        """(a, delta)."""
        return OfReadout(OuterProduct(saved, delta, None))

    def pushforward(
        self,
        params: Table,
        saved: Float[Array, "N *positions d"],
        dparams: Table,
        da_in: Float[Array, "N *positions d"],
    ) -> Float[Array, "N *positions vocab"]:
        """Dz = dW a + W da."""
        return affine(dparams.W, None, saved) + affine(params.W, None, da_in)

    def change(
        self,
        params: Table,
        saved: Float[Array, "N *positions d"],
        dparams: Table,
        da_in: Float[Array, "N *positions d"] | None,
        delta: Float[Array, "N *positions vocab"],
    ) -> tuple[Float[Array, "N *positions d"], Factor | None]:
        """V^T delta, and delta R{a}^T."""
        return through(delta, dparams.W), None if da_in is None else OfReadout(OuterProduct(da_in, delta, None))


@dataclass(frozen=True)
class BothUses:
    """Stands in for the embedding and its readout in a walk that reads the parameters and not their uses.

    Attributes:
        uses: the two layers.
    """

    uses: tuple[Embedding, Readout]

    def factor(self, saved: tuple[Array, Array], delta: tuple[Array, Array]) -> OfBoth:
        """The pair of each, as one factor."""
        embedding, readout = self.uses
        return OfBoth(embedding.factor(saved[0], delta[0]), readout.factor(saved[1], delta[1]))

    def require_like_z(self, name: str, value: tuple[Array, Array], trace: LayerTrace) -> None:
        """Refuse deltas that are not of their z's shapes and dtypes.

        Raises:
            ValueError: says both.
        """
        for layer, delta, z in zip(self.uses, value, trace.z, strict=True):
            layer.require_like_z(name, delta, LayerTrace(z, z, ()))


@dataclass(frozen=True)
class TiedReadout(Composite):
    """An embedding, a body, and the embedding's table once more: logits body(embedding(ids)) W^T, with one W.

    Parameters and gradients are the tuple (the embedding's, the body's). The trace and the deltas are of the uses:
    (the embedding's, the body's, the readout's), and the readout's z and a are the logits. The gradient of W is the sum
    over both uses, so a reading first adds up each example's gradient over them, and then squares or multiplies. The
    tying is that of Press and Wolf, arXiv:1608.05859.

    Attributes:
        embedding: whose W it is; ids enter.
        body: maps d features to d features.

    Raises:
        TypeError: an embedding that is none, or a body that is no layer or composite.
    """

    embedding: Embedding
    body: Node

    def __post_init__(self) -> None:
        if not isinstance(self.embedding, Embedding):
            raise TypeError(f"TiedReadout embedding must be an Embedding, whose W is used, got {came(self.embedding)}")
        require_node("TiedReadout", self.body)

    def __str__(self) -> str:
        return f"{self.embedding} > {self.body} > {self.readout}"

    @property
    def readout(self) -> Readout:
        """The second use of W, as a layer."""
        return Readout(self.embedding)

    @property
    def both(self) -> BothUses:
        """The two uses of W together."""
        return BothUses((self.embedding, self.readout))

    @property
    def parts(self) -> tuple[Embedding, Node, Readout]:
        """The layers and the body in turn, as a signal passes them."""
        return self.embedding, self.body, self.readout

    @property
    @override
    def depth(self) -> int:
        return 2 + self.body.depth

    @override
    def forward(self, step: Step, x: Flow, owned: Tree) -> tuple[Flow, Tree]:
        kept = []
        for node, own in zip(self.parts, _by_use(step, owned), strict=True):
            x, of_node = node.forward(step, x, own)
            kept.append(of_node)
        return x, tuple(kept)

    @override
    def backward(self, step: Step, d: Flow, owned: Tree, kept: Tree) -> tuple[Flow, Tree]:
        of_first, of_body, of_last = _by_use(step, owned)
        first, inside, last = kept
        d, at_last = self.readout.backward(step.unread, d, of_last, last)
        d, at_body = self.body.backward(step, d, of_body, inside)
        d, at_first = self.embedding.backward(step.unread, d, of_first, first)
        joined = step.joined(self.both, (first, last), (at_first, at_last))
        return d, (at_first, at_body, at_last) if joined is None else (joined, at_body)

    @override
    def walk(self, visit: Visit, how: Walk, *trees: Tree) -> Tree:
        if not how.of_uses:
            own, body = zip(*trees, strict=True) if trees else ((), ())
            return self.embedding.walk(visit, how, *own), self.body.walk(visit, how, *body)
        by_use = tuple(zip(*trees, strict=True)) if trees else ((), (), ())
        if how.mirrored:
            return tuple(node.walk(visit, how, *each) for node, each in zip(self.parts, by_use, strict=True))
        first, body, last = by_use
        pairs = (jax.tree.map(lambda *uses: uses, *each) for each in zip(first, last, strict=True))
        return visit(self.both, how.uses, *pairs), self.body.walk(visit, how, *body)

    @override
    def keys(self, key: PRNGKeyArray) -> Tree:
        of_table, of_body = jax.random.split(key)
        return self.embedding.keys(of_table), self.body.keys(of_body)


def _by_use(step: Step, owned: Tree) -> tuple[Tree, Tree, Tree]:
    """A tree that mirrors the parameters, by the parts of the network; each use of W gets its own part of the entry."""
    own, of_body = owned
    return step.at_use(own, jnp.asarray(0)), of_body, step.at_use(own, jnp.asarray(1))
