"""Options that make XLA compile quickly."""

import os
import subprocess
import sys
from functools import cache
from typing import Any

import jax

# How many threads XLA starts, by the variable NPROC. On a few cores it starts one for each virtual device, and two sums
# over devices at once then wait for each other until it ends the process.
THREADS = "32"

# A check compiles a program and runs it once, so code that compiles fast beats fast code.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@cache
def flags() -> str:
    """QUICK for everything that a process compiles, as XLA_FLAGS in its environment has it.

    XLA reads the variable when it compiles for the first time, and ends a process if it does not know an option. So
    another process is asked which it knows.
    """
    asked = [sys.executable, "-P", __file__]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(asked, env=env, check=True, capture_output=True, text=True).stdout.strip()


def quick() -> dict[str, Any] | None:
    """Options for quick compilation, if this backend has any."""
    return known(QUICK) if jax.default_backend() == "cpu" else None


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that this version of XLA knows."""
    return {name: value for name, value in options.items() if _knows(name, value)}


@cache
def _knows(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value})(0.0)
    except Exception:  # an unknown option; the type of the error differs between versions
        return False
    return True


if __name__ == "__main__":
    print(*(f"--{name}={str(value).lower()}" for name, value in known(QUICK).items()))
