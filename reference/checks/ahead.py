"""A program that XLA compiles on a thread of its own, while what it will be held against is worked out."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from reference.xla import quick

LARGE = 400
"""Equations of a program above which it is compiled quickly, whatever the caller asks for: XLA may take seconds."""


def compiling(function: Callable[..., Any], *like: Any, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Start to compile a function for arguments like these; what is returned waits for that, and calls it.

    It is traced at once, under the caller's settings of JAX. What tracing or compiling raises, the call raises. Within
    jax.disable_jit nothing is compiled, and the function itself is called.

    Args:
        function: from arrays to arrays.
        like: arguments; the call takes others of the same structure, shapes and types.
        options: for XLA, of a program that is not `LARGE`.
    """
    if getattr(jax.config, "jax_disable_jit", False):
        return function
    try:
        traced = jax.jit(function).trace(*like)
        lowered = traced.lower()
    except Exception as error:
        return _raising(error)
    program: Future[Any] = Future()
    options = quick() if _size(traced.jaxpr) > LARGE else options
    Thread(target=_compile, args=(lowered, options, program)).start()  # its own: a pool's would not survive a fork
    return lambda *args: program.result()(*args)


def _size(program: ClosedJaxpr | Jaxpr) -> int:
    within = [jax.tree.leaves([*equation.params.values()]) for equation in program.eqns]
    parts = [part for parts in within for part in parts if isinstance(part, ClosedJaxpr | Jaxpr)]
    return len(program.eqns) + sum(map(_size, parts))


def _compile(lowered: Any, options: dict[str, Any] | None, program: Future[Any]) -> None:
    try:
        program.set_result(lowered.compile(compiler_options=options))
    except Exception as error:
        program.set_exception(error)


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call
