"""The angle between two error terms, the first measure to compare rules on one trace."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.precision import accumulator
from manual_backprop.types import Tree


def angle(deltas: Tree, other: Tree) -> Tree:
    """Degrees between two error terms of every example, layer by layer: arccos of their cosine over the last axis.

    This is the usual measure of alignment since Lillicrap et al. (doi:10.1038/ncomms13276).

    Args:
        deltas: the error terms of one rule.
        other: those of another rule, on the same trace; the same structure.

    Returns:
        The structure of `deltas`, without each leaf's last axis, in the precision of sums: 0 for the same
        direction, 90 for orthogonal ones. nan where either is zero, so average a layer by `jnp.nanmean`.

    Raises:
        ValueError: structures or shapes that differ.
        TypeError: dtypes that differ.
    """
    validate.like("deltas", deltas, "the others", other)

    def of_layer(a: Array, b: Array) -> Array:
        a, b = (_unit(leaf.astype(accumulator(leaf.dtype))) for leaf in (a, b))
        # atan2 of |a - b| and |a + b|: exact near 0 and 180, where arccos of the cosine loses half the digits.
        apart, along = (jnp.linalg.norm(v, axis=-1) for v in (a - b, a + b))
        return 2 * jnp.degrees(jnp.arctan2(apart, along))

    return jax.tree.map(of_layer, deltas, other)


def _unit(rows: Array) -> Array:
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)  # so that no square underflows
    rows = rows / largest
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
