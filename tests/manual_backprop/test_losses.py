"""Value and derivative of every loss: against optax and jax.grad, in closed form, and at the extremes (J1) (B1)."""

from functools import cache
from typing import Any

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


def softmax(o: np.ndarray) -> np.ndarray:
    e = np.exp(o - o.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def outputs(loss: mb.Loss) -> np.ndarray:
    o = np.asarray(batch(C))
    return 1 / (1 + np.exp(-o)) if isinstance(loss, losses.BinaryCrossEntropy) else o


def both(loss: mb.Loss, o: Any, y: Any) -> tuple[Any, Any]:
    return loss.value(o, y), loss.derivative(o, y)


@cache
def by_hand_and_by_optax(loss: mb.Loss) -> dict[str, Any]:
    """(value, derivative) by hand, by optax and jax.grad, one example at a time, and at two positions."""
    o, y = outputs(loss), np.asarray(targets(loss, C))

    @jax.jit
    def run(o: Any, y: Any, positions: Any, sums: Any) -> dict[str, Any]:
        def witness(o: Any, y: Any) -> tuple[Any, Any]:
            return model.losses(loss, o, y), jax.grad(lambda o: model.losses(loss, o, y).sum())(o)

        one_by_one = jax.lax.map(lambda one: loss.value(*one)[0], (o[:, None], y[:, None]))
        found = {"ours": both(loss, o, y), "theirs": witness(o, y), "one by one": one_by_one}
        found["positions"], found["turned"] = both(loss, *positions), loss.value(o[::-1], y[::-1])
        return found | {"sums": [(both(loss, o, y), witness(o, y)) for y in sums]}

    positions = np.stack([o, o[::-1]], axis=1), np.stack([y, y[::-1]], axis=1)
    distribution = softmax(np.asarray(batch(C, seed=9)))
    sums = [distribution, 0.3 * distribution] if isinstance(loss, losses.SoftmaxCrossEntropy) else []
    return run(o, y, positions, sums)


def assert_value_and_derivative(ours: Any, theirs: Any) -> None:
    assert_close(ours[0], theirs[0], 1e-14)
    assert_close(ours[1], theirs[1], 1e-13)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_value_equals_optax_and_derivative_equals_jax_grad(loss):
    found = by_hand_and_by_optax(loss)
    assert_value_and_derivative(found["ours"], found["theirs"])


@pytest.mark.parametrize("which", [0, 1], ids=["of 1", "of 0.3"])
def test_softmax_takes_distributions_that_need_not_sum_to_one(which):
    assert_value_and_derivative(*by_hand_and_by_optax(mb.softmax_cross_entropy)["sums"][which])


def test_closed_forms_of_the_note():
    """Half squared error: dl/do = o - y. Softmax cross-entropy: dl/do = softmax(o) - y."""
    o, y = jnp.asarray([[3.0, 1.0]]), jnp.asarray([[1.0, 2.0]])
    assert mb.squared_error.value(o, y)[0] == 2.5
    np.testing.assert_array_equal(mb.squared_error.derivative(o, y), [[2.0, -1.0]])
    derivative = jax.jit(mb.softmax_cross_entropy.derivative)(o, jnp.asarray([0]))
    assert_close(derivative, softmax(np.asarray(o)) - np.eye(2)[[0]], 1e-15)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_sum_over_the_outputs_of_one_example(loss):
    """Per example, also with an axis of positions; nothing leaks from one example into another."""
    found = by_hand_and_by_optax(loss)
    value, _ = found["ours"]
    assert_close(value, found["one by one"], 1e-15)
    at_positions, derivative = found["positions"]
    assert_close(at_positions, np.add(value, found["turned"]), 1e-14)
    assert derivative.shape == (N, 2, C)


@cache
def at_ten_thousand() -> dict[Any, tuple[np.ndarray, Any]]:
    """(o, (value, derivative)) of every loss with logits or errors, in every format."""
    o = np.asarray([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0], [1e4, 1e4]])
    y = {
        "softmax_cross_entropy": np.asarray([1, 1, 0, 1]),
        "sigmoid_binary_cross_entropy": np.asarray([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
        "squared_error": np.zeros((4, 2)),
        "huber": np.zeros((4, 2)),
    }

    def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
        return array if array.dtype == int else array.astype(jnp.dtype(dtype))

    given = {(name, d): (narrow(o, d), narrow(t, d)) for name, t in y.items() for d in DTYPES}
    run = jax.jit(lambda given: {case: both(losses.TABLE[case[0]], *each) for case, each in given.items()})
    return {case: (given[case][0], found) for case, found in run(given).items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_logits_of_ten_thousand_are_finite_and_right(name, dtype):
    o, (found, slope) = at_ten_thousand()[name, dtype]
    exact = np.asarray(o, np.float64)
    if name == "softmax_cross_entropy":
        value = [exact[0, 0] - exact[0, 1], 0.0, np.log(2), np.log(2)]
        derivative = [[1, -1], [0, 0], [-0.5, 0.5], [0.5, -0.5]]
    else:
        value = [exact[0, 0] - exact[0, 1], 0.0, 2 * np.log(2), 0.0]
        derivative = [[1, -1], [0, 0], [-0.5, 0.5], [0, 0]]
    assert found.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(slope, np.float64), derivative, atol=1e-6)
    assert slope.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["squared_error", "huber"])
def test_errors_of_ten_thousand_are_finite_and_right(name, dtype):
    """In float16 the square overflows; the sum is formed in float32."""
    o, (found, _) = at_ten_thousand()[name, dtype]
    r = float(o[0, 0])
    of_one = r * r if name == "squared_error" else 2 * (r - 0.5)
    np.testing.assert_allclose(found, [of_one, of_one, 0.0, of_one], rtol=1e-6)


def test_binary_cross_entropy_of_sure_and_right_outputs_is_zero():
    o = y = jnp.asarray([[0.0, 1.0]])
    loss = mb.binary_cross_entropy
    right, derivative, wrong = jax.jit(lambda o, y: (*both(loss, o, y), loss.value(o, 1 - y)))(o, y)
    assert np.asarray(right) == [0.0]
    np.testing.assert_array_equal(derivative, [[1.0, -1.0]])
    assert np.asarray(wrong) == [np.inf]


def test_sigmoid_cross_entropy_keeps_the_tail_of_a_sure_and_right_answer():
    o, y = jnp.asarray([[30.0]], jnp.float32), jnp.ones((1, 1), jnp.float32)
    np.testing.assert_allclose(
        jax.jit(mb.sigmoid_binary_cross_entropy.value)(o, y), [float(mpmath.log1p(mpmath.exp(-30)))], rtol=1e-6
    )


def test_huber_is_continuous_with_its_derivative_at_the_threshold():
    loss, h = mb.Huber(0.3), 1e-9
    o = np.asarray([[0.3 + h, 0, 0], [0.3 - h, 0, 0], [-5.0, 0.1, 5.0]])
    value, derivative = jax.jit(lambda o: both(loss, o, jnp.zeros_like(o)))(o)
    above, below = np.asarray(value)[:2]
    assert abs(above - below) < 1e-9
    np.testing.assert_allclose(np.asarray(derivative)[2], [-0.3, 0.1, 0.3])


def test_a_label_out_of_range_is_nan_under_jit_and_refused_outside_it():
    o, y = batch(C), jnp.full(N, C)
    loss = mb.softmax_cross_entropy
    for found in jax.jit(lambda o, y: both(loss, o, y))(o, y):
        assert np.isnan(found).all()
    with pytest.raises(ValueError, match=r"labels for 4 logits must lie in 0..3, got 4 to 4"):
        loss.check(jax.ShapeDtypeStruct(o.shape, o.dtype), y)
