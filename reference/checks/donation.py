"""A function that takes its arguments' buffers for good is checked as one that does not."""

from collections.abc import Callable
from typing import Any

import jax


def keeping(f: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """`f` if a call leaves `args` as they are, else the same under an outer jit, which ignores donation.

    JAX itself cannot differentiate through a donating function as it stands: what it keeps for the way back is gone.

    Args:
        f: any function.
        args: copies that may be lost.
    """
    if not hasattr(f, "lower"):  # only what jax.jit gives can donate
        return f
    try:
        f(*args)
    except Exception:  # to be found and told of by the check itself
        return f
    if not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(args)):
        return f

    def kept(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        moving = [isinstance(leaf, jax.Array) for leaf in leaves]

        def of_arrays(arrays: list[Any]) -> Any:
            values = iter(arrays)
            every = [next(values) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)]
            return f(*jax.tree.unflatten(tree, every))

        return jax.jit(of_arrays)([leaf for leaf, moves in zip(leaves, moving, strict=True) if moves])

    return kept
