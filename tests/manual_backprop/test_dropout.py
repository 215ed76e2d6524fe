"""Dropout: the same key is the same mask everywhere, and every gradient is that of the network with these masks."""

from functools import partial
from typing import Any

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, batch, by_operation, generic

import manual_backprop as mb
import reference
from reference import model
from reference.masks import masks

KEY = jax.random.key(3)
SPANS: dict[str, dict[str, Any]] = {"recomputed": {}, "kept": {"recompute": False}, "segments": {"segments": 3}}


def blocks(**spans: Any) -> mb.Repeat:
    return mb.Repeat(mb.Residual(mb.Serial((mb.Dense(4, 4, "tanh"), mb.Dropout(0.5)))), 5, **spans)


def chain(**spans: Any) -> mb.Objective:
    """Dropout in blocks, of which a span is made forward again or kept."""
    return mb.Objective(mb.Serial((mb.Dense(3, 4), blocks(**spans), mb.Dense(4, 2))), mb.squared_error)


# Dropout of its own, in blocks, in a block that is used twice, and in blocks inside that one.
TIED = mb.Tied(mb.Serial((mb.Dropout(0.25), mb.Repeat(mb.Serial((mb.Dense(4, 4), mb.Dropout(0.3, "tanh"))), 2))), 2)
NET = mb.Serial((mb.Dense(3, 4), mb.Dropout(0.4), blocks(), TIED, mb.Dense(4, 2)))
OBJECTIVE = mb.Objective(NET, mb.squared_error, mb.Frobenius(0.1))
DATA = generic(NET), batch(3), batch(2, seed=2)


SMALL = mb.Serial((mb.Dense(3, 3, "tanh"), mb.Tied(mb.Serial((mb.Dropout(0.25), mb.Dense(3, 3, "tanh"))), 2)))
SMALL_DATA = generic(SMALL), batch(3), batch(3, seed=2)


