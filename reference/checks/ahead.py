"""A program that XLA compiles on a thread of its own, while what it will be held against is worked out."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from reference.xla import quick

LARGE = 400
"""Equations of a program above which XLA takes seconds, and more than in proportion to its size."""


@dataclass(frozen=True)
class Program:
    """A function that is being compiled; a call waits for that.

    Attributes:
        call: the compiled function.
        large: whether it has more equations than `LARGE`, those of loops and branches included.
        compiled: its result, once there is one.
    """

    call: Callable[..., Any]
    large: bool = False
    compiled: Future[Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """The function's result; an error of its tracing or compiling is raised here."""
        return self.call(*args)


def compiling(
    function: Callable[..., Any], *like: Any, options: dict[str, Any] | None = None, after: Program | None = None
) -> Program:
    """Start to compile a function for arguments like these.

    It is traced at once, under the caller's settings of JAX. Within jax.disable_jit nothing is compiled, and the
    function itself is called.

    Args:
        function: from arrays to arrays.
        like: arguments; the call takes others of the same structure, shapes and types.
        options: for XLA; a large program is compiled quickly whatever they are.
        after: is compiled before, so that the caller keeps a core to itself.
    """
    if getattr(jax.config, "jax_disable_jit", False):
        return Program(function)
    try:
        traced = jax.jit(function).trace(*like)
        lowered = traced.lower()
    except Exception as error:
        return Program(_raising(error))
    large, compiled, before = _size(traced.jaxpr) > LARGE, Future[Any](), after.compiled if after else None
    given = (lowered, quick() if large else options, compiled, before)
    Thread(target=_compile, args=given).start()  # its own, since a pool's would not survive a fork
    return Program(lambda *args: compiled.result()(*args), large, compiled)


def _size(program: ClosedJaxpr | Jaxpr) -> int:
    within = [jax.tree.leaves([*equation.params.values()]) for equation in program.eqns]
    parts = [part for parts in within for part in parts if isinstance(part, ClosedJaxpr | Jaxpr)]
    return len(program.eqns) + sum(map(_size, parts))


def _compile(lowered: Any, options: dict[str, Any] | None, compiled: Future[Any], before: Future[Any] | None) -> None:
    if before is not None:
        before.exception()  # waits for it
    try:
        compiled.set_result(lowered.compile(compiler_options=options))
    except Exception as error:
        compiled.set_exception(error)


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call
