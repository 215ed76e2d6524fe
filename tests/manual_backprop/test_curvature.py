"""Curvature by hand against jax.jvp of jax.grad, explicit matrices, and the costs that it promises."""

from functools import cache, partial
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, generic, targets
from test_readings import NET as NESTED

import manual_backprop as mb
from manual_backprop.losses import TABLE as LOSSES
from reference import autodiff

N = 5
ALL = tuple(mb.activations.TABLE)
EVERY_ACTIVATION = mb.mlp((3,) + (4,) * len(ALL) + (2,), ALL)
SMALL = mb.mlp((3, 4, 3), "tanh")


def problem(net: Any, loss: mb.Loss, shape: tuple[int, ...] = (N,)) -> tuple[Any, ...]:
    """(objective, params, x, y, v): outputs are 2 or 3 wide, as the network's last layer is."""
    rng = np.random.default_rng(4)
    outputs = list(net.layers())[-1].d_out
    probabilities = isinstance(loss, mb.losses.BinaryCrossEntropy)
    if probabilities:
        net = mb.Serial((net, mb.Dense(outputs, outputs, "sigmoid")))
    x = jnp.asarray(rng.normal(size=(*shape, 3)))
    if isinstance(loss, mb.losses.SoftmaxCrossEntropy):
        y = jnp.asarray(rng.integers(0, outputs, shape))
    else:
        y = targets(loss, outputs, int(np.prod(shape))).reshape(*shape, outputs)
    objective = mb.Objective(net, loss, mb.Frobenius(0.1))
    return objective, generic(net, 1, scale=0.8), x, y, generic(net, 2)


PRODUCTS = {
    "hessian": (mb.hessian_vector_product, autodiff.hessian_vector_product),
    "gauss_newton": (mb.gauss_newton_vector_product, autodiff.gauss_newton_vector_product),
}
CASES = {  # f'' is in the Hessian alone
    ("hessian", "every activation"): problem(EVERY_ACTIVATION, mb.squared_error),
    **{(name, "nested, 2 positions"): problem(NESTED, mb.softmax_cross_entropy, (N, 2)) for name in PRODUCTS},
    **{(name, each): problem(SMALL, loss) for name in PRODUCTS for each, loss in LOSSES.items()},
}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_products_equal_those_of_autodiff(name, case):
    """With lam and weights given; errors relative to the largest entry of the whole product."""
    ours, theirs = PRODUCTS[name]
    objective, *args = CASES[name, case]
    weights = jnp.linspace(0.1, 0.5, N)

    def both(params: Any, x: Any, y: Any, v: Any) -> Any:
        given = {"lam": jnp.asarray(0.3), "weights": weights}
        return ours(objective, params, x, y, v, **given), theirs(objective, params, x, y, v, **given)

    by_hand, by_autodiff = jax.jit(both)(*args)
    assert jax.tree.structure(by_hand) == jax.tree.structure(by_autodiff)
    assert_close(*(raveled(tree) for tree in (by_hand, by_autodiff)))


