"""The precision of sums, never narrower than float32, and how small functions are compiled."""

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

compiled = partial(jax.jit, inline=True)
"""Decorator for the few formulas that every layer repeats. Called alone, such a formula is one dispatch instead of
ten. Inside another jit it is traced once for each shape and inlined, so the compiled program is the same."""


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """The precision in which values of `dtype` are summed: float32 for bfloat16 and float16, else `dtype`."""
    dtype = jnp.dtype(dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def rounded_once(function: Callable[..., Array]) -> Callable[..., Array]:
    """Let an elementwise function of 16-bit arrays compute in float32 and round only its result.

    Rounding every intermediate to 8 or 11 bits would cost several units in the last place, and float16
    would overflow at 65504 in terms (z**3 in GELU) whose effect on the result is finite.
    """

    @wraps(function)
    def wide(*arrays: Array) -> Array:
        dtype = arrays[0].dtype
        wider = accumulator(dtype)
        if wider == dtype:
            return function(*arrays)
        return function(*(array.astype(wider) for array in arrays)).astype(dtype)

    return wide
