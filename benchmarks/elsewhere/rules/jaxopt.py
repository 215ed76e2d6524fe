"""JAXopt: projections, losses, proximal operators, and solvers with an implicit derivative."""

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import loss, projection, prox
from jaxopt._src import isotonic
from jaxopt._src import projection as inside

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, matrix, rule, within


def _ridge(solver: object) -> object:
    """The minimum of |A x - b|^2 / 2 + |x|^2 / 2 by A and b."""

    def function(A: jax.Array, b: jax.Array) -> jax.Array:
        return solver.run(jnp.zeros(A.shape[1], A.dtype), A, b).params

    return function


def _objective(x: jax.Array, A: jax.Array, b: jax.Array) -> jax.Array:
    return ((A @ x - b) ** 2).sum() / 2 + (x**2).sum() / 2


def _solved(A: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(A.T @ A + jnp.eye(A.shape[1], dtype=A.dtype), A.T @ b)


def _simplex(x: jax.Array) -> jax.Array:
    """The projection where its support is that of 30 halvings for the threshold."""
    low, high = x.max() - 1, x.max()
    for _ in range(30):
        middle = (low + high) / 2
        enough = jnp.maximum(x - middle, 0).sum() > 1
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
    held = jax.lax.stop_gradient(x > low)
    return jnp.where(held, x - ((jnp.where(held, x, 0)).sum() - 1) / held.sum(), 0)


_PLACES = (drawn(7, 4), drawn(7))
_LONG = {"maxiter": 2000, "tol": 1e-10}

CASES: dict[str, Case] = {
    "jaxopt._projection_unit_simplex": rule(inside._projection_unit_simplex, drawn(7), mode="jvp"),
    "jaxopt.projection_simplex": formula(projection.projection_simplex, _simplex, drawn(7)),
    "jaxopt._projection_unit_sparse_simplex": itself(lambda x: projection.projection_sparse_simplex(x, 3), drawn(7)),
    "jaxopt.isotonic_l2_pav": itself(isotonic._isotonic_l2_pav, drawn(7), mode="jvp", ways=("eager", "jit")),
    "jaxopt.projection_l1_ball": itself(projection.projection_l1_ball, drawn(7)),
    "jaxopt.projection_l2_ball": formula(
        projection.projection_l2_ball, lambda x: x / jnp.sqrt((x**2).sum()), within(0.5, 2, 7)
    ),
    "jaxopt.projection_hyperplane": formula(
        lambda x, a: projection.projection_hyperplane(x, (a, 1.0)),
        lambda x, a: x - (a @ x - 1) / (a @ a) * a,
        drawn(7),
        drawn(7),
    ),
    "jaxopt.projection_affine_set": itself(
        lambda x, A: projection.projection_affine_set(x, (A, jnp.ones(3, x.dtype))), drawn(7), drawn(3, 7), dtypes=WIDE
    ),
    "jaxopt.projection_box_section": itself(
        lambda x: projection.projection_box_section(
            x, (jnp.zeros_like(x), jnp.ones_like(x), jnp.ones_like(x), jnp.asarray(2.0, x.dtype))
        ),
        within(0.1, 0.9, 6),
        dtypes=WIDE,
    ),
    "jaxopt.projection_transport": itself(
        lambda x: projection.kl_projection_transport(x, (jnp.full(3, 1 / 3, x.dtype), jnp.full(4, 1 / 4, x.dtype))),
        drawn(3, 4),
        dtypes=WIDE,
    ),
    "jaxopt.prox_lasso": formula(
        lambda x: prox.prox_lasso(x, 0.4), lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.4, 0), drawn(12)
    ),
    "jaxopt.prox_elastic_net": formula(
        lambda x: prox.prox_elastic_net(x, (0.4, 0.5)),
        lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.4, 0) / (1 + 0.4 * 0.5),
        drawn(12),
    ),
    "jaxopt.prox_group_lasso": formula(
        lambda x: prox.prox_group_lasso(x, 0.4), lambda x: x * (1 - 0.4 / jnp.sqrt((x**2).sum())), drawn(12)
    ),
    "jaxopt.binary_logistic_loss": formula(
        lambda x: jax.vmap(loss.binary_logistic_loss)(jnp.arange(8) % 2, x),
        lambda x: jnp.log1p(jnp.exp(jnp.where(jnp.arange(8) % 2 == 1, -x, x))),
        drawn(8),
    ),
    "jaxopt.multiclass_logistic_loss": formula(
        lambda x: jax.vmap(loss.multiclass_logistic_loss)(jnp.arange(6) % 5, x),
        lambda x: -jnp.log(jax.nn.softmax(x))[jnp.arange(6), jnp.arange(6) % 5],
        drawn(6, 5),
    ),
    "jaxopt.multiclass_sparsemax_loss": itself(
        lambda x: jax.vmap(loss.multiclass_sparsemax_loss)(jnp.arange(6) % 5, x), drawn(6, 5)
    ),
    "jaxopt.huber_loss": formula(
        lambda x: loss.huber_loss(0.0, x, 0.75),
        lambda x: jnp.where(jnp.abs(x) < 0.75, x**2 / 2, 0.75 * (jnp.abs(x) - 0.375)),
        drawn(12),
    ),
    "jaxopt.GradientDescent": formula(
        _ridge(jaxopt.GradientDescent(_objective, **_LONG)), _solved, *_PLACES, dtypes=WIDE
    ),
    "jaxopt.LBFGS": formula(_ridge(jaxopt.LBFGS(_objective, **_LONG)), _solved, *_PLACES, dtypes=WIDE),
    "jaxopt.linear_solve.solve_cg": formula(
        lambda A, b: jaxopt.linear_solve.solve_cg(lambda v: A @ v, b, tol=1e-10, maxiter=60),
        jnp.linalg.solve,
        matrix("definite"),
        drawn(5),
        dtypes=WIDE,
    ),
    "jaxopt.FixedPointIteration": itself(
        lambda x: (
            jaxopt.FixedPointIteration(lambda y, x: jnp.cos(y) / 2 + x, maxiter=100, tol=1e-12)
            .run(jnp.zeros_like(x), x)
            .params
        ),
        drawn(5),
        dtypes=WIDE,
    ),
    "jaxopt.Bisection": formula(
        lambda x: (
            jaxopt.Bisection(lambda y, x: y**3 + y - x, -5, 5, check_bracket=False, tol=1e-12, maxiter=60)
            .run(None, x)
            .params
        ),
        lambda x: (lambda s: jnp.cbrt(x / 2 + s) + jnp.cbrt(x / 2 - s))(jnp.sqrt(x**2 / 4 + 1 / 27)),
        within(0.3, 2),
        dtypes=WIDE,
        in_double={"approximation": 1e-12},
    ),
}
