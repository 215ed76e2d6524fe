"""Readings in one lean sweep: equal to jax.grad of every example, with and without logits, and small."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, batch, every_time, generic

import manual_backprop as mb
from manual_backprop import rules
from manual_backprop.network import Readout
from reference import model

N, T, V, D = 4, 6, 9, 4
OPTIONS = {"ignored": -1, "label_smoothing": 0.1, "z_loss": 0.05}
EMBEDDING = mb.Embedding(V, D)
BODY = mb.Repeat(mb.Residual(mb.Dense(D, D, "tanh")), 2)
LAYER = mb.Dense(D, D, "tanh")
NETS = {
    "dense readout": mb.Serial((EMBEDDING, BODY, mb.Dense(D, V))),
    "without bias, nested": mb.Serial((EMBEDDING, mb.Serial((LAYER, mb.Dense(D, V, bias=False))))),
    "a readout by a table of its own": mb.Serial((EMBEDDING, LAYER, Readout(EMBEDDING))),
    "tied readout": mb.TiedReadout(EMBEDDING, BODY),
    "tied readout, nested": mb.Serial((mb.TiedReadout(EMBEDDING, LAYER),)),
}
RNG = np.random.default_rng(3)
IDS, LABELS = jnp.asarray(RNG.integers(0, V, (N, T))), jnp.asarray(RNG.integers(-1, V, (N, T)))
WEIGHTS = jnp.asarray([0.5, 0.0, 2.0, 1.0])


def objective(net: Any, chunk: int | None = None) -> mb.Objective:
    return mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk, **OPTIONS), mb.Frobenius(0.1))


def loss_of_one(net: Any, params: Any, ids: Any, labels: Any) -> Any:
    """From plain jnp on the reference's forward, for the options above."""
    o = model.outputs(net, params, ids[None])[0]
    surprise = jax.nn.logsumexp(o, axis=-1, keepdims=True) - o
    smoothed = 0.9 * jax.nn.one_hot(labels, V, dtype=o.dtype) + 0.1 / V
    terms = (smoothed * surprise).sum(axis=-1) + 0.05 * jax.nn.logsumexp(o, axis=-1) ** 2
    return jnp.where(labels >= 0, terms, 0).sum()


def by_jax(net: Any, params: Any) -> dict[str, Any]:
    """The readings below, from the gradients of all examples."""
    each = jax.vmap(jax.grad(lambda p, *example: loss_of_one(net, p, *example)), (None, 0, 0))(params, IDS, LABELS)
    flat = jnp.concatenate([leaf.reshape(N, -1) for leaf in jax.tree.leaves(each)], axis=1)
    return {
        "squared_norms": (flat**2).sum(axis=1),
        "gram": flat @ flat.T,
        "per_example": each,
        "squared_sum": jax.tree.map(lambda g: jnp.tensordot(WEIGHTS, g**2, 1), each),
        "mean of squares": jax.tree.map(lambda g: (g**2).mean(axis=0), each),
        "weighted_sum": jax.tree.map(lambda g: jnp.tensordot(WEIGHTS, g, 1), each),
        "total": jax.tree.map(lambda g: g.sum(axis=0), each),
    }


def reader(factor: Any) -> dict[str, Any]:
    return {
        "squared_norms": factor.squared_norms(),
        "gram": factor.gram(factor),
        "per_example": factor.per_example(),
        "squared_sum": factor.squared_sum(WEIGHTS),
        "mean of squares": factor.squared_sum(),
        "weighted_sum": factor.weighted_sum(WEIGHTS),
        "total": factor.total(),
    }


def by_reading(net: Any, found: Any) -> dict[str, Any]:
    """Every reading as a tree of the parameters' structure: the readings stand inside the layers' entries."""

    def of(name: str) -> Any:
        return jax.tree.map(lambda at: at[name], found, is_leaf=lambda at: isinstance(at, dict))

    def examples_first(leaves: Any, blocks: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, blocks, 0), leaves)

    in_blocks = jax.tree.map(lambda norms: norms.ndim - 1, of("squared_norms"))
    return {
        "squared_norms": mb.over_layers(of("squared_norms")),
        "gram": mb.over_layers(of("gram"), axes=2),
        "per_example": jax.tree.map(lambda blocks, at: examples_first(at, blocks), in_blocks, of("per_example")),
        **{name: of(name) for name in ("squared_sum", "mean of squares", "weighted_sum", "total")},
    }


