"""Curvature of J along a direction, on the diagonal, and by Kronecker factors: second order, still by hand.

Products with the Gauss-Newton matrix push a direction forward, meet the loss's own Hessian and travel back;
products with the Hessian are the sweep itself differentiated along the direction, Pearlmutter's R-operator.
Both include the regulariser's lam on every weight that it counts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from manual_backprop import validate
from manual_backprop.layers.base import Parameters
from manual_backprop.layers.factor import Tree
from manual_backprop.objective import Objective
from manual_backprop.readings.gradients import KroneckerFactors, gradient_reader, second_moment
from manual_backprop.regularizers import Coefficient

Batch = Float[Array, "N *features"]
Targets = Shaped[Array, "N *targets"]
Weights = Float[Array, " N"]


def gauss_newton_vector_product(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    v: Tree,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
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
        weights: likewise.

    Raises:
        ValueError: v of another structure or shape than params; and what `Objective` refuses.
        TypeError: dtypes that differ.
        NotImplementedError: a loss without `hessian_product`.
    """
    params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
    validate.like("v", v, "params", params)
    output, d_output, trace, _ = objective.net.tangent(params, x, v, None)
    curved = objective.loss.hessian_product(output, y, d_output)
    _, product = objective.net.backward(params, trace, curved, gradient_reader(weights))
    return objective.add_penalty_gradient(product, v, lam)


def hessian_vector_product(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    v: Tree,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
) -> Tree:
    """H v, exact, by the R-operator: R{z} = V a + W R{a}, R{delta}, R{dW} (Pearlmutter, doi:10.1162/neco.1994.6.1.147).

    About the work of two gradients. At a kink of f it takes the second derivative that the activation's d2f states.

    Arguments as for `gauss_newton_vector_product`.

    Raises:
        ValueError: a layer that is not affine in its parameters, or an activation without d2f; v that does not fit.
        TypeError: dtypes that differ.
        NotImplementedError: a loss without `hessian_product`.
    """
    params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
    validate.like("v", v, "params", params)
    net, loss = objective.net, objective.loss
    output, d_output, trace, dtrace = net.tangent(params, x, v, None)
    error, change = loss.derivative(output, y), loss.hessian_product(output, y, d_output)
    _, _, product = net.backward_tangent(params, v, trace, dtrace, error, change, weights)
    return objective.add_penalty_gradient(product, v, lam)


LABELS = ("all", "sampled", "given")


def fisher_deltas(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    *,
    labels: str = "all",
    key: PRNGKeyArray | None = None,
    samples: int = 1,
) -> tuple[Tree, Tree]:
    """Error terms whose outer products make up the Fisher matrix, several a example: columns in front of deltas.

    Args:
        objective: J, of whose loss this is the curvature.
        params: where.
        x: a batch.
        y: targets; for softmax cross-entropy only "given" looks at their values.
        labels: "all", columns s_k of the loss's Hessian with sum_k s_k s_k^T = H_n, exact (the Gauss-Newton matrix;
            for softmax one for each class, weighted by its probability); "sampled", from `samples` targets drawn from
            the model, right on average; "given", the empirical Fisher of the targets in the data, which is
            something else (Kunstner et al., arXiv:1905.12558).
        key: for "sampled".
        samples: for "sampled".

    Returns:
        (trace, deltas): deltas with K columns in front of every leaf, scaled so that a sum over columns is meant.

    Raises:
        ValueError: other labels; a key that is missing, or that nothing is drawn from; samples below 1; what
            `Objective` refuses.
        NotImplementedError: a loss without a Hessian's root, or one that is no model's likelihood.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    params, x, y, _, _ = objective.checked(params, x, y, None, None)
    output, trace = objective.net.forward(params, x)
    columns = _columns(objective, output, y, labels, key, samples)

    def back(column: Array) -> Tree:
        return objective.net.backward(params, trace, column, None)[1]

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
        return loss.derivative(output, y)[None]
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be an int >= 1, got {samples!r}")
    if key is None:
        raise ValueError('labels="sampled" draws from the model: give it a key, such as jax.random.key(0)')
    drawn = jax.vmap(lambda own: loss.sample_derivative(own, output))(jax.random.split(key, samples))
    return drawn / jnp.sqrt(jnp.asarray(samples, drawn.dtype))


def fisher_diagonal(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    *,
    labels: str = "all",
    key: PRNGKeyArray | None = None,
    samples: int = 1,
    weights: Weights | None = None,
) -> Tree:
    """The diagonal of sum_n w_n J_n^T H_n J_n, by default the mean over examples: sum_k (delta_k^2)^T a^2.

    With labels "all" it is that of the Gauss-Newton matrix of L; the regulariser's lam is not in it. Arguments
    and errors as for `fisher_deltas`. The columns lie in memory together, as one (K, *output) array; they go back one
    at a time, so nothing else grows with their number K (with labels "all" and softmax, the number of outputs).
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    params, x, y, _, weights = objective.checked(params, x, y, None, weights)
    net = objective.net
    output, trace = net.forward(params, x)
    columns = _columns(objective, output, y, labels, key, samples)

    def of_column(column: Array) -> Tree:
        _, deltas = net.backward(params, trace, column, None)
        return second_moment(net, trace, deltas, weights=weights)

    def add(total: Tree, column: Array) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_column(column)), None

    return jax.lax.scan(add, of_column(columns[0]), columns[1:])[0]


