"""Layers without bias: `Affine.b` is None, and nothing stands in for it.

The witness is a function of the matrices alone, with no b in it, for jax.grad to differentiate; and closed forms.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, generic

import manual_backprop as mb
import reference
from manual_backprop import rules
from manual_backprop.layers import OuterProduct
from manual_backprop.textbook.forward_mode import gradient_by_forward_propagation

N, LAM = 6, 0.1
NET = mb.Serial(
    (
        mb.Dense(3, 4, "tanh", bias=False),
        mb.Tied(mb.Residual(mb.Dense(4, 4, "tanh", bias=False)), 2),
        mb.Repeat(mb.Dense(4, 4, "sigmoid", bias=False), 2),
        mb.Dense(4, 4, "tanh"),
        mb.Dense(4, 3, bias=False),
    )
)
OBJECTIVE = mb.Objective(NET, mb.squared_error, mb.Frobenius(LAM))
MLP = mb.mlp((3, 5, 4, 2), "tanh", bias=False)
# With 2 positions the Gram form of the norms is the cheaper one, with 3 x 3 the gradients themselves are.
SHAPES = {"vectors": (N,), "2 positions": (N, 2), "a 3 x 3 grid": (N, 3, 3)}


def plain(matrices: Any, x: Any) -> Any:
    """NET as a function of its five matrices and its only bias."""
    first, tied, (one, two), (W, b), last = matrices
    x = jnp.tanh(jnp.einsum("oi,...i->...o", first, x))
    for _ in range(2):
        x = x + jnp.tanh(jnp.einsum("oi,...i->...o", tied, x))
    for each in (one, two):
        x = jax.nn.sigmoid(jnp.einsum("oi,...i->...o", each, x))
    x = jnp.tanh(jnp.einsum("oi,...i->...o", W, x) + jnp.broadcast_to(b, (*x.shape[:-1], 4)))
    return jnp.einsum("oi,...i->...o", last, x)


def matrices(params: Any) -> Any:
    return (params[0].W, params[1].W, tuple(params[2].W), (params[3].W, params[3].b), params[4].W)


def loss(matrices: Any, x: Any, y: Any) -> Any:
    """Of one example."""
    return 0.5 * jnp.sum((plain(matrices, x) - y) ** 2)


def J(matrices: Any, x: Any, y: Any) -> Any:
    first, tied, both, (W, _), last = matrices
    penalty = LAM / 2 * sum(jnp.sum(each**2) for each in (first, tied, *both, W, last))
    return jnp.mean(jax.vmap(loss, (None, 0, 0))(matrices, x, y)) + penalty


def problem(shape: tuple[int, ...] = (N,)) -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(5)
    x, y = (jnp.asarray(rng.normal(size=(*shape, 3))) for _ in range(2))
    return generic(NET), x, y


def leaves(found: Any, axis: int = 0) -> list[np.ndarray]:
    """The leaves of a tree like `matrices`, as those of our parameters, with the blocks of Repeat on this axis."""
    first, tied, blocks, *rest = found
    return jax.tree.leaves((first, tied, np.stack(blocks, axis), *rest))


def flat(tree: Any) -> np.ndarray:
    """The leaves of a tree of per-example gradients in one row for each example."""
    return np.concatenate([np.asarray(leaf).reshape(N, -1) for leaf in jax.tree.leaves(tree)], 1)


def test_a_layer_without_bias_has_none_in_all_trees():
    layer = mb.Dense(3, 4, "tanh", bias=False)
    assert str(layer) == "Dense(3 -> 4, tanh, no bias)"
    assert str(mb.Dense(3, 4, "tanh")) == "Dense(3 -> 4, tanh)"
    assert layer != mb.Dense(3, 4, "tanh")
    params = layer.init(jax.random.key(0))
    assert params.b is None
    np.testing.assert_array_equal(params.W, mb.Dense(3, 4, "tanh").init(jax.random.key(0)).W)
    assert layer.weights == ("W",)
    assert [node.bias for node in MLP.nodes] == [False] * 3
    assert jax.tree.structure(mb.Affine(params.W)) == jax.tree.structure(params)


@pytest.mark.parametrize(("bias", "came"), [(None, "None"), (1, "int 1"), ("no", "str 'no'"), (np.ones(4), "an array")])
def test_a_bias_that_is_neither_true_nor_false_is_refused(without_hook, bias, came):
    with pytest.raises(TypeError, match=f"Dense bias must be True or False, got {came}.*values of b are parameters"):
        mb.Dense(3, 4, bias=bias)
    with pytest.raises(TypeError, match="Dense bias must be True or False"):
        mb.mlp((3, 4), bias=bias)


def test_every_gradient_is_jax_grads_of_a_function_of_the_matrices():
    """(B2) (B4) (B5) (B6), by the sweep that keeps deltas, the lean one, the custom rule and forward propagation."""
    params, x, y = problem()

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        step = mb.backprop(OBJECTIVE, params, x, y)
        lean = mb.value_and_grad(OBJECTIVE, (0, 1))(params, x, y)
        custom = jax.grad(mb.as_custom_vjp(OBJECTIVE))(params, x, y)
        forward = gradient_by_forward_propagation(OBJECTIVE, params, x, y)
        theirs = jax.value_and_grad(J, (0, 1))(matrices(params), x, y)
        return step, lean, custom, forward, theirs

    step, lean, custom, forward, (value, (gradient, d_x)) = run(params, x, y)
    assert jax.tree.structure(step.gradients) == jax.tree.structure(params)
    assert [layer.b is None for layer in step.gradients] == [True, True, True, False, True]
    assert_close((step.value, lean[0]), (value, value))
    assert_close((step.d_x / N, lean[1][1]), (d_x, d_x))
    for ours in (step.gradients, lean[1][0], custom, forward):
        assert_close(jax.tree.leaves(ours), leaves(gradient))


@cache
def read(name: str) -> tuple[Any, Any]:
    """Every reading, and jax.grad's gradient of every example."""
    params, x, y = problem(SHAPES[name])

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        step = mb.backprop(OBJECTIVE, params, x, y)
        at = (NET, step.trace, step.deltas)
        found = {
            "each": mb.per_example_gradients(*at),
            "norms": mb.squared_norms(*at),
            "by layer": mb.squared_norms(*at, by_layer=True),
            "gram": mb.gram(*at),
            "second moment": mb.second_moment(*at),
            "clipped": mb.clipped_gradients(*at, 1.0),
            "expand": mb.kronecker_factors(*at),
            "reduce": mb.kronecker_factors(*at, shared="reduce"),
            "step": step,
        }
        return found, jax.vmap(jax.grad(loss), (None, 0, 0))(matrices(params), x, y)

    return run(params, x, y)


