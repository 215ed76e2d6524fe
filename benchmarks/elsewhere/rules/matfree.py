"""matfree: decompositions by products with vectors alone, with custom rules."""

import jax
import jax.numpy as jnp
from matfree import decomp, funm

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, matrix


def _symmetric(v: jax.Array, A: jax.Array) -> jax.Array:
    return (A + A.T) @ v / 2


def _tridiagonal(ruled: bool, reortho: str = "full") -> object:
    def function(v: jax.Array, A: jax.Array) -> object:
        found = decomp.tridiag_sym(3, reortho=reortho, custom_vjp=ruled)(_symmetric, v, A)
        return found.Q_tall, found.J_small, found.residual

    return function


def _hessenberg(ruled: bool) -> object:
    def function(v: jax.Array, A: jax.Array) -> object:
        found = decomp.hessenberg(3, reortho="full", custom_vjp=ruled)(lambda v, A: A @ v, v, A)
        return found.Q_tall, found.J_small, found.residual

    return function


def _exponential(v: jax.Array, A: jax.Array) -> jax.Array:
    product = funm.funm_lanczos_sym(funm.dense_funm_sym_eigh(jnp.exp), decomp.tridiag_sym(5, reortho="full"))
    return product(_symmetric, v, A)


def _exact(v: jax.Array, A: jax.Array) -> jax.Array:
    w, U = jnp.linalg.eigh((A + A.T) / 2)  # JAX's expm is 2e-4 off in float32
    return U @ (jnp.exp(w) * (U.T @ v))


_AT = (drawn(5), matrix("definite"))

CASES: dict[str, Case] = {
    "matfree.tridiag_sym": formula(_tridiagonal(True), _tridiagonal(False), *_AT, dtypes=WIDE),
    "matfree.tridiag_sym, no reortho": formula(
        _tridiagonal(True, "none"), _tridiagonal(False, "none"), *_AT, dtypes=WIDE
    ),
    "matfree.hessenberg": formula(_hessenberg(True), _hessenberg(False), *_AT, dtypes=WIDE),
    "matfree.funm_lanczos_sym": formula(_exponential, _exact, *_AT, dtypes=WIDE),
    "matfree.bidiag": itself(
        lambda v, A: decomp.bidiag(3)(lambda v, A: A @ v, v, A).J_small, drawn(5), drawn(6, 5), dtypes=WIDE
    ),
}
