"""Optax: losses, projections, and the custom rules of three of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax._src import utils
from optax.losses import _classification
from optax.projections import _projections

from benchmarks.elsewhere.cases import Case, Draw, drawn, formula, itself, rule, within

_LABELS = np.asarray([0, 2, 1, 4, 3, 0])
_SIGNS = np.asarray([1, 0, 1, 1, 0, 0])


def _soft(t: jax.Array) -> jax.Array:
    return jax.nn.softmax(t, -1)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    return (x * y).sum(-1) / jnp.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def _focal(x: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(jnp.where(_SIGNS == 1, x, -x))
    return -((1 - p) ** 2) * jnp.log(p)


def _ctc(x: jax.Array) -> jax.Array:
    return optax.losses.ctc_loss(
        x, jnp.zeros((2, 6), x.dtype), np.asarray([[1, 2], [3, 1]]), jnp.zeros((2, 2), x.dtype)
    )


def _updated(make: object) -> object:
    """The update of an optimizer after two steps, by both gradients."""

    def steps(first: jax.Array, second: jax.Array) -> jax.Array:
        transformation = make(0.1)
        _, state = transformation.update(first, transformation.init(first), first)
        return transformation.update(second, state, first)[0]

    return steps


CASES: dict[str, Case] = {
    "optax.losses.weighted_logsoftmax": rule(
        _classification.weighted_logsoftmax, drawn(6, 5), within(0.3, 2, 6, 5), mode="jvp"
    ),
    "optax.projections._unit_simplex": rule(_projections._projection_unit_simplex, drawn(7), mode="jvp"),
    "optax.scale_gradient": rule(utils._scale_gradient, drawn(6), Draw("uniform", (), 0.3, 2), options={"argnums": 0}),
    "optax.losses.huber_loss": formula(
        lambda x: optax.losses.huber_loss(x, delta=0.75),
        lambda x: jnp.where(jnp.abs(x) < 0.75, x**2 / 2, 0.75 * (jnp.abs(x) - 0.375)),
        drawn(12),
    ),
    "optax.losses.log_cosh": formula(optax.losses.log_cosh, lambda x: jnp.log(jnp.cosh(x)), drawn(12)),
    "optax.losses.squared_error": formula(optax.losses.squared_error, lambda x, y: (x - y) ** 2, drawn(6), drawn(6)),
    "optax.losses.sigmoid_binary_cross_entropy": formula(
        lambda x: optax.losses.sigmoid_binary_cross_entropy(x, _SIGNS.astype(x.dtype)),
        lambda x: -jnp.where(_SIGNS == 1, jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)),
        drawn(6),
    ),
    "optax.losses.sigmoid_focal_loss": formula(
        lambda x: optax.losses.sigmoid_focal_loss(x, _SIGNS.astype(x.dtype), gamma=2.0), _focal, drawn(6)
    ),
    "optax.losses.softmax_cross_entropy": formula(
        lambda x, t: optax.losses.softmax_cross_entropy(x, _soft(t)),
        lambda x, t: -(_soft(t) * jnp.log(_soft(x))).sum(-1),
        drawn(6, 5),
        drawn(6, 5),
    ),
    "optax.losses.softmax_cross_entropy_with_integer_labels": formula(
        lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(x, _LABELS),
        lambda x: -jnp.log(_soft(x))[np.arange(6), _LABELS],
        drawn(6, 5),
    ),
    "optax.losses.safe_softmax_cross_entropy": itself(
        lambda x, t: optax.losses.safe_softmax_cross_entropy(x, _soft(t)), drawn(6, 5), drawn(6, 5)
    ),
    "optax.losses.poly_loss_cross_entropy": formula(
        lambda x, t: optax.losses.poly_loss_cross_entropy(x, _soft(t), epsilon=2.0),
        lambda x, t: -(_soft(t) * jnp.log(_soft(x))).sum(-1) + 2 * (1 - (_soft(t) * _soft(x)).sum(-1)),
        drawn(6, 5),
        drawn(6, 5),
    ),
    "optax.losses.cosine_similarity": formula(optax.losses.cosine_similarity, _cosine, drawn(6, 5), drawn(6, 5)),
    "optax.losses.kl_divergence": formula(
        lambda x, t: optax.losses.kl_divergence(jax.nn.log_softmax(x), _soft(t)),
        lambda x, t: (_soft(t) * jnp.log(_soft(t) / _soft(x))).sum(-1),
        drawn(6, 5),
        drawn(6, 5),
    ),
    "optax.losses.hinge_loss": formula(
        lambda x: optax.losses.hinge_loss(x, 2 * _SIGNS.astype(x.dtype) - 1),
        lambda x: jnp.maximum(0, 1 - x * (2 * _SIGNS - 1)),
        drawn(6),
    ),
    "optax.losses.sparsemax_loss": itself(lambda x: optax.losses.sparsemax_loss(x, _SIGNS), drawn(6)),
    "optax.losses.multiclass_sparsemax_loss": itself(
        lambda x: optax.losses.multiclass_sparsemax_loss(x, _LABELS), drawn(6, 5)
    ),
    "optax.losses.multiclass_hinge_loss": itself(lambda x: optax.losses.multiclass_hinge_loss(x, _LABELS), drawn(6, 5)),
    "optax.losses.ctc_loss": itself(_ctc, drawn(2, 6, 5)),
    "optax.losses.ntxent": itself(lambda x: optax.losses.ntxent(x, np.asarray([0, 0, 1, 1, 2, 2])), drawn(6, 5)),
    "optax.losses.dice_loss": itself(lambda x, t: optax.losses.dice_loss(x, _soft(t)), drawn(6, 5), drawn(6, 5)),
    "optax.losses.triplet_margin_loss": itself(
        lambda a, b, c: optax.losses.triplet_margin_loss(a, b, c, margin=9.0), *[drawn(6, 5)] * 3
    ),
    "optax.losses.ranking_softmax_loss": itself(
        lambda x: optax.losses.ranking_softmax_loss(x, jnp.arange(5, dtype=x.dtype) * jnp.ones((6, 1), x.dtype)),
        drawn(6, 5),
    ),
    "optax.projections.projection_l2_ball": formula(
        lambda x: optax.projections.projection_l2_ball(x, 1.0), lambda x: x / jnp.sqrt((x**2).sum()), drawn(7)
    ),
    "optax.projections.projection_l1_ball": itself(lambda x: optax.projections.projection_l1_ball(x, 1.0), drawn(7)),
    "optax.projections.projection_box": formula(
        lambda x: optax.projections.projection_box(x, -0.5, 0.5),
        lambda x: jnp.where(jnp.abs(x) > 0.5, jnp.sign(x) / 2, x),
        drawn(7),
    ),
    "optax.global_norm": formula(
        lambda x, y: optax.global_norm([x, y]),
        lambda x, y: jnp.sqrt((x**2).sum() + (y**2).sum()),
        drawn(6, 5),
        drawn(4),
    ),
    "optax.clip_by_global_norm": itself(lambda x: optax.clip_by_global_norm(1.0).update(x, None)[0], drawn(6, 5)),
    "optax.adam": itself(_updated(optax.adam), drawn(6), drawn(6)),
    "optax.rmsprop": itself(_updated(optax.rmsprop), drawn(6), drawn(6)),
    "optax.lamb": itself(_updated(optax.lamb), drawn(6), drawn(6)),
}
