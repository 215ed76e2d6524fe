"""Options that make XLA compile quickly."""

from functools import cache
from typing import Any

import jax

# A check compiles a program and runs it once, so code that compiles fast beats fast code.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def flags() -> str:
    """QUICK for everything that a process compiles, as XLA_FLAGS in its environment has it.

    XLA reads the variable when it compiles for the first time, and ends a process if it does not know an option.
    """
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())


def quick() -> dict[str, Any] | None:
    """Options for quick compilation if this backend and this version of XLA know them, else None."""
    return QUICK if jax.default_backend() == "cpu" and _known(tuple(QUICK.items())) else None


@cache
def _known(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options))(0.0)
    except Exception:  # an unknown option; the type of the error differs between versions
        return False
    return True
