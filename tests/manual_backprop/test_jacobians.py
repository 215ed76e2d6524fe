"""The note's local derivatives as arrays, multiplied out: the same delta, dW and db as the sweep (C1)-(C7)."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, assert_close, batch, generic, problem

import manual_backprop as mb
from manual_backprop.textbook import jacobians
from manual_backprop.textbook.jacobians import prod


def denominator_layout(jacobian: jax.Array, rank_of_output: int) -> jax.Array:
    """jax.jacobian puts the axes of the output first; the note puts them last."""
    axes = list(range(jacobian.ndim))
    return jacobian.transpose(axes[rank_of_output:] + axes[:rank_of_output])


@cache
def compiled(objective: mb.Objective) -> Any:
    return jax.jit(partial(mb.backprop, objective))


def rand(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_each_local_derivative_equals_jax_jacobian():
    W, b, a, z = rand(4, 3), rand(4, seed=1), rand(3, seed=2), rand(4, seed=3)
    by_W = jax.jacobian(lambda W: W @ a + b)(W)
    assert_close(jacobians.dz_dW(a, 4), denominator_layout(by_W, 1), 0)  # (C3)
    assert_close(jacobians.dz_db(z), denominator_layout(jax.jacobian(lambda b: W @ a + b)(b), 1), 0)  # (C4)
    assert_close(jacobians.dz_da(W), denominator_layout(jax.jacobian(lambda a: W @ a + b)(a), 1), 0)  # (C6)
    for row in mb.activations.TABLE.values():
        ours, by_z = jax.jit(lambda z, row=row: (jacobians.da_dz(row, z, row.f(z)), jax.jacobian(row.f)(z)))(z)
        assert_close(ours, denominator_layout(by_z, 1), 1e-14)  # (C7)
    assert_close(jacobians.da_dz("tanh", z, jnp.tanh(z)), jnp.diag(1 - jnp.tanh(z) ** 2), 1e-14)


def test_entries_of_dz_dW_are_where_the_note_puts_them():
    """(C3): the vector with a_j at place i and zero elsewhere."""
    a = jnp.asarray([5.0, 7.0])
    entries = jacobians.dz_dW(a, 3)
    np.testing.assert_array_equal(entries[1, 0], [0.0, 5.0, 0.0])
    np.testing.assert_array_equal(entries[2, 1], [0.0, 0.0, 7.0])


@pytest.mark.parametrize(
    ("x_shape", "y_shape", "z_shape"),
    [
        ((3,), (2,), ()),
        ((), (2, 3), (4,)),
        ((2, 3), (3, 2), (2, 2)),
        ((2,), (), (3,)),
        ((2, 1, 3), (2, 2), (1, 3)),
    ],
)
def test_prod_chains_tensors_of_any_rank(x_shape, y_shape, z_shape):
    """(C1) against jax.jacobian of the composition."""
    A = rand(int(np.prod(y_shape)), int(np.prod(x_shape)))
    B = rand(int(np.prod(z_shape)), int(np.prod(y_shape)), seed=1)

    def f(X):
        return jnp.sin(A @ X.ravel()).reshape(y_shape)

    def g(Y):
        return jnp.cos(B @ Y.ravel()).reshape(z_shape)

    X = rand(*x_shape, seed=2)
    dY_dX = denominator_layout(jax.jacobian(f)(X), len(y_shape))
    dZ_dY = denominator_layout(jax.jacobian(g)(f(X)), len(z_shape))
    whole = denominator_layout(jax.jacobian(lambda X: g(f(X)))(X), len(z_shape))
    assert_close(prod(dZ_dY, dY_dX, rank=len(y_shape)), whole, 1e-13)


def test_prod_refuses_axes_that_do_not_meet():
    with pytest.raises(ValueError, match=r"begins with the axes of Y \[4\] and dY/dX ends with them \[3\]"):
        prod(rand(4), rand(2, 3), rank=1)
    with pytest.raises(ValueError, match="rank of Y must lie in 0..1, got 2"):
        prod(rand(3), rand(2, 3), rank=2)


@pytest.mark.parametrize("name", ["mlp", "one layer", "width 1", "per layer"])
@pytest.mark.parametrize("n", [0, 3])
def test_multiplied_out_they_are_the_sweep_layer_by_layer(name, n):
    """(C2) (C5) (B1) (B2) (B3) (B4) (B5) for one example, from explicit arrays and `prod` alone."""
    objective, params, x, y = problem(name, lam=None)
    net, backprop = objective.net, compiled(objective)
    step, one = backprop(params, x, y), backprop(params, x[n : n + 1], y[n : n + 1])

    dL_da = objective.loss.derivative(step.output, y)[n]
    for l in reversed(range(len(params))):  # noqa: E741
        a_in = x[n] if l == 0 else step.trace[l - 1].a[n]
        z, a = step.trace[l].z[n], step.trace[l].a[n]
        delta = prod(dL_da, jacobians.da_dz(net.nodes[l].activation, z, a), rank=1)
        assert_close(delta, step.deltas[l][n], 1e-13)
        dW = prod(delta, jacobians.dz_dW(a_in, z.shape[0]), rank=1)
        assert_close(dW, one.gradients[l].W, 1e-13)
        assert_close(prod(delta, jacobians.dz_db(z), rank=1), one.gradients[l].b, 1e-13)
        dL_da = prod(delta, jacobians.dz_da(params[l].W), rank=1)
    assert_close(dL_da, step.d_x[n], 1e-13)


def test_batch_gradients_are_the_mean_of_the_examples():
    """(B3) (B4): 1/N enters where examples are summed, and nowhere else."""
    objective, params, x, y = problem("mlp", lam=None)
    backprop = compiled(objective)
    each = [backprop(params, x[n : n + 1], y[n : n + 1]).gradients for n in range(len(x))]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
    assert_close(backprop(params, x, y).gradients, mean, 1e-13)


def test_the_composition_is_the_network():
    """(F3) written out with jnp alone."""
    net = NETWORKS["mlp"]
    params, x = generic(net), batch(6)
    W1, W2, W3 = (layer.W for layer in params)
    b1, b2, b3 = (layer.b[None] for layer in params)
    assert_close(mb.forward(net, params, x)[0], jnp.tanh(jnp.tanh(x @ W1.T + b1) @ W2.T + b2) @ W3.T + b3, 1e-14)
