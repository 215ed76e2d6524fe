"""Other ways to differentiate a scalar function, so that jax.grad and a gradient by hand cannot share a mistake.

Forward mode and the complex step have no truncation error; `reference.witnesses.differences` needs values alone. None
of them uses a function's own derivative rules (custom_jvp, custom_vjp), since such a rule is under test too. `vote`
says who stands alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from reference.witnesses.kinks import Kink, Trail, changes, place, plain, scan, walk
from reference.witnesses.points import EPS, MOST, Point, Witness, directions_for, gathered, is_float

Tree = Any

_DELTA = 2.0**-26  # relative change of the inputs, to measure how rounding is magnified
_SAMPLES = 3
_SAFETY = 16.0
_IMAGINARY = 1e-30
_ANALYTIC = {
    "add", "sub", "neg", "add_any", "reduce_sum", "cumsum", "convert_element_type", "broadcast_in_dim",
    "reshape", "transpose", "squeeze", "expand_dims", "rev", "pad", "concatenate", "slice", "dynamic_slice",
    "dynamic_update_slice", "gather", "scatter", "scatter-add", "scatter_add", "select_n", "copy", "copy_p",
    "split", "optimization_barrier", "mul", "div", "dot_general", "reduce_prod",
    "cumprod", "integer_pow", "square", "pow", "exp", "exp2", "log", "log1p", "expm1", "tanh", "sin", "cos",
    "tan", "sinh", "cosh", "asinh", "atan", "sqrt", "rsqrt", "logistic",
}  # fmt: skip
_REAL_ONLY = {
    "erf",
    "erfc",
    "erf_inv",
    "lgamma",
    "digamma",
    "cbrt",
    "bessel_i0e",
    "bessel_i1e",
    "polygamma",
    "while",
    "conv_general_dilated",
}
"""Analytic operations that are not done in complex numbers. The inside of a `while` is not examined. XLA's complex
convolution multiplies sums of real and imaginary parts, in which a tiny imaginary part is lost."""


def forward_mode(fun: Callable[..., Any], *args: Any, argnum: int = 0, most: int = MOST, seed: int = 0) -> Witness:
    """The gradient by jax.jvp, one direction at a time.

    The function's own derivative rules are not used. If the point lies exactly on a kink, an entry whose direction
    leaves the kink has no derivative: its error is inf and `why` names the kink.

    Args:
        fun: a scalar function, JAX-traceable.
        *args: its arguments, any pytrees.
        argnum: number of the argument to differentiate with respect to.
        most: up to this many elements, each has its own slope; above, slopes are along seeded directions.
        seed: of those directions, and of the samples behind the error bar.

    Raises:
        ValueError: fun returns no scalar float, or the argument holds no floats.
    """
    point = Point(fun, args, argnum)
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(fun)(*point.args)

    def slope(version: tuple, x: Array, d: Array) -> Array:
        def value(vector: Array) -> Array:
            return walk(closed, jax.tree.leaves(point.moved(vector, version)), plain)[0]

        return jax.jvp(value, (x,), (d,))[1]

    return _by_slopes("forward mode", point, slope, directions_for(point, most, seed), seed, find_ties=True)


def complex_step(fun: Callable[..., Any], *args: Any, argnum: int = 0, most: int = MOST, seed: int = 0) -> Witness:
    """The gradient as Im fun(x + i h d) / h with h = 1e-30: no truncation, no cancellation, no derivative rule.

    The function's program is evaluated in complex numbers. There is no answer if an operation that depends on the
    argument is not analytic ("not analytic: max at losses.py:31") or does not exist for complex numbers ("not
    available: erf at ..."). Values that enter only through `stop_gradient` are held fixed. Arguments and errors are
    those of `forward_mode`.
    """
    point = Point(fun, args, argnum)
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(fun)(*point.args)

    def slope(version: tuple, x: Array, d: Array) -> Array:
        moving = point.moved(jax.lax.complex(x, _IMAGINARY * d), version)
        (out,) = walk(closed, jax.tree.leaves(moving), _complex_rule)
        if isinstance(out, _Blocked):
            raise _NotComplexError(out.why)
        return jnp.imag(out) / _IMAGINARY

    try:
        return _by_slopes("complex step", point, slope, directions_for(point, most, seed), seed)
    except _NotComplexError as refusal:
        return Witness("complex step", None, None, available=False, why=str(refusal))


class _NotComplexError(Exception):
    """The program has no complex form; raised while it is built."""


class _Blocked:
    """A value that depends on the argument through an operation without a complex step; `real` is the value."""

    def __init__(self, real: Any, why: str) -> None:
        self.real = real
        self.why = why


def _complex_rule(trail: Trail, values: list[Any]) -> Sequence[Any]:
    """The rule for `walk` where some values are complex."""
    eqn = trail[-1]
    name, blocked = eqn.primitive.name, [v for v in values if isinstance(v, _Blocked)]
    if not blocked and not any(map(_is_complex, values)):
        return plain(trail, values)
    real = [v.real if isinstance(v, _Blocked) else jnp.real(v) if _is_complex(v) else v for v in values]
    if name == "stop_gradient":
        return plain(trail, real)
    why = blocked[0].why if blocked else _refusal(trail)
    if not why and name == "scan":
        outputs, why = _complex_scan(trail, values)
        if not why:
            return outputs
    if why:
        return [_Blocked(out, why) for out in plain(trail, real)]
    wide = [_as_complex(v) for v in values]
    params = {k: np.dtype("complex128") for k, v in eqn.params.items() if k in _DTYPES and v is not None}
    return plain(trail, wide, **params)


_DTYPES = {"new_dtype", "preferred_element_type", "out_dtype"}


def _refusal(trail: Trail) -> str:
    """Why this equation has no complex step, or ""."""
    eqn = trail[-1]
    name = eqn.primitive.name
    if name in _REAL_ONLY:
        return f"not available: {name} at {place(trail)}"
    if name == "convert_element_type" and jnp.dtype(eqn.params["new_dtype"]) != jnp.float64:
        return f"not analytic: conversion to {jnp.dtype(eqn.params['new_dtype'])} at {place(trail)}"
    if name not in _ANALYTIC and name != "scan":
        return f"not analytic: {name} at {place(trail)}"
    return ""


def _complex_scan(trail: Trail, values: list[Any]) -> tuple[list[Any], str]:
    """(outputs, "") of a scan with all its values complex, or ([], why not)."""

    def body(jaxpr: Any, given: list[Any]) -> tuple[list[Any], None]:
        outputs = walk(jaxpr, given, _complex_rule, trail)
        for out in outputs:
            if isinstance(out, _Blocked):
                raise _NotComplexError(out.why)
        return [_as_complex(out) for out in outputs], None

    try:
        return scan(trail, [_as_complex(v) for v in values], body)[0], ""
    except _NotComplexError as refusal:
        return [], str(refusal)


def _is_complex(value: Any) -> bool:
    return not isinstance(value, _Blocked) and jnp.issubdtype(jnp.result_type(value), jnp.complexfloating)


def _as_complex(value: Any) -> Any:
    return jax.lax.convert_element_type(value, "complex128") if is_float(jnp.asarray(value)) else value


def _by_slopes(
    name: str,
    point: Point,
    slope: Callable[[tuple, Array, Array], Array],
    directions: np.ndarray | None,
    seed: int,
    *,
    find_ties: bool = False,
) -> Witness:
    """A witness from `slope`: (arguments, x, direction) -> derivative.

    Its error bar is the change of the derivative when every input changes by a few parts in 2**26, scaled down to the
    size of rounding. It covers every rounding that a change of the inputs can explain.
    """
    rng, kinks = np.random.default_rng([seed, 1]), list[Kink]()

    def versions(leaf: np.ndarray) -> np.ndarray:
        copies = np.broadcast_to(leaf, (1 + _SAMPLES, *leaf.shape)).copy()
        if is_float(leaf):
            copies[1:] *= 1 + _DELTA * rng.choice([-1.0, 1.0], size=copies[1:].shape)
        return copies

    many = jax.tree.map(versions, point.args)
    start = jax.vmap(lambda version: _vector(point, version))

    def compute(rows: Array) -> tuple[Array, ...]:
        each = jax.vmap(jax.vmap(slope, (None, None, 0)), (0, 0, None))(many, start(many), rows)
        spread = jnp.max(jnp.abs(each[1:] - each[:1]), axis=0)
        counts = jnp.zeros((len(rows), 0), int)
        if find_ties:
            near = jnp.full(len(rows), 2.0**-20)
            kinks[:], counts, _ = changes(point.value, (point.x,), (rows,), near, ties_only=True)
        return each[0], _SAFETY * EPS * (spread / _DELTA + jnp.abs(each[0])), counts

    with jax.enable_x64(True):
        value, error, counts = gathered(compute, directions, point.x.size, 2 * (1 + _SAMPLES))
    void = counts.any(axis=1)
    tied = [str(kink) for kink, n in zip(kinks, counts.sum(axis=0), strict=True) if n] if find_ties else []
    why = f"{int(void.sum())} of {void.size} slopes void: exactly at a kink: {'; '.join(tied)}" if void.any() else ""
    error = np.where(void | ~np.isfinite(value), np.inf, error)
    if directions is not None:
        return Witness(name, value, error, why=why, directions=directions)
    bars = point.tree(error)
    return Witness(name, point.tree(value), jax.tree.map(_with_floor, bars, point.tree(value)), why=why)


def _vector(point: Point, version: tuple) -> Array:
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(version[point.argnum]) if is_float(leaf)]
    return jnp.concatenate(leaves)


def _with_floor(error: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Add a floor to the error: a small entry may be the remainder of a sum as large as its neighbours'."""
    if not is_float(value) or not value.size:
        return error
    return np.asarray(error + _SAFETY * EPS * float(np.max(np.abs(value), initial=0, where=np.isfinite(value))))
