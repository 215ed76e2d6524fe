"""Gradients written by hand, as a user would write them, for `benchmarks.mutants` to break."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from reference import model
from reference.catalogue.mutating import EQUIVALENT, dense

N = 7
EPSILON = 1e-5  # of the layer normalisation


@dataclass(frozen=True, eq=False)
class Subject:
    """A function and its derivative by hand.

    Attributes:
        name: its name in the table.
        function: maps float arrays to a scalar or an array.
        pullback: (*args, d_output) -> the gradient by each of the args. A gradient of a scalar function, written
            without d_output, is multiplied by it; that product is broken like the rest.
        args: the arguments at which the mutants are judged.
        equivalent: mutants that are right, with the reason.
    """

    name: str
    function: Callable[..., jax.Array]
    pullback: Callable[..., tuple[jax.Array, ...]]
    args: tuple[np.ndarray, ...]
    equivalent: Mapping[Any, str]


def scaled(gradient: Callable[..., tuple[jax.Array, ...]]) -> Callable[..., tuple[jax.Array, ...]]:
    """The pullback of a scalar function from its gradient."""

    def pullback(*args: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(args[-1] * g for g in gradient(*args[:-1]))

    return pullback


def _normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape)


# The multilayer perceptron of this library: 5-4-4-3, tanh, softmax cross-entropy, lambda = 0.1.
OBJECTIVE = mb.Objective(
    mb.Serial((dense(5, 4, "tanh"), dense(4, 4, "tanh"), dense(4, 3))), mb.softmax_cross_entropy, mb.Frobenius(0.1)
)
X, LABELS = _normal(0, N, 5), np.random.default_rng(1).integers(0, 3, N).astype(np.int32)
WEIGHTS = tuple(_normal(2 + i, *shape, scale=0.6) for i, shape in enumerate(((4, 5), (4,), (4, 4), (4,), (3, 4), (3,))))


def _layers(leaves: tuple[jax.Array, ...]) -> tuple[mb.Affine, ...]:
    return tuple(mb.Affine(W, b) for W, b in zip(leaves[::2], leaves[1::2], strict=True))


def perceptron(*leaves: jax.Array) -> jax.Array:
    """J of W1, b1, W2, b2, W3, b3, by the reference's formulas."""
    return model.value(OBJECTIVE, _layers(leaves), jnp.asarray(X, leaves[0].dtype), jnp.asarray(LABELS))


def perceptron_gradient(*leaves: jax.Array) -> tuple[jax.Array, ...]:
    """`manual_backprop.value_and_grad`'s gradient."""
    x = jnp.asarray(X, leaves[0].dtype)
    return tuple(jax.tree.leaves(mb.value_and_grad(OBJECTIVE)(_layers(leaves), x, jnp.asarray(LABELS))[1]))


def weighted_softmax(z: jax.Array, v: jax.Array) -> jax.Array:
    """sum_n v_n . softmax(z_n)."""
    return jnp.sum(v * jax.nn.softmax(z, axis=-1))


def weighted_softmax_gradient(z: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    """P (v - v . p) for z, and p for v."""
    e = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
    p = e / jnp.sum(e, axis=-1, keepdims=True)
    return p * (v - jnp.sum(v * p, axis=-1, keepdims=True)), p


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Each row of x with mean 0 and variance 1, times scale plus shift."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + EPSILON) * scale[None] + shift[None]


def layer_norm_pullback(x: jax.Array, scale: jax.Array, shift: jax.Array, d_output: jax.Array) -> tuple[jax.Array, ...]:
    """By x: r (d - mean(d) - n mean(d n)), n the normalised rows, r their 1/deviation, d = d_output scale."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    n = centred * r
    d = d_output * scale[None]
    d_x = r * (d - jnp.mean(d, axis=-1, keepdims=True) - n * jnp.mean(d * n, axis=-1, keepdims=True))
    return d_x, jnp.sum(d_output * n, axis=0), jnp.sum(d_output, axis=0)


def capped_log_sum_exp(x: jax.Array, cap: jax.Array) -> jax.Array:
    """min(log sum_i exp(x_ni), cap_n)."""
    return jnp.minimum(jax.scipy.special.logsumexp(x, axis=-1), cap)


def capped_log_sum_exp_pullback(x: jax.Array, cap: jax.Array, d_output: jax.Array) -> tuple[jax.Array, ...]:
    """d_output softmax(x) where the cap is not reached, else d_output for the cap."""
    m = jnp.max(x, axis=-1)
    log_sum = m + jnp.log(jnp.sum(jnp.exp(x - m[:, None]), axis=-1))
    inside = jnp.where(log_sum < cap, d_output, jnp.zeros_like(d_output))
    return inside[:, None] * jnp.exp(x - log_sum[:, None]), d_output - inside


_SHIFT = "softmax and log sum exp do not depend on the number subtracted from all entries of a row"
_SCALE = "softmax is a quotient: the same factor in every exponential cancels"
_SOFTMAX = {
    ("jnp.max(", "reduce_max: "): _SHIFT,
    ("jnp.max(", "broadcast_in_dim: "): _SHIFT,
    ("jnp.max(", "subtrahend dropped"): _SHIFT,
    ("weighted_softmax_gradient", "exp: times"): _SCALE,
    ("weighted_softmax_gradient", "exp: sign flipped"): _SCALE,
}
SUBJECTS = (
    Subject("MLP 5-4-4-3, lambda 0.1", perceptron, scaled(perceptron_gradient), WEIGHTS, EQUIVALENT),
    Subject(
        "weighted softmax",
        weighted_softmax,
        scaled(weighted_softmax_gradient),
        (_normal(10, N, 4), _normal(11, N, 4)),
        _SOFTMAX,
    ),
    Subject(
        "layer normalisation",
        layer_norm,
        layer_norm_pullback,
        (_normal(12, N, 5), 1 + _normal(13, 5, scale=0.3), _normal(14, 5)),
        {},
    ),
    Subject(
        "capped log-sum-exp",
        capped_log_sum_exp,
        capped_log_sum_exp_pullback,
        (_normal(15, N, 5), np.where(np.arange(N) % 2, 1.0, 4.0)),
        _SOFTMAX,
    ),
)
