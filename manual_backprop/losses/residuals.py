"""Losses of the error o - y: half its square, and Huber's."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from manual_backprop.losses.base import Elementwise, Outputs, Targets, check_given, sum_outputs, widened
from manual_backprop.precision import accumulator
from manual_backprop.types import require_number


@dataclass(frozen=True)
class SquaredError(Elementwise):
    """(1/2) ||o - y||^2."""

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """(1/2) sum_i (o_i - y_i)^2."""
        o, y = widened(o, y)
        return sum_outputs(0.5 * jnp.square(o - y))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The error o - y."""
        return o - y

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """-noise, the error at the target o + noise with noise ~ N(0, I)."""
        check_given(self, o)
        return -jax.random.normal(key, o.shape, accumulator(o.dtype)).astype(o.dtype)

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """The error's opposite y - o."""
        check_given(self, o, y)
        return y - o

    def curvature_root(self, o: Array, y: Array) -> Array:
        """1: H is the identity."""
        return jnp.ones_like(o)


@dataclass(frozen=True)
class Huber(Elementwise):
    """Squared error near zero, absolute error beyond the threshold; summed over outputs.

    Attributes:
        threshold: |o - y| at which the quadratic r^2/2 becomes the line threshold (|r| - threshold/2).
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        require_number("Huber threshold", self.threshold)
        if not self.threshold > 0:
            raise ValueError(f"Huber threshold must be > 0, got {self.threshold}")

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_i r_i^2/2 where |r_i| <= threshold, else threshold (|r_i| - threshold/2)."""
        o, y = widened(o, y)
        r = jnp.abs(o - y)
        near = jnp.minimum(r, self.threshold)  # keeps the square finite in the branch not taken
        return sum_outputs(jnp.where(r <= self.threshold, 0.5 * near * near, self.threshold * (r - 0.5 * near)))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The error o - y, held to [-threshold, threshold]."""
        return jnp.clip(o - y, -self.threshold, self.threshold)

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """Refused: no distribution has this loss's Hessian, which depends on y, for its Fisher information."""
        raise NotImplementedError(
            f"{self} has no sample_derivative: its Hessian depends on y, so no draw of y has it for E[s s^T];"
            " take hessian_product or hessian_root at the targets, or derivative for the empirical Fisher"
        )

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """The error's opposite y - o, held to [-threshold, threshold]."""
        check_given(self, o, y)
        return jnp.clip(y - o, -self.threshold, self.threshold)

    def curvature_root(self, o: Array, y: Array) -> Array:
        """1 where |r_i| <= threshold, else 0; at the threshold itself, where H jumps, the branch that `value` takes."""
        return jnp.where(jnp.abs(o - y) <= self.threshold, jnp.ones_like(o), 0)
