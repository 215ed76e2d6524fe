"""Compare two leaves: the worst entry in units of its tolerance, and the smallest fault that would have shown."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference import causes
from reference.report import Row, Verdict

Tree = Any
Cause = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[str, str]]
BLIND = 0.5
"""The least useful power: a row that would not have noticed its leaf halved or doubled is inconclusive."""


LOST = "something in their computation or its derivative"
"""How a reason calls the operation that overflows or leaves its domain, until somebody has looked for it."""
LEAVES = (
    " overflows or leaves its domain (it may be in a branch that is not selected); check where nothing does, or in a"
    " wider precision"
)
"""How that reason goes on."""


def compare_leaf(
    path: str,
    manual: Any,
    reference: Any,
    tolerance: Any,
    *,
    cause: Cause | None = None,
    overflows: bool = False,
    **described: Any,
) -> Row:
    """Compare one leaf and return a row.

    Args:
        path: what is compared.
        manual: the leaf under test.
        reference: its expected value, of the same shape.
        tolerance: the largest error due to rounding, one for each entry or one for all; inf where that is unknown.
        cause: (manual, reference, tolerance) -> (pattern, probable cause), called only if the row fails; None
            looks for a constant ratio.
        overflows: whether the working precision may overflow in the computation. Entries that are nan or inf by
            hand are then unknown, not wrong.
        described: `kind`, `equation`, `layer`, `witness` and `leading` of the row.

    Raises:
        ValueError: shapes that differ; nothing is broadcast.
    """
    ours, theirs = as_float64(manual), as_float64(reference)
    if ours.shape != theirs.shape:
        witness = described.get("witness", "jax.grad")
        raise ValueError(f"{path} is {list(ours.shape)} by hand but {list(theirs.shape)} by {witness}")
    allowed = np.broadcast_to(np.where(np.isnan(tolerance), np.inf, tolerance), ours.shape)
    if overflows:
        allowed = np.where(np.isfinite(ours), allowed, np.inf)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        errors = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
        errors = np.where(np.isnan(errors), np.where(np.isnan(theirs), np.nan, np.inf), errors)
        used = np.where(errors == 0, 0.0, np.where(np.isinf(allowed), 0.0, errors / allowed))
    unknown = np.isinf(allowed) | np.isnan(theirs)
    blind = blind_entries(theirs, allowed)
    if described.get("leading", "").startswith("for ") and blind.ndim:
        blind = np.asarray(blind.all(axis=0))
    used = np.where(np.isnan(theirs), 0.0, used)
    worst = np.unravel_index(np.argmax(used), used.shape) if used.size else ()
    power = _power(ours, theirs, np.where(unknown, np.inf, allowed))
    failed = bool(used.size) and bool(used[worst] > 1)
    verdict: Verdict = "fail" if failed else "inconclusive" if unknown.any() or power > BLIND else "pass"
    pattern, reason = (cause or causes.of_leaf(causes.Context()))(ours, theirs, allowed) if failed else ("", "")
    finite = np.abs(theirs[np.isfinite(theirs)])
    at = (float(array[worst]) if used.size else 0.0 for array in (errors, allowed, used, ours, theirs))
    error, tol, share, by_hand, by_witness = at
    return Row(
        path=path,
        shape=ours.shape,
        error=error,
        scale=float(finite.max()) if finite.size else 0.0,
        tolerance=tol,
        used=share,
        power=power,
        where=tuple(int(i) for i in worst),
        manual=by_hand,
        reference=by_witness,
        verdict=verdict,
        pattern=pattern,
        cause=reason,
        reason=_why_undecided(unknown, theirs, described.get("leading", "")) if verdict == "inconclusive" else "",
        blind=int(np.count_nonzero(blind)),
        **described,
    )


def blind_entries(reference: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Where a number other than zero could be halved or doubled and stay within its tolerance, which is known."""
    size = np.abs(reference)
    return np.asarray((size > 0) & np.isfinite(tolerance) & (BLIND * size <= tolerance))


def _why_undecided(unknown: Any, reference: np.ndarray, leading: str) -> str:
    """Why no tolerance is known, and what helps; "" where it is known and too large."""
    if not unknown.any():
        return ""
    nan = np.count_nonzero(np.isnan(reference))
    if nan:
        return f"the reference is nan in {nan} of {reference.size} entries: check where it is not"
    at = np.argwhere(unknown)[0].tolist()
    own = at[1:] if leading else at
    parts = [*([str(own)] if own else []), *([f"{leading} {at[0]}"] if leading and at else [])]
    first = f", first {' '.join(parts)}" if parts else ""
    return f"no tolerance is known for {np.count_nonzero(unknown)} of {unknown.size} entries{first}: {LOST}{LEAVES}"


def _power(manual: np.ndarray, reference: np.ndarray, allowed: np.ndarray) -> float:
    """The smallest eps for which the leaf times 1 + eps and the leaf times 1 - eps would both have failed.

    It is 0 for a leaf that must be zero and is exactly zero, which has no size that a fault could be relative to.
    """
    if not manual.any() and not reference.any():
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        needed = (allowed + np.abs(manual - reference)) / np.abs(manual)
    return float(np.min(np.where(np.isnan(needed), np.inf, needed)))


def compare_trees(name: str, manual: Tree, reference: Tree, tolerance: Tree | float, **described: Any) -> list[Row]:
    """One row for every leaf of two trees; `tolerance` is a tree like them, or a number.

    Raises:
        ValueError: trees of different structures (both are printed) or leaves of different shapes.
    """
    return list(each_compared(name, manual, reference, tolerance, **described))


def each_compared(name: str, manual: Tree, reference: Tree, tolerance: Tree | float, **described: Any) -> Iterator[Row]:
    """The rows of `compare_trees` one by one, for callers that stop at the first that fails."""
    leaves = require_same_structure(name, manual, reference)
    allowed = [tolerance] * len(leaves) if isinstance(tolerance, float) else jax.tree.leaves(tolerance)
    pairs = zip(leaves, jax.tree.leaves(reference), allowed, strict=True)
    for (path, ours), theirs, tol in pairs:
        yield compare_leaf(path, ours, theirs, tol, **described)


def require_same_structure(name: str, manual: Tree, reference: Tree) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf of `manual`.

    Raises:
        ValueError: its structure differs from that of `reference`; both are printed.
    """
    by_hand: Any = jax.tree.structure(manual)
    by_grad: Any = jax.tree.structure(reference)
    if by_hand != by_grad:
        raise ValueError(f"{name} has structure\n  {by_hand}\nby hand but\n  {by_grad}\nby jax.grad")
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(manual)]


def as_float64(leaf: Any) -> np.ndarray:
    """The leaf as a NumPy array without loss: float64, or complex128."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64)
