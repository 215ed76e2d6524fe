"""Random values over a few fixed shapes: what holds for every network, input and weight."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st

import manual_backprop as mb
import reference
from manual_backprop.losses import TABLE as LOSSES

hypothesis.settings.register_profile("fixed", deadline=None, max_examples=40, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("fixed")

SHAPES = [(1, (1, 1, 1)), (2, (3, 4, 2)), (5, (4, 3, 3, 2))]
NETS = {shape: mb.mlp(shape[1], "tanh") for shape in SHAPES}
NUMBERS = st.floats(-3, 3, allow_subnormal=False).map(lambda v: round(v, 3))


def arrays(shape):
    return hnp.arrays(np.float64, shape, elements=NUMBERS)


@st.composite
def problems(draw):
    n, widths = draw(st.sampled_from(SHAPES))
    params = tuple(mb.Affine(draw(arrays((o, i))), draw(arrays((o,)))) for i, o in itertools.pairwise(widths))
    return NETS[n, widths], params, draw(arrays((n, widths[0]))), draw(arrays((n, widths[-1])))


def of_objective(function):
    """`function(objective, ...)`, compiled once for each objective and shape, not once for each example."""
    return jax.jit(lambda objective, *args, **kw: function(objective, *args, **kw), static_argnums=0)


BY_HAND = of_objective(mb.backprop)
BOTH = of_objective(lambda *args, **kw: [f(*args, **kw) for f in (mb.backprop, reference.backprop)])
GRADIENT = of_objective(lambda objective, *args, **kw: mb.value_and_grad(objective)(*args, **kw)[1])


AT = {loss: (jax.jit(loss.value), jax.jit(loss.derivative)) for loss in LOSSES.values()}


@given(problems(), st.floats(0, 10), st.data())
def test_every_gradient_equals_jax_grad(problem, lam, data):
    """(J3) (B1)-(B6): absolute, since random values may cancel to a gradient near zero."""
    net, params, x, y = problem
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.0))
    weights = data.draw(arrays(x.shape[:1]))
    ours, theirs = BOTH(objective, params, x, y, lam=np.asarray(lam), weights=weights)
    pairs = ((ours.gradients, theirs.gradients), (ours.deltas, theirs.deltas), (ours.d_x, theirs.d_x))
    for a, b in pairs:
        for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-11, atol=1e-11)


@given(problems())
def test_gradients_are_linear_in_the_weights(problem):
    """(B3) (B4): sum_n w_n g_n, so two weightings add up."""
    net, params, x, y = problem
    objective = mb.Objective(net, mb.squared_error)
    u, v = np.linspace(-1, 2, len(x)), np.cos(np.arange(len(x)))
    parts = [GRADIENT(objective, params, x, y, weights=w) for w in (u, v, u + v)]
    for a, b, both in zip(*map(jax.tree.leaves, parts), strict=True):
        np.testing.assert_allclose(np.add(a, b), both, rtol=1e-10, atol=1e-10)


@given(problems())
def test_the_order_of_examples_does_not_matter(problem):
    net, params, x, y = problem
    objective = mb.Objective(net, mb.huber)
    a, b = BY_HAND(objective, params, x, y), BY_HAND(objective, params, x[::-1], y[::-1])
    for left, right in zip(jax.tree.leaves(a.gradients), jax.tree.leaves(b.gradients), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)
    for left, right in zip(a.deltas, b.deltas, strict=True):
        np.testing.assert_allclose(left, np.asarray(right)[::-1], rtol=1e-12, atol=1e-14)


@given(arrays((3, 4)), st.floats(-50, 50))
def test_softmax_cross_entropy_does_not_feel_a_shift_of_the_logits(o, shift):
    y, (value, derivative) = np.asarray([0, 1, 3]), AT[mb.softmax_cross_entropy]
    np.testing.assert_allclose(value(o + shift, y), value(o, y), atol=1e-12)
    np.testing.assert_allclose(np.asarray(derivative(o, y)).sum(axis=1), 0, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@given(values=arrays((2, 3)))
def test_losses_are_never_negative_and_least_at_the_target(loss, values):
    value, derivative = AT[loss]
    if loss is mb.softmax_cross_entropy:
        y = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        best, other = np.log(y), values[::-1]
    elif loss is mb.sigmoid_binary_cross_entropy:
        y, best, other = 1 / (1 + np.exp(-values)), values, values[::-1]
    elif loss is mb.binary_cross_entropy:
        y = best = 1 / (1 + np.exp(-values))
        other = best[::-1]
    else:
        y, best, other = values, values, values[::-1]
    least = np.asarray(value(best, y))
    assert (least >= 0).all()
    assert (np.asarray(value(other, y)) >= least - 1e-12).all()
    assert_close(derivative(best, y) + np.ones_like(best), np.ones_like(best), 1e-12)
