"""How the functions of this package give JAX their gradients.

Only this file and `manual_backprop.custom_vjp` name `jax.custom_vjp`. That function differentiates nothing: it
registers a derivative that is written by hand.
"""

from collections.abc import Callable
from typing import Any

import jax


def with_rule(
    function: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The function with a backward rule of its own.

    Args:
        function: takes what is static first, hashable; then arrays.
        forward: takes the same, and returns (the function's result, what to keep).
        backward: takes what is static, what was kept, and the cotangent of the result; returns one cotangent for each
            argument but the static one, None for integers.
    """
    ruled = jax.custom_vjp(function, nondiff_argnums=(0,))
    ruled.defvjp(forward, backward)
    return ruled
