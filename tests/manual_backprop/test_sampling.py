"""`sampled` against a plain loop over the reference's own forward, and its frequencies against the softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, generic

import manual_backprop as mb
from reference import model

VOCAB, LENGTH = 5, 4
NET = mb.gpt(VOCAB, 8, 2, 1, LENGTH)
PARAMS = generic(NET, seed=7, scale=1.0)


N = 6
OUTPUTS = jax.jit(partial(model.outputs, NET))


def logits_after(ids: np.ndarray) -> np.ndarray:
    """The logits at the last of up to LENGTH positions; what is filled up comes after it, and it does not see that."""
    filled = np.zeros((N, LENGTH), int)
    filled[: len(ids), : ids.shape[1]] = ids
    return np.asarray(OUTPUTS(PARAMS, filled))[: len(ids), ids.shape[1] - 1]


def greedy(ids: np.ndarray, count: int, length: int) -> np.ndarray:
    """The most probable id after the last `length`, again and again."""
    start = ids.shape[1]
    for _ in range(count):
        ids = np.concatenate([ids, logits_after(ids[:, -length:]).argmax(axis=1)[:, None]], axis=1)
    return ids[:, start:]


@pytest.mark.parametrize("start", [1, 4, 6])
def test_at_temperature_0_it_goes_on_with_the_most_probable_id(start):
    """From a start shorter than the window, as long, and longer, until the window has moved on."""
    ids = np.random.default_rng(start).integers(0, VOCAB, (N, start))
    drawn = mb.sampled(NET, PARAMS, jax.random.key(0), jnp.asarray(ids), 7, length=LENGTH, temperature=0.0)
    assert drawn.dtype == ids.dtype
    np.testing.assert_array_equal(drawn, greedy(ids, 7, LENGTH))
    assert len(np.unique(np.asarray(drawn), axis=0)) > 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ids_come_as_often_as_the_softmax_says(temperature):
    n = 4000
    ids = np.broadcast_to([[1, 2]], (n, 2))
    drawn = mb.sampled(NET, PARAMS, jax.random.key(3), jnp.asarray(ids), 1, length=LENGTH, temperature=temperature)
    e = np.exp(logits_after(ids[:1])[0] / temperature)
    p = e / e.sum()
    assert 0.1 < p.max() < 0.95
    often = np.bincount(np.asarray(drawn)[:, 0], minlength=VOCAB) / n
    assert np.all(np.abs(often - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1 / n)


def test_a_key_decides_and_a_step_draws_anew():
    ids = jnp.zeros((2, 1), int)
    flat = jax.tree.map(lambda leaf: array(np.zeros(leaf.shape)), PARAMS)  # every id as probable as the others
    one, again, other = (mb.sampled(NET, flat, jax.random.key(seed), ids, 40, length=LENGTH) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    one, other = np.asarray(one), np.asarray(other)
    assert np.any(one != other)
    assert np.any(one[0] != one[1])
    assert set(one[0].tolist()) == set(range(VOCAB))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"count": 0}, ValueError, "count must be >= 1, got 0"),
        ({"count": 2.0}, TypeError, "count must be an int"),
        ({"length": 0}, ValueError, "length must be >= 1, got 0"),
        ({"length": 5}, ValueError, "4"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite and >= 0, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"key": 0}, TypeError, "key must be a JAX key"),
        ({"ids": np.zeros((2, 1))}, TypeError, "ids must hold integers, got float64"),
        ({"ids": np.zeros(2, int)}, ValueError, "ids must be (N, start)"),
        ({"ids": np.zeros((2, 0), int)}, ValueError, "ids must be (N, start)"),
        ({"ids": np.full((2, 1), VOCAB)}, ValueError, "5"),
        ({"net": mb.Embedding(VOCAB, 3), "params": mb.layers.Table(jnp.ones((VOCAB, 4)))}, ValueError, "params"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_hook")
def test_what_does_not_fit_is_said(given, error, says):
    asked = {"net": NET, "params": PARAMS, "key": jax.random.key(0), "ids": np.zeros((2, 1), int), "count": 2}
    asked |= {"length": LENGTH} | given
    with pytest.raises(error) as told:
        mb.sampled(**asked)
    assert says in str(told.value)


class Pooled(mb.Embedding):
    """The sum of the rows of all positions."""

    def out_shape(self, in_shape):
        return (self.d,)

    def net_input(self, params, a_in):
        z, saved = super().net_input(params, a_in)
        return jnp.sum(z, axis=1), saved


def test_outputs_that_are_no_logits_are_refused():
    net = Pooled(VOCAB, 3)
    with pytest.raises(ValueError, match="must map ids"):
        mb.sampled(net, generic(net), jax.random.key(0), jnp.zeros((2, 1), int), 2, length=4)
