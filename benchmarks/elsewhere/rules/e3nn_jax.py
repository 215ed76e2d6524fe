"""e3nn-jax: equivariant functions, with custom rules for spherical harmonics."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
from e3nn_jax._src.spherical_harmonics.legendre import legendre

from benchmarks.elsewhere.cases import Case, drawn, formula, itself, within


def _harmonics(degree: int) -> object:
    return lambda x: e3nn.spherical_harmonics(degree, e3nn.IrrepsArray("1o", x), normalize=True).array


def _first(x: jax.Array) -> jax.Array:
    """Of degree 1, whose components have mean square 1."""
    return jnp.sqrt(3.0).astype(x.dtype) * x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return e3nn.tensor_product(e3nn.IrrepsArray("0e + 1o", x), e3nn.IrrepsArray("1o + 2e", y)).array


CASES: dict[str, Case] = {
    "e3nn_jax.spherical_harmonics, 1": formula(_harmonics(1), _first, drawn(4, 3)),
    "e3nn_jax.spherical_harmonics, 3": itself(_harmonics(3), drawn(4, 3)),
    "e3nn_jax.spherical_harmonics, 3, forward": itself(_harmonics(3), drawn(4, 3), mode="jvp"),
    "e3nn_jax.tensor_product": itself(_product, drawn(4, 4), drawn(4, 8)),
    "e3nn_jax.norm": itself(lambda x: e3nn.norm(e3nn.IrrepsArray("2x1o", x)).array, drawn(4, 6)),
    "e3nn_jax.gate": itself(lambda x: e3nn.gate(e3nn.IrrepsArray("3x0e + 1x0e + 1o", x)).array, drawn(4, 7)),
    "e3nn_jax.bessel": itself(lambda x: e3nn.bessel(x, 4, 3.0), within(0.3, 2, 6)),
    "e3nn_jax.soft_envelope": itself(lambda x: e3nn.soft_envelope(x, 3.0), within(0.3, 2, 6)),
    "e3nn_jax.soft_one_hot_linspace": itself(
        lambda x: e3nn.soft_one_hot_linspace(x, start=0.0, end=2.5, number=5, basis="gaussian", cutoff=False),
        within(0.3, 2, 6),
    ),
    "e3nn_jax.legendre": itself(lambda x: legendre(3, x, 1.0), within(-0.9, 0.9, 6)),
    "e3nn_jax.angles_to_matrix": itself(e3nn.angles_to_matrix, *[within(0.3, 2)] * 3),
    "e3nn_jax.quaternion_to_matrix": itself(
        lambda q: e3nn.axis_angle_to_matrix(*e3nn.quaternion_to_axis_angle(q / jnp.linalg.norm(q))), within(0.3, 1, 4)
    ),
}
