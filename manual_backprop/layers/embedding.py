"""The embedding: one row of a table for every integer that enters."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Integer, PRNGKeyArray

from manual_backprop import activations, explicit
from manual_backprop.activations import Activation
from manual_backprop.layers.base import AffineLayer, Parameters, require_widths
from manual_backprop.layers.factor import Factor
from manual_backprop.precision import accumulator
from manual_backprop.types import Flow, Leaf, Shape, Tree, override, values_here


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table(Parameters):
    """Parameters of an embedding, or a gradient with respect to them.

    Attributes:
        W: one row an id, shape (vocab, d). The regulariser counts it, as weight decay does in GPT.
    """

    W: Leaf

    weights = ("W",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lookup(Factor):
    """(ids, delta): dL/dW has delta at position t added to its row ids[t]; a row drawn twice gets the sum.

    An id that is out of range belongs to no row, so nobody knows which row lacks its delta: every gradient and
    reading that it would enter is nan.

    Attributes:
        ids: what entered the layer, shape (N, *positions); positions belong to their example.
        delta: shape (N, *positions, d).
        rows: of the table.
    """

    ids: Leaf
    delta: Leaf
    rows: int = field(metadata={"static": True})

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Table:
        """Delta times its example's weight, added to the rows in float32 or wider."""
        delta = self._delta
        shares = delta / delta.shape[0] if weights is None else delta * weights.reshape(-1, 1, 1)
        return self._table(_scattered(self._ids, shares, self.rows))

    def total(self) -> Table:
        """Every delta, added to its row."""
        return self._table(_scattered(self._ids, self._delta, self.rows))

    def squared_norms(self) -> Float[Array, " N"]:
        """The squares of the rows that an example draws, each row's deltas added up before; no table is formed."""
        return jnp.sum(jnp.square(self._distinct().delta), axis=(1, 2))

    def squared_sum(self, weights: Float[Array, " N"] | None = None) -> Table:
        """The same squares, added to the rows as the deltas are: one table for all examples."""
        distinct = self._distinct()
        return Lookup(distinct.ids, jnp.square(distinct.delta), self.rows).weighted_sum(weights)

    def gram(self, other: Factor) -> Float[Array, "N M"]:
        """sum_ts [ids_t = ids'_s] (delta_t . delta'_s), over both examples' positions; no N tables are formed.

        Where the table has fewer rows than there are pairs of positions, the table of one example of `other` after
        the other is formed instead, and looked up.
        """
        if not isinstance(other, Lookup):
            raise TypeError(f"gram of a Lookup with {type(other).__name__}: both must be of one layer")
        ids = self._ids
        if ids.shape[1] * other._ids.shape[1] <= self.rows:
            same = ids[:, :, None, None] == other._ids[None, None]
            products = explicit.einsum("ntd,msd->ntms", self._delta, other._delta)
            # XLA makes a choice of a product with 0 or 1, so nan for bad ids is added, and does not come from products.
            bad = self._bad[:, None] + other._bad[None]
            return jnp.sum(jnp.where(same, products, 0), axis=(1, 3)) + bad

        def with_one(example: tuple[Array, Array]) -> Array:
            table = _scattered(*example, self.rows)
            return self.products(looked_up(table, ids))

        return jax.lax.map(with_one, (explicit.whole(other._ids, 0), explicit.whole(other._delta, 0))).T

    def tied(self) -> "Lookup":
        """The uses become positions of their example, so rows drawn in several uses are added up."""
        return Lookup(jnp.moveaxis(self.ids, 0, 1), jnp.moveaxis(self.delta, 0, 1), self.rows)

    def products(self, of_rows: Float[Array, "N positions d"]) -> Float[Array, " N"]:
        """<dL_n/dW, V_n> of every example, from the rows V_n[ids] of any table, in the precision of sums."""
        return explicit.einsum("ntd,ntd->n", self._delta, of_rows)

    def _distinct(self) -> "Lookup":
        """The same gradients, with every row drawn once an example: its deltas are added up at one position.

        That is the first of the row's places among the sorted ids; the others get zero.
        """

        def of_example(ids: Array, delta: Array) -> tuple[Array, Array]:
            ordered = jnp.sort(ids)
            return ordered, jnp.zeros_like(delta).at[jnp.searchsorted(ordered, ids)].add(delta)

        ids, delta = self._ids, self._delta
        lies = explicit.lies_as(ids), explicit.lies_as(delta)
        ids, delta = explicit.automatic(jax.vmap(of_example), lies, ids, delta)
        return Lookup(ids, delta, self.rows)

    def _table(self, W: Array) -> Table:
        return Table(W.astype(self.delta.dtype))

    @property
    def _ids(self) -> Integer[Array, "N positions"]:
        return self.ids.reshape(self.ids.shape[0], -1)

    @property
    def _bad(self) -> Float[Array, " N"]:
        """0 for every example, and nan where one of its ids is out of range."""
        good = jnp.all(_in_range(self._ids, self.rows), axis=1)
        return jnp.where(good, 0, jnp.nan).astype(accumulator(self.delta.dtype))

    @property
    def _delta(self) -> Float[Array, "N positions d"]:
        """Delta in the precision of sums, and nan where the id is out of range."""
        delta = self.delta.astype(accumulator(self.delta.dtype)).reshape(*self._ids.shape, self.delta.shape[-1])
        return jnp.where(_in_range(self._ids, self.rows)[..., None], delta, jnp.nan)


