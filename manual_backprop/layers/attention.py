"""Scaled dot-product attention over (q, k, v), with its transpose by hand, kept whole or in blocks of queries."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import explicit
from manual_backprop.layers.base import ParameterFree
from manual_backprop.layers.rotary import rotated
from manual_backprop.layers.scaled_dot_product import (
    Kept,
    Plan,
    attend,
    attend_change,
    attend_pushforward,
    attend_transposed,
)
from manual_backprop.precision import accumulator
from manual_backprop.types import Shape, came, override

Inputs = tuple[Any, ...]
"""(q, k, v), or with a mask of the keys that are there (q, k, v, present)."""


class Saved(NamedTuple):
    """The values of attention that its transposes need.

    Attributes:
        q: queries by head, turned and times 1/sqrt(size).
        k: keys by head, turned.
        v: values by head.
        present: the mask of keys that came with them, or None.
        o: the output.
        kept: what gives P again, for every span of rows.
    """

    q: Array
    k: Array
    v: Array
    present: Array | None
    o: Array
    kept: Kept


@dataclass(frozen=True)
class Attention(ParameterFree):
    """o = softmax(q k^T / sqrt(size)) v for every head (Vaswani et al., arXiv:1706.03762), from q, k and v.

    q is (N, T, heads * size), k is (N, S, kv_heads * size), v is (N, S, kv_heads * width), and o is
    (N, T, heads * width). With `Parallel` in front, these are three projections of one signal. A fourth input, a mask
    (N, S) of booleans, says which keys are there; a query that sees none gets zeros.

    Attributes:
        heads: of the queries.
        kv_heads: of the keys and values; each serves heads / kv_heads queries (Ainslie et al., arXiv:2305.13245).
            None is as many as heads.
        causal: whether position t sees the positions up to t alone.
        rope: base of the angles by which q and k are turned (Su et al., arXiv:2104.09864), such as 10000.0; None turns
            nothing.
        block: rows of queries that are computed at a time. Nothing of size T x S is then made or kept, forward or
            backward, and the weights are computed again on the way back (Dao et al., arXiv:2205.14135); T may be any
            number. None keeps the weights, which is faster for short sequences.

    Raises:
        ValueError: heads below 1, kv_heads that do not divide heads, a block below 1, or a rope that is not above 1.
        TypeError: anything but numbers for these, or a causal that is no bool.
    """

    heads: int
    kv_heads: int | None = None
    causal: bool = True
    rope: float | None = None
    block: int | None = None

    inputs = ("q", "k", "v")
    takes_integers = True  # the mask
    local_derivatives = MappingProxyType({"q": "do/dq", "k": "do/dk", "v": "do/dv"})

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "block"):
            value = getattr(self, name)
            if value is None and name != "heads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Attention {name} must be an int >= 1, got {value!r}")
        if self.heads % self._kv_heads:
            raise ValueError(f"Attention kv_heads must divide heads = {self.heads}, got {self.kv_heads}")
        if not isinstance(self.causal, bool):
            raise TypeError(f"Attention causal must be True or False, got {came(self.causal)}")
        if self.rope is not None and (isinstance(self.rope, bool) or not isinstance(self.rope, int | float)):
            raise TypeError(f"Attention rope must be a number, the base of the angles, or None, got {came(self.rope)}")
        if self.rope is not None and not self.rope > 1:
            raise ValueError(f"Attention rope must be above 1, such as 10000.0, got {self.rope}")

    def __str__(self) -> str:
        said = [f"{self.heads} heads"]
        said += [f"{self.kv_heads} of keys"] if self.kv_heads is not None else []
        said += ["causal"] if self.causal else []
        said += [f"rope {self.rope:g}"] if self.rope is not None else []
        said += [f"blocks of {self.block}"] if self.block is not None else []
        return f"Attention({', '.join(said)})"

    @override
    def out_shape(self, in_shape: Shape) -> Shape:
        """(T, heads * width), from (T, heads * size), (S, kv_heads * size) and (S, kv_heads * width)."""
        parts = in_shape if in_shape and isinstance(in_shape[0], tuple) else ()
        if len(parts) not in (3, 4) or any(len(part) != 2 for part in parts[:3]):
            raise ValueError(
                f"{self} takes (q, k, v), each (N, positions, features), or (q, k, v, present) with a mask (N,"
                f" positions) of the keys that are there; got an example of shapes {in_shape}"
            )
        (rows, d_q), (keys, d_k), (positions, d_v) = parts[:3]
        self._require_heads("q", d_q, self.heads)
        self._require_heads("k", d_k, self._kv_heads)
        self._require_heads("v", d_v, self._kv_heads)
        if d_q // self.heads != d_k // self._kv_heads:
            raise ValueError(
                f"{self}: a head of q has {d_q // self.heads} features and one of k {d_k // self._kv_heads}; their"
                " product needs as many"
            )
        if keys != positions or (self.causal and rows != keys):
            same = "q, k and v of a causal attention" if self.causal else "k and v"
            raise ValueError(f"{self}: {same} must have as many positions, got {rows}, {keys} and {positions}")
        if self.rope is not None and d_q // self.heads % 2:
            raise ValueError(f"{self} turns pairs of features, but a head has {d_q // self.heads}, an odd number")
        if len(parts) == 4 and parts[3] != (keys,):
            raise ValueError(f"{self}: the mask of an example is {parts[3]}, expected ({keys},): one for each key")
        return rows, d_v // self._kv_heads * self.heads

    def _require_heads(self, name: str, features: int, heads: int) -> None:
        if features % heads:
            raise ValueError(f"{self}: {name} has {features} features, which {heads} heads do not divide")

    @property
    def _kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def _plan(self) -> Plan:
        return Plan(self.causal, self.block)

    @override
    def tensor_specs(self, params: tuple[()], axis: str, parts: int, entered: Any) -> tuple[bool, None]:
        """By heads, where the parts divide those of the queries and those of the keys."""
        by_heads = isinstance(entered, tuple) and all(entered[:3])
        return by_heads and self.heads % parts == 0 and self._kv_heads % parts == 0, None

    @override
    def net_input(self, params: tuple[()], a_in: Inputs) -> tuple[Float[Array, "N T features"], Saved]:
        """o, with no T x S array but P, and in blocks not even that."""
        present = self._present(a_in)
        q, k, v = self._entered(a_in)
        o, kept = attend(self._plan, q, k, v, present)
        merged = self._merged(o)
        return merged, Saved(q, k, v, present, merged, kept)

    @override
    def transport(self, params: tuple[()], saved: Saved, delta: Float[Array, "N T features"]) -> Inputs:
        """(dL/dq, dL/dk, dL/dv): softmax's Jacobian is never formed, since delta . o is its part along each row."""
        q, k, v, present, o, kept = saved
        products = delta.astype(accumulator(delta.dtype)) * o.astype(accumulator(o.dtype))
        along = jnp.sum(self._queries(products), axis=-1, keepdims=True)
        d_heads = attend_transposed(self._plan, q, k, v, present, kept, self._queries(delta), along)
        return self._left(d_heads, present)

    @override
    def pushforward(
        self, params: tuple[()], saved: Saved, dparams: tuple[()], da_in: Inputs
    ) -> Float[Array, "N T features"]:
        """Do along (dq, dk, dv)."""
        q, k, v, present, _, kept = saved
        return self._merged(attend_pushforward(self._plan, q, k, v, present, kept, *self._entered(da_in)))

    @override
    def change(
        self, params: tuple[()], saved: Saved, dparams: tuple[()], da_in: Inputs, delta: Float[Array, "N T features"]
    ) -> tuple[Inputs, None]:
        """The change of `transport` along (dq, dk, dv) at a fixed delta."""
        q, k, v, present, _, kept = saved
        entered, g = self._entered(da_in), self._queries(delta)
        return self._left(attend_change(self._plan, q, k, v, present, kept, *entered, g), present), None

    def _present(self, a_in: Inputs) -> Array | None:
        if len(a_in) == 3:
            return None
        if not jnp.issubdtype(a_in[3].dtype, jnp.bool_):
            raise TypeError(f"{self}: the mask must hold booleans, True for a key that is there, got {a_in[3].dtype}")
        return a_in[3]

    def _entered(self, a_in: Inputs) -> tuple[Array, Array, Array]:
        """q, k and v by head; q and k are turned, and q is scaled. It is linear, so a change enters likewise."""
        q, k, v = self._queries(a_in[0]), self._by_head(a_in[1], self._kv_heads), self._by_head(a_in[2], self._kv_heads)
        return self._turned(q) * self._scale(q), self._turned(k), v

    def _left(self, d_heads: tuple[Array, Array, Array], present: Array | None) -> Inputs:
        """The transpose of `_entered`; to a mask nothing goes."""
        dq, dk, dv = d_heads
        dq, dk = self._turned(dq * self._scale(dq), back=True), self._turned(dk, back=True)
        left = self._merged(dq), self._merged(dk), self._merged(dv)
        return left if present is None else (*left, None)

    def _turned(self, heads: Array, back: bool = False) -> Array:
        return heads if self.rope is None else rotated(heads, self.rope, back=back)

    def _scale(self, q: Array) -> Array:
        return jnp.asarray(q.shape[-1] ** -0.5, q.dtype)

    def _by_head(self, signal: Array, heads: int) -> Array:
        """(N, T, heads * size) -> (N, heads, T, size); the queries' heads are counted by the head of keys first."""
        n, length, features = signal.shape
        signal = explicit.whole(signal, 1)
        if self._kv_heads % explicit.parts(signal, -1):
            signal = explicit.whole(signal, -1)
        return jnp.moveaxis(signal.reshape(n, length, heads, features // heads), 1, 2)

    def _queries(self, signal: Array) -> Array:
        """(N, T, heads * size) -> (N, kv_heads, G, T, size)."""
        heads = self._by_head(signal, self.heads)
        return heads.reshape(heads.shape[0], self._kv_heads, -1, *heads.shape[2:])

    def _merged(self, heads: Array) -> Array:
        """(N, *heads, T, size) -> (N, T, heads * size)."""
        flat = jax.lax.collapse(heads, 1, heads.ndim - 2)
        return jax.lax.collapse(jnp.moveaxis(flat, 2, 1), 2, 4)
