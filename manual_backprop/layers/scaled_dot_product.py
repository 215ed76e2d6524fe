"""Attention on arrays whose heads stand in front: softmax(q k^T) v, its transpose, its tangent, and their change.

Queries are taken in spans. A causal span sees the keys up to its own end, so the scores beyond are never computed. With
a block, a span's rows are taken so many at a time, the log of each row's sum is kept in place of its weights P, and
nothing of size T x T is ever made (Dao et al., arXiv:2205.14135). Without one, the exponentials of the scores are kept,
one array: P is their share of a row's sum, which is multiplied into the narrower g on the way back.

Shapes: q (N, K, G, T, size) for G queries to each of K key heads; k (N, K, S, size); v (N, K, S, width); a row is a
position of a query. Scores, sums and P's derivatives are in float32 or wider.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from manual_backprop import explicit
from manual_backprop.precision import accumulator
from manual_backprop.shards import zeros_beside

Queries = Float[Array, "N K G T size"]
Keys = Float[Array, "N K S size"]
Values = Float[Array, "N K S width"]
Outputs = Float[Array, "N K G T width"]
Along = Float[Array, "N K G T 1"]
Present = Bool[Array, "N S"] | None
Kept = tuple[tuple[Array, ...], ...]
"""For every span of R rows: e = exp(S - max S) (N, K, G, R, keys), and the share (N, K, G, R, 1) by which its rows are
P; in 16 bits P itself; in blocks the log of each row's sum (N, K, G, R, 1)."""

SPANS = 4  # a causal span computes 5/8 of all scores, and 1/2 is what is needed
ROWS = 32  # a span has at least as many


