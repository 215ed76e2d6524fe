"""A program that XLA compiles on a thread of its own, while what it will be held against is worked out."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import jax


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
    program: Future[Any] = Future()
    Thread(target=_compile, args=(lowered, program)).start()  # its own, since a pool's would not survive a fork
    return lambda *args: program.result()(*args)


def _compile(lowered: Any, program: Future[Any]) -> None:
    try:
        program.set_result(lowered.compile())
    except Exception as error:
        program.set_exception(error)


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call
