"""Jaxley: solutions of the equations of channels' gates."""

import jax.numpy as jnp
from jaxley import solver_gate as gates

from benchmarks.elsewhere.cases import Case, drawn, formula, within

_AT = (within(0.1, 0.9, 6), 0.025, within(0.3, 2, 6), within(0.3, 2, 6))
_BY_ARRAYS = {"argnums": (0, 2, 3)}

CASES: dict[str, Case] = {
    "jaxley.save_exp": formula(gates.save_exp, jnp.exp, drawn(9)),
    "jaxley.solve_gate_exponential": formula(
        gates.solve_gate_exponential,
        lambda x, dt, a, b: x * jnp.exp(-dt * (a + b)) + a / (a + b) * -jnp.expm1(-dt * (a + b)),
        *_AT,
        options=_BY_ARRAYS,
    ),
    "jaxley.solve_gate_implicit": formula(
        gates.solve_gate_implicit,
        lambda x, dt, a, b: (x + dt * a) / (1 + dt * (a + b)),
        *_AT,
        options=_BY_ARRAYS,
    ),
    "jaxley.exponential_euler": formula(
        gates.exponential_euler,
        lambda x, dt, end, tau: x * jnp.exp(-dt / tau) + end * (1 - jnp.exp(-dt / tau)),
        *_AT,
        options=_BY_ARRAYS,
    ),
}
