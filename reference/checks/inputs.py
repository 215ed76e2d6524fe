"""Refuse inputs at which nothing can be shown: values that are not finite or not here, and batches without a number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def require_finite(name: str, given: Tree, rounded: Tree, dtype: str) -> None:
    """Refuse values that are nan or inf, or that rounding makes so.

    Args:
        name: of the argument.
        given: its values.
        rounded: the same in the precision under test.
        dtype: that precision.

    Raises:
        ValueError: names the first leaf and entry that is not finite.
    """
    leaves = zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(rounded), strict=True)
    for (path, leaf), kept in leaves:
        if not jnp.issubdtype(jnp.result_type(kept), jnp.floating):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(kept, np.float64)))
        if len(bad):
            at = f"[{', '.join(map(str, bad[0]))}]" if np.ndim(kept) else ""
            number, became = (float(np.asarray(side, np.float64)[tuple(bad[0])]) for side in (leaf, kept))
            rounding = f", which is {became:g} in {dtype}" if np.isfinite(number) else ""
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}{at} is {number:g}{rounding}: {len(bad)} of {np.size(kept)} entries"
                " are not finite; check at finite values"
            )


def require_whole(given: Tree) -> None:
    """Refuse arrays of which other processes hold a part.

    Raises:
        ValueError: says how to bring them here.
    """
    for leaf in jax.tree.leaves(given):
        if isinstance(leaf, jax.Array) and not (isinstance(leaf, jax.core.Tracer) or leaf.is_fully_addressable):
            raise ValueError(
                f"a check needs whole arrays, and a part of one of {list(leaf.shape)} lies on devices of other"
                " processes: gather it first, in every process, by"
                " jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
            )


def require_something(x: Tree, weights: np.ndarray | None) -> None:
    """Refuse a batch in which no example counts.

    Raises:
        ValueError: a part of x has no entries, or every weight is zero.
    """
    for path, part in jax.tree_util.tree_leaves_with_path(x):
        if not np.size(part):
            raise ValueError(
                f"x{jax.tree_util.keystr(path)} is {list(np.shape(part))}: it has no entries, so nothing can be shown;"
                " check with two examples or more"
            )
    if weights is not None and not weights.any():
        raise ValueError("the weights are all zero: no example counts, so nothing can be shown; give weights above 0")
