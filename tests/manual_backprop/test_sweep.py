"""Every number of one step against the independent reference, and what the sweep promises of its values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, N, assert_close, batch, generic, problem, sizes, targets
from jax.test_util import check_grads

import manual_backprop as mb
import reference
from manual_backprop.losses import TABLE as LOSSES
from manual_backprop.sweep import read
from reference import model
from reference.equations.chain import layer_values


@pytest.mark.parametrize("lam", [None, 0.1])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_quantity_equals_the_reference(name, lam):
    """(F1) (F2) (J3) (B1) (B2) (B3) (B4) (B5) (B6): z, a, L, s, J, delta, dW, db, dL/dx, ds/dlam."""
    reference.check(*problem(name, lam=lam)).raise_if_failed()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("activation", mb.activations.TABLE)
def test_every_loss_meets_every_activation(loss, activation):
    last = "sigmoid" if loss is mb.binary_cross_entropy else "identity"
    net = mb.mlp((5, 4, 4, 3), activation, last)
    objective = mb.Objective(net, loss, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(5), targets(loss, 3)
    args = (params, x, y)
    ours, theirs = (jax.jit(partial(f, objective))(*args) for f in (mb.backprop, reference.backprop))
    assert_close(ours.gradients, theirs.gradients)
    assert_close(ours.deltas, theirs.deltas)
    assert_close((ours.value, ours.d_x, ours.d_lam), (theirs.value, theirs.d_x, theirs.d_lam))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("argnums", [0, 1, (0,), (0, 1), (1, 0)])
def test_value_and_grad_has_jax_value_and_grads_convention(name, argnums):
    objective, *args = problem(name)
    ours = jax.jit(mb.value_and_grad(objective, argnums))(*args)
    assert_close(ours, jax.jit(reference.value_and_grad(objective, argnums))(*args))
    assert_close(ours, jax.jit(jax.value_and_grad(objective, argnums))(*args))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_three_steps_by_their_public_names(name):
    """forward, backward, gradients make up the unregularised gradient of `backprop`."""
    objective, params, x, y = problem(name, lam=None)
    net = objective.net
    output, trace = mb.forward(net, params, x)
    d_x, deltas = mb.backward(net, params, trace, objective.loss.derivative(output, y))
    step = mb.backprop(objective, params, x, y)
    assert_close((d_x, deltas), (step.d_x, step.deltas), 0)
    assert_close(mb.gradients(net, trace, deltas), step.gradients, 0)
    is_factor = lambda node: isinstance(node, mb.layers.Factor)  # noqa: E731
    if "Repeat" not in repr(net):  # stacked factors are contracted inside the network
        contracted = jax.tree.map(lambda f: f.weighted_sum(), mb.factors(net, trace, deltas), is_leaf=is_factor)
        assert_close(contracted, step.gradients, 0)


def test_deltas_are_per_example_and_unscaled():
    """Row n of delta is the note's delta of example n alone, whatever the batch it came in (C5)."""
    objective, params, x, y = problem("nested")
    step = jax.jit(partial(mb.backprop, objective))
    together = step(params, x, y)
    for n in range(N):
        alone = step(params, x[n : n + 1], y[n : n + 1])
        assert_close(alone.d_x, together.d_x[n : n + 1], 1e-13)
        assert_close(alone.deltas[0], together.deltas[0][n : n + 1], 1e-13)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_take_the_place_of_the_mean(name):
    objective, params, x, y = problem(name)
    weighted = jax.jit(lambda x, weights: mb.value_and_grad(objective, (0, 1))(params, x, y, weights=weights))
    plain = jax.jit(mb.value_and_grad(objective, (0, 1)))(params, x, y)
    assert_close(weighted(x, jnp.full(N, 1 / N)), plain, 1e-13)
    weights = jnp.asarray(np.random.default_rng(3).uniform(size=N)).at[2].set(0.0)
    reference.check(objective, params, x, y, weights=weights).raise_if_failed()
    masked = weighted(x.at[2].set(99.0), weights)
    (J, (gradient, d_x)), (J_masked, (gradient_masked, d_x_masked)) = weighted(x, weights), masked
    assert_close((J_masked, gradient_masked), (J, gradient), 1e-13)
    assert_close(d_x_masked[2], jnp.zeros_like(d_x[2]), 0)


def test_a_lambda_given_at_the_call_takes_the_place_of_the_static_one():
    objective, params, x, y = problem("mlp", lam=0.1)
    other = mb.Objective(objective.net, objective.loss, mb.Frobenius(0.7))
    assert_close(mb.value_and_grad(objective)(params, x, y, lam=0.7), mb.value_and_grad(other)(params, x, y), 0)
    assert_close(objective(params, x, y, lam=jnp.asarray(0.7)), other(params, x, y), 0)
    reference.check(objective, params, x, y, lam=0.7).raise_if_failed()


