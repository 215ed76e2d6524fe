"""JAX MD: energies, and custom rules, of which some mean to be another derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from jax_md import energy, quantity, rigid_body, space
from jax_md._energy import electrostatics

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, rule, within


def _unit_rotation(q: jax.Array, v: jax.Array) -> jax.Array:
    """The rule of the rotation takes the quaternion to be of norm 1."""
    return rigid_body._quaternion_rotate(q / jnp.linalg.norm(q), v)


def _unit_rotation_plain(q: jax.Array, v: jax.Array) -> jax.Array:
    return rigid_body._quaternion_rotate_raw(q / jnp.linalg.norm(q), v)


def _lennard_jones(R: jax.Array) -> jax.Array:
    displacement, _ = space.free()
    return energy.lennard_jones_pair(displacement)(R)


def _apart(side: float) -> np.ndarray:
    """The corners of a square, moved a little; computed here, since under jit x - x need not be 0 for a computed x."""
    moved = 0.1 * np.random.default_rng((0, 1)).normal(size=(4, 2))
    return (side * (moved + 1.2 * np.asarray([[0, 0], [1, 0], [0, 1], [1, 1]]))).astype("float32")


CASES: dict[str, Case] = {
    "jax_md.space.transform": rule(space.transform, within(1, 2, 3, 3), drawn(4, 3), mode="jvp"),
    "jax_md.transform_gradients": rule(electrostatics.transform_gradients, within(1, 2, 3, 3), drawn(4, 3), mode="jvp"),
    "jax_md._quaternion_rotate": rule(rigid_body._quaternion_rotate, drawn(4), drawn(3)),
    "jax_md._quaternion_rotate, unit": formula(_unit_rotation, _unit_rotation_plain, drawn(4), drawn(3)),
    "jax_md.soft_sphere": itself(lambda r: energy.soft_sphere(r, alpha=jnp.asarray(2.0, r.dtype)), within(0.2, 0.8, 6)),
    "jax_md.lennard_jones": formula(
        energy.lennard_jones, lambda r: 4 * (r**-12 - r**-6), within(0.9, 2, 6), dtypes=("float64", "float32")
    ),
    "jax_md.morse": formula(
        energy.morse,
        lambda r: 5 * (jnp.exp(-10 * (r - 1)) - 2 * jnp.exp(-5 * (r - 1))),
        within(0.8, 1.5, 6),
    ),
    "jax_md.lennard_jones_pair": itself(_lennard_jones, jnp.asarray(_apart(1.0)), dtypes=("float64", "float32")),
    "jax_md.stillinger_weber": itself(
        lambda R: energy.stillinger_weber(space.free()[0])(R), jnp.asarray(_apart(2.4)), dtypes=("float64", "float32")
    ),
    "jax_md.quantity.cosine_angle": itself(quantity.cosine_angle_between_two_vectors, drawn(3), drawn(3)),
    "jax_md.space.periodic": itself(
        lambda a, b: space.periodic(jnp.asarray(3.0, a.dtype))[0](a, b), drawn(3), drawn(3)
    ),
    "jax_md.space.distance": formula(space.distance, lambda x: jnp.sqrt((x**2).sum(-1)), drawn(4, 3)),
}
