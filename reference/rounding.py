"""How far two right answers may differ: the one place where tolerances are written down.

An error is measured against the largest entry of its leaf. In float64 the two programs agree to a few ulps,
and the tolerance is 1e-12 of that entry: a thousand ulps of room, and any real mistake is larger.

In a working precision with unit roundoff u (float32 2^-24, float16 2^-11, bfloat16 2^-8) the model is
a random walk. One layer's step forward or back rounds its result (u) after a sum of `fan_in` products, each
rounded at the precision u_sum in which sums are formed (`manual_backprop.precision`); 2 depth such steps
stand between the input and the last gradient. Their errors add up like independent ones:

    tolerance = SAFETY sqrt(2 depth) (u + u_sum sqrt(fan_in))

For a gradient, which examples sum up to, it is relative to the sum of their magnitudes where that is larger
than the largest entry that they leave. The model assumes layers that neither blow signals up nor rely on
cancellation, as the catalogue's networks do. Where numbers fall below the format's normal range an absolute
floor takes over.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import DTypeLike

SAFETY = 8.0
FLOAT64_RELATIVE = 1e-12


@dataclass(frozen=True)
class Tolerance:
    """An error up to `relative` times the leaf's largest entry plus `absolute` is rounding."""

    relative: float
    absolute: float

    def allowed(self, scale: float) -> float:
        """The largest error that passes in a leaf whose largest entry is `scale`."""
        return self.relative * scale + self.absolute


def unit_roundoff(dtype: DTypeLike) -> float:
    """u: half the distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps) / 2


def tolerance(dtype: DTypeLike, depth: int, fan_in: int) -> Tolerance:
    """The tolerance for a network of that many layers, none with more inputs than `fan_in`."""
    dtype = jnp.dtype(dtype)
    info = jnp.finfo(dtype)
    if dtype == jnp.float64:
        return Tolerance(FLOAT64_RELATIVE, float(info.tiny))
    u = unit_roundoff(dtype)
    u_sum = u if info.bits >= 32 else unit_roundoff(jnp.float32)
    relative = SAFETY * (2 * depth) ** 0.5 * (u + u_sum * fan_in**0.5)
    # float16 keeps its subnormals on every backend; the others may flush theirs to zero.
    step = float(info.smallest_subnormal) if dtype == jnp.float16 else float(info.tiny)
    return Tolerance(relative, SAFETY * (2 * depth) ** 0.5 * step)
