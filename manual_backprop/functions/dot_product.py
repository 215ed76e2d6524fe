"""Scaled dot-product attention as one function, with the layer's own backward."""

from jaxtyping import Array, Bool, Float

from manual_backprop.custom_vjp import as_custom_vjp
from manual_backprop.layers import Attention


def attention(
    q: Float[Array, "N T heads size"],
    k: Float[Array, "N S kv_heads size"],
    v: Float[Array, "N S kv_heads width"],
    *,
    causal: bool = True,
    rope: float | None = None,
    block: int | None = None,
    present: Bool[Array, "N S"] | None = None,
) -> Float[Array, "N T heads width"]:
    """Attention softmax(q k^T / sqrt(size)) v for every head, laid out as in JAX's `dot_product_attention`.

    With a block nothing of size T x S is made or kept, forward or backward. Scores and sums are in float32 or wider.

    Args:
        q: queries.
        k: keys; kv_heads divides heads, and each serves heads / kv_heads queries.
        v: values.
        causal: whether position t sees the positions up to t alone.
        rope: base of the angles by which q and k are turned (rotary positions), or None.
        block: rows of queries that are computed at a time, or None for all.
        present: which keys are there; a query that sees none gets zeros.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: dtypes that differ, or a mask that does not hold booleans.
    """
    if any(part.ndim != 4 for part in (q, k, v)):
        shapes = ", ".join(str(list(part.shape)) for part in (q, k, v))
        raise ValueError(f"attention takes q, k and v as (N, positions, heads, size), got {shapes}; one is x[None]")
    layer = Attention(q.shape[2], k.shape[2], causal, rope, block)
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"k and v must have as many heads, got {k.shape[2]} and {v.shape[2]}")
    signals = tuple(part.reshape(*part.shape[:2], -1) for part in (q, k, v))
    given = signals if present is None else (*signals, present)
    return as_custom_vjp(layer)((), given).reshape(*q.shape[:3], v.shape[3])
