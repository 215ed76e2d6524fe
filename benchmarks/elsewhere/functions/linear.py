"""Products, decompositions, solutions and Fourier transforms."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import linalg

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, matrix, normal, square, within


def _solved(A: jax.Array) -> jax.Array:
    return jnp.linalg.solve(A, jnp.arange(1, 6, dtype=A.dtype))


def _tridiagonal(lower: jax.Array, main: jax.Array, upper: jax.Array, b: jax.Array) -> jax.Array:
    return lax.linalg.tridiagonal_solve(lower.at[0].set(0), main, upper.at[-1].set(0), b)


CASES: dict[str, Case] = {
    "cho_solve": itself(
        lambda A, b: linalg.cho_solve(linalg.cho_factor(A), b), matrix("definite"), drawn(5), dtypes=WIDE
    ),
    "cholesky": square(jnp.linalg.cholesky, "definite"),
    "cross": itself(jnp.cross, drawn(4, 3), drawn(4, 3)),
    "det": square(jnp.linalg.det, "1e1"),
    "dot": itself(jnp.dot, drawn(4, 6), drawn(6, 3)),
    "eigh": square(lambda A: jnp.abs(jnp.linalg.eigh((A + A.T) / 2)[1]), "normal"),
    "eigh, of a function": square(lambda A: (lambda w, v: (v * jnp.exp(w)) @ v.T)(*jnp.linalg.eigh(A + A.T)), "normal"),
    "eigvalsh": square(lambda A: jnp.linalg.eigvalsh((A + A.T) / 2), "normal"),
    "einsum": itself(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), drawn(2, 3, 4), drawn(2, 4, 3)),
    "expm": square(lambda A: linalg.expm(A / 2), "normal"),
    "expm, diagonal": formula(
        lambda x: jnp.diagonal(linalg.expm(jnp.diag(x))), jnp.exp, within(7, 7.8, 4), dtypes=WIDE
    ),
    "fft": normal(lambda x: jnp.abs(jnp.fft.fft(x)) ** 2, 32, dtypes=WIDE),
    "fft2": normal(lambda x: jnp.fft.fft2(x).real, 6, 8, dtypes=WIDE),
    "hfft": normal(lambda x: jnp.fft.hfft(x), 9, dtypes=WIDE),
    "inner": itself(jnp.inner, drawn(4, 6), drawn(3, 6)),
    "inv, condition 1e3": square(jnp.linalg.inv, "1e3"),
    "irfft": normal(lambda x: jnp.fft.irfft(jnp.fft.rfft(x)[:9]), 32, dtypes=WIDE),
    "kron": itself(jnp.kron, drawn(3, 2), drawn(2, 3)),
    "lstsq": itself(lambda A, b: jnp.linalg.lstsq(A, b)[0], drawn(8, 4), drawn(8), dtypes=WIDE),
    "lu": square(lambda A: linalg.lu(A)[1:], "normal"),
    "matrix_power": square(lambda A: jnp.linalg.matrix_power(A, 5), "1e1"),
    "multi_dot": itself(lambda *a: jnp.linalg.multi_dot(a), drawn(3, 5), drawn(5, 4), drawn(4, 2)),
    "norm, nuclear": square(lambda A: jnp.linalg.norm(A, "nuc"), "normal"),
    "norm, spectral": square(lambda A: jnp.linalg.norm(A, 2), "normal"),
    "outer": itself(jnp.outer, drawn(4), drawn(5)),
    "pinv": normal(jnp.linalg.pinv, 7, 4, dtypes=WIDE),
    "polyval": itself(jnp.polyval, drawn(4), drawn(6)),
    "polyfit": itself(lambda x, y: jnp.polyfit(x, y, 2), drawn(8), drawn(8), dtypes=WIDE),
    "qr": square(jnp.linalg.qr, "normal"),
    "qr, tall": normal(jnp.linalg.qr, 7, 4, dtypes=WIDE),
    "rfft": normal(lambda x: jnp.abs(jnp.fft.rfft(x)), 16, dtypes=WIDE),
    "slogdet, condition 1e3": square(lambda A: jnp.linalg.slogdet(A)[1], "1e3"),
    "solve, condition 1e2": square(_solved, "1e2"),
    "solve, condition 1e4": square(_solved, "1e4"),
    "solve_triangular": itself(
        lambda A, b: linalg.solve_triangular(A, b, lower=True), matrix("definite"), drawn(5, 2), dtypes=WIDE
    ),
    "sparse.linalg.cg": itself(
        lambda A, b: jax.scipy.sparse.linalg.cg(lambda v: A @ v, b, tol=0.0, atol=0.0, maxiter=12)[0],
        matrix("definite"),
        drawn(5),
        dtypes=WIDE,
    ),
    "svd": square(lambda A: jnp.linalg.svd(A, compute_uv=False), "normal"),
    "svd, of a function": square(lambda A: (lambda u, s, v: (u * s**2) @ v)(*jnp.linalg.svd(A)), "normal"),
    "tensordot": itself(lambda a, b: jnp.tensordot(a, b, ((1, 2), (0, 1))), drawn(2, 3, 4), drawn(3, 4, 5)),
    "tensorsolve": itself(jnp.linalg.tensorsolve, drawn(2, 3, 6), drawn(2, 3), dtypes=WIDE),
    "toeplitz": normal(lambda x: linalg.toeplitz(x) @ x, 6),
    "triangular_solve": itself(
        lambda A, b: lax.linalg.triangular_solve(A, b, left_side=True, lower=True, transpose_a=True),
        matrix("definite"),
        drawn(5, 2),
        dtypes=WIDE,
    ),
    "tridiagonal_solve": itself(
        _tridiagonal, drawn(6), within(3, 5, 6), drawn(6), drawn(6, 2), dtypes=WIDE, ways=("eager", "jit")
    ),
    "vecdot": itself(jnp.linalg.vecdot, drawn(4, 6), drawn(4, 6)),
}