def gauss_newton_diagonal(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
) -> Tree:
    """The diagonal of the matrix of `gauss_newton_vector_product`, exact, regulariser included."""
    params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
    diagonal = fisher_diagonal(objective, params, x, y, weights=weights)
    ones = jax.tree.map(jnp.ones_like, diagonal)
    return objective.add_penalty_gradient(diagonal, ones, lam)


def kfac_direction(factors: Tree, gradients: Tree, damping: float | Float[Array, ""]) -> Tree:
    """(A (x) G + damping I)^-1 times the gradient of every layer, exactly, by the eigenvectors of A and G.

    The natural gradient's direction under K-FAC's approximation (Martens & Grosse, arXiv:1503.05671); a step
    goes against it. With eigenvalues a_i of A and g_j of G, the gradient in their basis is divided by
    a_i g_j + damping, which needs no splitting of the damping between the two. There is no trust region: damping
    and step size are the caller's, and the regulariser's lam, which `backprop`'s gradients have, is not in the
    factors: adding it to the damping accounts for it.

    Args:
        factors: from `kronecker_factors`.
        gradients: from `gradients` or `backprop`, of the same network.
        damping: > 0, or 0 where A and G are known to have full rank; a number, or a scalar that may be traced.

    Returns:
        The structure of `gradients`.

    Raises:
        ValueError: a damping that is negative or nan; factors and gradients that do not belong together.
    """
    _require_pairs(factors, gradients)
    leaves = jax.tree.leaves(gradients)
    bound = validate.non_negative("damping", damping, leaves[0].dtype)

    def of_layer(factor: KroneckerFactors, gradient: Any) -> Any:
        dW, db = gradient.W, gradient.b
        expected = (*dW.shape[:-1], dW.shape[-1] + 1)
        if factor.A.shape[-1] != expected[-1] or factor.G.shape[-1] != dW.shape[-2] or factor.A.ndim != dW.ndim:
            raise ValueError(
                f"factors A {list(factor.A.shape)} and G {list(factor.G.shape)} do not fit the gradient W"
                f" {list(dW.shape)}"
            )
        of_A, basis_A = jnp.linalg.eigh(factor.A)
        of_G, basis_G = jnp.linalg.eigh(factor.G)
        joint = jnp.concatenate([dW, db[..., None]], axis=-1)
        turned = jnp.swapaxes(basis_G, -1, -2) @ joint @ basis_A
        # eigh may give a tiny negative where the true eigenvalue is 0
        scales = jnp.maximum(of_G, 0)[..., :, None] * jnp.maximum(of_A, 0)[..., None, :] + bound
        solved = basis_G @ (turned / scales) @ jnp.swapaxes(basis_A, -1, -2)
        return type(gradient)(W=solved[..., :-1], b=solved[..., -1])

    return jax.tree.map(of_layer, factors, gradients, is_leaf=lambda node: isinstance(node, KroneckerFactors))


def _require_pairs(factors: Tree, gradients: Tree) -> None:
    """Refuse factors and gradients of two networks, or the one for the other."""
    structures: list[Any] = []
    for name, tree, kind in (("factors", factors, KroneckerFactors), ("gradients", gradients, Parameters)):

        def is_kind(node: Any, kind: type = kind) -> bool:
            return isinstance(node, kind)

        leaves, structure = jax.tree.flatten(tree, is_leaf=is_kind)
        if not all(map(is_kind, leaves)):
            raise TypeError(f"kfac_direction takes (factors, gradients, damping): {name} holds no {kind.__name__}")
        structures.append(structure)
    if structures[0] != structures[1]:
        raise ValueError(f"factors are of {structures[0]} but gradients of {structures[1]}: two networks")
