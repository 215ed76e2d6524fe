"""The GPT of `mb.gpt`: its gradient and every reading against JAX on the reference's own forward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, generic

import manual_backprop as mb
import reference
from reference import model

VOCAB, LENGTH, N = 7, 9, 3
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"rope": 100.0, "kv_heads": 1, "block": 4},
    "gpt-2": {"norm": "layer", "gated": False, "activation": "gelu_tanh", "bias": True, "tied": True, "hidden": 12},
}


def problem(kind: str, block: int | None = 4, **loss: Any) -> tuple[mb.Objective, Any, jax.Array, jax.Array]:
    own = KINDS[kind] | ({"block": block} if "block" in KINDS[kind] else {})
    net = mb.gpt(VOCAB, 8, 2, 2, LENGTH, **own)
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(**loss), mb.Frobenius(0.01))
    x, y = (np.random.default_rng(seed).integers(0, VOCAB, (N, LENGTH)) for seed in (0, 1))
    return objective, generic(net, scale=0.5), jnp.asarray(x), jnp.asarray(y)


def by_trace(objective: mb.Objective, *data: Any) -> Any:
    step = mb.backprop(objective, *data)
    return step.value, step.gradients


def lean(objective: mb.Objective, *data: Any) -> Any:
    return mb.value_and_grad(objective)(*data)


@pytest.mark.parametrize(
    ("kind", "ways"), [("llama", [(lean, None)]), ("gpt-2", [(by_trace, None), (lean, 5)])], ids=list(KINDS)
)
def test_its_gradient_is_the_references(kind: str, ways: list[Any]) -> None:
    """By the lean sweep, by the full trace, and without the logits where `chunk` is given."""
    objective, *data = problem(kind)

    @jax.jit
    def all_ways(*data: Any) -> Any:
        ours = [way(problem(kind, chunk=chunk)[0], *data) for way, chunk in ways]
        return ours, jax.value_and_grad(partial(model.value, objective))(*data)

    ours, theirs = all_ways(*data)
    for way in ours:
        assert_close(way, theirs)


def test_it_is_proven_layer_by_layer_in_the_precision_that_it_is_trained_in() -> None:
    """Its layers are proven in every precision by tests of their own."""
    reference.check(*problem("llama"), dtype="bfloat16").raise_if_failed()


def test_feedback_passes_norms_attention_and_positions() -> None:
    """With W for B it is backpropagation; directly, every layer with weights gets the output's error."""
    net = mb.gpt(VOCAB, 8, 2, 2, LENGTH, gated=False)  # the rules have tests of gates
    objective, params = mb.Objective(net, mb.softmax_cross_entropy), generic(net, scale=0.5)
    _, _, x, y = problem("llama")

    @jax.jit
    def run(params: Any) -> Any:
        B = mb.rules.direct_feedback(net, jax.random.key(0), jnp.float64)
        by_rule = mb.backprop(objective, params, x, y, rule=mb.rules.FeedbackAlignment(params))
        direct = mb.backprop(objective, params, x, y, rule=mb.rules.DirectFeedbackAlignment(B))
        return by_rule.gradients, mb.backprop(objective, params, x, y).gradients, direct.deltas, B

    aligned, gradients, direct, B = run(params)
    assert_close(aligned, gradients)
    for at in (0, 1):  # the embedding and the positions
        assert_close(direct[at], np.asarray(direct[-1]) @ np.asarray(B[at]))


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


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt-2", marks=pytest.mark.evidence)])
def test_every_reading_is_that_of_vmapped_gradients(kind: str) -> None:
    objective, params, x, y = problem(
        kind, block=None
    )  # blocks have the readings of the whole, as attention's tests say
    plain = mb.Objective(objective.net, mb.softmax_cross_entropy)
    v = jax.tree.map(lambda leaf: array(np.cos(np.arange(leaf.size)).reshape(leaf.shape)), params)

    def J(params: Any, x: Any, y: Any) -> Any:
        return model.value(plain, params, x, y)

    @jax.jit
    def run(params: Any) -> Any:
        step = mb.backprop(plain, params, x, y)
        at = plain.net, step.trace, step.deltas
        ours = {
            "gradients": mb.per_example_gradients(*at),
            "norms": mb.squared_norms(*at),
            "squares": mb.second_moment(*at),
            "products": mb.gram(*at),
            "clipped": mb.clipped_gradients(*at, max_norm=2.0),
            "H v": mb.hessian_vector_product(plain, params, x, y, v),
            "G v": mb.gauss_newton_vector_product(plain, params, x, y, v),
        }
        each = jax.vmap(jax.grad(J), (None, 0, 0))(params, x[:, None], y[:, None])
        flat = jnp.concatenate([leaf.reshape(N, -1) for leaf in jax.tree.leaves(each)], axis=1)
        norms = jnp.sum(flat**2, axis=1)
        shares = jnp.minimum(1, 2 / jnp.sqrt(norms))

        def outputs(params: Any) -> Any:
            return model.outputs(plain.net, params, x)

        def curved(o: Any, d_o: Any) -> Any:
            loss = partial(lambda o: jnp.mean(model.losses(plain.loss, o, y)))
            return jax.jvp(jax.grad(loss), (o,), (d_o,))[1]

        o, d_o = jax.jvp(outputs, (params,), (v,))
        theirs = {
            "gradients": each,
            "norms": norms,
            "squares": jax.tree.map(lambda leaf: jnp.mean(leaf**2, axis=0), each),
            "products": flat @ flat.T,
            "clipped": jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1), each),
            "H v": jax.jvp(jax.grad(lambda params: J(params, x, y)), (params,), (v,))[1],
            "G v": jax.vjp(outputs, params)[1](curved(o, d_o))[0],
        }
        return ours, theirs

    assert_close(*run(params), 1e-11)


