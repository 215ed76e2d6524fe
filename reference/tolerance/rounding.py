"""The largest difference of two right answers, measured by Monte Carlo arithmetic.

The tolerance of an entry is SIGMAS times the spread of its Monte Carlo samples (`reference.tolerance.monte_carlo`).
A few samples give an uncertain spread for one entry, so a part of the whole leaf's spread is added.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from reference.tolerance.formats import Format
from reference.tolerance.identity import identity
from reference.tolerance.monte_carlo import NOISE_AXES, SAMPLES_AXIS, Noise, noises, perturbed

Tree = Any
SIGMAS = 6.0
OF_THE_LEAF = 0.25
SAMPLES = 16
KEPT = 64  # compiled programs: whoever checks again with another precision or another fault waits once


@dataclass(frozen=True, eq=False)
class Measured:
    """A function's value, and the tolerance of every entry.

    Attributes:
        value: its results in float64, as NumPy arrays; integers unchanged.
        tolerance: the same tree, for every entry the largest error due to rounding; inf if the working precision
            overflows in the computation, so that the error is unknown.
    """

    value: Tree
    tolerance: Tree

    @property
    def overflows(self) -> bool:
        """Whether some result may overflow, so that nan or inf by hand may be right."""
        return any(np.isinf(leaf).any() for leaf in jax.tree.leaves(self.tolerance))


def require_samples(samples: Any) -> None:
    """Refuse a number of samples that leaves no spread to measure.

    Raises:
        ValueError: says what came.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"samples must be an int >= 1, got {samples!r}: the tolerance is their spread")


def measure(
    function: Callable[..., Any],
    *args: Any,
    dtype: DTypeLike,
    samples: int = SAMPLES,
    seed: int = 0,
    compiler_options: dict[str, Any] | None = None,
) -> Measured:
    """Evaluate a function in float64, and measure how far rounding in `dtype` could change each result.

    Args:
        function: traceable by JAX; may contain jit, scan, while, cond, custom rules and remat.
        args: pytrees; float leaves are taken to float64 unchanged (round them to `dtype` first).
        dtype: float64, float32, bfloat16 or float16.
        samples: of Monte Carlo arithmetic.
        seed: of its noise.
        compiler_options: for XLA, as `jax.jit` takes them; None compiles normally.

    Returns:
        The value and the tolerance of every entry.

    Raises:
        ValueError: samples below 1.
    """
    return meter(function, *args, samples=samples, seed=seed, compiler_options=compiler_options)(dtype, *args)


def meter(
    function: Callable[..., Any],
    *like: Any,
    samples: int = SAMPLES,
    seed: int = 0,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., Measured]:
    """Compile `measure` once for arguments like these; return a function (dtype, *args) -> Measured.

    A program that was compiled before, for another precision or by another check, is not compiled again.
    """
    require_samples(samples)
    with jax.enable_x64(True):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*jax.tree.map(_in_float64, like))
        run = _compiled(_Program(identity(closed), closed), tuple(sorted((compiler_options or {}).items())))
    tree: Any = jax.tree.structure(shape)

    def measured(dtype: DTypeLike, *args: Any) -> Measured:
        with jax.enable_x64(True):
            flat = [_in_float64(leaf) for leaf in jax.tree.leaves(args)]
            results = jax.device_get(run(noises(Format.of(dtype), samples, seed), *flat))
        pairs = [spread(result) for result in results]
        return Measured(tree.unflatten([value for value, _ in pairs]), tree.unflatten([tol for _, tol in pairs]))

    return measured


@dataclass(frozen=True)
class _Program:
    """A jaxpr that is equal to every other jaxpr of the same program."""

    identity: Hashable
    closed: Any = field(compare=False)


@lru_cache(maxsize=KEPT)
def _compiled(program: _Program, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(_sampled(program.closed), compiler_options=dict(options) or None)


def _sampled(closed: Any) -> Callable[..., Any]:
    one = perturbed(closed)

    def run(noise: Noise, *flat: Any) -> Any:
        return jax.vmap(lambda noise: one(noise, *flat), (NOISE_AXES,), axis_name=SAMPLES_AXIS)(noise)

    return run


def _in_float64(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def spread(results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(value, tolerance) from samples on the first axis; the first sample has no noise."""
    value, noisy = np.asarray(results[0]), results[1:]
    if not np.issubdtype(results.dtype, np.inexact):
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
