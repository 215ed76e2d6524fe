"""What the pattern of a difference says about its cause."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_MATCH = 1e-6  # how closely a pattern must hold: far above float64 rounding, far below any real factor


@dataclass(frozen=True)
class Context:
    """What is known of a leaf before its difference is read.

    Attributes:
        n_examples: N.
        lam: the regulariser's lambda.
        parameter: the parameter that the leaf is the gradient of, if it is one.
        counted: whether the regulariser counts that parameter.
        mistakes: what the leaf would be by a mistake, in words.
    """

    n_examples: int = 1
    lam: float = 0.0
    parameter: np.ndarray | None = None
    counted: bool = False
    mistakes: dict[str, Any] = field(default_factory=dict)


def of_leaf(context: Context) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[str, str]]:
    """A function (manual, reference, tolerance) -> (pattern, probable cause) for `rows.compare_leaf`."""

    def read(manual: np.ndarray, reference: np.ndarray, tolerance: np.ndarray) -> tuple[str, str]:
        if np.iscomplexobj(manual) or np.iscomplexobj(reference):
            return "", ""
        known = np.isfinite(tolerance)
        size = np.max(np.abs(reference), initial=0)
        noise = float(np.max(tolerance[known], initial=0) / size) if size and np.isfinite(size) else 0.0
        match = max(_MATCH, 3 * noise)
        return ratio_pattern(manual, reference, match)[1], probable_cause(manual, reference, context, match)

    return read


def ratio_pattern(manual: np.ndarray, reference: np.ndarray, match: float = _MATCH) -> tuple[float | None, str]:
    """The ratio manual / reference where it is one number for all entries that matter, and its text."""
    largest = np.max(np.abs(reference), initial=0)
    matter = np.abs(reference) > max(1e-3, 20 * match) * largest
    if not matter.any():
        return None, "the reference is zero" if not largest else "too noisy for a pattern"
    ratios = manual[matter] / reference[matter]
    middle = float(np.median(ratios))
    if not np.isfinite(ratios).all():
        return None, "not finite"
    noise = match * largest / np.abs(reference[matter])
    if np.all(np.abs(ratios - 1) <= noise):
        return None, f"ratios within {np.abs(ratios - 1).max():.1g} of 1"
    if np.all(np.abs(ratios - middle) <= noise * max(1.0, abs(middle))):
        return middle, f"ratio {middle:.6g} everywhere"
    wrong = np.abs(ratios - 1) > noise
    return (
        None,
        f"{wrong.sum()} of {matter.sum()} entries differ, ratios {ratios.min():.3g} to {ratios.max():.3g}",
    )


def probable_cause(manual: np.ndarray, reference: np.ndarray, context: Context, match: float = _MATCH) -> str:
    """A sentence on what likely went wrong, or "" where the pattern fits nothing known."""
    if not np.isfinite(manual).all():
        return f"{np.count_nonzero(~np.isfinite(manual))} of {manual.size} entries are nan or inf"
    if not np.isfinite(reference).all():
        return ""
    if not manual.any():
        return "identically zero: this term is never filled in"
    size = np.max(np.abs(reference), initial=0)

    def equal(value: Any) -> bool:
        return np.shape(value) == manual.shape and bool(np.all(np.abs(manual - value) <= match * size))

    parameter = context.parameter
    if parameter is not None and parameter.shape == reference.shape:
        k = _multiple_of(reference - manual, parameter, match * size)
        if k is not None:
            return _cause_of_penalty(k, context, match)
    if manual.size > 1:  # one number can equal anything
        for mistake, value in context.mistakes.items():
            if equal(value):
                return mistake
    ratio = ratio_pattern(manual, reference, match)[0]
    if ratio is not None and _named_ratio(ratio, context.n_examples, match):
        return _cause_of_ratio(ratio, context.n_examples, match)
    for mistake, value in context.mistakes.items():
        if equal(value):
            return mistake
    if manual.ndim >= 2 and manual.shape[-1] == manual.shape[-2] and equal(np.swapaxes(reference, -1, -2)):
        return "transposed"
    if ratio is not None:
        return _cause_of_ratio(ratio, context.n_examples, match)
    if parameter is not None and context.counted and context.lam:
        # What is wrong may be wrong in the loss's part alone.
        penalty = context.lam * parameter
        plain = Context(context.n_examples)
        return probable_cause(manual - penalty, reference - penalty, plain, match)
    return ""


def _close(a: float, b: float, match: float) -> bool:
    return abs(a - b) <= match * max(1.0, abs(b))


def _multiple_of(part: np.ndarray, of: np.ndarray, noise: float) -> float | None:
    """K where part = k of, else None."""
    size = float(np.vdot(of, of))
    if size == 0 or of.size == 1:  # one number is a multiple of any other
        return None
    k = float(np.vdot(of, part)) / size
    fits = np.all(np.abs(part - k * of) <= noise) and np.abs(part).max() > 10 * noise
    return k if fits else None


def _named_ratio(ratio: float, n: int, match: float) -> bool:
    return any(_close(ratio, known, match) for known in (-1.0, float(n), 1 / n))


def _cause_of_ratio(ratio: float, n: int, match: float) -> str:
    if _close(ratio, -1.0, match):
        return "sign"
    if n > 1 and _close(ratio, float(n), match):
        return f"1/N missing: a sum over the {n} examples where the mean is meant"
    if n > 1 and _close(ratio * n, 1.0, match * n):
        return f"1/N twice: divided by the {n} examples once too often"
    return f"a constant factor of {ratio:.6g}"


def _cause_of_penalty(k: float, context: Context, match: float) -> str:
    """From reference - manual = k times the parameter."""
    lam, n = context.lam, context.n_examples
    loose = max(10 * match, 1e-3)
    if not context.counted:
        return f"the bias is penalised, by {-k:.6g} b; biases are free (B6)"
    if abs(k - lam) <= loose * lam:
        return "lam W missing: the regulariser's part of the gradient (B6)"
    if abs(k + lam) <= loose * lam:
        return "lam W counted twice: 2 lam W where lam W is meant (B6)"
    if n > 1 and abs(k * n - lam * (n - 1)) <= loose * lam:
        return "lam W / N: the regulariser is not averaged over examples (B6)"
    return f"the regulariser's part is {lam - k:.6g} W where {lam:.6g} W is meant (B6)"
