"""Lineax: solutions of linear systems, and a norm with a custom rule."""

import jax.numpy as jnp
import lineax as lx
from lineax import _norm

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, matrix, rule, within


def _by(solver: object, *tags: object) -> object:
    return lambda A, b: lx.linear_solve(lx.MatrixLinearOperator(A, tags), b, solver).value


def _least_squares(A, b):
    return jnp.linalg.solve(A.T @ A, A.T @ b)


def _by_triangle(A, b):
    return _by(lx.Triangular(), lx.lower_triangular_tag)(jnp.tril(A), b)


def _lower(A, b):
    return jnp.linalg.solve(jnp.tril(A), b)


def _tridiagonal(main, lower, upper, b):
    return lx.linear_solve(lx.TridiagonalLinearOperator(main, lower, upper), b, lx.Tridiagonal()).value


_AT = (matrix("1e1"), drawn(5))
_DEFINITE = (matrix("definite"), drawn(5))
_POSITIVE = lx.positive_semidefinite_tag

CASES: dict[str, Case] = {
    "lineax._norm.two_norm": rule(_norm._two_norm, drawn(7), mode="jvp"),
    "lineax.internal.max_norm": formula(_norm.max_norm, lambda x: jnp.max(jnp.abs(x)), drawn(7)),
    "lineax.internal.rms_norm": formula(_norm.rms_norm, lambda x: jnp.sqrt((x**2).mean()), drawn(7)),
    "lineax.LU": formula(_by(lx.LU()), jnp.linalg.solve, *_AT, dtypes=WIDE),
    "lineax.QR": formula(_by(lx.QR()), jnp.linalg.solve, *_AT, dtypes=WIDE),
    "lineax.SVD": formula(_by(lx.SVD()), jnp.linalg.solve, *_AT, dtypes=WIDE),
    "lineax.AutoLinearSolver": formula(_by(lx.AutoLinearSolver(well_posed=True)), jnp.linalg.solve, *_AT, dtypes=WIDE),
    "lineax.Cholesky": formula(
        lambda A, b: _by(lx.Cholesky(), _POSITIVE)((A + A.T) / 2, b),
        lambda A, b: jnp.linalg.solve((A + A.T) / 2, b),
        *_DEFINITE,
        dtypes=WIDE,
    ),
    "lineax.CG": formula(
        lambda A, b: _by(lx.CG(1e-6, 1e-6), _POSITIVE)((A + A.T) / 2, b),
        lambda A, b: jnp.linalg.solve((A + A.T) / 2, b),
        *_DEFINITE,
        dtypes=WIDE,
    ),
    "lineax.GMRES": formula(_by(lx.GMRES(1e-6, 1e-6)), jnp.linalg.solve, *_DEFINITE, dtypes=WIDE),
    "lineax.BiCGStab": formula(_by(lx.BiCGStab(1e-6, 1e-6)), jnp.linalg.solve, *_DEFINITE, dtypes=WIDE),
    "lineax.QR, tall": formula(_by(lx.QR()), _least_squares, drawn(7, 4), drawn(7), dtypes=WIDE),
    "lineax.Triangular": formula(_by_triangle, _lower, *_DEFINITE, dtypes=WIDE),
    "lineax.Diagonal": formula(
        lambda d, b: lx.linear_solve(lx.DiagonalLinearOperator(d), b, lx.Diagonal()).value,
        lambda d, b: b / d,
        within(0.5, 2, 5),
        drawn(5),
    ),
    "lineax.Tridiagonal": formula(
        _tridiagonal,
        lambda d, low, up, b: jnp.linalg.solve(jnp.diag(d) + jnp.diag(low, -1) + jnp.diag(up, 1), b),
        within(3, 5, 6),
        drawn(5),
        drawn(5),
        drawn(6),
        dtypes=WIDE,
    ),
}
