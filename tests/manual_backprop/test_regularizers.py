"""(J2) and (B6): the penalty alone, where a mistake cannot hide behind the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, assert_close, generic

import manual_backprop as mb
from reference import autodiff, model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lam", [0.0, 1e-8, 0.1, 1e8])
def test_penalty_and_gradient_equal_jax_grad(name, lam):
    """S, lam W for weights and zero for biases (B6), over sixteen orders of magnitude of lambda."""
    net, frobenius = NETWORKS[name], mb.Frobenius(lam)
    params = generic(net)
    objective = mb.Objective(net, mb.squared_error, frobenius)
    ours = jax.jit(lambda p: (frobenius.penalty(p), frobenius.gradient(p), frobenius.d_lam(p)))(params)
    penalty, gradient = jax.jit(jax.value_and_grad(lambda p: model.penalty(objective, p)))(params)
    assert_close(ours, (penalty, gradient, autodiff.d_lam(objective, params)), 1e-14)


def test_closed_form():
    """(J2): lam/2 times the *squared* norm, not lam/(2N), biases free; ds/dlam = s/lam."""
    params = (
        mb.Affine(jnp.asarray([[3.0, 4.0]]), jnp.asarray([100.0])),
        mb.Affine(jnp.asarray([[2.0]]), jnp.ones(1)),
    )
    frobenius = mb.Frobenius(0.5)
    assert frobenius.penalty(params) == 0.25 * (25 + 4)
    assert frobenius.d_lam(params) == frobenius.penalty(params) / 0.5
    gradient = frobenius.gradient(params)
    np.testing.assert_array_equal(gradient[0].W, [[1.5, 2.0]])
    np.testing.assert_array_equal(gradient[0].b, [0.0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_weights_are_summed_in_float32(dtype):
    """1000 squares of 1e-3 are below float16's normal range one by one."""
    W = jnp.full((10, 100), 1e-3, dtype)
    s = mb.Frobenius(2.0).penalty((mb.Affine(W, jnp.zeros(10, dtype)),))
    assert s.dtype == jnp.float32
    np.testing.assert_allclose(s, 1000 * float(W[0, 0]) ** 2, rtol=1e-5)
