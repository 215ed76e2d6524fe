"""The probable cause of a difference, found from its pattern by trying hypotheses in turn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from reference.reductions import Shards, exchanged

_MATCH = 1e-6  # how closely a pattern must hold: far above float64 rounding, far below any real factor


@dataclass(frozen=True)
class Context:
    """Facts about a leaf besides its two values, to explain a difference.

    Attributes:
        n_examples: N.
        lam: the regulariser's lambda.
        parameter: the parameter that the leaf is the gradient of, if it is one.
        counted: whether the regulariser counts that parameter.
        mistakes: by a mistake in words, the value that the leaf would have with it.
        vectors: whether its columns may be eigenvectors, whose sign is open.
        shards: for a gradient that several devices have computed, makes its parts.
        blocks: into how many parts such a leaf's axes may be split.
    """

    n_examples: int = 1
    lam: float = 0.0
    parameter: np.ndarray | None = None
    counted: bool = False
    mistakes: dict[str, Any] = field(default_factory=dict)
    vectors: bool = False
    shards: Callable[[], Shards | None] = lambda: None
    blocks: tuple[int, ...] = ()


def of_leaf(context: Context) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[str, str]]:
    """A function (manual, reference, tolerance) -> (pattern, probable cause) for `rows.compare_leaf`."""
    return partial(_read, context)


def _read(context: Context, manual: np.ndarray, reference: np.ndarray, tolerance: np.ndarray) -> tuple[str, str]:
    if np.iscomplexobj(manual) or np.iscomplexobj(reference):
        return "", ""
    known = np.isfinite(tolerance)
    size = np.max(np.abs(reference), initial=0)
    noise = float(np.max(tolerance[known], initial=0) / size) if size and np.isfinite(size) else 0.0
    match = max(_MATCH, 3 * noise)
    return ratio_pattern(manual, reference, match)[1], probable_cause(manual, reference, context, match)


def ratio_pattern(manual: np.ndarray, reference: np.ndarray, match: float = _MATCH) -> tuple[float | None, str]:
    """The ratio manual / reference if it is one number for all entries that matter, else None, and its text."""
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
        apart = np.count_nonzero(np.abs(manual - reference)[~matter] > match * largest)
        if apart:
            return None, f"{apart} of {manual.size} entries differ, next to zero in the reference"
        return None, f"ratios within {np.abs(ratios - 1).max():.1g} of 1"
    if np.all(np.abs(ratios - middle) <= noise * max(1.0, abs(middle))):
        return middle, f"ratio {number(middle)} everywhere"
    wrong = np.abs(ratios - 1) > noise
    return (
        None,
        f"{wrong.sum()} of {matter.sum()} entries differ, ratios {_short(ratios.min())} to {_short(ratios.max())}",
    )


def _short(ratio: float) -> str:
    return number(ratio) if 0.999 < ratio < 1.001 and ratio != 1 else f"{ratio:.3g}"


def number(ratio: float) -> str:
    """A factor in words that never read as 1."""
    return f"{ratio:.6g}" if f"{ratio:.6g}" != "1" else f"1 {'+' if ratio > 1 else '-'} {abs(ratio - 1):.2g}"


def probable_cause(manual: np.ndarray, reference: np.ndarray, context: Context, match: float = _MATCH) -> str:
    """A sentence on what likely went wrong, or "" where the pattern fits nothing known."""
    difference = _Difference(manual, reference, context, match)
    said = (hypothesis(difference) for hypothesis in HYPOTHESES)
    return next((cause for cause in said if cause is not None), "")


@dataclass(frozen=True, eq=False)
class _Difference:
    """A leaf by hand and its reference, and how closely a pattern must hold."""

    manual: np.ndarray
    reference: np.ndarray
    context: Context
    match: float

    @cached_property
    def size(self) -> float:
        """The largest entry of the reference."""
        return float(np.max(np.abs(self.reference), initial=0))

    @cached_property
    def ratio(self) -> float | None:
        """Manual / reference if that is one number, else None."""
        return ratio_pattern(self.manual, self.reference, self.match)[0]

    def is_manual(self, value: Any) -> bool:
        """Whether the leaf by hand equals this value."""
        near = self.match * self.size
        return np.shape(value) == self.manual.shape and bool(np.all(np.abs(self.manual - value) <= near))


# The hypotheses. Each returns the cause if its pattern holds, else None.


def _not_finite(leaf: _Difference) -> str | None:
    wrong = np.count_nonzero(~np.isfinite(leaf.manual))
    return f"{wrong} of {leaf.manual.size} entries are nan or inf" if wrong else None


def _nothing_to_hold_it_against(leaf: _Difference) -> str | None:
    return None if np.isfinite(leaf.reference).all() else ""


def _never_filled_in(leaf: _Difference) -> str | None:
    return None if leaf.manual.any() else "identically zero: this term is never filled in"


def _wrong_reduction(leaf: _Difference) -> str | None:
    """A mistake in the sum over devices, or in the order of their blocks."""
    context, shards = leaf.context, leaf.context.shards()
    if shards is None or leaf.manual.size < 2:  # one number can equal anything
        return None
    penalised = context.parameter is not None and context.counted
    penalty = context.lam * np.asarray(context.parameter) if penalised else np.zeros_like(leaf.reference)
    said = next((words for words, value in shards.mistakes(penalty) if leaf.is_manual(value)), None)
    return said or exchanged(leaf.manual, leaf.reference, context.blocks, leaf.match * leaf.size)


def _wrong_penalty(leaf: _Difference) -> str | None:
    """The difference is a multiple of the parameter."""
    parameter = leaf.context.parameter
    if parameter is None or parameter.shape != leaf.reference.shape:
        return None
    k = _multiple_of(leaf.reference - leaf.manual, parameter, leaf.match * leaf.size)
    return None if k is None else _cause_of_penalty(k, leaf.context, leaf.match)


def _known_mistake(leaf: _Difference) -> str | None:
    return next((mistake for mistake, value in leaf.context.mistakes.items() if leaf.is_manual(value)), None)


def _known_mistake_in_several_numbers(leaf: _Difference) -> str | None:
    return _known_mistake(leaf) if leaf.manual.size > 1 else None


def _known_ratio(leaf: _Difference) -> str | None:
    n = leaf.context.n_examples
    known = leaf.ratio is not None and any(_close(leaf.ratio, one, leaf.match) for one in (-1.0, float(n), 1 / n))
    return _any_ratio(leaf) if known else None


def _transposed(leaf: _Difference) -> str | None:
    square = leaf.manual.ndim >= 2 and leaf.manual.shape[-1] == leaf.manual.shape[-2]
    return "transposed" if square and leaf.is_manual(np.swapaxes(leaf.reference, -1, -2)) else None


def _signs_of_columns(leaf: _Difference) -> str | None:
    """Each column is that of the reference or its negative, as eigenvectors are that another algorithm found."""
    if not leaf.context.vectors or leaf.manual.ndim < 2 or leaf.manual.shape[-2] < 2:
        return None
    signs = np.sign(np.sum(leaf.manual * leaf.reference, axis=-2, keepdims=True))
    if np.all(signs > 0) or not leaf.is_manual(signs * leaf.reference):
        return None
    return (
        f"{np.count_nonzero(signs < 0)} of {signs.size} columns have the opposite sign; that of an eigenvector or of a"
        " singular vector is not determined, so compare what does not depend on it, or fix it in both"
    )


def _ratio_of_devices(leaf: _Difference) -> str | None:
    """A number, such as J, that is as many times too large or too small as there are devices along an axis."""
    if (ratio := leaf.ratio) is None:
        return None
    for count in leaf.context.blocks:
        if count > 1 and _close(ratio, float(count), leaf.match):
            return f"{count} times over: a sum over devices where a mean is meant, or a second sum"
        if count > 1 and _close(ratio * count, 1.0, leaf.match * count):
            return f"divided by {count} once too often: a mean over devices where the sum is meant"
    return None


def _any_ratio(leaf: _Difference) -> str | None:
    """A constant factor; of a number on several devices every fault is one, and the leaves after it say more."""
    if leaf.ratio is None or (leaf.manual.size == 1 and leaf.context.blocks):
        return None
    return _cause_of_ratio(leaf.ratio, leaf.context.n_examples, leaf.match)


def _wrong_without_the_penalty(leaf: _Difference) -> str | None:
    """The penalty's part is right and the loss's part is wrong; explain that part alone."""
    context = leaf.context
    if context.parameter is None or not context.counted or not context.lam:
        return None
    penalty = context.lam * context.parameter
    plain = Context(context.n_examples)
    return probable_cause(leaf.manual - penalty, leaf.reference - penalty, plain, leaf.match)


HYPOTHESES: tuple[Callable[[_Difference], str | None], ...] = (
    _not_finite,
    _nothing_to_hold_it_against,
    _never_filled_in,
    _wrong_reduction,
    _wrong_penalty,
    _known_mistake_in_several_numbers,
    _known_ratio,
    _known_mistake,  # after the named ratios, since one number can equal anything
    _transposed,
    _signs_of_columns,
    _ratio_of_devices,
    _any_ratio,
    _wrong_without_the_penalty,
)
"""Hypotheses in the order of trial; the first that holds gives the cause."""


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


def _cause_of_ratio(ratio: float, n: int, match: float) -> str:
    if _close(ratio, -1.0, match):
        return "sign"
    if n > 1 and _close(ratio, float(n), match):
        return f"1/N missing: a sum over the {n} examples where the mean is meant"
    if n > 1 and _close(ratio * n, 1.0, match * n):
        return f"1/N twice: divided by the {n} examples once too often"
    return f"a constant factor of {number(ratio)}"


def _cause_of_penalty(k: float, context: Context, match: float) -> str:
    """The cause where reference - manual is k times the parameter."""
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