@pytest.mark.parametrize("name", SHAPES)
def test_readings_count_no_bias(name):
    """There is no 1 beside a in norms and products; tied uses and positions are summed before they are squared."""
    found, theirs = read(name)
    rows = flat(theirs)
    assert_close(found["norms"], (rows**2).sum(1))
    assert_close(found["by layer"][0], (flat(theirs[0]) ** 2).sum(1))
    assert_close(found["by layer"][1], (flat(theirs[1]) ** 2).sum(1))
    assert_close(found["gram"], rows @ rows.T)
    each, factors = leaves(theirs, 1), np.minimum(1, 1 / np.linalg.norm(rows, axis=1))
    assert_close(jax.tree.leaves(found["each"]), each)
    assert_close(jax.tree.leaves(found["second moment"]), [np.mean(np.asarray(leaf) ** 2, 0) for leaf in each])
    assert_close(jax.tree.leaves(found["clipped"]), [np.tensordot(factors, leaf, 1) for leaf in each])


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_kronecker_factors_have_no_row_for_a_bias(shared):
    found, _ = read("2 positions")
    a = np.asarray(problem(SHAPES["2 positions"])[1])
    a = (a.mean(1) if shared == "reduce" else a).reshape(-1, 3)
    factors = found[shared]
    assert_close(factors[0].A, a.T @ a / len(a))
    assert [factor.A.shape for factor in factors] == [(3, 3), (4, 4), (2, 4, 4), (5, 5), (4, 4)]


