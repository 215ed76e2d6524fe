"""Rotary positions: each pair of features of a query or key is turned by an angle that grows with its position."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop.precision import accumulator


def rotated(heads: Float[Array, "*batch T size"], base: float, *, back: bool = False) -> Float[Array, "*batch T size"]:
    """Turn features i and i + size/2 at position t by the angle t base^(-2i/size); `back` turns the other way.

    So q_t . k_s depends on t - s alone. A turn's transpose is the turn back. Su et al., arXiv:2104.09864, with the
    pairs half a head apart, as GPT-NeoX, Llama and Gemma have them.
    """
    wide = accumulator(heads.dtype)
    length, half = heads.shape[-2], heads.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=wide) / half)
    angles = jnp.arange(length, dtype=wide)[:, None] * frequencies[None]
    cos, sin = (part.reshape(*(1,) * (heads.ndim - 2), length, half) for part in (jnp.cos(angles), jnp.sin(angles)))
    sin = -sin if back else sin
    one, other = (part.astype(wide) for part in jnp.split(heads, 2, axis=-1))
    turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return turned.astype(heads.dtype)
