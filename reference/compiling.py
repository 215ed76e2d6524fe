"""Options for XLA: to compile quickly, and to use a value on as it is stored."""

from functools import cache
from typing import Any

import jax

# A check compiles a program and runs it once, so code that compiles fast beats fast code.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# An equation is checked from what is stored. XLA may carry a 16-bit value on in 32 bits, or, fusing, compute a value
# again with other roundings (z = w a + b in one rounding, where b cancels most of it) for whoever uses it.
_FAITHFUL = {
    "xla_allow_excess_precision": False,
    "xla_disable_hlo_passes": "fusion,cpu-instruction-fusion,priority-fusion,multi_output_fusion",
}


def quick() -> dict[str, Any] | None:
    """Options for quick compilation, where this backend and this version of XLA know them; else None."""
    return _QUICK if jax.default_backend() == "cpu" and _known(tuple(_QUICK.items())) else None


def faithful(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """`options`, and neither excess precision nor fusion where XLA knows those options."""
    return {**_FAITHFUL, **(options or {})} if _known(tuple(_FAITHFUL.items())) else options


@cache
def _known(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options))(0.0)
    except Exception:  # an unknown option: the type of the error differs between versions
        return False
    return True
