"""The rows of the table: every quantity by hand, and its peer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

import manual_backprop as mb
from benchmarks.readings import peers
from benchmarks.readings.peers import MAX_NORM, THRESHOLD, Calculation, Tree
from manual_backprop.rules import FeedbackAlignment


@dataclass(frozen=True)
class Reading:
    """One row: a quantity by hand and by its peer.

    Attributes:
        name: the quantity.
        by_hand: its calculation by manual_backprop.
        peer: the usual way to compute the same numbers.
        way: the name of that way.
        heavy: whether the peer costs many gradients, and is measured in a few rounds of its own.
    """

    name: str
    by_hand: Calculation
    peer: Calculation
    way: str
    heavy: bool = False


def readings(objective: mb.Objective) -> list[Reading]:
    """Every row of the table."""

    def swept(read: Callable[[Any, Tree, Tree], Any]) -> Calculation:
        def calculation(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
            step = mb.backprop(objective, params, x, y)
            return read(objective.net, step.trace, step.deltas)

        return calculation

    def with_gradient(read: Callable[[Any, Tree, Tree], Any]) -> Calculation:
        return swept(lambda *sweep: (mb.gradients(*sweep), read(*sweep)))

    def aligned(params: Tree, x: jax.Array, y: jax.Array, feedback: Tree) -> Tree:
        return mb.value_and_grad(objective)(params, x, y, rule=FeedbackAlignment(feedback))[1]

    def all_labels(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
        trace, columns = mb.fisher_deltas(objective, params, x, y)
        return mb.kronecker_factors(objective.net, trace, columns, columns=True)

    def products(product: Any) -> Calculation:
        return lambda params, x, y, v: product(objective, params, x, y, v)

    each = "vmap(grad)"
    clipped = swept(lambda net, trace, deltas: mb.clipped_gradients(net, trace, deltas, MAX_NORM))
    return [
        Reading("gradient", swept(mb.gradients), peers.one_gradient, "grad"),
        Reading("squared_norms", swept(mb.squared_norms), peers.of_examples(peers.squares_of), f"{each}, norms", True),
        Reading(
            "gradient + squared_norms",
            with_gradient(mb.squared_norms),
            peers.grad_and_norms,
            f"grad; {each}, norms",
            True,
        ),
        Reading(
            "clipped_gradients",
            clipped,
            peers.of_examples(lambda g: optax.per_example_global_norm_clip(g, MAX_NORM)[0]),
            f"{each}, optax.per_example_global_norm_clip",
            True,
        ),
        Reading(
            "second_moment",
            swept(mb.second_moment),
            peers.of_examples(peers.mean_squares_of),
            f"{each}, squares, mean",
            True,
        ),
        Reading("gram", swept(mb.gram), peers.of_examples(peers.products_of), f"{each}, g g^T", True),
        Reading("noise_scale", swept(mb.noise_scale), peers.noise, f"grad; {each}, norms", True),
        Reading("per_example_gradients", swept(mb.per_example_gradients), peers.of_examples(lambda g: g), each, True),
        Reading("squared_norms, by probes", swept(mb.squared_norms), peers.probed_norms, "grad by probes"),
        Reading(
            "clipped_gradients, by probes", clipped, peers.clipped_by_two, "grad by probes, then grad of clip * loss"
        ),
        Reading(
            "kronecker_factors", swept(mb.kronecker_factors), peers.kronecker, "grad by probes, a a^T, delta delta^T"
        ),
        Reading("kronecker_factors of all labels", all_labels, peers.kronecker_of_all_labels, "vmap(vjp) by probes"),
        Reading(
            "gradient + diagnose",
            with_gradient(lambda *sweep: mb.diagnose(*sweep, threshold=THRESHOLD)),
            peers.diagnosed,
            "grad by params and probes, jnp",
        ),
        Reading("feedback alignment", aligned, peers.feedback_aligned, "grad, custom_vjp layers"),
        Reading("hessian_vector_product", products(mb.hessian_vector_product), peers.hessian_product, "jvp(grad)"),
        Reading(
            "gauss_newton_vector_product",
            products(mb.gauss_newton_vector_product),
            peers.gauss_newton_product,
            "jvp, jvp(grad of loss), vjp",
        ),
    ]
