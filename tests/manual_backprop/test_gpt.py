"""The GPT of `mb.gpt`: its gradient and every reading against JAX on the reference's own forward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, generic

import manual_backprop as mb
import reference
from reference import model

VOCAB, LENGTH, N = 7, 9, 3
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"rope": 100.0, "kv_heads": 1, "block": 4},
    "gpt-2": {"norm": "layer", "gated": False, "activation": "gelu_tanh", "bias": True, "tied": True, "hidden": 12},
}


def problem(kind: str, **loss: Any) -> tuple[mb.Objective, Any, jax.Array, jax.Array]:
    net = mb.gpt(VOCAB, 8, 2, 2, LENGTH, **KINDS[kind])
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(**loss), mb.Frobenius(0.01))
    x, y = (np.random.default_rng(seed).integers(0, VOCAB, (N, LENGTH)) for seed in (0, 1))
    return objective, generic(net, scale=0.5), jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_the_references(kind: str) -> None:
    """By the full trace, by the lean sweep, and without the logits."""
    objective, *data = problem(kind)
    chunked = problem(kind, chunk=5)[0]

    @jax.jit
    def all_ways(*data: Any) -> Any:
        step = mb.backprop(objective, *data)
        theirs = jax.value_and_grad(partial(model.value, objective))(*data)
        ours = (step.value, step.gradients), mb.value_and_grad(objective)(*data), mb.value_and_grad(chunked)(*data)
        return ours, theirs

    ours, theirs = all_ways(*data)
    for way in ours:
        assert_close(way, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_proven_layer_by_layer(dtype: str) -> None:
    reference.check(*problem("llama"), dtype=dtype).raise_if_failed()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"heads": 3}, ValueError, "heads must divide d = 8, got 3"),
        ({"kv_heads": 3}, ValueError, "kv_heads must divide heads = 2, got 3"),
        ({"norm": "batch"}, ValueError, "norm must be one of rms, layer, got 'batch'"),
        ({"layers": 0}, ValueError, "n must be an int >= 1, got 0"),
        ({"hidden": 0}, ValueError, "d_out must be an int >= 1, got 0"),
        ({"activation": "swish"}, ValueError, "swish"),
    ],
)
def test_what_does_not_fit_is_said(given: dict[str, Any], error: type[Exception], says: str) -> None:
    sizes = {"vocab": VOCAB, "d": 8, "heads": 2, "layers": 2, "length": LENGTH} | given
    with pytest.raises(error, match=says):
        mb.gpt(**sizes)


def test_more_positions_than_it_was_made_for_are_refused() -> None:
    net = mb.gpt(VOCAB, 8, 2, 1, 4)
    with pytest.raises(ValueError, match="4"):
        mb.forward(net, generic(net), jnp.zeros((1, 5), int))
