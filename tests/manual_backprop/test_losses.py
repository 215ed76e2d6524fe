"""Value and derivative of every loss: against optax and jax.grad, in closed form, and at the extremes (J1) (B1)."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import N, assert_close, batch, targets

import manual_backprop as mb
from manual_backprop import losses
from reference import model

C = 4
LOSSES = {**losses.TABLE, "huber 0.3": mb.Huber(0.3)}
DTYPES = ("float64", "float32", "bfloat16", "float16")


def outputs(loss: mb.Loss, dtype: str = "float64") -> jax.Array:
    o = batch(C, dtype=dtype)
    return jax.nn.sigmoid(o) if isinstance(loss, losses.BinaryCrossEntropy) else o


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_value_equals_optax_and_derivative_equals_jax_grad(loss):
    o, y = outputs(loss), targets(loss, C)
    assert_close(loss.value(o, y), model.losses(loss, o, y), 1e-14)
    assert_close(loss.derivative(o, y), jax.grad(lambda o: model.losses(loss, o, y).sum())(o), 1e-13)


def test_softmax_takes_distributions_that_need_not_sum_to_one():
    o = batch(C)
    for y in (jax.nn.softmax(batch(C, seed=9)), 0.3 * jax.nn.softmax(batch(C, seed=9))):
        assert_close(mb.softmax_cross_entropy.value(o, y), model.losses(mb.softmax_cross_entropy, o, y), 1e-14)
        witness = jax.grad(lambda o, y=y: model.losses(mb.softmax_cross_entropy, o, y).sum())(o)
        assert_close(mb.softmax_cross_entropy.derivative(o, y), witness, 1e-13)


def test_closed_forms_of_the_note():
    """Half squared error: dl/do = o - y. Softmax cross-entropy: dl/do = softmax(o) - y."""
    o, y = jnp.asarray([[3.0, 1.0]]), jnp.asarray([[1.0, 2.0]])
    assert mb.squared_error.value(o, y)[0] == 2.5
    np.testing.assert_array_equal(mb.squared_error.derivative(o, y), [[2.0, -1.0]])
    label = jnp.asarray([0])
    assert_close(mb.softmax_cross_entropy.derivative(o, label), jax.nn.softmax(o) - jnp.eye(2)[label], 1e-15)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_sum_over_the_outputs_of_one_example(loss):
    """Per example, also with an axis of positions; nothing leaks from one example into another."""
    o, y = outputs(loss), targets(loss, C)
    one_by_one = jnp.concatenate([loss.value(o[i : i + 1], y[i : i + 1]) for i in range(N)])
    assert_close(loss.value(o, y), one_by_one, 1e-15)
    positions = jnp.stack([o, o[::-1]], axis=1), jnp.stack([y, y[::-1]], axis=1)
    assert_close(loss.value(*positions), loss.value(o, y) + loss.value(o[::-1], y[::-1]), 1e-14)
    assert loss.derivative(*positions).shape == positions[0].shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_logits_of_ten_thousand_are_finite_and_right(name, dtype):
    loss = losses.TABLE[name]
    o = jnp.asarray([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0], [1e4, 1e4]], dtype)
    exact = np.asarray(o, np.float64)
    if name == "softmax_cross_entropy":
        y = jnp.asarray([1, 1, 0, 1])
        value = [exact[0, 0] - exact[0, 1], 0.0, np.log(2), np.log(2)]
        derivative = [[1, -1], [0, 0], [-0.5, 0.5], [0.5, -0.5]]
    else:
        y = jnp.asarray([[0, 1], [0, 1], [1, 0], [1, 1]], dtype)
        value = [exact[0, 0] - exact[0, 1], 0.0, 2 * np.log(2), 0.0]
        derivative = [[1, -1], [0, 0], [-0.5, 0.5], [0, 0]]
    assert loss.value(o, y).dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    np.testing.assert_allclose(loss.value(o, y), value, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(loss.derivative(o, y), np.float64), derivative, atol=1e-6)
    assert loss.derivative(o, y).dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["squared_error", "huber"])
def test_errors_of_ten_thousand_are_finite_and_right(name, dtype):
    """In float16 the square overflows; the sum is formed in float32."""
    o, y = jnp.asarray([[1e4, -1e4]], dtype), jnp.zeros((1, 2), dtype)
    r = float(o[0, 0])
    expected = r * r if name == "squared_error" else 2 * (r - 0.5)
    np.testing.assert_allclose(losses.TABLE[name].value(o, y), [expected], rtol=1e-6)


def test_binary_cross_entropy_of_sure_and_right_outputs_is_zero():
    o = y = jnp.asarray([[0.0, 1.0]])
    assert mb.binary_cross_entropy.value(o, y)[0] == 0.0
    np.testing.assert_array_equal(mb.binary_cross_entropy.derivative(o, y), [[1.0, -1.0]])
    assert mb.binary_cross_entropy.value(o, 1 - y)[0] == jnp.inf


def test_sigmoid_cross_entropy_keeps_the_tail_of_a_sure_and_right_answer():
    o, y = jnp.asarray([[30.0]], jnp.float32), jnp.ones((1, 1), jnp.float32)
    np.testing.assert_allclose(
        mb.sigmoid_binary_cross_entropy.value(o, y), [float(mpmath.log1p(mpmath.exp(-30)))], rtol=1e-6
    )


def test_huber_is_continuous_with_its_derivative_at_the_threshold():
    at, h = jnp.asarray([[0.3]]), 1e-9
    zero, loss = jnp.zeros((1, 1)), mb.Huber(0.3)
    assert abs(loss.value(at + h, zero) - loss.value(at - h, zero))[0] < 1e-9
    np.testing.assert_allclose(loss.derivative(jnp.asarray([[-5.0, 0.1, 5.0]]), jnp.zeros((1, 3))), [[-0.3, 0.1, 0.3]])


def test_a_label_out_of_range_is_nan_under_jit_and_refused_outside_it():
    o, y = batch(C), jnp.full(N, C)
    loss = mb.softmax_cross_entropy
    assert bool(jnp.isnan(jax.jit(loss.value)(o, y)).all())
    assert bool(jnp.isnan(jax.jit(loss.derivative)(o, y)).all())
    with pytest.raises(ValueError, match=r"labels for 4 logits must lie in 0..3, got 4 to 4"):
        loss.check(jax.ShapeDtypeStruct(o.shape, o.dtype), y)