def test_kronecker_factors_are_of_its_dense_layers() -> None:
    """A and G of a block's projection, by hand from the trace; what is no outer product has none, and is left alone."""
    objective, *data = problem("llama")
    net = objective.net

    @jax.jit
    def run(*data: Any) -> Any:
        step = mb.backprop(objective, *data)
        factors = mb.kronecker_factors(net, step.trace, step.deltas, partial=True)
        return step, factors, mb.kfac_direction(factors, step.gradients, 0.1)

    step, *found = run(*data)
    with pytest.raises(TypeError, match="whose gradient is an outer product"):
        mb.kronecker_factors(net, step.trace, step.deltas)
    step, factors, direction = jax.tree.map(np.asarray, (step, *found))
    ((norm, (query, *_), attention, _), _) = factors[1]
    assert (factors[0], norm, attention) == (None, None, ())
    entered, delta = step.trace[1][0][0].a[0].reshape(-1, 8), step.deltas[1][0][1][0][0].reshape(-1, 8)
    assert_close((query.A[0], query.G[0]), (entered.T @ entered / len(entered), delta.T @ delta / N))
    np.testing.assert_array_equal(direction[0].W, step.gradients[0].W)
    solved = np.linalg.solve(
        np.kron(query.G[0], query.A[0]) + 0.1 * np.eye(64), step.gradients[1][0][1][0].W[0].ravel()
    )
    assert_close(direction[1][0][1][0].W[0].ravel(), solved, 1e-10)


def test_an_epoch_takes_ids() -> None:
    """Weights of a filled-up batch are floats, whatever the examples are."""
    _, _, x, y = problem("llama")
    net = mb.Serial((mb.Embedding(VOCAB, 8), mb.Dense(8, VOCAB)))
    objective, params = mb.Objective(net, mb.softmax_cross_entropy), generic(net)
    optimizer = optax.sgd(0.01)
    epoch = mb.training.make_epoch(objective, optimizer, 2)
    _, _, values = epoch(params, optimizer.init(params), jax.random.key(0), x, y)
    assert values.shape == (2,)
    assert np.all(np.isfinite(values))
