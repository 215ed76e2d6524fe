"""Curvature of J along a direction, on the diagonal, and by Kronecker factors: second order, still by hand.

Products with the Gauss-Newton matrix push a direction forward, multiply it by the loss's own Hessian and sweep back.
Products with the Hessian differentiate the sweep itself along the direction, by Pearlmutter's R-operator.
Both include the regulariser's lam on every weight that it counts. They show no trace, so f' of tanh, sigmoid and
softsign is taken as in `value_and_grad`; rows such as `activations.tanh.exact` keep its tail.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from manual_backprop import validate
from manual_backprop.drawing import layer_keys
from manual_backprop.node import require_key
from manual_backprop.objective import Objective, lean_backward, per_example_scaled, weighable
from manual_backprop.readings.gradients import gradient_reader, second_moment, total
from manual_backprop.sweep import backward_sweep, forward_sweep
from manual_backprop.tangent import Pair, Tangent, TangentTrace, along, changed, tangent_sweep
from manual_backprop.types import Coefficient, Examples, Targets, Tree, Weights


def gauss_newton_vector_product(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    v: Tree,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
    key: PRNGKeyArray | None = None,
) -> Tree:
    """G v with G = sum_n w_n J_n^T H_n J_n + lam: one sweep forward with a tangent, one back (Schraudolph, 2002).

    J_n is the Jacobian of example n's outputs by the parameters, H_n the Hessian of its loss by the outputs. For
    softmax cross-entropy and for squared error it is the Fisher matrix.

    Args:
        objective: J.
        params: where.
        x: a batch.
        y: its targets.
        v: the direction, like `params`.
        lam: as for `Objective`.
        weights: as for `Objective`.
        key: as for `Objective`: J is then that at what the key draws.

    Raises:
        ValueError: v of another structure or shape than params; and what `Objective` refuses.
        TypeError: dtypes that differ.
        NotImplementedError: a loss without `hessian_product`.
    """
    params, x, y, lam, weights = Objective.required(objective).checked(params, x, y, lam, weights)
    validate.like("v", v, "params", params)
    keys = layer_keys(objective.net, key)
    output, d_output, kept = tangent_sweep(objective.net, params, x, v, None, short=True, keys=keys)
    curved = objective.loss.checked_hessian_product(output, y, d_output)
    trace = jax.tree.map(lambda layer: layer.trace, kept, is_leaf=lambda node: isinstance(node, TangentTrace))
    _, product = lean_backward(objective.net, params, trace, curved, weights)
    return objective.add_penalty_gradient(product, v, lam)


def hessian_vector_product(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    v: Tree,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
    key: PRNGKeyArray | None = None,
) -> Tree:
    """H v, exact, by the R-operator: R{z} = V a + W R{a}, R{delta}, R{dW} (Pearlmutter, doi:10.1162/neco.1994.6.1.147).

    It costs about two gradients. At a kink of f it takes the second derivative that the activation's d2f gives.

    Arguments as for `gauss_newton_vector_product`.

    Raises:
        ValueError: a layer without `change`, or an activation without d2f; v that does not fit.
        TypeError: dtypes that differ.
        NotImplementedError: a loss without `hessian_product`.
    """
    params, x, y, lam, weights = Objective.required(objective).checked(params, x, y, lam, weights)
    validate.like("v", v, "params", params)
    net, loss = objective.net, objective.loss
    output, d_output, kept = tangent_sweep(net, params, x, v, None, short=True, keys=layer_keys(net, key))
    error = Pair(loss.checked_derivative(output, y), loss.checked_hessian_product(output, y, d_output))
    reader = gradient_reader(weights)
    if weighable(error):
        error, reader = per_example_scaled(error, weights), total
    _, product = net.backward(Tangent(changed(reader), short=True), error, along(net, params, v), kept)
    return objective.add_penalty_gradient(product, v, lam)


LABELS = ("all", "sampled", "given")


def fisher_deltas(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    *,
    labels: str = "all",
    key: PRNGKeyArray | None = None,
    samples: int = 1,
) -> tuple[Tree, Tree]:
    """Error terms whose outer products make up the Fisher matrix: several for each example, as columns.

    Dropout is off: the key here is for drawing targets.

    Args:
        objective: J; the curvature is that of its loss.
        params: where.
        x: a batch.
        y: targets; for softmax cross-entropy only "given" looks at their values.
        labels: "all" takes columns s_k of the loss's Hessian with sum_k s_k s_k^T = H_n, which is exact (the
            Gauss-Newton matrix; for softmax one column for each class, weighted by its probability). "sampled" takes
            `samples` targets drawn from the model, which is right on average. "given" takes the targets in the data:
            the empirical Fisher, a different matrix (Kunstner et al., arXiv:1905.12558).
        key: for "sampled".
        samples: for "sampled".

    Returns:
        (trace, deltas): deltas with K columns in front of every leaf, scaled so that the columns are to be summed.

    Raises:
        ValueError: other labels; a missing key, or a key where nothing is drawn; samples below 1; whatever
            `Objective` refuses.
        NotImplementedError: a loss without `hessian_root`, or one that is no model's likelihood.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    params, x, y, _, _ = Objective.required(objective).checked(params, x, y, None, None)
    output, trace = forward_sweep(objective.net, params, x)
    columns = _columns(objective, output, y, labels, key, samples)

    def back(column: Array) -> Tree:
        return backward_sweep(objective.net, params, trace, column)[1]

    return trace, jax.vmap(back)(columns)