def kept(trace: Any) -> list[np.ndarray]:
    """The masks in a trace, in the order of the layers; under `Repeat` and `Tied` with blocks and uses in front."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trace) if leaf.dtype == bool]


@partial(jax.jit, static_argnums=0)
def drawn(net: Any, params: Any, x: Any, key: Any) -> list[jax.Array]:
    """The masks of a network; nothing else is computed."""
    return [leaf for leaf in jax.tree.leaves(mb.forward(net, params, x, key=key)[1]) if leaf.dtype == bool]


@partial(jax.jit, static_argnums=0)
def step(objective: mb.Objective, *data: Any, key: Any = None) -> mb.Step:
    return mb.backprop(objective, *data, key=key)


def test_every_equation_and_every_number_is_proven_at_masks_that_the_reference_draws_itself() -> None:
    reference.check(OBJECTIVE, *DATA, key=KEY, weights=jnp.linspace(0.0, 1.0, 7), lam=0.2).raise_if_failed()
    narrow = mb.Objective(mb.Serial((mb.Dense(3, 3, "tanh"), mb.Dropout(0.25))), mb.squared_error)
    data = generic(narrow.net), *SMALL_DATA[1:]
    reference.check(narrow, *data, key=KEY, dtype="float16").raise_if_failed()


def test_its_methods_are_proven_one_by_one() -> None:
    layer = mb.Dropout(0.3, "tanh")
    with by_operation():
        for each in (layer, layer.drawing(KEY)):
            reference.check_layer(each, (), batch(5)).raise_if_failed()


def test_the_gradient_is_that_of_a_forward_with_the_masks_in_the_trace() -> None:
    """Written out by hand, with masks that are read from the trace and not drawn."""
    net = mb.Serial((mb.Dense(3, 5, "tanh"), mb.Dropout(0.5), mb.Dense(5, 2), mb.Dropout(0.25)))
    objective, (x, y), params = mb.Objective(net, mb.squared_error), DATA[1:], generic(net)
    found = step(objective, params, x, y, key=KEY)
    first, last = kept(found.trace)

    def loss(params: Any) -> Any:
        of_hidden, _, of_output, _ = params
        hidden = jnp.tanh(x @ of_hidden.W.T + of_hidden.b[None]) * (2.0 * first)
        output = (hidden @ of_output.W.T + of_output.b[None]) * (last / 0.75)
        return 0.5 * jnp.sum((output - y) ** 2) / len(x)

    assert_close((found.value, found.gradients), jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.parametrize("spans", SPANS)
def test_value_and_grad_draws_what_backprop_draws(spans: str) -> None:
    """Blocks that are run forward again have their masks again; the plain value and the custom rule draw them too."""
    objective, data = chain(**SPANS[spans]), (generic(chain().net), *DATA[1:])
    ways = [mb.value_and_grad(objective), jax.value_and_grad(mb.as_custom_vjp(objective))][
        : 1 + (spans == "recomputed")
    ]

    @jax.jit
    def run(*data: Any, key: Any) -> Any:
        return objective(*data, key=key), [way(*data, key=key) for way in ways]

    of_step = step(chain(), *data, key=KEY)
    value, found = run(*data, key=KEY)
    assert_close(value, of_step.value)
    for one in found:
        assert_close(one, (of_step.value, of_step.gradients))


def test_value_and_grad_draws_for_blocks_in_uses_what_backprop_draws() -> None:
    found = jax.jit(mb.value_and_grad(OBJECTIVE))(*DATA, key=KEY)
    of_step = step(OBJECTIVE, *DATA, key=KEY)
    assert_close(found, (of_step.value, of_step.gradients))


def test_a_network_as_a_custom_rule_and_the_pushforward_have_the_masks() -> None:
    params, x, y = SMALL_DATA
    v, dx, d_output = generic(SMALL, seed=8), batch(3, seed=9), batch(3, seed=5)
    at = masks(SMALL, params, x, KEY)

    @jax.jit
    def ours(params: Any, x: Any) -> Any:
        output, pull = jax.vjp(lambda params, x: mb.as_custom_vjp(SMALL)(params, x, KEY), params, x)
        return output, pull(d_output), mb.pushforward(SMALL, params, x, v, dx, key=KEY)

    @jax.jit
    def theirs(params: Any, x: Any) -> Any:
        outputs = partial(model.outputs, SMALL, masks=at)
        output, pull = jax.vjp(outputs, params, x)
        return output, pull(d_output), jax.jvp(outputs, (params, x), (v, dx))

    assert_close(ours(params, x), theirs(params, x))


def test_curvature_is_that_of_the_network_with_the_masks() -> None:
    v, objective = generic(SMALL, seed=8), mb.Objective(SMALL, mb.squared_error, mb.Frobenius(0.1))

    @jax.jit
    def products(*data: Any, key: Any) -> Any:
        names = "hessian_vector_product", "gauss_newton_vector_product"
        return [[getattr(of, name)(objective, *data, key=key) for name in names] for of in (mb, reference)]

    assert_close(*products(*SMALL_DATA, v, key=KEY))


def test_readings_of_the_examples_are_those_with_the_masks() -> None:
    """Row n of every mask belongs to example n."""
    params, x, y = DATA
    found = step(OBJECTIVE, *DATA, key=KEY)
    at = masks(NET, params, x, KEY)

    def of_example(params: Any, n: Any) -> Any:
        return model.example_losses(OBJECTIVE, params, x, y, model.zero_probes(NET, params, x), at)[0][n]

    @jax.jit
    def by_hand(*at: Any) -> Any:
        return mb.per_example_gradients(NET, *at), mb.squared_norms(NET, *at)

    each = jax.jit(jax.vmap(jax.grad(of_example), (None, 0)))(params, jnp.arange(len(x)))
    squares = sum(np.sum(np.asarray(leaf).reshape(len(x), -1) ** 2, axis=1) for leaf in jax.tree.leaves(each))
    assert_close(by_hand(found.trace, found.deltas), (each, squares))


def test_every_layer_block_and_use_has_a_mask_of_its_own_and_the_same_key_the_same() -> None:
    first, again, other = (drawn(NET, *DATA[:2], key) for key in (KEY, jax.random.key(3), jax.random.key(4)))
    for one, same, new in zip(map(np.asarray, first), again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != new).any()
    rows = [mask for leaf in first for mask in np.asarray(leaf).reshape(-1, 7, 4)]
    assert len(rows) == 1 + 5 + 2 + 4
    assert len({mask.tobytes() for mask in rows}) == len(rows)


def test_the_mask_is_the_same_in_every_precision_and_form_of_the_key() -> None:
    net = mb.Tied(mb.Serial((mb.Dropout(0.25), mb.Repeat(mb.Serial((mb.Dense(3, 3), mb.Dropout(0.3))), 2))), 2)
    params, x = generic(net), batch(3)
    half, single = (
        jax.tree.map(lambda leaf, t=t: array(np.asarray(leaf), t), (params, x)) for t in ("bfloat16", "float32")
    )
    others = [drawn(net, *half, KEY), drawn(net, params, x, jax.random.PRNGKey(3))]
    with jax.enable_x64(False):
        others.append(drawn(net, *single, KEY))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, drawn(net, params, x, KEY), other)


def test_without_a_key_or_at_rate_0_it_is_the_identity() -> None:
    net, (_, x, y) = mb.mlp((3, 4, 2)), DATA
    for rate, key in ((0.5, None), (0.0, KEY)):
        with_dropout = mb.Serial((net.nodes[0], mb.Dropout(rate), net.nodes[1]))
        params = generic(net)
        found = step(mb.Objective(with_dropout, mb.squared_error), (params[0], (), params[1]), x, y, key=key)
        plain = step(mb.Objective(net, mb.squared_error), params, x, y, key=KEY)
        assert_close((found.value, *found.gradients[::2], found.d_x), (plain.value, *plain.gradients, plain.d_x))
        assert found.gradients[1] == ()
        assert kept(found.trace) == []


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_over_keys_is_the_input_and_the_share_of_zeros_the_rate(rate: float) -> None:
    x, count = batch(5), 4000
    keys = jax.random.split(KEY, count)
    outputs = np.asarray(jax.jit(jax.vmap(lambda key: mb.forward(mb.Dropout(rate), (), x, key=key)[0]))(keys))
    sigma = np.sqrt(rate / (1 - rate) / count)  # of m / (1 - rate) over the keys, whose mean is 1
    assert np.abs(np.mean(outputs, axis=0) / np.asarray(x) - 1).max() < 5 * sigma
    assert abs(np.mean(outputs == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / outputs.size)


def test_two_other_libraries_drop_the_same_entries_and_scale_as_we_do() -> None:
    """Equinox draws from the same key; flax draws from another, so only its scale and its share are its say."""
    x, rate = batch(50, 40, dtype="float32"), np.float32(0.25)
    ours, _ = mb.forward(mb.Dropout(0.25), (), x, key=KEY)
    assert_close(ours, equinox.nn.Dropout(rate)(x, key=KEY))
    flaxes = flax.linen.Dropout(0.25, deterministic=False).apply({}, x, rngs={"dropout": KEY})
    both = np.asarray((ours != 0) & (flaxes != 0))
    assert both.mean() == pytest.approx(0.75**2, abs=0.05)
    np.testing.assert_allclose(np.asarray(ours)[both], np.asarray(flaxes)[both], rtol=1e-12)


def test_16_bits_are_rounded_once() -> None:
    x = batch(50, 40, dtype="bfloat16")
    ours, trace = mb.forward(mb.Dropout(0.3), (), x, key=KEY)
    exact = np.asarray(x, np.float64) / (1 - 0.3) * np.asarray(trace.saved)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(jnp.asarray(exact, jnp.float32).astype("bfloat16")))


def test_a_dropped_entry_hides_what_is_not_finite() -> None:
    x = jnp.full((4, 50), jnp.inf)
    ours, trace = mb.forward(mb.Dropout(0.5), (), x, key=KEY)
    np.testing.assert_array_equal(np.asarray(ours), np.where(trace.saved, np.inf, 0))


def test_rules_never_meet_the_keys() -> None:
    """The lean sweep, which runs blocks forward again, agrees with the one that keeps all under other rules too."""
    blocks = mb.Repeat(mb.Residual(mb.Serial((mb.Dense(3, 3, "tanh"), mb.Dropout(0.5)))), 3)
    net = mb.Serial((mb.Dropout(0.4), blocks, mb.Dense(3, 3)))
    objective, data = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), (generic(net), *SMALL_DATA[1:])
    rule = mb.rules.on_delta(mb.edits.Noise(0.1), jax.random.key(9), mb.rules.SignSymmetry(generic(net, seed=4)))

    @jax.jit
    def both(rule: Any, key: Any) -> Any:
        found = mb.backprop(objective, *data, rule=rule, key=key)
        return (found.value, found.gradients), mb.value_and_grad(objective)(*data, rule=rule, key=key)

    assert_close(*both(rule, KEY))


@pytest.mark.parametrize("tied", [False, True])
def test_a_gpt_has_it_on_the_embeddings_and_at_the_end_of_both_branches(tied: bool) -> None:
    sizes: dict[str, Any] = {"vocab": 7, "d": 4, "heads": 2, "layers": 2, "length": 5, "tied": tied}
    net = mb.gpt(**sizes, dropout=0.2)
    assert mb.gpt(**sizes, dropout=0.0) == mb.gpt(**sizes)
    assert str(net).replace(" > Dropout(0.2)", "") == str(mb.gpt(**sizes))
    assert str(net).count("Dropout(0.2)]") == 2
    ids = jnp.zeros((2, 5), int)
    trace = jax.eval_shape(lambda: mb.forward(net, generic(net), ids, key=KEY)[1])
    assert [leaf.shape for leaf in jax.tree.leaves(trace) if leaf.dtype == bool] == [(2, 5, 4), *[(2, 2, 5, 4)] * 2]


def ending_in(table: bool) -> Any:
    """A network whose readout can be made in chunks, with dropout before it: of its own, or an embedding's table."""
    block = mb.Serial((mb.Dense(4, 4, "tanh"), mb.Dropout(0.4)))
    if table:
        return mb.TiedReadout(mb.Embedding(7, 4), mb.Tied(block, 2))
    return mb.Serial((mb.Embedding(7, 4), mb.Serial((block, mb.Dropout(0.2), mb.Dense(4, 7)))))


