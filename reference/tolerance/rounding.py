"""The largest difference of two right answers, measured by Monte Carlo arithmetic.

The tolerance of an entry is SIGMAS times the spread of its Monte Carlo samples (`reference.tolerance.monte_carlo`).
A few samples give an uncertain spread for one entry, so a part of the whole leaf's spread is added.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from reference.tolerance.formats import Format
from reference.tolerance.monte_carlo import perturbed
from reference.tolerance.noise import noises, types_inside
from reference.tolerance.sharing import Pairs, once
from reference.tolerance.side_by_side import given, refusing_double, widened

Tree = Any
SIGMAS = 6.0
OF_THE_LEAF = 0.25
SAMPLES = 16


@dataclass(frozen=True, eq=False)
class Measured:
    """A function's value, and the tolerance of every entry.

    Attributes:
        value: its results in float64, as NumPy arrays; integers unchanged.
        tolerance: the same tree, for every entry the largest error due to rounding; inf if the working precision
            overflows in the computation, so that the error is unknown.
        narrow: names of what refused to be evaluated in float64, so that the value has its rounding.
        inside: types that are narrower than the function's arguments and the precision, and round as such.
    """

    value: Tree
    tolerance: Tree
    narrow: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """A sentence on what refused to be evaluated in float64, and one on narrower types."""
        refused = f"the reference has the rounding of {', '.join(self.narrow)}, which knows its types by heart"
        types = " and ".join(self.inside)
        mixed = f"the plain function computes in {types} inside: what depends on that is held to its rounding"
        return [note for note, names in ((refused, self.narrow), (mixed, self.inside)) if names]

    @property
    def overflows(self) -> bool:
        """Whether some result may overflow, so that nan or inf by hand may be right."""
        return any(np.isinf(leaf).any() for leaf in jax.tree.leaves(self.tolerance))

    def loosened(self, approximation: float) -> "Measured":
        """With a tolerance larger by `approximation` times the largest entry of every leaf."""
        if not approximation:
            return self

        def one(value: np.ndarray, allowed: np.ndarray) -> np.ndarray:
            known = np.isfinite(value) & np.issubdtype(value.dtype, np.inexact)
            return np.asarray(allowed + approximation * np.max(np.abs(value), initial=0, where=known))

        return replace(self, tolerance=jax.tree.map(one, self.value, self.tolerance))


def require_samples(samples: Any) -> None:
    """Refuse a number of samples that leaves no spread to measure.

    Raises:
        ValueError: says what came.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"samples must be an int >= 1, got {samples!r}: the tolerance is their spread")


def measure(
    function: Callable[..., Any], *args: Any, dtype: DTypeLike, samples: int = SAMPLES, seed: int = 0
) -> Measured:
    """Evaluate a function in float64, and measure how far rounding in `dtype` could change each result.

    Within `reference.tolerance.sharing.shared` the same measurement is made once.

    Args:
        function: traceable by JAX; may contain jit, scan, while, cond, custom rules and remat. It is traced with the
            arguments as they are, and the same program is then evaluated with its floats in float64.
        args: pytrees of arrays; round float leaves to `dtype` first.
        dtype: float64, float32, bfloat16 or float16.
        samples: of Monte Carlo arithmetic.
        seed: of its noise.

    Returns:
        The value and the tolerance of every entry.

    Raises:
        ValueError: samples below 1.
    """
    return meter(function, *args, samples=samples, seed=seed)(dtype, *args)


def meter(function: Callable[..., Any], *like: Any, samples: int = SAMPLES, seed: int = 0) -> Callable[..., Measured]:
    """Trace a function once for arguments like these; return a function (dtype, *args) -> Measured."""
    require_samples(samples)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*like)
    tree: Any = jax.tree.structure(shape)

    def measured(dtype: DTypeLike, *args: Any) -> Measured:
        format, flat = Format.of(dtype), [given(leaf) for leaf in jax.tree.leaves(args)]

        def pairs_of_all() -> Pairs:
            with jax.enable_x64(True):
                results = perturbed(closed, noises(format, samples, seed, closed), flat)
            return [spread(widened(result)) for result in results]

        pairs = once(pairs_of_all, closed, flat, format, samples, seed)
        value, tolerance = (tree.unflatten([pair[side] for pair in pairs]) for side in (0, 1))
        return Measured(value, tolerance, refusing_double(closed), types_inside(closed, format))

    return measured


def spread(results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(value, tolerance) from samples on the first axis; the first sample has no noise.

    A single row, which all samples share, is exact.
    """
    value, noisy = np.asarray(results[0]), results[1:]
    if len(results) == 1 or not np.issubdtype(results.dtype, np.inexact):
        return value, np.zeros(value.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        rms = _rms(np.abs(noisy - value), axis=0)
    known = rms[np.isfinite(rms)]
    return value, np.asarray(SIGMAS * np.hypot(rms, OF_THE_LEAF * (_rms(known, axis=0) if known.size else 0.0)))


def _rms(sizes: np.ndarray, axis: int) -> Any:
    """Root mean square, scaled by the largest so that no square underflows; inf where unknown."""
    sizes = np.where(np.isfinite(sizes), sizes, np.inf)
    largest = np.max(sizes, axis=axis)
    unit = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return unit * np.sqrt(np.mean((sizes / unit) ** 2, axis=axis))
