"""A few edits of delta from the literature, for `rules.on_delta`; each is a static function of a `Site`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import explicit
from manual_backprop.rules.on_delta import Site
from manual_backprop.types import require_number


@dataclass(frozen=True)
class TopK:
    """Keep each example's k entries of largest magnitude, zero the rest (meProp, Sun et al., arXiv:1706.06197).

    Entries as large as the k-th are all kept.

    Attributes:
        k: how many of the last axis, at least 1; all of them where a layer has no more.
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"TopK k must be an int >= 1, got {self.k!r}")

    def __call__(self, site: Site) -> Array:
        """Delta where it is among the k largest, else 0."""
        size = jnp.abs(site.delta)
        smallest = jnp.sort(explicit.whole(size, size.ndim - 1), axis=-1)[..., -min(self.k, size.shape[-1])]
        return jnp.where(size >= smallest[..., None], site.delta, 0)


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise of deviation `scale` times each example's root mean square delta.

    Attributes:
        scale: >= 0, relative.

    Raises (when used):
        ValueError: the rule was given no key.
    """

    scale: float

    def __post_init__(self) -> None:
        require_number("Noise scale", self.scale)
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"Noise scale must be >= 0, got {self.scale!r}")

    def __call__(self, site: Site) -> Array:
        """Delta plus noise in proportion to its size."""
        if site.key is None:
            raise ValueError("Noise draws: give the rule a key, on_delta(Noise(...), key=jax.random.key(0))")
        level = jnp.sqrt(jnp.mean(jnp.square(site.delta), axis=-1, keepdims=True))
        noise = jax.random.normal(site.key, site.delta.shape, site.delta.dtype)
        return site.delta + self.scale * level * explicit.like(site.delta, noise)


@dataclass(frozen=True)
class Quantize:
    """Round each example's delta to 2^bits - 1 levels, evenly between its largest magnitude and minus that.

    Attributes:
        bits: at least 2: 2 gives -1, 0 and 1 times the largest.
    """

    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise ValueError(f"Quantize bits must be an int in 2..16, got {self.bits!r}")

    def __call__(self, site: Site) -> Array:
        """Delta rounded to the nearest level."""
        largest = jnp.max(jnp.abs(site.delta), axis=-1, keepdims=True)
        steps = 2 ** (self.bits - 1) - 1
        unit = jnp.where(largest > 0, largest, 1) / steps
        return jnp.round(site.delta / unit) * unit


@dataclass(frozen=True)
class StraightThrough:
    """Take f' to be 1, or 1 where |z| <= limit and 0 beyond: for an f whose own derivative is 0 nearly everywhere.

    Source: Bengio et al., arXiv:1308.3432; the limit as in Hubara et al., arXiv:1602.02830.

    Attributes:
        limit: > 0; infinity for no limit.
    """

    limit: float = float("inf")

    def __post_init__(self) -> None:
        require_number("StraightThrough limit", self.limit)
        if not self.limit > 0:
            raise ValueError(f"StraightThrough limit must be > 0, got {self.limit!r}")

    def __call__(self, site: Site) -> Array:
        """dL/da from above, unchanged where |z| <= limit and 0 beyond."""
        return jnp.where(jnp.abs(site.trace.z) <= self.limit, site.d_a, 0)


def freeze(site: Site) -> Array:
    """Zero: this layer's parameters get no gradient, and nothing travels below it."""
    return jnp.zeros_like(site.delta)


def guided(site: Site) -> Array:
    """Keep delta only where dL/da > 0, else 0 (Springenberg et al., arXiv:1412.6806).

    Through ReLUs, with the output's derivative given as a one-hot row, dL/dx is guided backpropagation.
    """
    return jnp.where(site.d_a > 0, site.delta, 0)
