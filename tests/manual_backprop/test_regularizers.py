"""(J2) and (B6): the penalty alone, where a mistake cannot hide behind the loss."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, assert_close, generic

import manual_backprop as mb
from reference import autodiff, model

LAMS = {"mlp": (0.0, 1e-8, 0.1, 1e8), "nested": (0.1,), "leaf": (0.1,)}


@cache
def penalties(name: str) -> dict[float, tuple[Any, Any]]:
    """(penalty, gradient, ds/dlam) by hand and by autodiff, for every lambda."""
    net = NETWORKS[name]

    def both(lam: float, p: Any) -> tuple[Any, Any]:
        frobenius = mb.Frobenius(lam)
        objective = mb.Objective(net, mb.squared_error, frobenius)
        penalty, gradient = jax.value_and_grad(lambda p: model.penalty(objective, p))(p)
        ours = frobenius.penalty(p), frobenius.gradient(p), frobenius.d_lam(p)
        return ours, (penalty, gradient, autodiff.d_lam(objective, p))

    return jax.jit(lambda p: {lam: both(lam, p) for lam in LAMS[name]})(generic(net))


@pytest.mark.parametrize(("name", "lam"), [(name, lam) for name, lams in LAMS.items() for lam in lams])
def test_penalty_and_gradient_equal_jax_grad(name, lam):
    """S, lam W for weights and zero for biases (B6), over sixteen orders of magnitude of lambda."""
    assert_close(*penalties(name)[lam], 1e-14)


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
    W = np.full((10, 100), 1e-3, jnp.dtype(dtype))
    s = jax.jit(mb.Frobenius(2.0).penalty)((mb.Affine(W, np.zeros(10, W.dtype)),))
    assert s.dtype == jnp.float32
    np.testing.assert_allclose(s, 1000 * float(W[0, 0]) ** 2, rtol=1e-5)