@dataclass(frozen=True)
class Plan:
    """Which keys a query sees, and how many rows are computed at a time.

    Attributes:
        causal: whether position t sees the positions up to t alone; then S = T.
        block: rows at a time, or None for all rows of a span, whose P is then kept.
    """

    causal: bool
    block: int | None

    def spans(self, rows: int, keys: int) -> Iterator[tuple[int, int, int]]:
        """(first row, rows, keys) of every span."""
        count = min(SPANS, rows // max(ROWS, self.block or 1)) if self.causal else 1
        step = -(-rows // max(1, count))
        if self.block is not None:
            step = -(-step // self.block) * self.block
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield first, last - first, last if self.causal else keys


Work = Callable[..., tuple[Any, tuple[Array, ...]]]
"""(carry, first row, number of keys, rows of each array) -> (carry, rows of each result)."""


def attend(plan: Plan, q: Queries, k: Keys, v: Values, present: Present = None) -> tuple[Outputs, Kept]:
    """(o = P v, what is kept of P = softmax(q k^T)); a row that sees no key is zero.

    Args:
        plan: which keys a query sees.
        q: queries, times the scale.
        k: keys.
        v: values.
        present: the keys that are there, for every example; None is all.
    """

    def work(carry: None, first: Any, keys: int, q: Array) -> tuple[None, tuple[Array, ...]]:
        s = _scores(plan, first, q, k[:, :, :keys], present)
        largest = jnp.max(s, axis=-1, keepdims=True)
        e = jnp.exp(s - jnp.where(largest == -jnp.inf, 0, largest))
        total = jnp.sum(e, axis=-1, keepdims=True)
        seen = jnp.where(total == 0, 1, total)
        if plan.block is None and e.dtype != v.dtype:  # g times a share would underflow in 16 bits
            P = (e / seen).astype(v.dtype)
            return None, (_rows_of_values(P, v[:, :, :keys]).astype(v.dtype), P)
        o = (_rows_of_values(e.astype(v.dtype), v[:, :, :keys]) / seen).astype(v.dtype)
        if plan.block is None:
            return None, (o, e, 1 / seen)
        return None, (o, jnp.where(total == 0, 0, largest + jnp.log(seen)))

    _, (o, *kept) = _over_rows(plan, k.shape[2], work, None, (q,))
    return _joined(o), tuple(zip(*kept, strict=True))


def attend_transposed(
    plan: Plan,
    q: Queries,
    k: Keys,
    v: Values,
    present: Present,
    kept: Kept,
    g: Outputs,
    along: Along,
) -> tuple[Queries, Keys, Values]:
    """(dL/dq, dL/dk, dL/dv) from g = dL/do: with dP = g v^T, dS = P * (dP - g . o).

    `along` is g . o of every row. It is the row's sum of P * dP, so softmax's Jacobian is never formed.
    """

    def work(sums: Any, first: Any, keys: int, *rows: Array) -> tuple[Any, tuple[Array]]:
        q, g, along, *of_rows = rows
        P, share = _weights(plan, first, q, k[:, :, :keys], present, of_rows)
        if share is not None:
            g, along = g * share, along * share
        dS = (_wide(P) * (_scores_of(g, v[:, :, :keys]) - along)).astype(k.dtype)
        dq = _rows_of_values(dS, k[:, :, :keys]).astype(q.dtype)
        return _added(sums, (_rows_into(dS, q), _rows_into(P, g))), (dq,)

    (dk, dv), (dq,) = _over_rows(plan, k.shape[2], work, _no_sums(g, k, v), (q, g, along), kept)
    return _joined(dq), dk.astype(k.dtype), dv.astype(v.dtype)


def attend_pushforward(
    plan: Plan, q: Queries, k: Keys, v: Values, present: Present, kept: Kept, dq: Queries, dk: Keys, dv: Values
) -> Outputs:
    """Do along (dq, dk, dv): Do = DP v + P dv, DP = P * (DS - rowsum(P * DS)), DS = dq k^T + q dk^T."""

    def work(carry: None, first: Any, keys: int, *rows: Array) -> tuple[None, tuple[Array]]:
        q, dq, *of_rows = rows
        P = _shared(_weights(plan, first, q, k[:, :, :keys], present, of_rows))
        DP = _changed_weights(P, q, k[:, :, :keys], dq, dk[:, :, :keys])
        Do = _rows_of_values(DP.astype(v.dtype), v[:, :, :keys]) + _rows_of_values(P, dv[:, :, :keys])
        return None, (Do.astype(v.dtype),)

    _, (Do,) = _over_rows(plan, k.shape[2], work, None, (q, dq), kept)
    return _joined(Do)


def attend_change(
    plan: Plan,
    q: Queries,
    k: Keys,
    v: Values,
    present: Present,
    kept: Kept,
    dq: Queries,
    dk: Keys,
    dv: Values,
    g: Outputs,
) -> tuple[Queries, Keys, Values]:
    """The change of `attend_transposed` along (dq, dk, dv) at a fixed g, term by term."""

    def work(sums: Any, first: Any, keys: int, *rows: Array) -> tuple[Any, tuple[Array]]:
        q, dq, g, *of_rows = rows
        ks, dks, vs, dvs = (part[:, :, :keys] for part in (k, dk, v, dv))
        P = _shared(_weights(plan, first, q, ks, present, of_rows))
        DP = _changed_weights(P, q, ks, dq, dks)
        P_wide, dP, DdP = _wide(P), _scores_of(g, vs), _scores_of(g, dvs)
        excess = dP - jnp.sum(P_wide * dP, axis=-1, keepdims=True)
        moved = DdP - jnp.sum(DP * dP + P_wide * DdP, axis=-1, keepdims=True)
        dS, DdS = ((P_wide * excess).astype(k.dtype), (DP * excess + P_wide * moved).astype(k.dtype))
        of_q = _rows_of_values(DdS, ks) + _rows_of_values(dS, dks)
        of_k = _rows_into(DdS, q) + _rows_into(dS, dq)
        return _added(sums, (of_k, _rows_into(DP.astype(v.dtype), g))), (of_q.astype(q.dtype),)

    (of_k, of_v), (of_q,) = _over_rows(plan, k.shape[2], work, _no_sums(g, k, v), (q, dq, g), kept)
    return _joined(of_q), of_k.astype(k.dtype), of_v.astype(v.dtype)


# ---- rows --------------------------------------------------------------------------------------------------------


def _scores(plan: Plan, first: Any, q: Array, k: Array, present: Present) -> Array:
    """S = q k^T for some rows, -inf where a row does not see a key."""
    s = _scores_of(q, k)
    rows, keys = s.shape[-2:]
    if plan.causal:
        seen = jnp.arange(keys)[None] <= (first + jnp.arange(rows))[:, None]
        s = jnp.where(seen.reshape(1, 1, 1, rows, keys), s, -jnp.inf)
    if present is not None:
        s = jnp.where(present[:, None, None, None, :keys], s, -jnp.inf)
    return s


def _weights(
    plan: Plan, first: Any, q: Array, k: Array, present: Present, kept: Sequence[Array]
) -> tuple[Array, Array | None]:
    """P for some rows, or exponentials and each row's share: as kept, or by the log of each row's sum (see `Kept`)."""
    if plan.block is None:
        return kept[0], kept[1] if len(kept) > 1 else None
    return jnp.exp(_scores(plan, first, q, k, present) - kept[0]).astype(k.dtype), None


def _shared(weights: tuple[Array, Array | None]) -> Array:
    """P."""
    P, share = weights
    return P if share is None else P * share


def _changed_weights(P: Array, q: Array, k: Array, dq: Array, dk: Array) -> Array:
    """DP = P * (DS - rowsum(P * DS)): softmax's Jacobian, which is symmetric, times DS."""
    P, DS = _wide(P), _scores_of(dq, k) + _scores_of(q, dk)
    return P * (DS - jnp.sum(P * DS, axis=-1, keepdims=True))


def _scores_of(rows: Array, k: Array) -> Array:
    """Products of rows with every key, S = rows k^T."""
    return _as_rows(jax.lax.dot_general(_flat(rows), k, (((3,), (3,)), ((0, 1), (0, 1))), **_sums(k)), rows)


def _rows_of_values(P: Array, v: Array) -> Array:
    """Sums of values by their weights, P v."""
    return _as_rows(jax.lax.dot_general(_flat(P), v, (((3,), (2,)), ((0, 1), (0, 1))), **_sums(v)), P)


def _rows_into(P: Array, rows: Array) -> Array:
    """P^T rows, summed over the queries that share a key."""
    return jax.lax.dot_general(_flat(P), _flat(rows), (((2,), (2,)), ((0, 1), (0, 1))), **_sums(rows))


def _flat(rows: Array) -> Array:
    """(N, K, G, R, d) -> (N, K, G R, d). XLA would copy P, turned round, to sum along two of its axes."""
    return jax.lax.collapse(rows, 2, 4)


def _as_rows(flat: Array, like: Array) -> Array:
    return flat.reshape(*like.shape[:4], flat.shape[-1])


def _sums(operand: Array) -> dict[str, Any]:
    return {"preferred_element_type": accumulator(operand.dtype)}


def _wide(values: Array) -> Array:
    return values.astype(accumulator(values.dtype))


def _no_sums(g: Array, k: Array, v: Array) -> tuple[Array, ...]:
    """Zeros in the shapes of k and v, to begin sums over rows with."""
    zeros = (zeros_beside((g, k, v), each.shape, accumulator(each.dtype)) for each in (k, v))
    return explicit.like((k, v), tuple(zeros))


def _added(sums: tuple[Array, ...], terms: tuple[Array, ...]) -> tuple[Array, ...]:
    """Add terms of the first keys to sums over all keys."""

    def one(total: Array, term: Array) -> Array:
        keys = term.shape[2]
        if keys == total.shape[2]:
            return total + term
        return jax.lax.dynamic_update_slice_in_dim(total, total[:, :, :keys] + term, 0, axis=2)

    return tuple(map(one, sums, terms))


def _over_rows(
    plan: Plan, keys: int, work: Work, carry: Any, rows: tuple[Array, ...], kept: Kept | None = None
) -> tuple[Any, tuple[tuple[Array, ...], ...]]:
    """Run `work` over all rows, span by span and block by block: its last carry, and each of its results by span."""
    found = []
    for i, (first, count, seen) in enumerate(plan.spans(rows[0].shape[3], keys)):
        own = [jax.lax.slice_in_dim(array, first, first + count, axis=3) for array in rows]
        own += [] if kept is None else kept[i]
        if plan.block is None or count <= plan.block:
            carry, results = work(carry, first, seen, *own)
        else:
            carry, results = _over_blocks(plan.block, work, carry, first, seen, own)
        found.append(results)
    return carry, tuple(zip(*found, strict=True))


def _over_blocks(
    block: int, work: Work, carry: Any, first: int, keys: int, rows: list[Array]
) -> tuple[Any, tuple[Array, ...]]:
    """Run `work` over the blocks of a span. The last is filled up with rows of zeros, which add nothing to a sum."""
    count = rows[0].shape[3]
    blocks = -(-count // block)

    def cut(array: Array) -> Array:
        filled = jnp.pad(array, ((0, 0),) * 3 + ((0, blocks * block - count), (0, 0)))
        return jnp.moveaxis(filled.reshape(*array.shape[:3], blocks, block, array.shape[-1]), 3, 0)

    def one(carry: Any, of_block: tuple[Array, list[Array]]) -> tuple[Any, tuple[Array, ...]]:
        i, own = of_block
        return work(carry, first + i * block, keys, *own)

    carry, results = jax.lax.scan(one, carry, (jnp.arange(blocks), [cut(array) for array in rows]))

    def put_together(stack: Array) -> Array:
        joined = jnp.moveaxis(stack, 0, 3)
        return joined.reshape(*joined.shape[:3], blocks * block, joined.shape[-1])[:, :, :, :count]

    return carry, tuple(map(put_together, results))


def _joined(spans: tuple[Array, ...]) -> Array:
    return spans[0] if len(spans) == 1 else jnp.concatenate(spans, axis=3)
