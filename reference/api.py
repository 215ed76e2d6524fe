"""The public names of `reference`, each imported from its own file."""

from reference.autodiff import backprop as backprop
from reference.autodiff import d_lam as d_lam
from reference.autodiff import d_x as d_x
from reference.autodiff import deltas as deltas
from reference.autodiff import gauss_newton_vector_product as gauss_newton_vector_product
from reference.autodiff import hessian_vector_product as hessian_vector_product
from reference.autodiff import per_example_gradients as per_example_gradients
from reference.autodiff import value_and_grad as value_and_grad
from reference.checks.faults import CallFailed as CallFailed
from reference.checks.gradient import check_gradient as check_gradient
from reference.checks.layer import check_layer as check_layer
from reference.checks.rule import check_jvp as check_jvp
from reference.checks.rule import check_vjp as check_vjp
from reference.checks.step import check as check
from reference.checks.step import prepare as prepare
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
