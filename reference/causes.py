"""What the pattern of a difference says about its cause."""

import numpy as np

_MATCH = 1e-6  # how closely a pattern must hold: far above float64 rounding, far below any real factor


def ratio_pattern(manual: np.ndarray, reference: np.ndarray) -> tuple[float | None, str]:
    """The ratio manual / reference where it is one number for all entries that matter, and its text."""
    matter = np.abs(reference) > 1e-3 * np.max(np.abs(reference), initial=0)
    if not matter.any():
        return None, "the reference is zero"
    ratios = manual[matter] / reference[matter]
    middle = float(np.median(ratios))
    if not np.isfinite(ratios).all():
        return None, "not finite"
    if np.ptp(ratios) <= _MATCH * max(1.0, abs(middle)):
        return middle, f"ratio {middle:.6g} everywhere"
    wrong = np.abs(ratios - 1) > _MATCH
    return (
        None,
        f"{wrong.sum()} of {matter.sum()} entries differ, ratios {ratios.min():.3g} to {ratios.max():.3g}",
    )


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _MATCH * max(1.0, abs(b))


def _multiple_of(part: np.ndarray, of: np.ndarray) -> float | None:
    """K where part = k of, else None."""
    size = float(np.vdot(of, of))
    if size == 0 or of.size == 1:  # one number is a multiple of any other
        return None
    k = float(np.vdot(of, part)) / size
    return k if np.allclose(part, k * of, rtol=0, atol=_MATCH * np.abs(part).max()) else None


def probable_cause(
    manual: np.ndarray,
    reference: np.ndarray,
    *,
    n_examples: int,
    lam: float,
    parameter: np.ndarray | None = None,
    is_weight: bool = False,
) -> str:
    """A sentence on what likely went wrong, or "" where the pattern fits nothing known.

    Args:
        manual: the array under test, float64.
        reference: what it should be.
        n_examples: N.
        lam: the regulariser's lambda.
        parameter: the parameter that this is the gradient of, if it is one.
        is_weight: whether that parameter is one that the regulariser counts.
    """
    if not np.isfinite(manual).all():
        return f"{np.count_nonzero(~np.isfinite(manual))} of {manual.size} entries are nan or inf"
    if not manual.any():
        return "identically zero: this term is never filled in"
    if parameter is None or parameter.shape != reference.shape:
        return _cause_of_shape(manual, reference, n_examples)
    k = _multiple_of(reference - manual, parameter)
    if k is not None:
        return _cause_of_penalty(k, lam, n_examples, is_weight)
    penalty = lam * parameter if is_weight else 0.0  # what is wrong may be wrong in the loss's part alone
    return _cause_of_shape(manual, reference, n_examples) or _cause_of_shape(
        manual - penalty, reference - penalty, n_examples
    )


def _cause_of_shape(manual: np.ndarray, reference: np.ndarray, n: int) -> str:
    """Transposed, or one factor everywhere."""
    if manual.ndim >= 2 and manual.shape[-1] == manual.shape[-2]:
        turned = np.swapaxes(reference, -1, -2)
        if np.allclose(manual, turned, rtol=0, atol=_MATCH * np.abs(reference).max()):
            return "transposed"
    return _cause_of_ratio(ratio_pattern(manual, reference)[0], n)


def _cause_of_ratio(ratio: float | None, n: int) -> str:
    if ratio is None:
        return ""
    if _close(ratio, -1.0):
        return "sign"
    if n > 1 and _close(ratio, float(n)):
        return f"1/N missing: a sum over the {n} examples where the mean is meant"
    if n > 1 and _close(ratio * n, 1.0):
        return f"1/N twice: divided by the {n} examples once too often"
    return f"a constant factor of {ratio:.6g}"


def _cause_of_penalty(k: float, lam: float, n: int, is_weight: bool) -> str:
    """From reference - manual = k times the parameter."""
    if not is_weight:
        return f"the bias is penalised, by {-k:.6g} b; biases are free (B6)"
    if _close(k, lam):
        return "lam W missing: the regulariser's part of the gradient (B6)"
    if _close(k, -lam):
        return "lam W counted twice: 2 lam W where lam W is meant (B6)"
    if n > 1 and _close(k * n, lam * (n - 1)):
        return "lam W / N: the regulariser is not averaged over examples (B6)"
    return f"the regulariser's part is {lam - k:.6g} W where {lam:.6g} W is meant (B6)"
