"""FlowJAX: bijections, by their parameters and their input."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax import bijections
from paramax import unwrap

from benchmarks.elsewhere.cases import Case, drawn, itself, within

KEY = jax.random.key(0)


def _moved(bijection: object, given: object, method: str = "transform_and_log_det") -> Case:
    held, rest = eqx.partition(bijection, eqx.is_inexact_array)
    held = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape), held)  # a spline starts straight
    run = lambda held, x: getattr(unwrap(eqx.combine(held, rest)), method)(x)  # noqa: E731
    return itself(run, held, given)


CASES: dict[str, Case] = {
    "flowjax.Affine": _moved(bijections.Affine(jnp.ones(3), jnp.asarray([0.5, 1.5, 2.0])), drawn(3)),
    "flowjax.RationalQuadraticSpline": _moved(
        bijections.RationalQuadraticSpline(knots=5, interval=3), within(-1.9, 1.9)
    ),
    "flowjax.RationalQuadraticSpline, inverse": _moved(
        bijections.RationalQuadraticSpline(knots=5, interval=3), within(-1.9, 1.9), "inverse_and_log_det"
    ),
    "flowjax.LeakyTanh": _moved(bijections.LeakyTanh(1.5, (4,)), drawn(4)),
    "flowjax.SoftPlus": _moved(bijections.SoftPlus((4,)), drawn(4)),
    "flowjax.Tanh": _moved(bijections.Tanh((4,)), drawn(4)),
    "flowjax.Sigmoid": _moved(bijections.Sigmoid((4,)), drawn(4)),
    "flowjax.Planar": _moved(bijections.Planar(KEY, dim=4), drawn(4)),
    "flowjax.Householder": itself(lambda p, x: bijections.Householder(p).transform_and_log_det(x), drawn(4), drawn(4)),
    "flowjax.DiscreteCosine": _moved(bijections.DiscreteCosine((4,)), drawn(4)),
    "flowjax.TriangularAffine": itself(
        lambda a, x: unwrap(bijections.TriangularAffine(jnp.zeros_like(x), a)).transform_and_log_det(x),
        within(1, 2, 3, 3),
        drawn(3),
    ),
}
