"""How far the functions of a backend's libraries may be off, as measured.

`python -m benchmarks.functions` measures the errors of XLA's functions over their ranges, in units of u, against
float64. A factor f here stands for noise of f roundings, whose tolerance is about 3.5 f; it covers the largest error
met. Some functions err relative to a scale of their own, because they cancel near a zero.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

FACTORS: dict[str, float] = {
    **dict.fromkeys(("sqrt", "rsqrt", "sin", "cos", "tan", "pow", "log", "exp", "tanh", "logistic"), 4.0),
    **dict.fromkeys(("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cosh", "sinh"), 4.0),
    **dict.fromkeys(("erf", "expm1", "log1p", "bessel_i0e", "lgamma", "digamma"), 4.0),
    "bessel_i1e": 6.0,
    "polygamma": 8.0,
    "triangular_solve": 4.0,
    "tridiagonal_solve": 8.0,
    "zeta": 12.0,
    "erfc": 12.0,
    "igamma": 16.0,
    "exp2": 24.0,
    "igammac": 24.0,
    "igamma_grad_a": 24.0,
    "random_gamma_grad": 24.0,
    "erf_inv": 32.0,
    "regularized_incomplete_beta": 128.0,
}
"""Roundings of the result; a function that is not here is rounded once."""


IN_DOUBLE: dict[str, float] = {"igamma_grad_a": 32.0}
"""The same in float64, where it is more."""


def roundings(name: str, params: dict[str, Any], u: float) -> float:
    """Those of a primitive; an integer power is made of products, so it errs as its exponent grows. u: the format's."""
    if name == "integer_pow":
        return max(1.0, abs(params["y"]) / 3)
    factor = FACTORS.get(name, 1.0)
    return IN_DOUBLE.get(name, factor) if _is_double(u) else factor


def _is_double(u: float) -> bool:
    return bool(u <= np.finfo(np.float64).eps)


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "digamma": lambda x: 4 * (1 + np.abs(np.log(np.abs(x))) + 1 / np.abs(x)),
    "lgamma": lambda x: 8 * (1 + np.abs(x * np.log(np.abs(x)))),
}
"""Of the argument: further roundings, absolute."""

DOUBLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "atanh": lambda x: _beyond_its_polynomials(-np.abs(x), np.arctanh(x)),
    "erf_inv": lambda x: x**2 / ((1 - x**2) * np.sqrt(-np.log1p(-(x**2)))),
    "log1p": lambda x: _beyond_its_polynomials(x, np.log1p(x)),
}
"""The same in float64, where XLA takes a rational function for log1p(x) that is good for x > -0.35, up to -0.4142, and
where it rounds the square in log1p(-x^2), of which it computes erf_inv."""


def _beyond_its_polynomials(x: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.where((x > -0.415) & (x < -0.34), 80 * np.abs(value), 0.0)


def scale(name: str, u: float) -> Callable[[np.ndarray], np.ndarray] | None:
    """Of the argument of a primitive, further roundings, absolute; None without any. u: the format's rounding."""
    return DOUBLE.get(name, SCALES.get(name)) if _is_double(u) else SCALES.get(name)


NARROW = frozenset({"cumlogsumexp", "cumprod", "cumsum", "reduce_prod", "reduce_window_sum", "scatter-add"})
"""These accumulate in the format itself; other sums of 16-bit numbers accumulate in float32."""


def accumulates_narrowly(name: str, dtype: Any) -> bool:
    """Whether a sum of numbers of this type, as the program has them, rounds every step to the format.

    jnp.sum widens 16-bit numbers itself before it sums; a reduce_sum that is given them, as the transpose of a
    broadcast is, does not.
    """
    return name in NARROW or (name == "reduce_sum" and dtype.itemsize == 2)


STABLE = frozenset({
    "cholesky", "eig", "eigh", "fft", "geqrf", "householder_product", "lu", "qr", "schur", "svd",
})  # fmt: skip
"""Backward stable: the result is right for an input that differs by a few roundings of its norm (N. J. Higham, Accuracy
and Stability of Numerical Algorithms, 2002, chapters 9, 10, 19, 24)."""


def moved(lengths: tuple[int, ...]) -> float:
    """How many roundings of its norm a backward stable algorithm moves its input by.

    An FFT of n points has log2 n stages, each of which rounds, so its error grows as the root of that; `lengths` are
    those of the transformed axes, and () for what is no FFT.
    """
    return math.sqrt(max(1.0, math.log2(math.prod(lengths))))


def norm(name: str, x: np.ndarray, lengths: tuple[int, ...] = ()) -> np.ndarray:
    """The norm of every matrix of x, or for `fft` the root mean square over the transformed axes, as wide as x."""
    axes = tuple(range(-len(lengths), 0)) if name == "fft" else (-2, -1)
    squared = np.square(np.abs(x))
    size = np.sqrt(squared.mean(axes, keepdims=True) if name == "fft" else squared.sum(axes, keepdims=True))
    return np.broadcast_to(size, x.shape)
