"""Derivatives of a scalar function from its values alone: finite differences, Taylor's remainder, one-sided slopes.

Differences are taken at a ladder of steps and extrapolated to step 0. Each has an error bar: the disagreement of
neighbouring steps (truncation), plus the measured noise of the function over the step (rounding).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from reference.witnesses.kinks import Kink, changes, shifted
from reference.witnesses.points import EPS, MOST, Point, Witness, directions_for, gathered, seeded, wide
from reference.xla import quick

Tree = Any

STEPS = 2.0 ** -np.arange(3, 18)
"""The steps of the differences, times max(1, |x|): from 1/8 to about the cube root of eps."""
LINE = 2.0 ** -np.arange(40)
"""The steps of the V curve and of Taylor's remainder."""
_NOISE_POINTS = 28
_NOISE_STEP = 2.0**-30  # so small that the fourth difference of a smooth function is only rounding
_SIGMAS = 6.0
_WINDOW = 5  # number of points in a straight piece of the remainder
_ABOVE_NOISE = 16.0  # times six sigmas: a remainder this far above the noise shows its slope to 0.01
_STRAIGHT = 0.02  # rms deviation, in octaves, of a straight piece


def noise(values: Any, xp: Any = np) -> Any:
    """The standard deviation of rounding in equally spaced values of a smooth function, from fourth differences."""
    fourth = xp.diff(values, n=4)
    sigma = 1.4826 * xp.median(xp.abs(fourth)) / 70**0.5
    return xp.maximum(sigma, EPS * xp.max(xp.abs(values)) / 2)


def finite_differences(
    fun: Callable[..., Any], *args: Any, argnum: int = 0, most: int = MOST, seed: int = 0
) -> Witness:
    """The gradient by central differences, with steps chosen for each element and an error bar for each.

    Orders 2, 4 and 6 (Richardson) are tried at `STEPS`. The estimate with the least disagreement with the next larger
    and the next smaller step, plus its rounding, is taken. Steps that cross a kink are not used. If a kink is so near
    that all steps cross it, the error is inf and `why` names the kink.

    Args:
        fun: a scalar function, JAX-traceable; it is never differentiated.
        *args: its arguments, any pytrees.
        argnum: number of the argument to differentiate with respect to.
        most: up to this many elements, each has its own slope; above, slopes are along seeded directions.
        seed: of those directions.

    Raises:
        ValueError: fun returns no scalar float, or the argument holds no floats.
    """
    point = Point(fun, args, argnum)
    directions = directions_for(point, most, seed)
    kinks = list[Kink]()
    signed = np.concatenate([STEPS, -STEPS])
    near = _NOISE_STEP * np.arange(_NOISE_POINTS)
    probe = seeded(point.x.size, 1, seed) * np.maximum(1.0, np.abs(point.x))

    def compute(rows: Array) -> tuple[Array, ...]:
        size = jnp.max(jnp.abs(rows * point.x[None]), axis=1)
        scale = jnp.maximum(1.0, size)
        moves = jnp.repeat(rows * scale[:, None], signed.size, axis=0)
        along = jnp.concatenate([moves, jnp.repeat(probe, near.size, axis=0)])
        by = jnp.concatenate([jnp.tile(signed, len(rows)), near])
        kinks[:], counts, values = changes(point.value, (point.x,), (along,), by)
        sigma = noise(values[-near.size :], jnp)
        ahead, behind = jnp.split(values[: -near.size].reshape(len(rows), signed.size), 2, axis=1)
        counts = jnp.max(counts[: -near.size].reshape(len(rows), 2, len(STEPS), -1), axis=1)
        slopes = (ahead - behind) / (2 * STEPS)[None]
        longest = _longest_clear(jnp.sum(counts, axis=2) > 0)
        estimate, error = jax.vmap(_extrapolated, (0, 0, None, 0))(slopes, longest, sigma, size)
        return estimate / scale, error / scale, counts[:, -3]  # three steps confirm one another: the last three

    with jax.enable_x64(True):
        value, error, counts = gathered(compute, directions, point.x.size, 2 * len(STEPS) + 2)
    error = np.where(np.isfinite(value), error, np.inf)
    void = np.isinf(error) & counts.any(axis=1)
    why = _crossings_text(kinks, counts, void)
    if directions is None:
        return Witness("differences", point.tree(value), point.tree(error), why=why)
    return Witness("differences", value, error, why=why, directions=directions)


def _longest_clear(crossed: Array) -> Array:
    """The longest of `STEPS` up to which no kink is crossed, or 0 if there is none; `crossed` is (K, steps)."""
    clear = jnp.flip(jnp.cumsum(jnp.flip(crossed, axis=1), axis=1), axis=1) == 0
    return jnp.max(jnp.where(clear, jnp.asarray(STEPS)[None], 0.0), axis=1)


