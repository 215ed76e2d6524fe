"""The note's local derivatives as arrays, multiplied out: the same delta, dW and db as the sweep (C1)-(C7)."""

from functools import cache
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


def rand(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_each_local_derivative_equals_jax_jacobian():
    rows = mb.activations.TABLE

    @jax.jit
    def run(W: Any, b: Any, a: Any, z: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        ours = {"W": jacobians.dz_dW(a, 4), "b": jacobians.dz_db(z), "a": jacobians.dz_da(W)}  # (C3) (C4) (C6)
        by_W, by_b, by_a = jax.jacobian(lambda W, b, a: W @ a + b, (0, 1, 2))(W, b, a)
        ours |= {name: jacobians.da_dz(row, z, row.f(z)) for name, row in rows.items()}  # (C7)
        by_z = {name: jax.jacobian(row.f)(z) for name, row in rows.items()}
        ours["by name"], by_z["by name"] = jacobians.da_dz("tanh", z, jnp.tanh(z)), jnp.diag(1 - jnp.tanh(z) ** 2)
        theirs = {"W": by_W, "b": by_b, "a": by_a} | by_z
        return ours, {name: denominator_layout(jacobian, 1) for name, jacobian in theirs.items()}

    ours, theirs = run(rand(4, 3), rand(4, seed=1), rand(3, seed=2), rand(4, seed=3))
    for name in theirs:
        assert_close(ours[name], theirs[name], 0 if name in ("W", "b", "a") else 1e-14)


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

    @jax.jit
    def run(X: Any) -> tuple[Any, Any]:
        dY_dX = denominator_layout(jax.jacobian(f)(X), len(y_shape))
        dZ_dY = denominator_layout(jax.jacobian(g)(f(X)), len(z_shape))
        whole = denominator_layout(jax.jacobian(lambda X: g(f(X)))(X), len(z_shape))
        return prod(dZ_dY, dY_dX, rank=len(y_shape)), whole

    assert_close(*run(rand(*x_shape, seed=2)), 1e-13)


def test_prod_refuses_axes_that_do_not_meet():
    with pytest.raises(ValueError, match=r"begins with the axes of Y \[4\] and dY/dX ends with them \[3\]"):
        prod(rand(4), rand(2, 3), rank=1)
    with pytest.raises(ValueError, match="rank of Y must lie in 0..1, got 2"):
        prod(rand(3), rand(2, 3), rank=2)


@cache
def multiplied_out(name: str) -> Any:
    """A program that gives, for example n, ((delta, dW, db of every layer, dL/dx) from the arrays, from the sweep)."""
    objective, params, x, y = problem(name, lam=None)
    net = objective.net

    @jax.jit
    def run(params: Any, x: Any, y: Any, n: Any) -> Any:
        step, one = mb.backprop(objective, params, x, y), mb.backprop(objective, params, x[n][None], y[n][None])
        dL_da, found = objective.loss.derivative(step.output, y)[n], []
        for l in reversed(range(len(params))):  # noqa: E741
            a_in = x[n] if l == 0 else step.trace[l - 1].a[n]
            z, a = step.trace[l].z[n], step.trace[l].a[n]
            delta = prod(dL_da, jacobians.da_dz(net.nodes[l].activation, z, a), rank=1)
            dW = prod(delta, jacobians.dz_dW(a_in, z.shape[0]), rank=1)
            found.insert(0, (delta, dW, prod(delta, jacobians.dz_db(z), rank=1)))
            dL_da = prod(delta, jacobians.dz_da(params[l].W), rank=1)
        swept = [(delta[n], g.W, g.b) for delta, g in zip(step.deltas, one.gradients, strict=True)]
        return (found, dL_da), (swept, step.d_x[n])

    return lambda n: run(params, x, y, n)


@pytest.mark.parametrize("name", ["one layer", "width 1", "per layer"])
@pytest.mark.parametrize("n", [0, 3])
def test_multiplied_out_they_are_the_sweep_layer_by_layer(name, n):
    """(C2) (C5) (B1) (B2) (B3) (B4) (B5) for one example, from explicit arrays and `prod` alone."""
    assert_close(*multiplied_out(name)(n), 1e-13)


def test_batch_gradients_are_the_mean_of_the_examples():
    """(B3) (B4): 1/N enters where examples are summed, and nowhere else."""
    objective, *given = problem("mlp", lam=None)

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> tuple[Any, Any]:
        each = jax.lax.map(lambda one: mb.backprop(objective, params, *one).gradients, (x[:, None], y[:, None]))
        return mb.backprop(objective, params, x, y).gradients, jax.tree.map(lambda leaf: leaf.mean(axis=0), each)

    assert_close(*run(*given), 1e-13)


def test_the_composition_is_the_network():
    """(F3) written out with jnp alone."""
    net = NETWORKS["mlp"]

    @jax.jit
    def run(params: Any, x: Any) -> tuple[Any, Any]:
        W1, W2, W3 = (layer.W for layer in params)
        b1, b2, b3 = (layer.b[None] for layer in params)
        written_out = jnp.tanh(jnp.tanh(x @ W1.T + b1) @ W2.T + b2) @ W3.T + b3
        return mb.forward(net, params, x)[0], written_out

    assert_close(*run(generic(net), batch(6)), 1e-14)