def test_kfac_direction_solves_the_damped_kronecker_system():
    found, _ = read("vectors")
    gradients = found["step"].gradients
    directions = jax.jit(mb.kfac_direction)(found["expand"], gradients, jnp.asarray(0.05))
    assert jax.tree.structure(directions) == jax.tree.structure(gradients)
    for i in (0, 1, 4):
        dW, factor = np.asarray(gradients[i].W), found["expand"][i]
        system = np.kron(factor.G, factor.A) + 0.05 * np.eye(dW.size)
        assert_close(directions[i].W, np.linalg.solve(system, dW.ravel()).reshape(dW.shape))
    biased = (mb.Affine(gradients[0].W, jnp.zeros(4)), *gradients[1:])
    with pytest.raises(ValueError, match=r"A \[3, 3\] and G \[4, 4\] do not fit the gradient W \[4, 3\] with a bias"):
        mb.kfac_direction(found["expand"], biased, 0.05)


def test_curvature_equals_jvp_of_grad():
    """Hessian and Gauss-Newton products, with positions, and the Gauss-Newton diagonal from its explicit matrix."""
    params, x, y = problem((N, 2))
    v = generic(NET, 2)

    @jax.jit
    def run(params: Any, v: Any, x: Any, y: Any) -> Any:
        hessian = mb.hessian_vector_product(OBJECTIVE, params, x, y, v)
        gauss_newton = mb.gauss_newton_vector_product(OBJECTIVE, params, x, y, v)
        diagonal = mb.gauss_newton_diagonal(OBJECTIVE, params, x, y)
        at, along = matrices(params), matrices(v)
        H = jax.jvp(lambda at: jax.grad(J)(at, x, y), (at,), (along,))[1]
        pull = jax.vjp(lambda at: plain(at, x), at)[1]
        Jv = jax.jvp(lambda at: plain(at, x), (at,), (along,))[1]
        G = pull(Jv / N)[0]  # the Hessian of half the square is I
        squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2, (0, 1, 2)) / N, jax.jacrev(plain)(at, x))
        return (hessian, gauss_newton, diagonal), (H, G, squares)

    ours, (H, G, diagonal) = run(params, v, x, y)
    along, ones = leaves(matrices(v)), leaves(jax.tree.map(np.ones_like, matrices(v)))
    expected = (leaves(H), penalised(leaves(G), along), penalised(leaves(diagonal), ones))
    for found, theirs in zip(ours, expected, strict=True):
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert_close(jax.tree.leaves(found), theirs)


def penalised(found: list[Any], along: list[Any]) -> list[Any]:
    """Lam times the direction added for every matrix, and not for the bias, the only vector."""
    return [leaf + (LAM * v if v.ndim > 1 else 0) for leaf, v in zip(found, along, strict=True)]


def test_the_change_of_a_factor_counts_no_bias_either():
    """A bias gets delta times 1, which does not change: its norms are those of the gradient with db = 0."""
    rng = np.random.default_rng(0)
    a, delta = jnp.asarray(rng.normal(size=(N, 3))), jnp.asarray(rng.normal(size=(N, 4)))
    params, v = generic(mb.Dense(3, 4)), generic(mb.Dense(3, 4), 1)
    _, moved = mb.Dense(3, 4).change(params, a, v, a, delta)
    assert isinstance(moved, OuterProduct)
    rows = np.einsum("no,ni->noi", delta, a).reshape(N, -1)
    assert_close(moved.squared_norms(), (rows**2).sum(1))
    assert_close(moved.gram(moved), rows @ rows.T)
    assert_close(moved.gram(OuterProduct(a, delta)), rows @ rows.T)
    assert_close(moved.weighted_sum().b, np.zeros(4), 0)
    assert_close(moved.squared_sum().b, np.zeros(4), 0)
    assert_close(moved.per_example().b, np.zeros((N, 4)), 0)


@cache
def forward_of_mlp() -> tuple[Any, ...]:
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.normal(size=(N, width))) for width in (3, 2))
    return mb.Objective(MLP, mb.squared_error, mb.Frobenius(LAM)), generic(MLP), x, y


def deltas_by(send: Any) -> Any:
    """The deltas of MLP in closed form, where send(l, delta of l + 1, last delta) is dL/da of layer l."""
    _, params, x, y = jax.tree.map(np.asarray, forward_of_mlp(), is_leaf=lambda node: isinstance(node, mb.Objective))
    a1 = np.tanh(x @ params[0].W.T)
    a2 = np.tanh(a1 @ params[1].W.T)
    d3 = a2 @ params[2].W.T - y
    d2 = (1 - a2**2) * send(1, d3, d3)
    return (1 - a1**2) * send(0, d2, d3), d2, d3