def _extrapolated(slopes: Array, longest: Array, sigma: Array, size: Array) -> tuple[Array, Array]:
    """(estimate, error) from central differences at the `STEPS` up to `longest`."""
    rounding = (_SIGMAS * sigma + EPS * size * jnp.abs(slopes)) / STEPS
    columns, steps = [(slopes, rounding)], len(STEPS)
    for order in (4.0, 16.0):
        column, bar = columns[-1]
        columns.append(((order * column[1:] - column[:-1]) / (order - 1), (order * bar[1:] + bar[:-1]) / (order - 1)))
    estimates, errors = [], []
    for k, (column, bar) in enumerate(columns):
        jumps = jnp.abs(jnp.diff(column))
        error = jnp.maximum(jumps[1:], jumps[:-1]) + bar[1:-1]
        # The longer neighbour confirmed the entry, so its step must be clear of kinks too.
        clear = jnp.asarray(STEPS[: steps - k][:-2]) <= longest
        estimates.append(column[1:-1])
        errors.append(jnp.where(clear & ~jnp.isnan(error), error, jnp.inf))
    flat = jnp.concatenate(errors)
    best = jnp.argmin(flat)
    return jnp.concatenate(estimates)[best], flat[best]


def _crossings_text(kinks: list[Kink], counts: np.ndarray, void: np.ndarray) -> str:
    if not void.any():
        return ""
    worst = counts.max(axis=0)
    named = [str(replace(kink, entries=int(n))) for kink, n in zip(kinks, worst, strict=True) if n]
    return f"{int(void.sum())} of {void.size} slopes void: kink crossed between x and x + h: {'; '.join(named)}"


@dataclass(frozen=True, eq=False)
class DifferenceCurve:
    """Error of the central difference along one seeded direction, for a ladder of steps: the textbook V curve.

    Attributes:
        steps: h, descending.
        errors: |(f(x + h d) - f(x - h d)) / (2 h) - g . d|: h**2 on the right, rounding / h on the left. A
            wrong gradient gives a floor instead of the V's minimum.
    """

    steps: np.ndarray
    errors: np.ndarray


def difference_curve(
    fun: Callable[..., Any], *args: Any, gradient: Tree, argnum: int = 0, seed: int = 0
) -> DifferenceCurve:
    """`DifferenceCurve` of fun against `gradient`, a tree like the argument. Raises ValueError as `Point` does."""
    return curve_at(Point(fun, args, argnum), gradient, seed)


def curve_at(point: Point, gradient: Tree, seed: int) -> DifferenceCurve:
    """`difference_curve` at a `Point`."""
    _, slope, values, _ = _line(point, gradient, seed)
    return DifferenceCurve(LINE, np.abs((values[1 : 1 + LINE.size] - values[1 + LINE.size :]) / (2 * LINE) - slope))


def _line(point: Point, gradient: Tree, seed: int) -> tuple[np.ndarray, float, np.ndarray, float]:
    """(direction, gradient along it, fun at x and at x +- LINE direction, noise of fun)."""
    d = seeded(point.x.size, 1, seed)[0]
    near = _NOISE_STEP * np.arange(_NOISE_POINTS)
    values = point.along(d, np.concatenate([[0.0], LINE, -LINE, near]))
    return d, float(point.vector(gradient) @ d), values[: 1 + 2 * LINE.size], float(noise(values[-near.size :]))


@dataclass(frozen=True, eq=False)
class Taylor:
    """Taylor's remainder |f(x + h d) - f(x) - h g.d| as h shrinks, along one seeded direction.

    Attributes:
        steps: h, descending.
        remainders: the remainder at each step.
        noise: the possible rounding error of each remainder.
        slope: of its last straight piece above the noise, in log-log; nan if there is none.
        verdict: "right" (slope 2 or more: g is the gradient), "wrong", "exact" (only noise: fun is linear here), or
            "no window" (no straight piece above the noise).
    """

    steps: np.ndarray
    remainders: np.ndarray
    noise: np.ndarray
    slope: float
    verdict: str

    def __str__(self) -> str:
        if np.isnan(self.slope):
            return {"exact": "exact: the remainder is rounding at every step"}.get(self.verdict, self.verdict)
        return f"slope {self.slope:.3g} ({self.verdict})"


def taylor(fun: Callable[..., Any], *args: Any, gradient: Tree, argnum: int = 0, seed: int = 0) -> Taylor:
    """`Taylor` of fun with `gradient`, a tree like the argument, as g.

    The slope is taken at the smallest steps, where only the remainder's first term is left: a slightly wrong g has
    slope 2 at large steps and slope 1 there.

    Raises:
        ValueError: as `Point`; or `gradient` is not like the argument.
    """
    return taylor_at(Point(fun, args, argnum), gradient, seed)


def taylor_at(point: Point, gradient: Tree, seed: int) -> Taylor:
    """`taylor` at a `Point`."""
    d, slope, values, sigma = _line(point, gradient, seed)
    r = np.abs(values[1 : 1 + LINE.size] - values[0] - LINE * slope)
    size = float(np.abs(point.vector(gradient) * d).sum())
    floor = _SIGMAS * sigma + EPS * size * (LINE + float(np.abs(point.x).max()))
    if bool((r <= floor).all()):
        return Taylor(LINE, r, floor, float("nan"), "exact")
    found = _last_straight_piece(r, floor)
    verdict = "no window" if np.isnan(found) else "right" if found >= 1.95 else "wrong"
    return Taylor(LINE, r, floor, found, verdict)


