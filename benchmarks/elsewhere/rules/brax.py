"""Brax: rotations, and two functions with custom rules."""

import jax
import jax.numpy as jnp
from brax import math

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, matrix, rule, within


def _turned(x: jax.Array, q: jax.Array) -> jax.Array:
    """By the quaternion, from its definition."""
    w, v = q[0], q[1:]
    return 2 * (v @ x) * v + (w * w - v @ v) * x + 2 * w * jnp.cross(v, x)


CASES: dict[str, Case] = {
    "brax.math.safe_arccos": rule(math.safe_arccos, within(-0.9, 0.9, 9), mode="jvp"),
    "brax.math.safe_arcsin": rule(math.safe_arcsin, within(-0.9, 0.9, 9), mode="jvp"),
    "brax.math.rotate": formula(math.rotate, _turned, drawn(3), drawn(4)),
    "brax.math.quat_to_3x3": itself(math.quat_to_3x3, drawn(4)),
    "brax.math.quat_mul": itself(math.quat_mul, drawn(4), drawn(4)),
    "brax.math.euler_to_quat": itself(math.euler_to_quat, within(10, 60, 3)),
    "brax.math.quat_to_euler": itself(math.quat_to_euler, within(0.1, 0.5, 4)),
    "brax.math.inv_3x3": formula(math.inv_3x3, jnp.linalg.inv, matrix("1e1", 3), dtypes=("float64", "float32")),
    "brax.math.safe_norm": formula(math.safe_norm, lambda x: jnp.sqrt((x**2).sum()), drawn(5)),
    "brax.math.from_to": itself(
        lambda a, b: math.from_to(math.normalize(a)[0], math.normalize(b)[0]), drawn(3), drawn(3)
    ),
    "brax.math.signed_angle": itself(math.signed_angle, drawn(3), drawn(3), drawn(3)),
}
