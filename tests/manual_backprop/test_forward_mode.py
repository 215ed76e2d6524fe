"""Forward propagation of derivatives: equal to jax.jvp, and, a parameter at a time, to the backward sweep."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers import NETWORKS, assert_close, batch, generic, problem, sizes

import manual_backprop as mb
from manual_backprop.textbook import forward_mode
from reference import model


@pytest.mark.parametrize("name", NETWORKS)
def test_pushforward_equals_jax_jvp_of_the_reference(name):
    """The differential of (F1) and (F2), through every composite."""
    net = NETWORKS[name]
    d_in = sizes(net)[0]
    params, dparams = generic(net), generic(net, seed=7)
    x, dx = batch(d_in), batch(d_in, seed=8)
    ours = jax.jit(partial(mb.pushforward, net))(params, x, dparams, dx)

    def output(params, x):
        return model.outputs(net, params, x)

    assert_close(ours, jax.jit(partial(jax.jvp, output))((params, x), (dparams, dx)), 1e-13)


@pytest.mark.parametrize("name", NETWORKS)
def test_pushforward_and_backward_are_transposes(name):
    """<pushforward v, d> = <v, (backward d)>: no autodiff on either side."""
    net = NETWORKS[name]
    d_in = sizes(net)[0]
    params, dparams = generic(net), generic(net, seed=7)
    x, dx = batch(d_in), batch(d_in, seed=8)
    output, d_output = jax.jit(partial(mb.pushforward, net))(params, x, dparams, dx)
    cotangent = batch(output.shape[1], seed=9)

    @jax.jit
    def backward(params, x):
        trace = mb.forward(net, params, x)[1]
        d_x, deltas = mb.backward(net, params, trace, cotangent)
        return mb.gradients(net, trace, deltas, weights=jnp.ones(len(x))), d_x

    pulled, d_x = backward(params, x)
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, (pulled, d_x), (dparams, dx))))
    assert_close(jnp.vdot(cotangent, d_output), along, 1e-13)


@pytest.mark.parametrize("name", ["mlp", "nested", "one layer"])
@pytest.mark.parametrize("lam", [None, 0.1])
def test_the_whole_gradient_by_forward_propagation_equals_the_sweep(name, lam):
    objective, params, x, y = problem(name, lam=lam)
    by_forward = jax.jit(partial(forward_mode.gradient_by_forward_propagation, objective))
    assert_close(by_forward(params, x, y), jax.jit(mb.value_and_grad(objective))(params, x, y)[1])


@pytest.mark.parametrize("name", ["mlp", "nested"])
def test_a_directional_derivative_costs_one_pass_and_equals_jvp(name):
    objective, params, x, y = problem(name)
    direction = generic(objective.net, seed=11)
    _, along = jax.jit(lambda p, v: jax.jvp(lambda p: model.value(objective, p, x, y), (p,), (v,)))(params, direction)
    ours = jax.jit(partial(forward_mode.directional_derivative, objective))(params, x, y, direction)
    assert_close(ours, along, 1e-12)


def test_tangents_of_another_structure_or_shape_are_refused(without_hook):
    net = NETWORKS["mlp"]
    params, x = generic(net), batch(6)
    with pytest.raises(ValueError, match="dparams has structure"):
        mb.pushforward(net, params, x, params[:2], x)
    with pytest.raises(ValueError, match=r"dx is \[3, 6\], expected \[7, 6\] as in x"):
        mb.pushforward(net, params, x, params, x[:3])
    with pytest.raises(TypeError, match=r"dparams\[0\].W is float32, expected float64"):
        mb.pushforward(net, params, x, generic(net, dtype="float32"), x)