def _last_straight_piece(r: np.ndarray, floor: np.ndarray) -> float:
    """The slope of log r over log h on a straight piece clear of the noise, at the smallest such h.

    If the remainder falls more slowly than that line at still smaller h, a smaller term has appeared; then the slope
    at the end of the curve is returned.
    """
    usable = np.isfinite(r) & (r > _ABOVE_NOISE * floor)
    for start in range(r.size - _WINDOW, -1, -1):
        window = slice(start, start + _WINDOW)
        if usable[window].all():
            h, y = np.log2(LINE[window]), np.log2(r[window])
            slope, offset = np.polyfit(h, y, 1)
            if np.sqrt(np.mean((slope * h + offset - y) ** 2)) <= _STRAIGHT:
                line = 2**offset * LINE**slope
                slower = np.flatnonzero((r > 2 * line + _ABOVE_NOISE * floor) & (LINE[start] > LINE))
                end = slower[-3:]
                return float(slope if end.size < 3 else np.polyfit(np.log2(LINE[end]), np.log2(r[end]), 1)[0])
    return float("nan")


@dataclass(frozen=True)
class OneSided:
    """The slopes of a function from the left and from the right of a point, along a direction.

    Attributes:
        left: the slope from the left.
        right: the slope from the right.
        error: a bound for the error of either.
    """

    left: float
    right: float
    error: float

    def judge(self, slope: float, declared: float | None = None) -> tuple[bool, str]:
        """Whether to accept `slope` here, and why.

        If a slope is declared, only that one passes; otherwise any slope between left and right does.
        """
        slack = self.error + 1e-12 * max(abs(self.left), abs(self.right))
        low, high = min(self.left, self.right), max(self.left, self.right)
        inside = low - slack <= slope <= high + slack
        at_end = min(abs(slope - low), abs(slope - high)) <= slack
        where = "an end of" if at_end else "in between, inside" if inside else "outside"
        text = f"slope {slope:.6g} is {where} [{low:.6g}, {high:.6g}], the slopes from the two sides"
        if declared is None:
            return inside, f"{text}; none is declared"
        if abs(slope - declared) > slack:
            return False, f"{text}; declared is {declared:.6g}"
        return True, f"{text}; it is the declared one"


def one_sided(fun: Callable[..., Any], args: tuple, direction: Tree) -> OneSided:
    """The slopes of the scalar fun(*args) along +direction, from both sides.

    Forward differences over a ladder of steps are extrapolated to step 0 (Richardson). The value that agrees best with
    its neighbours on the ladder is taken.

    Raises:
        ValueError: fun returns no scalar.
    """
    steps = 2.0 ** -np.arange(6, 26)
    with jax.enable_x64(True):
        args = jax.tree.map(wide, args)
        signed = np.concatenate([[0.0], steps, -steps])
        line = jax.vmap(lambda t: fun(*shifted(args, direction, t)))
        values = np.asarray(jax.jit(line, compiler_options=quick())(signed))
    if values.shape != signed.shape:
        raise ValueError(f"fun must return a scalar, got an array of shape {values.shape[1:]}")
    at, ahead, behind = values[0], values[1 : 1 + steps.size], values[1 + steps.size :]
    (right, right_error), (left, left_error) = limits((ahead - at) / steps), limits((at - behind) / steps)
    return OneSided(float(left), float(right), float(max(left_error, right_error)))


def limits(slopes: np.ndarray, rounding: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(limits for step 0, errors) of one-sided slopes at steps halved each time, on the first axis.

    Args:
        slopes: one for every step; any further axes.
        rounding: the error of each from the rounding of the function's values, of the same shape.
    """
    rounding = np.broadcast_to(rounding, slopes.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        twice = 2 * slopes[1:] - slopes[:-1]
        thrice = (4 * twice[1:] - twice[:-1]) / 3
        jumps = np.abs(np.diff(thrice, axis=0))
    spread = np.maximum(jumps[1:], jumps[:-1]) + rounding[3:-1]
    spread = np.where(np.isnan(spread), np.inf, spread)
    # An estimate that finer steps contradict, each by its own spread, is of another scale: the function oscillates.
    middle = thrice[1:-1]
    for k in reversed(range(len(middle) - 1)):
        with np.errstate(invalid="ignore"):
            against = np.max(np.abs(middle[k] - middle[k + 1 :]) - spread[k + 1 :], axis=0)
        spread[k] = np.fmax(spread[k], against)
    best = np.argmin(spread, axis=0)[None]
    limit, error = (np.asarray(np.take_along_axis(array, best, axis=0)[0]) for array in (middle, spread))
    return np.where(np.isinf(error), np.nan, limit), error
