"""The numbers of a floating-point format that determine its rounding."""

from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import DTypeLike

Kind = TypeVar("Kind", bound="Format")


def unit_roundoff(dtype: DTypeLike) -> float:
    """u: half the distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps) / 2


def require_floats(dtype: Any) -> None:
    """Refuse a precision that is not a floating-point type.

    Raises:
        ValueError: says what came.
    """
    try:
        known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:  # no dtype has that name
        known = False
    if not known:
        raise ValueError(f"dtype must be a floating-point type such as 'float32', got {dtype!r}")


@dataclass(frozen=True)
class Format:
    """The rounding of a precision in numbers.

    Attributes:
        u: unit roundoff of a result.
        u_sum: unit roundoff of sums, which accumulate in float32 or finer, and of functions computed in that precision.
        eta: the size of the smallest results; below it digits are lost.
        eta_sum: the same for the precision of sums.
        largest: the largest finite number; beyond it results are inf.
    """

    u: float
    u_sum: float
    eta: float
    eta_sum: float
    largest: float

    @classmethod
    def of(cls: type[Kind], dtype: DTypeLike) -> Kind:
        """The numbers of a dtype.

        Sums of 16-bit numbers accumulate in float32. float16 keeps its subnormals on every backend; the other formats
        may flush theirs to zero. In float64 the reference rounds as much as the value under test, so u counts twice.
        """
        dtype = jnp.dtype(dtype)
        info = jnp.finfo(dtype)
        u = unit_roundoff(dtype) * (2.0 if dtype == jnp.float64 else 1.0)
        eta = float(info.smallest_subnormal) if dtype == jnp.float16 else float(info.tiny)
        wide = info.bits >= 32
        sums = (u, eta) if wide else (unit_roundoff(jnp.float32), float(jnp.finfo(jnp.float32).tiny))
        return cls(u, sums[0], eta, sums[1], float(info.max))

    @classmethod
    def of_bits(cls: type[Kind], exponent_bits: int, mantissa_bits: int) -> Kind:
        """The numbers of IEEE's formats with so many bits, which `jax.lax.reduce_precision` rounds to."""
        u, most = 2.0 ** -(mantissa_bits + 1), 2 ** (exponent_bits - 1) - 1
        eta = 2.0 ** (1 - most)
        return cls(u, u, eta, eta, (2 - 2 * u) * 2.0**most)