@pytest.mark.parametrize("table", [False, True])
def test_a_readout_in_chunks_does_not_change_the_masks(table: bool) -> None:
    """The network is taken apart before its readout, and each layer has the key that it has in the whole."""
    net = ending_in(table)
    params = generic(net)
    x, y = (jnp.asarray(np.random.default_rng(seed).integers(0, 7, (2, 5))) for seed in (0, 1))
    objective, chunked = (mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk)) for chunk in (None, 4))

    @jax.jit
    def all_ways(*data: Any) -> Any:
        lean = mb.value_and_grad(chunked)(*data, key=KEY)
        rule = chunked(*data, key=KEY), jax.grad(mb.as_custom_vjp(chunked))(*data, None, None, KEY)
        return (lean, rule), reference.value_and_grad(objective)(*data, key=KEY)

    ways, theirs = all_ways(params, x, y)
    for way in ways:
        assert_close(way, theirs)


def test_an_epoch_draws_new_masks_for_every_batch() -> None:
    """At a learning rate of 0, batches of the same examples differ by their masks alone; at another, it learns."""
    net = mb.Serial((mb.Dense(3, 30, "tanh"), mb.Dropout(0.5), mb.Dense(30, 1)))
    objective, x, y = mb.Objective(net, mb.squared_error), array(np.ones((6, 3))), array(np.ones((6, 1)))
    still = mb.training.make_epoch(objective, optax.sgd(0.0), 2)
    params = generic(net)
    fresh = partial(jax.tree.map, jnp.array)
    values = [np.asarray(still(fresh(params), optax.sgd(0.0).init(params), key, x, y)[2]) for key in (KEY, KEY)]
    assert len(set(values[0])) == 3
    np.testing.assert_array_equal(*values)

    optimizer = optax.sgd(0.1, momentum=0.9)
    data = batch(3, 64)
    target = array(np.asarray(data).mean(axis=1, keepdims=True))
    epoch = mb.training.make_epoch(objective, optimizer, 16)
    params = generic(net, scale=0.5)
    state = optimizer.init(params)
    value = jax.jit(objective.__call__)
    before = float(value(params, data, target))
    for key in jax.random.split(KEY, 40):
        params, state, _ = epoch(params, state, key, data, target)
    assert float(value(params, data, target)) < 0.3 * before


