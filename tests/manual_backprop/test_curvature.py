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
from reference import autodiff, model

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
CASES = {  # the Hessian has f'' besides, and the same second derivative of the loss
    ("hessian", "every activation"): problem(EVERY_ACTIVATION, mb.squared_error),
    **{(name, "nested, 2 positions"): problem(NESTED, mb.softmax_cross_entropy, (N, 2)) for name in PRODUCTS},
    **{("hessian", each): problem(SMALL, loss) for each, loss in LOSSES.items()},
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


MIXED = mb.Serial(
    (
        mb.Dense(3, 4, "tanh"),
        mb.Parallel((mb.Dense(4, 4, "sigmoid"), mb.Dense(4, 4, bias=False))),
        mb.Product(),
        mb.Repeat(mb.Dense(4, 4, "tanh"), 2),
        mb.Tied(mb.Repeat(mb.Dense(4, 4, "softplus"), 3), 2),
        mb.Dense(4, 3),
    )
)
AXES = ("", "", "", "b", "ub", "")
"""Of every layer's z in MIXED, in front of the examples: b for blocks, u for uses."""


@cache
def all_labels() -> dict[str, Any]:
    """Our factors by `shared`; by jax, every layer's z and a, its Jacobians dz -> outputs, and H.

    Of MIXED with two positions; what vectors make is in closed form below.
    """
    objective, params, x, y, _ = problem(MIXED, mb.softmax_cross_entropy, (N, 2))

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> dict[str, Any]:
        trace, deltas = mb.fisher_deltas(objective, params, x, y)
        ours = {
            shared: mb.kronecker_factors(MIXED, trace, deltas, columns=True, shared=shared)
            for shared in ("expand", "reduce")
        }

        def of_example(x: Any, y: Any) -> Any:
            def at(probes: Any) -> Any:
                output, values = model.through(MIXED, model.probed, x[None], params, probes)
                return output, (output, values)

            J, (output, values) = jax.jacobian(at, has_aux=True)(model.zero_probes(MIXED, params, x[None]))
            H = jax.hessian(lambda o: model.losses(objective.loss, o, y[None])[0])(output)
            return values, jax.tree.map(lambda leaf: leaf.reshape(output.size, *leaf.shape[output.ndim :]), J), H

        values, J, H = jax.vmap(of_example)(x, y)
        return {"ours": ours, "values": values, "J": J, "H": H.reshape(N, J[0].shape[1], -1)}

    return jax.tree.map(np.asarray, run(params, x, y)) | {"x": np.asarray(x)}


def rows_of(leaf: np.ndarray, axes: str) -> np.ndarray:
    """(..., *axes, 1, *positions, d) -> (..., blocks, rows that share parameters, d), for two axes `...`."""
    leaf = leaf if "b" in axes else np.expand_dims(leaf, 2)
    leaf = np.swapaxes(leaf, 2, 3) if axes == "ub" else leaf
    return leaf.reshape(*leaf.shape[:3], -1, leaf.shape[-1])


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_kronecker_factors_of_all_labels(shared):
    """G is the mean of J^T H J by jax.jacobian and jax.hessian, A that of (a, 1)(a, 1)^T, layer by layer."""
    found = all_labels()
    values = found["values"]
    d, (left, _), product, repeat, tied = (values[layer] for layer in range(5))
    chain = np.concatenate([repeat.a[:, -1:], tied.a.reshape(N, 6, *tied.a.shape[3:])[:, :-1]], 1)
    entered = (
        found["x"][:, None],
        (d.a, d.a),
        None,
        np.stack([product.a, repeat.a[:, 0]], 1),
        chain.reshape(tied.a.shape),
        tied.a[:, -1, -1],
    )
    assert left.z.shape == d.a.shape and found["ours"][shared][2] == ()

    def witness(J: np.ndarray, a: np.ndarray, axes: str, bias: bool = True) -> tuple[np.ndarray, np.ndarray]:
        J, a = rows_of(J, axes), rows_of(a[:, None], axes)[:, 0]
        if shared == "reduce":
            J, a = J.sum(3, keepdims=True), a.mean(2, keepdims=True)
        a = np.concatenate([a, np.ones_like(a[..., :1])], -1) if bias else a
        A = np.einsum("nbti,nbtj->bij", a, a) / (N * a.shape[2])
        G = np.einsum("nkbti,nkl,nlbtj->bij", J, found["H"], J) / N
        return (A, G) if "b" in axes else (A[0], G[0])

    for ours, J, a, axes in zip(found["ours"][shared], found["J"], entered, AXES, strict=True):
        if isinstance(ours, tuple):  # the two branches, or no parameters
            for branch, *given, bias in zip(ours, J, a or (), (True, False), strict=False):
                assert_close((branch.A, branch.G), witness(*given, axes, bias))
        else:
            assert_close((ours.A, ours.G), witness(J, a, axes))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kronecker_factors_of_narrow_columns_are_summed_in_float32(dtype):
    """From the same narrow numbers, summed in float64; and of one column they are those without columns."""
    rng = np.random.default_rng(3)
    net, x = mb.Dense(3, 4, "tanh"), jnp.asarray(rng.normal(size=(400, 3)), dtype)
    deltas = jnp.asarray(rng.normal(size=(6, 400, 4)), dtype)

    @jax.jit
    def run(x: Any, deltas: Any) -> Any:
        trace = mb.forward(net, generic(net, dtype=dtype), x)[1]
        factors = mb.kronecker_factors(net, trace, deltas, columns=True)
        one = mb.kronecker_factors(net, trace, deltas[:1], columns=True), mb.kronecker_factors(net, trace, deltas[0])
        return factors, one

    factors, one = run(x, deltas)
    assert factors.A.dtype == factors.G.dtype == "float32"
    a, rows = np.asarray(x, np.float64), np.asarray(deltas, np.float64).reshape(-1, 4)
    a = np.concatenate([a, np.ones((400, 1))], 1)
    assert_close((factors.A, factors.G), (a.T @ a / 400, rows.T @ rows / 400), 1e-6)
    assert_close(*one, 0)


def test_kronecker_factors_of_all_labels_form_one_A_and_one_G():
    """By XLA's own count: the operations of these products alone, and less memory than a G for every column."""
    net, K, n = mb.mlp((784, 512, 10), "tanh"), 10, 128
    x = jax.ShapeDtypeStruct((n, 784), "float32")
    trace = jax.eval_shape(lambda x: mb.forward(net, net.init(jax.random.key(0), "float32"), x)[1], x)
    deltas = tuple(jax.ShapeDtypeStruct((K, n, width), "float32") for width in (512, 10))
    reading = jax.jit(partial(mb.kronecker_factors, net, columns=True)).lower(trace, deltas).compile()
    products = 2 * n * (785**2 + 513**2) + 2 * K * n * (512**2 + 10**2)
    assert products <= reading.cost_analysis()["flops"] < 1.02 * products
    assert reading.memory_analysis().temp_size_in_bytes < 0.5 * 4 * K * 512**2


def test_kfac_direction_solves_the_damped_kronecker_system():
    found = fisher()
    for factor, gradient, direction in zip(found["factors"], found["gradients"], found["direction"], strict=True):
        joint = np.concatenate([gradient.W, gradient.b[:, None]], 1)
        system = np.kron(factor.G, factor.A) + 0.05 * np.eye(joint.size)
        solved = np.linalg.solve(system, joint.ravel()).reshape(joint.shape)
        assert_close((direction.W, direction.b), (solved[:, :-1], solved[:, -1]))


def test_kfac_direction_under_repeat():
    """Of blocks whose matrices are not square."""
    pair = mb.Serial((mb.Dense(3, 4, "tanh"), mb.Dense(4, 3)))
    net = mb.Serial((mb.Repeat(pair, 2), mb.Dense(3, 2)))
    objective, params, x, y, _ = problem(net, mb.softmax_cross_entropy)

    @jax.jit
    def both(params: Any, gradients: Any) -> Any:
        trace, deltas = mb.fisher_deltas(objective, params, x, y)
        factors = mb.kronecker_factors(net, trace, deltas, columns=True)
        one = jax.tree.map(lambda leaf: leaf[1], (factors[0], gradients[0]))
        of_one = jax.tree.map(lambda leaf: leaf[1], mb.kfac_direction(factors, gradients, 0.1)[0])
        return of_one, mb.kfac_direction(*one, 0.1)

    assert_close(*both(params, generic(net, seed=3)))


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