def _columns(
    objective: Objective, output: Array, y: Array, labels: str, key: Any, samples: int
) -> Float[Array, "K N *outputs"]:
    loss = objective.loss
    if labels != "sampled" and (key is not None or samples != 1):
        raise ValueError(f'key and samples are for labels="sampled"; labels={labels!r} draws nothing')
    if labels == "all":
        return loss.hessian_root(output, y)
    if labels == "given":
        return loss.checked_derivative(output, y)[None]
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"samples must be an int >= 1, got {samples!r}")
    if key is None:
        raise ValueError('labels="sampled" draws from the model: give it a key, such as jax.random.key(0)')
    require_key(key)
    drawn = jax.vmap(lambda own: loss.sample_derivative(own, output))(jax.random.split(key, samples))
    return drawn / jnp.sqrt(jnp.asarray(samples, drawn.dtype))


def fisher_diagonal(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    *,
    labels: str = "all",
    key: PRNGKeyArray | None = None,
    samples: int = 1,
    weights: Weights | None = None,
) -> Tree:
    """The diagonal of sum_n w_n J_n^T H_n J_n, by default the mean over examples: sum_k (delta_k^2)^T a^2.

    With labels "all" it is the diagonal of L's Gauss-Newton matrix; the regulariser's lam is not in it. Arguments
    and errors as for `fisher_deltas`. The columns lie in memory together, as one (K, *output) array. They are swept
    back one at a time, so nothing else grows with their number K (with labels "all" and softmax, the outputs' number).
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    params, x, y, _, weights = Objective.required(objective).checked(params, x, y, None, weights)
    net = objective.net
    output, trace = forward_sweep(net, params, x)
    columns = _columns(objective, output, y, labels, key, samples)

    def of_column(column: Array) -> Tree:
        _, deltas = backward_sweep(net, params, trace, column)
        return second_moment(net, trace, deltas, weights=weights)

    def add(total: Tree, column: Array) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_column(column)), None

    return jax.lax.scan(add, of_column(columns[0]), columns[1:])[0]


def gauss_newton_diagonal(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Targets,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
) -> Tree:
    """The diagonal of the matrix of `gauss_newton_vector_product`, exact, regulariser included."""
    params, x, y, lam, weights = Objective.required(objective).checked(params, x, y, lam, weights)
    diagonal = fisher_diagonal(objective, params, x, y, weights=weights)
    ones = jax.tree.map(jnp.ones_like, diagonal)
    return objective.add_penalty_gradient(diagonal, ones, lam)