def looked_up(table: Array, ids: Integer[Array, "..."], axis: int = 0) -> Array:
    """Rows of a table, or columns; nan for an id that is out of range, never a last row or one counted from there."""

    def drawn(table: Array, ids: Array) -> Array:
        at = table.at[(slice(None),) * axis + (ids,)]
        return at.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    held = explicit.spec(table)
    return explicit.automatic(drawn, PartitionSpec(*held[:axis], *explicit.spec(ids), *held[axis + 1 :]), table, ids)


def _in_range(ids: Array, rows: int) -> Array:
    ids = ids if ids.dtype.itemsize >= 4 else ids.astype(jnp.int32)  # 8 bits may not hold the number of rows
    return (ids >= 0) & (ids < rows)


def _scattered(ids: Array, delta: Array, rows: int) -> Array:
    """A table of zeros, (rows, d), with every delta added to its row; all nan where an id is out of range."""

    def scattered(ids: Array, delta: Array) -> Array:
        blank = jnp.where(jnp.all(_in_range(ids, rows)), 0, jnp.nan).astype(delta.dtype)
        table = jnp.full((rows, delta.shape[-1]), blank)
        return table.at[ids].add(delta, mode="drop", wrap_negative_indices=False)

    return explicit.automatic(scattered, PartitionSpec(None, explicit.spec(delta)[-1]), ids, delta)


@dataclass(frozen=True)
class Embedding(AffineLayer):
    """A table of vectors, z = W[ids]: integers (N, *positions) enter, a = f(z) is (N, *positions, d).

    It is the product of W^T with one-hot rows, which are never formed. Where ids are known, one that is out of range
    is refused; under jit its z is nan. Nothing is clamped, and no negative id counts from the end. Nothing is
    transported below, since integers do not change.

    Attributes:
        vocab: how many ids there are: 0 to vocab - 1.
        d: how many features each gets.
        activation: f, a name or a row of `activations`.

    Raises:
        ValueError: a vocab or d below 1, or an unknown activation.
    """

    vocab: int
    d: int
    activation: Activation | str = "identity"

    takes_integers = True
    inputs = ("ids",)
    local_derivatives = MappingProxyType({"W": "onehot({ids})^T"})

    def __post_init__(self) -> None:
        require_widths(self, "vocab", "d")
        object.__setattr__(self, "activation", activations.get(self.activation))

    def init(self, key: PRNGKeyArray, dtype: DTypeLike | None = None) -> Table:
        """Normal entries of variance 1/d, so that a row has a norm of about 1 (the default of flax's Embed)."""
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        return Table(jax.random.normal(key, (self.vocab, self.d), dtype) / jnp.sqrt(jnp.asarray(self.d, dtype)))

    def out_shape(self, in_shape: Shape) -> Shape:
        """The positions, and d features of each."""
        return (*in_shape, self.d)

    @override
    def check_input(self, a_in: Flow) -> None:
        """Refuse anything but ids in range; those that are being traced have no values to look at.

        Raises:
            TypeError: no integers.
            ValueError: an id out of range.
        """
        if isinstance(a_in, tuple) or not jnp.issubdtype(a_in.dtype, jnp.integer):
            what = f"{len(a_in)} inputs" if isinstance(a_in, tuple) else a_in.dtype
            raise TypeError(
                f"{self} takes integer ids, got {what}; convert ids with .astype(int), and give features to a Dense"
            )
        if isinstance(a_in, jax.core.Tracer | jax.ShapeDtypeStruct):
            return
        ids = values_here(a_in)
        if not ((ids >= 0) & (ids < self.vocab)).all():
            raise ValueError(
                f"{self}: ids must lie in 0..{self.vocab - 1}, got {ids.min()} to {ids.max()}; give padding an id of"
                " its own, and leave it out by a weight or in the loss"
            )

    @override
    def tensor_specs(self, params: Table, axis: str, parts: int, entered: Any) -> tuple[bool, Table | None]:
        """By ids: each device looks up those that it holds, and one sum over devices makes rows whole."""
        return False, None if self.vocab % parts else Table(PartitionSpec(axis))

    def net_input(
        self, params: Table, a_in: Integer[Array, "N *positions"]
    ) -> tuple[Float[Array, "N *positions d"], Integer[Array, "N *positions"]]:
        """Net input z = W[ids] (F1); the ids are all that the transposes need."""
        return looked_up(params.W, a_in), a_in

    def transport(self, params: Table, saved: Tree, delta: Float[Array, "N *positions d"]) -> None:
        """None: ids are integers."""
        return None

    def factor(self, saved: Integer[Array, "N *positions"], delta: Float[Array, "N *positions d"]) -> Lookup:
        """(ids, delta)."""
        return Lookup(saved, delta, self.vocab)

    def pushforward(
        self, params: Table, saved: Integer[Array, "N *positions"], dparams: Table, da_in: None
    ) -> Float[Array, "N *positions d"]:
        """Dz = dW[ids]."""
        return looked_up(dparams.W, saved)
