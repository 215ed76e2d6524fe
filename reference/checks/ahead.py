"""A program that XLA compiles on a thread of its own, while what it will be held against is worked out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

# One thread beside the one that works out the reference: a check is made for two cores.
_COMPILER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compiling")


def compiling(function: Callable[..., Any], *like: Any, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Start to compile a function for arguments like these; what is returned waits for that, and calls it.

    It is traced at once, under the caller's settings of JAX. What tracing or compiling raises, the call raises. Within
    jax.disable_jit nothing is compiled, and the function itself is called.

    Args:
        function: from arrays to arrays.
        like: arguments; the call takes others of the same structure, shapes and types.
        options: for XLA.
    """
    if getattr(jax.config, "jax_disable_jit", False):
        return function
    try:
        lowered = jax.jit(function, compiler_options=options).lower(*like)
    except Exception as error:
        return _raising(error)
    program = _COMPILER.submit(lowered.compile)
    return lambda *args: program.result()(*args)


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call
