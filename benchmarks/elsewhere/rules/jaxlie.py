"""jaxlie: exponentials and logarithms of groups of rotations and motions."""

import jax
import jax.numpy as jnp
import jaxlie
from jax.scipy.linalg import expm

from benchmarks.elsewhere.cases import WIDE, Case, drawn, formula, itself, within


def _hat(w: jax.Array) -> jax.Array:
    x, y, z = w
    return jnp.asarray([[0, -z, y], [z, 0, -x], [-y, x, 0]], w.dtype)


def _motion(v: jax.Array) -> jax.Array:
    return expm(jnp.zeros((4, 4), v.dtype).at[:3, :3].set(_hat(v[3:])).at[:3, 3].set(v[:3]))


CASES: dict[str, Case] = {
    "jaxlie.SO2.exp": formula(
        lambda a: jaxlie.SO2.exp(a).as_matrix(),
        lambda a: jnp.asarray([[jnp.cos(a[0]), -jnp.sin(a[0])], [jnp.sin(a[0]), jnp.cos(a[0])]]),
        drawn(1),
    ),
    "jaxlie.SO3.exp": formula(lambda w: jaxlie.SO3.exp(w).as_matrix(), lambda w: expm(_hat(w)), drawn(3), dtypes=WIDE),
    "jaxlie.SE3.exp": formula(lambda v: jaxlie.SE3.exp(v).as_matrix(), _motion, drawn(6), dtypes=WIDE),
    "jaxlie.SE2.exp": itself(lambda v: jaxlie.SE2.exp(v).as_matrix(), drawn(3)),
    "jaxlie.SO3.log": itself(lambda w: jaxlie.SO3.exp(w).log(), drawn(3)),
    "jaxlie.SE3.log": itself(lambda v: jaxlie.SE3.exp(v).log(), drawn(6)),
    "jaxlie.SO3.apply": itself(lambda q, x: jaxlie.SO3(q).normalize() @ x, drawn(4), drawn(3)),
    "jaxlie.SE3.inverse": itself(lambda v: jaxlie.SE3.exp(v).inverse().as_matrix(), drawn(6)),
    "jaxlie.SO3.from_rpy_radians": itself(lambda a: jaxlie.SO3.from_rpy_radians(*a).as_matrix(), within(0.1, 0.9, 3)),
}