def test_a_step_takes_a_key() -> None:
    optimizer, objective = optax.sgd(0.1), mb.Objective(SMALL, mb.squared_error)
    params, x, y = SMALL_DATA
    gradients = jax.jit(mb.value_and_grad(objective))(*SMALL_DATA, key=KEY)[1]
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), params, gradients)
    one = mb.training.make_step(objective, optimizer)
    assert_close(one(jax.tree.map(jnp.array, params), optimizer.init(params), x, y, key=KEY)[0], expected)


@pytest.mark.parametrize(
    ("rate", "error", "says"),
    [
        (1.0, ValueError, "from 0 to below 1, the share that is dropped, got 1.0"),
        (-0.1, ValueError, "got -0.1"),
        (float("nan"), ValueError, "got nan"),
        (True, TypeError, "must be a number"),
        ("0.1", TypeError, "must be a number, got str '0.1'"),
        (array(np.asarray(0.1)), TypeError, "static and must be a Python number"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_hook")
def test_rates_that_are_none_are_refused(rate: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mb.Dropout(rate)
    with pytest.raises(error, match=says):
        mb.gpt(7, 4, 2, 1, 5, dropout=rate)


@pytest.mark.usefixtures("without_hook")
def test_what_is_no_key_is_refused_and_a_key_that_nobody_needs_is_not() -> None:
    params, x, y = DATA
    for take in (mb.backprop, mb.Objective.__call__, reference.check):
        with pytest.raises(TypeError, match=r"key must be a JAX key, such as jax.random.key\(0\), got int 0"):
            take(OBJECTIVE, params, x, y, key=0)
    with pytest.raises(ValueError, match=r"one key, got \[2\] of them; map over several with jax.vmap"):
        mb.forward(NET, params, x, key=jax.random.split(KEY))
    plain = mb.mlp((3, 2))
    given, left = (mb.forward(plain, generic(plain), x, key=key)[0] for key in (KEY, None))
    np.testing.assert_array_equal(given, left)
    with pytest.raises(TypeError, match="got int 0"):
        mb.forward(plain, generic(plain), x, key=0)
    with pytest.raises(ValueError, match="takes one input, got 2"):
        mb.Dropout(0.5).out_shape(((3,), (3,)))