def raveled(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_products_without_lam_or_weights_and_without_jit():
    objective, *args = problem(mb.Dense(3, 3, "tanh"), mb.softmax_cross_entropy)
    theirs = jax.jit(lambda *args: [product(objective, *args) for _, product in PRODUCTS.values()])(*args)
    for (ours, _), expected in zip(PRODUCTS.values(), theirs, strict=True):
        assert_close(ours(objective, *args), expected)


def matrix(product: Any, objective: Any, params: Any, x: Any, y: Any) -> jax.Array:
    """(P, P), a column for every parameter."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def column(v: Any) -> Any:
        return jax.flatten_util.ravel_pytree(product(objective, params, x, y, unravel(v)))[0]

    return jax.vmap(column)(jnp.eye(flat.size))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gauss_newton_diagonal(loss):
    objective, *args, _ = problem(SMALL, loss)

    @jax.jit
    def run(*args: Any) -> tuple[Any, Any]:
        return mb.gauss_newton_diagonal(objective, *args), matrix(
            autodiff.gauss_newton_vector_product, objective, *args
        )

    ours, G = run(*args)
    assert_close(raveled(ours), np.diag(G))


@cache
def fisher() -> dict[str, Any]:
    """Of a small network with softmax cross-entropy: diagonals by label, factors and directions, from one program."""
    objective, *args, _ = problem(SMALL, mb.softmax_cross_entropy)
    without = mb.Objective(objective.net, objective.loss)

    @jax.jit
    def run(params: Any, x: Any, y: Any, keys: Any) -> dict[str, Any]:
        at = (objective, params, x, y)
        with_penalty, step = mb.backprop(*at), mb.backprop(without, params, x, y)
        trace, deltas = mb.fisher_deltas(*at)
        factors = mb.kronecker_factors(objective.net, trace, deltas, columns=True)
        many = jax.lax.map(lambda key: mb.fisher_diagonal(*at, labels="sampled", key=key, samples=3000), keys)
        return {
            "G": matrix(autodiff.gauss_newton_vector_product, without, params, x, y),
            "exact": mb.fisher_diagonal(*at),
            "empirical": mb.fisher_diagonal(*at, labels="given"),
            "second moment": mb.second_moment(without.net, step.trace, step.deltas),
            "sampled": many,
            "rows": jax.vmap(lambda column: mb.per_example_gradients(objective.net, trace, column))(deltas),
            "factors": factors,
            "gradients": with_penalty.gradients,
            "direction": mb.kfac_direction(factors, with_penalty.gradients, jnp.asarray(0.05)),
        }

    return jax.tree.map(np.asarray, run(*args, jax.random.split(jax.random.key(0))))


def test_fisher_diagonals_by_their_labels():
    found = fisher()
    diagonal = np.diag(found["G"])
    assert_close(raveled(found["exact"]), diagonal)
    assert_close(found["empirical"], found["second moment"])
    sampled, again = (raveled(jax.tree.map(lambda leaf, k=k: leaf[k], found["sampled"])) for k in (0, 1))
    assert np.linalg.norm(sampled - diagonal) / np.linalg.norm(diagonal) < 0.05
    assert not np.array_equal(sampled, again)
    assert np.linalg.norm(raveled(found["empirical"]) - diagonal) > 0.2 * np.linalg.norm(diagonal)


def test_fisher_deltas_make_up_the_fisher_matrix():
    """sum_k J^T s_k s_k^T J over all labels is the Gauss-Newton matrix (softmax cross-entropy: the Fisher)."""
    leaves = jax.tree.leaves(fisher()["rows"])
    rows = np.concatenate([g.reshape(g.shape[0] * N, -1) for g in leaves], 1)
    assert_close(rows.T @ rows / N, fisher()["G"])


def test_kfac_direction_solves_the_damped_kronecker_system():
    found = fisher()
    for factor, gradient, direction in zip(found["factors"], found["gradients"], found["direction"], strict=True):
        joint = np.concatenate([gradient.W, gradient.b[:, None]], 1)
        system = np.kron(factor.G, factor.A) + 0.05 * np.eye(joint.size)
        solved = np.linalg.solve(system, joint.ravel()).reshape(joint.shape)
        assert_close((direction.W, direction.b), (solved[:, :-1], solved[:, -1]))


def test_kfac_direction_under_repeat():
    net = mb.Serial((mb.Repeat(mb.Dense(3, 3, "tanh"), 2), mb.Dense(3, 2)))
    objective, params, x, y, _ = problem(net, mb.softmax_cross_entropy)

    @jax.jit
    def both(params: Any) -> Any:
        gradients = mb.value_and_grad(objective)(params, x, y)[1]
        trace, deltas = mb.fisher_deltas(objective, params, x, y)
        factors = mb.kronecker_factors(net, trace, deltas, columns=True)
        one = jax.tree.map(lambda leaf: leaf[1], (factors[0], gradients[0]))
        of_one = jax.tree.map(lambda leaf: leaf[1], mb.kfac_direction(factors, gradients, 0.1)[0])
        return of_one, mb.kfac_direction(*one, 0.1)

    assert_close(*both(params))


def test_a_hessian_vector_product_costs_two_gradients_at_most():
    """By XLA's own count of operations (Pearlmutter, 1994)."""
    net = mb.mlp((784, 512, 512, 10), "tanh")
    objective = mb.Objective(net, mb.softmax_cross_entropy)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), "float32"))
    x, y = jax.ShapeDtypeStruct((128, 784), "float32"), jax.ShapeDtypeStruct((128,), "int32")

    def operations(function: Any, *args: Any) -> float:
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    gradient = operations(jax.grad(lambda p, x, y: autodiff.model.value(objective, p, x, y)), params, x, y)
    product = operations(partial(mb.hessian_vector_product, objective), params, x, y, params)
    assert product / gradient < 2.1


def test_bad_input_says_what_is_wrong():
    objective, params, x, y, v = problem(SMALL, mb.softmax_cross_entropy)
    with pytest.raises(ValueError, match="v has structure"):
        mb.hessian_vector_product(objective, params, x, y, v[:1])
    with pytest.raises(TypeError, match="is float32, expected float64 as in params"):
        mb.gauss_newton_vector_product(objective, params, x, y, jax.tree.map(lambda leaf: leaf.astype("float32"), v))
    with pytest.raises(ValueError, match="labels must be one of all, sampled, given, got 'true'"):
        mb.fisher_deltas(objective, params, x, y, labels="true")
    with pytest.raises(ValueError, match="give it a key"):
        mb.fisher_deltas(objective, params, x, y, labels="sampled")
    for samples in (0, -1):
        with pytest.raises(ValueError, match="samples must be an int >= 1"):
            mb.fisher_diagonal(objective, params, x, y, labels="sampled", key=jax.random.key(0), samples=samples)
    factors, gradients = (jax.tree.map(jnp.asarray, fisher()[name]) for name in ("factors", "gradients"))
    for damping in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="damping must be >= 0"):
            mb.kfac_direction(factors, gradients, damping)
    with pytest.raises(ValueError, match="factors A .* do not fit the gradient W"):
        mb.kfac_direction(factors[::-1], gradients, 0.1)
    with pytest.raises(TypeError, match="\\(factors, gradients, damping\\): factors holds no KroneckerFactors"):
        mb.kfac_direction(gradients, factors, 0.1)
    with pytest.raises(ValueError, match="two networks"):
        mb.kfac_direction(factors[:1], gradients, 0.1)
    for given in ({"key": jax.random.key(0)}, {"samples": 2}):
        with pytest.raises(ValueError, match='are for labels="sampled"'):
            mb.fisher_deltas(objective, params, x, y, **given)
    sine = mb.Activation("sine", jnp.sin, lambda z, a: jnp.cos(z))
    objective, params, x, y, v = problem(mb.mlp((3, 4, 2), sine), mb.squared_error)
    with pytest.raises(ValueError, match="its activation sine has no d2f"):
        jax.eval_shape(partial(mb.hessian_vector_product, objective), params, x, y, v)