@pytest.mark.parametrize("name", ["mlp", "nested"])
def test_sequences_have_positions_between_batch_and_features(name):
    net = NETWORKS[name]
    d_in, d_out = sizes(net)
    rng = np.random.default_rng(4)
    x, y = jnp.asarray(rng.normal(size=(N, 3, d_in))), jnp.asarray(rng.normal(size=(N, 3, d_out)))
    reference.check(mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), generic(net), x, y).raise_if_failed()


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_know_every_examples_gradient(name):
    """`per_example` and `squared_norms` against vmap(jax.grad) of the reference."""
    objective, params, x, y = problem(name, lam=None)
    step = jax.jit(partial(mb.backprop, objective))(params, x, y)

    def one(x, y):
        return jax.grad(lambda p: model.value(objective, p, x[None], y[None]))(params)

    witness = jax.jit(jax.vmap(one))(x, y)
    at = (step.trace, step.deltas)
    per_example = jax.jit(lambda *at: read(objective.net, lambda factor: factor.per_example(), at))(*at)
    norms = jax.jit(lambda *at: read(objective.net, lambda factor: factor.squared_norms(), at))(*at)
    if "Repeat" not in repr(objective.net):
        assert_close(per_example, witness, 1e-13)
    total = sum(leaf.reshape(-1, N).sum(axis=0) for leaf in jax.tree.leaves(norms))
    stacked = sum(jax.tree.leaves(jax.tree.map(_squares_by_example, per_example)))
    expected = sum(jnp.square(leaf).reshape(N, -1).sum(axis=1) for leaf in jax.tree.leaves(witness))
    assert_close(total, expected, 1e-13)
    assert_close(jnp.sum(stacked), jnp.sum(expected), 1e-13)


def _squares_by_example(leaf):
    return jnp.sum(jnp.square(leaf))


def test_repeat_keeps_or_rebuilds_with_one_result():
    block = mb.Residual(mb.Serial((mb.Dense(6, 3, "gelu"), mb.Dense(3, 6, "tanh"))))
    x, y = batch(6), batch(6, seed=5)
    kept, rebuilt = mb.Repeat(block, 4, recompute=False), mb.Repeat(block, 4, recompute=True)
    params = generic(kept)
    results = [jax.jit(mb.value_and_grad(mb.Objective(net, mb.huber)))(params, x, y) for net in (kept, rebuilt)]
    assert_close(*results, 1e-14)
    inner = mb.Repeat(mb.Repeat(mb.Dense(6, 6, "tanh"), 2, recompute=True), 3, recompute=False)
    reference.check(mb.Objective(inner, mb.huber), generic(inner), x, y).raise_if_failed()


def test_repeat_is_the_serial_of_its_blocks():
    """(F3): the scan says the same as the chain written out."""
    repeated = mb.Serial((mb.Repeat(mb.Dense(5, 5, "tanh"), 3), mb.Dense(5, 2)))
    chain = mb.mlp((5, 5, 5, 5, 2))
    params = generic(chain)
    stacked = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[:3]), params[3])
    x, y = batch(5), batch(2, seed=8)
    ours = mb.backprop(mb.Objective(repeated, mb.squared_error, mb.Frobenius(0.1)), stacked, x, y)
    theirs = mb.backprop(mb.Objective(chain, mb.squared_error, mb.Frobenius(0.1)), params, x, y)
    assert_close(ours.gradients[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *theirs.gradients[:3]), 1e-14)
    assert_close((ours.value, ours.d_x, ours.d_lam), (theirs.value, theirs.d_x, theirs.d_lam), 1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_values_can_be_replaced(name):
    """A trace is plain data: scaled deltas give scaled gradients, an edited trace is what backward reads."""
    objective, params, x, y = problem(name, lam=None)
    step = mb.backprop(objective, params, x, y)
    doubled = jax.tree.map(lambda d: 2 * d, step.deltas)
    assert_close(mb.gradients(objective.net, step.trace, doubled), jax.tree.map(lambda g: 2 * g, step.gradients), 1e-14)
    assert jax.tree.structure(step.deltas) == jax.tree.structure(
        jax.tree.map(lambda v: v.z, layer_values(step.trace), is_leaf=lambda v: isinstance(v, model.LayerValues))
    )


def test_edited_z_changes_the_delta_of_its_layer_and_below():
    objective, params, x, y = problem("mlp", lam=None)
    output, trace = mb.forward(objective.net, params, x)
    z = trace[1].z.at[0].set(50.0)  # example 0 saturates layer 2
    edited = (trace[0], mb.layers.LayerTrace(z, trace[1].a, trace[1].saved), trace[2])
    _, deltas = mb.backward(objective.net, params, edited, objective.loss.derivative(output, y))
    assert float(jnp.abs(deltas[1][0]).max()) < 1e-40
    assert float(jnp.abs(deltas[0][0]).max()) < 1e-40
    assert float(jnp.abs(deltas[0][1]).max()) > 1e-3


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_reference_itself_agrees_with_finite_differences(loss):
    """A third witness, so that the two programs cannot share a mistake in (J1) to (J3)."""
    net = mb.mlp((4, 4, 4, 3), "tanh", "sigmoid" if loss is mb.binary_cross_entropy else "identity")
    objective = mb.Objective(net, loss, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(4), targets(loss, 3)
    for J in (lambda p, x: model.value(objective, p, x, y), lambda p, x: objective(p, x, y)):
        on_arrays = lambda *args, J=J: J(*jax.tree.map(jnp.asarray, args))  # noqa: E731
        check_grads(on_arrays, (params, x), order=1, modes=["rev", "fwd"])


def test_the_regulariser_is_checked_beside_a_loss_that_could_hide_it():
    """The gradient's difference between lambda and 0 is lam W to float64 rounding, biases exactly none (B6)."""
    objective, params, x, y = problem("mlp", lam=0.0)
    base = mb.value_and_grad(objective)(params, x, y)[1]
    for lam in (1e-3, 1.0, 1e3):
        gradient = mb.value_and_grad(objective)(params, x, y, lam=lam)[1]
        for layer, zero, g in zip(params, base, gradient, strict=True):
            np.testing.assert_allclose(g.W - zero.W, lam * layer.W, rtol=0, atol=1e-14 * max(1, lam))
            np.testing.assert_array_equal(g.b, zero.b)
