"""The three-step loop (U1): against a loop written out with jax.grad, and what an epoch promises."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, batch, generic, problem

import manual_backprop as mb
import reference
from manual_backprop import training

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(1e-2),
    "clipped adamw": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """optax itself mixes dtypes (adam's step count)."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def copy(tree):
    return jax.tree.map(lambda leaf: jax.device_put(np.array(leaf)), tree)


@cache
def by_jax_grad(objective):
    return jax.jit(reference.value_and_grad(objective))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("sgd", "mlp"),
        ("adam", "one layer"),
        ("clipped adamw", "kept"),
    ],
)
def test_steps_equal_a_loop_by_jax_grad(name, network):
    objective, params, x, y = problem(network)
    optimizer = OPTIMIZERS[name]

    @jax.jit
    def by_jax(params, state):
        J, gradients = reference.value_and_grad(objective)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, J

    theirs, state = params, optimizer.init(params)
    step = training.make_step(objective, optimizer)
    ours, our_state = copy(params), optimizer.init(params)
    for _ in range(4):
        theirs, state, J = by_jax(theirs, state)
        ours, our_state, our_J = step(ours, our_state, x, y)
        assert_close(our_J, J, 1e-12)
    assert_close(ours, theirs, 1e-10)


def test_a_step_takes_over_the_memory_of_its_arguments():
    objective, params, x, y = problem("mlp")
    step, params = training.make_step(objective, optax.sgd(0.1)), copy(params)
    step(params, optax.sgd(0.1).init(params), x, y)
    assert params[0].W.is_deleted()
    assert not x.is_deleted()


def test_a_step_passes_lambda_and_weights_on():
    objective, params, x, y = problem("mlp")
    step = training.make_step(objective, optax.sgd(1.0))
    weights = np.arange(7.0)
    new, _, J = step(copy(params), optax.sgd(1.0).init(params), x, y, lam=0.5, weights=weights)
    expected, gradient = jax.jit(mb.value_and_grad(objective))(params, x, y, lam=0.5, weights=weights)
    assert_close(J, expected)
    assert_close(new, jax.tree.map(np.subtract, params, gradient), 1e-12)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_an_epoch_sees_every_example_once(size):
    """With weights of 0 for what fills the last batch up: the epoch is a loop over the batches in that order."""
    objective, params, x, y = problem("mlp")
    key, optimizer = jax.random.key(3), optax.sgd(0.1)
    epoch = training.make_epoch(objective, optimizer, size)
    trained, _, values = epoch(copy(params), optimizer.init(params), key, x, y)
    assert values.shape == (-(-7 // min(size, 7)),)
    order = np.asarray(jax.random.permutation(key, 7))
    by_hand, x, y = jax.tree.map(np.asarray, (params, x, y))
    for i, start in enumerate(range(0, 7, min(size, 7))):
        rows = order[start : start + min(size, 7)]
        J, gradient = by_jax_grad(objective)(by_hand, x[rows], y[rows])
        assert_close(values[i], J, 1e-12)
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * np.asarray(g), by_hand, gradient)
    assert_close(trained, by_hand, 1e-12)


def test_an_epoch_by_jax_grad_is_the_same_epoch():
    objective, params, x, y = problem("one layer")
    optimizer, key = optax.adam(1e-2), jax.random.key(0)
    runs = [
        training.make_epoch(objective, optimizer, 3, value_and_grad=source)(
            copy(params), optimizer.init(params), key, x, y
        )
        for source in (mb.value_and_grad, reference.value_and_grad)
    ]
    assert_close(runs[0][0], runs[1][0], 1e-10)
    assert_close(runs[0][2], runs[1][2], 1e-12)


def test_training_fits_what_can_be_fitted():
    net = mb.mlp((4, 8, 1))
    x = batch(4, n=32)
    y = np.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    objective, optimizer = mb.Objective(net, mb.squared_error), optax.adam(3e-2)
    epoch = training.make_epoch(objective, optimizer, 8)
    params = generic(net)
    J = jax.jit(objective)
    before, state = float(J(params, x, y)), optimizer.init(params)
    params = copy(params)
    for i in range(60):
        params, state, _ = epoch(params, state, jax.random.key(i), x, y)
    assert float(J(params, x, y)) < 0.02 * before


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        training.make_epoch(problem("mlp")[0], optax.sgd(0.1), 0)


VARIANCE = {"glorot": 2 / 500, "he": 2 / 300, "lecun": 1 / 300}


def test_init_has_the_published_variance_and_zero_bias():
    """Glorot 2/(in + out), He 2/in, LeCun 1/in; W is (out, in)."""
    key = jax.random.key(0)
    drawn = jax.jit(lambda: [mb.Dense(300, 200, "tanh", initializer).init(key) for initializer in VARIANCE])()
    for params, variance in zip(drawn, VARIANCE.values(), strict=True):
        assert params.W.shape == (200, 300)
        assert np.var(params.W) == pytest.approx(variance, rel=0.03)
        assert not np.any(params.b)


def test_init_follows_the_activation_and_the_dtype():
    assert [mb.Dense(2, 2, f).initializer for f in ("tanh", "relu", "selu")] == ["glorot", "he", "lecun"]
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: mb.mlp((3, 3, 2)).init(key, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    stacked = jax.jit(lambda: mb.Repeat(mb.Dense(3, 3), 4).init(key))()
    assert stacked.W.shape == (4, 3, 3)
    assert not np.array_equal(stacked.W[0], stacked.W[1])