def test_rules_need_no_bias():
    """Feedback alignment, sign-symmetry, direct feedback and an edit, in closed form."""
    objective, params, x, y = forward_of_mlp()
    B, direct = generic(MLP, 7), jax.jit(lambda key: rules.direct_feedback(MLP, key))(jax.random.key(0))
    signed = [np.abs(M.W) * np.sign(p.W) for M, p in zip(B, params, strict=True)]
    sent = {
        "feedback": (rules.FeedbackAlignment(B), lambda layer, delta, last: delta @ B[layer + 1].W),
        "signs": (rules.SignSymmetry(B), lambda layer, delta, last: delta @ signed[layer + 1]),
        "direct": (rules.DirectFeedbackAlignment(direct), lambda layer, delta, last: last @ direct[layer]),
        "edit": (rules.on_delta(rules.edits.TopK(9)), lambda layer, delta, last: delta @ params[layer + 1].W),
    }
    given = {name: rule for name, (rule, _) in sent.items()}
    run = jax.jit(lambda given: {k: mb.backprop(objective, params, x, y, rule=rule) for k, rule in given.items()})
    for name, step in run(given).items():
        expected = deltas_by(sent[name][1])
        assert_close(step.deltas, expected)
        first = np.asarray(expected[0]).T @ np.asarray(x) / N + LAM * np.asarray(params[0].W)
        assert_close(step.gradients[0], mb.Affine(first))
    with pytest.raises(ValueError, match=r"feedback\[0\].b is an array float64\[5\], but params .*has None there"):
        mb.backprop(objective, params, x, y, rule=rules.FeedbackAlignment(generic(mb.mlp((3, 5, 4, 2)))))


def test_training_equals_that_by_jax_grad_and_kolen_pollack_decays():
    """Ten steps of Adam; and W - B shrinks by 1 - rate lam at a step of SGD, W and B being of one update."""
    objective, params, x, y = forward_of_mlp()

    def trained(value_and_grad: Any) -> Any:
        optimizer = optax.adam(0.05)
        step = mb.training.make_step(objective, optimizer, value_and_grad=value_and_grad)
        at, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
        for _ in range(10):
            at, state, _ = step(at, state, x, y)
        return at

    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
        ours, theirs = trained(mb.value_and_grad), trained(reference.value_and_grad)
    assert ours[0].b is None
    assert_close(ours, theirs, 1e-10)
    feedback, optimizer = generic(MLP, 7), optax.sgd(0.1)
    step = mb.training.make_kolen_pollack_step(objective, optimizer)
    before = jax.tree.map(lambda W, B: np.asarray(W) - np.asarray(B), params, feedback)
    state = optimizer.init((params, feedback))
    W, B, _, _ = step(*jax.tree.map(jnp.copy, (params, feedback)), state, x, y)
    assert_close(jax.tree.map(jnp.subtract, W, B), jax.tree.map(lambda gap: (1 - 0.1 * LAM) * gap, before))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_equation_is_proven(dtype):
    """By the derived bounds, and there is nothing to compare where there is no b."""
    params, x, y = jax.tree.map(lambda leaf: np.asarray(0.5 * leaf, jnp.dtype(dtype)), problem())
    report = reference.check(OBJECTIVE, params, x, y, dtype=dtype)
    report.raise_if_failed()
    paths = {row.path for row in report.rows}
    assert {"gradients[0].W", "gradients[3].b"} <= paths
    assert not paths & {"gradients[0].b", "gradients[1].b", "gradients[4].b"}


class Shifted(mb.Dense):
    """A layer that adds something although it has no bias."""

    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = super().net_input(params, a_in)
        return z + 1e-6, saved


def test_a_layer_that_adds_a_bias_all_the_same_is_found():
    right, params, x, y = forward_of_mlp()
    first, _, last = MLP.nodes
    wrong = mb.Objective(mb.Serial((first, Shifted(5, 4, "tanh", bias=False), last)), right.loss, right.regularizer)
    report = reference.check(wrong, params, x, y)
    fault = report.failures[0]
    assert (fault.equation, fault.layer, fault.path) == ("(F1)", 2, "trace[1].z")
