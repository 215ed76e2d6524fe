"""Binary cross-entropies, from logits and from probabilities."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from manual_backprop.losses.base import (
    Elementwise,
    Outputs,
    Targets,
    check_given,
    check_range,
    sum_outputs,
    widened,
)
from manual_backprop.precision import rounded_once


@dataclass(frozen=True)
class SigmoidBinaryCrossEntropy(Elementwise):
    """-sum_i (y_i log sigmoid(o_i) + (1 - y_i) log sigmoid(-o_i)), from logits; y in [0, 1]."""

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Sum_i max(o_i, 0) - o_i y_i + log(1 + exp(-|o_i|))."""
        o, y = widened(o, y)
        return sum_outputs(jnp.maximum(o, 0) - o * y + jnp.log1p(jnp.exp(-jnp.abs(o))))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """sigmoid(o) - y."""
        return _sigmoid_error(o, y)

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """sigmoid(o) - y with y = 1 drawn with probability sigmoid(o)."""
        check_given(self, o)
        (wide,) = widened(o)
        return self.derivative(o, _flip(key, wide > 0, _logistic(-jnp.abs(wide))).astype(o.dtype))

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """-o."""
        check_given(self, o, y)
        return -o

    def curvature_root(self, o: Array, y: Array) -> Array:
        """sqrt(sigmoid(o) sigmoid(-o)), which is even in o."""
        return jnp.exp(-0.5 * jnp.abs(o)) / (1 + jnp.exp(-jnp.abs(o)))

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Targets like o, in [0, 1]."""
        super().check(o, y)
        check_range(self, "targets", y, 1)


@rounded_once
def _sigmoid_error(o: Array, y: Array) -> Array:
    return _logistic(o) - y


def _logistic(o: Array) -> Array:
    e = jnp.exp(-jnp.abs(o))
    return jnp.where(o >= 0, 1, e) / (1 + e)


def _flip(key: PRNGKeyArray, likely: Array, rare: Array) -> Array:
    """The likelier label (True is 1), or the other one with probability `rare`, however small that is."""
    return jnp.logical_xor(likely, jax.random.bernoulli(key, rare, mode="high"))


@dataclass(frozen=True)
class BinaryCrossEntropy(Elementwise):
    """-sum_i (y_i log o_i + (1 - y_i) log(1 - o_i)), for outputs that are probabilities; y in [0, 1].

    An output that has rounded to 0 or 1 against its target has infinite loss, as it should;
    `SigmoidBinaryCrossEntropy` on the logits keeps what the rounding loses.
    """

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """With 0 log 0 = 0."""
        o, y = widened(o, y)
        heads = jnp.where(y == 0, 0, y * jnp.log(o))
        tails = jnp.where(y == 1, 0, (1 - y) * jnp.log1p(-o))
        return sum_outputs(-(heads + tails))

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """-y/o + (1 - y)/(1 - o), with 0/0 = 0."""
        return _odds_error(o, y)

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """The derivative at y = 1 drawn with probability o; under jit, nan where o is no probability.

        E[s^2] is the Fisher information 1/(o (1 - o)), which is the mean of H over such y.
        """
        check_given(self, o)
        check_range(self, "outputs", o, 1)
        (wide,) = widened(o)
        y = _flip(key, wide > 0.5, jnp.minimum(wide, 1 - wide)).astype(o.dtype)
        return self.derivative(o, jnp.where((o >= 0) & (o <= 1), y, jnp.nan))

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """log(1 - o) - log(o)."""
        check_given(self, o, y)
        (wide,) = widened(o)
        return (jnp.log1p(-wide) - jnp.log(wide)).astype(y.dtype)

    def curvature_root(self, o: Array, y: Array) -> Array:
        """sqrt(y/o^2 + (1 - y)/(1 - o)^2), with 0/0 = 0."""  # by hypot: o^2 would underflow before o does
        return jnp.hypot(jnp.where(y == 0, 0, jnp.sqrt(y) / o), jnp.where(y == 1, 0, jnp.sqrt(1 - y) / (1 - o)))

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Targets like o, in [0, 1]."""
        super().check(o, y)
        check_range(self, "targets", y, 1)


@rounded_once
def _odds_error(o: Array, y: Array) -> Array:
    return jnp.where(y == 1, 0, (1 - y) / (1 - o)) - jnp.where(y == 0, 0, y / o)
