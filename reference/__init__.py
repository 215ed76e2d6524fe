"""The second, independent program: the same quantities by jax.grad, and the checks that compare.

Names are loaded on first use, so that the command line answers `--help` without importing JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference.anybody.faults import CallFailed as CallFailed
    from reference.anybody.gradient import check_gradient as check_gradient
    from reference.anybody.layer import check_layer as check_layer
    from reference.anybody.rules import check_jvp as check_jvp
    from reference.anybody.rules import check_vjp as check_vjp
    from reference.autodiff import backprop as backprop
    from reference.autodiff import d_lam as d_lam
    from reference.autodiff import d_x as d_x
    from reference.autodiff import deltas as deltas
    from reference.autodiff import gauss_newton_vector_product as gauss_newton_vector_product
    from reference.autodiff import hessian_vector_product as hessian_vector_product
    from reference.autodiff import per_example_gradients as per_example_gradients
    from reference.autodiff import value_and_grad as value_and_grad
    from reference.checking import check as check
    from reference.checking import prepare as prepare
    from reference.mutation.report import Mutant as Mutant
    from reference.mutation.report import MutationScore as MutationScore
    from reference.mutation.score import mutation_score as mutation_score
    from reference.report import GradientMismatch as GradientMismatch
    from reference.report import InconclusiveCheck as InconclusiveCheck
    from reference.report import Report as Report
    from reference.report import Row as Row
    from reference.tolerance.rounding import Measured as Measured
    from reference.tolerance.rounding import measure as measure
    from reference.witnesses.voting import panel as panel
    from reference.witnesses.voting import vote as vote

_HOME = {
    "CallFailed": "anybody.faults",
    "GradientMismatch": "report",
    "InconclusiveCheck": "report",
    "Measured": "tolerance.rounding",
    "Mutant": "mutation.report",
    "MutationScore": "mutation.report",
    "Report": "report",
    "Row": "report",
    "backprop": "autodiff",
    "check": "checking",
    "check_gradient": "anybody.gradient",
    "check_jvp": "anybody.rules",
    "check_layer": "anybody.layer",
    "check_vjp": "anybody.rules",
    "d_lam": "autodiff",
    "d_x": "autodiff",
    "deltas": "autodiff",
    "gauss_newton_vector_product": "autodiff",
    "hessian_vector_product": "autodiff",
    "measure": "tolerance.rounding",
    "mutation_score": "mutation.score",
    "panel": "witnesses.voting",
    "per_example_gradients": "autodiff",
    "prepare": "checking",
    "value_and_grad": "autodiff",
    "vote": "witnesses.voting",
}
__all__ = [
    "CallFailed",
    "GradientMismatch",
    "InconclusiveCheck",
    "Measured",
    "Mutant",
    "MutationScore",
    "Report",
    "Row",
    "backprop",
    "check",
    "check_gradient",
    "check_jvp",
    "check_layer",
    "check_vjp",
    "d_lam",
    "d_x",
    "deltas",
    "gauss_newton_vector_product",
    "hessian_vector_product",
    "measure",
    "mutation_score",
    "panel",
    "per_example_gradients",
    "prepare",
    "value_and_grad",
    "vote",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reference' has no attribute {name!r}")
    return getattr(import_module(f"reference.{_HOME[name]}"), name)
