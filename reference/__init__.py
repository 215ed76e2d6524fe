"""The second, independent program: the same quantities by jax.grad, and the check that compares them.

Names are loaded on first use, so that the command line answers `--help` without importing JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference.autodiff import backprop as backprop
    from reference.autodiff import d_lam as d_lam
    from reference.autodiff import d_x as d_x
    from reference.autodiff import deltas as deltas
    from reference.autodiff import value_and_grad as value_and_grad
    from reference.checking import check as check
    from reference.report import GradientMismatch as GradientMismatch
    from reference.report import Report as Report
    from reference.report import Row as Row

_HOME = {
    "backprop": "autodiff",
    "d_lam": "autodiff",
    "d_x": "autodiff",
    "deltas": "autodiff",
    "value_and_grad": "autodiff",
    "check": "checking",
    "GradientMismatch": "report",
    "Report": "report",
    "Row": "report",
}
__all__ = [
    "GradientMismatch",
    "Report",
    "Row",
    "backprop",
    "check",
    "d_lam",
    "d_x",
    "deltas",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reference' has no attribute {name!r}")
    return getattr(import_module(f"reference.{_HOME[name]}"), name)
