"""Diffrax: solutions of differential equations, by each of its ways to pull back."""

import diffrax as dx
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself

_STEPS = 5


def _field(t: object, y: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.tanh(a @ y)


def _by(solver: object, adjoint: object) -> object:
    def function(y: jax.Array, a: jax.Array) -> jax.Array:
        term, one = dx.ODETerm(_field), 1 / _STEPS
        return dx.diffeqsolve(term, solver, 0.0, 1.0, one, y, a, adjoint=adjoint, max_steps=16).ys[-1]

    return function


def _euler(y: jax.Array, a: jax.Array) -> jax.Array:
    for _ in range(_STEPS):
        y = y + _field(0, y, a) / _STEPS
    return y


def _heun(y: jax.Array, a: jax.Array) -> jax.Array:
    for _ in range(_STEPS):
        first = _field(0, y, a)
        y = y + (first + _field(0, y + first / _STEPS, a)) / (2 * _STEPS)
    return y


def _midpoint(y: jax.Array, a: jax.Array) -> jax.Array:
    for _ in range(_STEPS):
        y = y + _field(0, y + _field(0, y, a) / (2 * _STEPS), a) / _STEPS
    return y


_AT = (drawn(3), drawn(3, 3))

CASES: dict[str, Case] = {
    "diffrax.Euler, checkpoints": formula(_by(dx.Euler(), dx.RecursiveCheckpointAdjoint()), _euler, *_AT, dtypes=WIDE),
    "diffrax.Euler, direct": formula(_by(dx.Euler(), dx.DirectAdjoint()), _euler, *_AT, dtypes=WIDE),
    "diffrax.Euler, forward": formula(_by(dx.Euler(), dx.ForwardMode()), _euler, *_AT, dtypes=WIDE, mode="jvp"),
    "diffrax.Heun": formula(_by(dx.Heun(), dx.RecursiveCheckpointAdjoint()), _heun, *_AT, dtypes=WIDE),
    "diffrax.Midpoint": formula(_by(dx.Midpoint(), dx.RecursiveCheckpointAdjoint()), _midpoint, *_AT, dtypes=WIDE),
    "diffrax.Tsit5": itself(_by(dx.Tsit5(), dx.RecursiveCheckpointAdjoint()), *_AT, dtypes=WIDE),
    "diffrax.Dopri5": itself(_by(dx.Dopri5(), dx.DirectAdjoint()), *_AT, dtypes=WIDE),
    "diffrax.Kvaerno3": itself(
        _by(dx.Kvaerno3(root_finder=dx.VeryChord(1e-3, 1e-3)), dx.DirectAdjoint()), *_AT, dtypes=WIDE
    ),
    "diffrax.LinearInterpolation": itself(
        lambda y: dx.LinearInterpolation(jnp.linspace(0, 1, 6, dtype=y.dtype), y).evaluate(0.37), drawn(6, 2)
    ),
    "diffrax.CubicInterpolation": itself(
        lambda y: dx.CubicInterpolation(
            (ts := jnp.linspace(0, 1, 6, dtype=y.dtype)), dx.backward_hermite_coefficients(ts, y)
        ).evaluate(0.37),
        drawn(6, 2),
    ),
}
