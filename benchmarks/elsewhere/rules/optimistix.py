"""Optimistix: roots, fixed points and minima, with an implicit derivative."""

import jax
import jax.numpy as jnp
import optimistix as optx

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, within

_FINE = {"rtol": 1e-5, "atol": 1e-5}  # float32 gets no further
_STOPS = {"approximation": 1e-5}


def _root(solver: object, start: float = 0.5) -> object:
    def function(x: jax.Array) -> jax.Array:
        return optx.root_find(lambda y, x: y**3 + y - x, solver, jnp.full_like(x, start), x, max_steps=200).value

    return function


def _cubic(x: jax.Array) -> jax.Array:
    """Cardano's root of y^3 + y = x."""
    s = jnp.sqrt(x**2 / 4 + 1 / 27)
    return jnp.cbrt(x / 2 + s) + jnp.cbrt(x / 2 - s)


def _ridge(find: object, solver: object, residual: object) -> object:
    def function(A: jax.Array, b: jax.Array) -> jax.Array:
        start = jnp.zeros(A.shape[1], A.dtype)
        return find(lambda x, args: residual(x, *args), solver, start, (A, b), max_steps=500).value

    return function


def _residual(x: jax.Array, A: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return A @ x - b, x


def _objective(x: jax.Array, A: jax.Array, b: jax.Array) -> jax.Array:
    return ((A @ x - b) ** 2).sum() + (x**2).sum()


def _solved(A: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(A.T @ A + jnp.eye(A.shape[1], dtype=A.dtype), A.T @ b)


def _fixed(x: jax.Array) -> jax.Array:
    f = lambda y, x: jnp.cos(y) / 2 + x  # noqa: E731
    return optx.fixed_point(f, optx.FixedPointIteration(**_FINE), jnp.zeros_like(x), x, max_steps=200).value


def _iterated(x: jax.Array) -> jax.Array:
    y = jnp.zeros_like(x)
    for _ in range(60):
        y = jnp.cos(y) / 2 + x
    return y


_PLACES = (drawn(7, 4), drawn(7))
_SQUARES = optx.least_squares

CASES: dict[str, Case] = {
    "optimistix.Newton": formula(_root(optx.Newton(**_FINE)), _cubic, within(0.3, 2, 5), dtypes=WIDE, in_double=_STOPS),
    "optimistix.Chord": formula(
        _root(optx.Chord(**_FINE), 1.0), _cubic, within(0.3, 2, 5), dtypes=WIDE, options=_STOPS
    ),
    "optimistix.Dogleg": formula(_root(optx.Dogleg(**_FINE)), _cubic, within(0.3, 2, 5), dtypes=WIDE, in_double=_STOPS),
    "optimistix.FixedPointIteration": formula(_fixed, _iterated, drawn(5), dtypes=WIDE, options=_STOPS),
    "optimistix.GaussNewton": formula(
        _ridge(_SQUARES, optx.GaussNewton(**_FINE), _residual), _solved, *_PLACES, dtypes=WIDE
    ),
    "optimistix.LevenbergMarquardt": formula(
        _ridge(_SQUARES, optx.LevenbergMarquardt(**_FINE), _residual), _solved, *_PLACES, dtypes=WIDE, in_double=_STOPS
    ),
    "optimistix.BFGS": formula(
        _ridge(optx.minimise, optx.BFGS(**_FINE), _objective), _solved, *_PLACES, dtypes=WIDE, in_double=_STOPS
    ),
    "optimistix.rms_norm": formula(optx.rms_norm, lambda x: jnp.sqrt((x**2).mean()), drawn(7)),
}
