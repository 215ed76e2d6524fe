"""One-sided slopes of a function from its values, on two ladders of steps.

The first starts at the size of the argument, or at 1 where that is smaller. A function may vary on a smaller scale: at
picofarads, at a date in seconds, next to a bend. So a second ladder starts where the first ends, or at the size of an
argument that is small; where the two contradict each other, the finer has the slope at the point.
"""

from typing import Any

import numpy as np

from reference.witnesses.differences import limits

STEPS = 2.0 ** -np.arange(4, 28)
SMALL = 2.0**-10  # an argument below has a ladder of its own size
AT_ZERO = 2.0**-60  # where the second ladder starts for an argument that is 0
BELOW = 2.0**-26  # and where for any other, relative to it


def sizes(x: np.ndarray) -> np.ndarray:
    """The units of the steps of either ladder, at these arguments: powers of 2, on a new first axis."""
    own = _power_of_two(np.where(x == 0, AT_ZERO, np.abs(x)))
    return np.stack([np.maximum(own, 1.0), np.where(np.abs(x) < SMALL, own, own * BELOW)])


def along(x: list[np.ndarray], direction: list[np.ndarray]) -> np.ndarray:
    """The same for a common step along a direction: as small as the most delicate entry asks for; two numbers."""
    each = []
    for leaf, part in zip(x, direction, strict=True):
        moved = part != 0
        each.append(sizes(leaf[moved]) / np.abs(part[moved]))
    least = np.min(np.concatenate(each, axis=1), axis=1, initial=1.0)
    return _power_of_two(least)


def _power_of_two(size: Any) -> np.ndarray:
    return np.asarray(2.0 ** np.floor(np.log2(size)))


def steps(size: np.ndarray) -> np.ndarray:
    """The steps of both ladders, one after the other on the first axis, for `sizes` on the first axis."""
    return np.concatenate([one * STEPS.reshape(-1, *(1,) * one.ndim) for one in size])


def sides(values: np.ndarray, taken: np.ndarray, noise: Any, grain: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(slopes to the left, slopes to the right, the error of either), from values along a ladder.

    Their first axis has the point itself, then all steps ahead of it, then all behind it.

    Args:
        values: of the function; any further axes.
        taken: the steps, to be broadcast against the values.
        noise: how far the values may be off by rounding, likewise.
        grain: the distance of the argument to the next number, likewise; a value may be that of one four away, which
            is more than the rounding of the argument and the step.
    """
    if len(values) == 1:  # an output that nothing here moves
        still = np.zeros(values.shape[1:])
        return still, still, still
    at, ahead, behind = values[:1], values[1 : 1 + len(taken)], values[1 + len(taken) :]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        right, right_error = _of_both((ahead - at) / taken, 2 * noise / taken, 4 * grain / taken)
        left, left_error = _of_both((at - behind) / taken, 2 * noise / taken, 4 * grain / taken)
        return left, right, np.asarray(np.maximum(left_error, right_error))


def _of_both(slopes: np.ndarray, rounding: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(limits, errors) by the better of the ladders; by the finer where they contradict each other."""
    rounding = rounding + share * np.abs(slopes)
    half = len(STEPS)
    (coarse, its_error), (fine, error) = (limits(slopes[k], rounding[k]) for k in (slice(half), slice(half, None)))
    finer = (np.abs(coarse - fine) > its_error + error) | (error < its_error)
    return np.where(finer, fine, coarse), np.where(finer, error, its_error)
