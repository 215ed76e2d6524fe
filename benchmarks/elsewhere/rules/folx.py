"""folx: custom rules, and Laplacians by forward propagation."""

import folx
import jax
import jax.numpy as jnp
from folx import slogdet, wrapped_functions

from benchmarks.elsewhere.cases import Case, drawn, formula, matrix, rule, within

_WIDE = ("float64", "float32")


def _field(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(x) * jnp.tanh(x[::-1]))


CASES: dict[str, Case] = {
    "folx.slogdet": rule(slogdet.slogdet, matrix("1e1"), mode="jvp", dtypes=_WIDE),
    "folx.complex_abs, of reals": rule(wrapped_functions.complex_abs, within(-2, -0.3, 6), mode="jvp"),
    "folx.forward_laplacian": formula(
        lambda x: folx.forward_laplacian(_field)(x).laplacian,
        lambda x: jnp.trace(jax.hessian(_field)(x)),
        drawn(5),
    ),
    "folx.LoopLaplacianOperator": formula(
        lambda x: folx.LoopLaplacianOperator()(_field)(x)[0], lambda x: jnp.diag(jax.hessian(_field)(x)), drawn(5)
    ),
}
