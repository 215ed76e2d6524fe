"""Control flow, calls, and solvers with an implicit derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

from benchmarks.elsewhere.cases import Case, drawn, itself, normal, positive


def _called(x: jax.Array) -> jax.Array:
    still = lax.stop_gradient(x)
    return jnp.sin(x) + jax.pure_callback(lambda v: np.cos(v).astype(v.dtype), jax.typeof(still), still)


def _fori(x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 4, lambda i, x: jnp.sin(x) + x / (i + 1), x)


def _rnn(x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, row: ((h := jnp.tanh(0.5 * h + row)), h * row), jnp.zeros(5, x.dtype), x)[1]


def _reverse_scan(x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, row: (h * row, h), jnp.ones(5, x.dtype), x, reverse=True)[1]


def _switch(x: jax.Array) -> jax.Array:
    return jnp.stack([lax.switch(i, (jnp.sin, jnp.exp, jnp.square), x[i]) for i in range(3)])


def _root(x: jax.Array) -> jax.Array:
    """The y with y^3 + y = x, by Newton's method."""

    def solve(f, start):
        return lax.fori_loop(0, 40, lambda _, y: y - f(y) / (3 * y**2 + 1), start)

    return lax.custom_root(lambda y: y**3 + y - x, jnp.zeros_like(x), solve, lambda g, y: y / g(jnp.ones_like(y)))


def _linear_solve(x: jax.Array) -> jax.Array:
    diagonal = 2 + x**2
    solve = lambda _, b: b / diagonal  # noqa: E731
    return lax.custom_linear_solve(lambda v: diagonal * v, jnp.sin(x), solve, solve)


CASES: dict[str, Case] = {
    "associative_scan": positive(lambda x: lax.associative_scan(jnp.multiply, x), 30),
    "checkpoint": normal(lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x) * x),
    "cond": normal(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)),
    "custom_linear_solve": normal(_linear_solve),
    "custom_root": normal(_root),
    "fori_loop": normal(_fori),
    "grad in a function": normal(jax.grad(lambda x: (jnp.sin(x) * x**2).sum())),
    "hessian in a function": normal(jax.hessian(lambda x: jnp.prod(jnp.cos(x))), 4),
    "jvp in a function": normal(lambda x: jax.jvp(jnp.sin, (x,), (x**2,))[1]),
    "lax.map": normal(lambda x: lax.map(lambda row: jnp.tanh(row).sum() * row, x)),
    "pure_callback": normal(_called, ways=("eager", "jit")),  # a callback has no batching rule of its own
    "scan": normal(_rnn),
    "scan, reversed": positive(_reverse_scan, 6, 5),
    "stop_gradient": normal(lambda x: x * lax.stop_gradient(jnp.exp(x))),
    "switch": normal(_switch, 3, 4),
    "vectorize": itself(jnp.vectorize(jnp.dot, signature="(n),(n)->()"), drawn(3, 4), drawn(3, 4)),
    "vmap of a while": positive(special.expi),
}