CHUNKS = [
    ("dense readout", (13, 4)),
    ("without bias, nested", (99,)),
    ("a readout by a table of its own", (4,)),
    ("tied readout", (None, 13)),
    ("tied readout, nested", (4,)),
]


@pytest.mark.parametrize(("name", "chunks"), every_time(CHUNKS, CHUNKS[0], CHUNKS[3]))
def test_every_reading_equals_that_of_jax(name, chunks):
    """Without a chunk; in groups of two examples and of all; and where one example has more rows than a chunk.

    A readout of its own and one that shares the body's table each meet groups and examples that are too large.
    """
    net = NETS[name]
    params = generic(net)

    @jax.jit
    def run(params: Any) -> Any:
        ours = [mb.value_and_reading(objective(net, rows), reader)(params, IDS, LABELS)[1] for rows in chunks]
        return [by_reading(net, found) for found in ours], by_jax(net, params)

    ours, theirs = run(params)
    for found in ours:
        assert_close(found, theirs, 1e-13)


def test_the_value_is_that_of_the_objective():
    net, given = NETS["tied readout, nested"], {"weights": WEIGHTS, "lam": 0.3}
    params = generic(net)

    @jax.jit
    def run(params: Any) -> Any:
        return [
            mb.value_and_reading(objective(net, chunk), lambda factor: factor.squared_norms())(
                params, IDS, LABELS, **given
            )[0]
            for chunk in (None, 4)
        ], objective(net)(params, IDS, LABELS, **given)

    ours, J = run(params)
    assert_close(ours, [J, J], 1e-14)


def test_clipped_gradients_without_logits():
    """DP-SGD's sum in two lean sweeps: norms, then the gradient by the weights that clip them."""
    net = NETS["tied readout, nested"]
    params, plain = generic(net), mb.Objective(net, mb.SoftmaxCrossEntropy(**OPTIONS))
    lean = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=4, **OPTIONS))

    @jax.jit
    def run(params: Any) -> Any:
        _, norms = mb.value_and_reading(lean, lambda factor: factor.squared_norms())(params, IDS, LABELS)
        clip = mb.clip_weights(mb.over_layers(norms), 3.0)
        _, ours = mb.value_and_grad(lean)(params, IDS, LABELS, weights=clip)
        step = mb.backprop(plain, params, IDS, LABELS)
        return clip, ours, mb.clipped_gradients(net, step.trace, step.deltas, 3.0)

    clip, ours, theirs = run(params)
    assert 0 < float(clip.min()) < 1
    assert_close(ours, theirs, 1e-13)


def test_under_another_rule_and_with_a_key():
    """Feedback alignment's deltas, and a dropout's mask, are those of `backprop`."""
    net = mb.Serial((mb.Dense(3, 5, "tanh"), mb.Dropout(0.5), mb.Dense(5, V)))
    params, x, y, key = generic(net), batch(3, N), jnp.abs(LABELS[:, 0]), jax.random.key(4)
    rule = rules.FeedbackAlignment(generic(net, seed=7))

    @jax.jit
    def run(*data: Any, **given: Any) -> Any:
        step = mb.backprop(objective(net), *data, **given)
        ours = [
            mb.value_and_reading(objective(net, chunk), lambda factor: factor.squared_norms())(*data, **given)[1]
            for chunk in (None, 2)
        ]
        return ours, mb.squared_norms(net, step.trace, step.deltas, by_layer=True)

    ours, theirs = run(params, x, y, rule=rule, key=key)
    for found in ours:
        assert_close(found, theirs)


def test_the_logits_are_never_all_in_memory():
    """4 examples of 64 rows, 2000 classes and chunks of 16 rows: the logits alone would take 4 MB."""
    net = mb.Dense(8, 2000)
    params = jax.tree.map(lambda leaf: leaf.astype("float32"), generic(net))
    x, y = array(np.zeros((4, 64, 8)), "float32"), jnp.zeros((4, 64), int)
    logits = y.size * net.d_out * 4

    def memory(chunk: int | None) -> int:
        run = mb.value_and_reading(mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk)), lambda f: f.squared_norms())
        return jax.jit(run).lower(params, x, y).compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < logits / 5 < logits < memory(None)


def test_what_cannot_be_read_is_refused(without_hook):
    net = NETS["dense readout"]
    with pytest.raises(TypeError, match="with a loss a network becomes one"):
        mb.value_and_reading(net, reader)
    with pytest.raises(TypeError, match="reader must be a function of a layer's Factor, got str"):
        mb.value_and_reading(objective(net), "squared_norms")
