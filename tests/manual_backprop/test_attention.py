"""Attention by hand: whole and in blocks, grouped, turned, masked, against jax.nn, Flax and published numbers."""

import re
from dataclasses import replace
from functools import cache, partial
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_method

import manual_backprop as mb
import reference
from manual_backprop.layers import Attention
from reference.checks.layer import check_layer

SIZE = 4
GROUPED, BLOCKS = Attention(4, kv_heads=2, rope=100.0), Attention(4, kv_heads=1, rope=100.0, block=3)


def drawn(*shape: int, seed: int = 0, dtype: Any = jnp.float64) -> jax.Array:
    return array(np.random.default_rng(seed).normal(size=shape), dtype)


def entered(layer: Attention, length: int, dtype: Any = jnp.float64, seed: int = 0) -> tuple[jax.Array, ...]:
    """(q, k, v) of two examples."""
    of_keys = (layer.kv_heads or layer.heads) * SIZE
    widths = (layer.heads * SIZE, of_keys, of_keys)
    return tuple(drawn(2, length, width, seed=seed + i, dtype=dtype) for i, width in enumerate(widths))


def test_spans_of_blocks_give_the_same_as_one_product() -> None:
    """70 positions in blocks of 16 are two spans, of 48 and of 22 rows."""

    @partial(jax.jit, static_argnums=0)
    def methods(layer: Attention, a_in: Any) -> Any:
        z, saved = layer.net_input((), a_in)
        da_in = tuple(jnp.cos(part) for part in a_in)
        pushed = layer.pushforward((), saved, (), da_in)
        return z, layer.transport((), saved, jnp.sin(z)), pushed, layer.change((), saved, (), da_in, z)[0]

    a_in = entered(GROUPED, 70)
    assert_close(*(methods(layer, a_in) for layer in (GROUPED, replace(GROUPED, block=16))))


def test_a_mask_hides_keys_and_a_row_that_sees_none_is_zero() -> None:
    """7 positions are no multiple of a block."""
    layer, length = BLOCKS, 7
    present = jnp.asarray([[False] * length, [False, True, True, False, True, True, False]])
    a_in = (*entered(layer, length), present)
    with by_method(Attention):
        report = check_layer(layer, (), a_in)
        z, saved = layer.net_input((), a_in)
        d_q, d_k, d_v, d_mask = layer.transport((), saved, jnp.ones_like(z))
    assert report.passed, report
    assert report.worst.used < 0.01
    assert d_mask is None
    z, d_q, d_k, d_v = map(np.asarray, (z, d_q, d_k, d_v))
    np.testing.assert_array_equal(z[0], 0)
    np.testing.assert_array_equal(z[1, 0], 0)
    for d in (d_q, d_k, d_v):
        np.testing.assert_array_equal(d[0], 0)
    np.testing.assert_array_equal(d_k[1, [0, 3, 6]], 0)


def by_hand(layer: Attention, a_in: Any, g: Any) -> Any:
    """o, and its gradients along g."""
    o, saved = layer.net_input((), a_in)
    return o, layer.transport((), saved, g)


@pytest.mark.parametrize(
    ("layer", "length"),
    [
        (Attention(4, kv_heads=2), 66),  # two spans of causal rows
        (Attention(4, block=3), 8),
        (Attention(4, kv_heads=2, causal=False, block=3), 8),
    ],
    ids=str,
)
def test_it_is_flaxs(layer: Attention, length: int) -> None:
    """Operation by operation, as a notebook runs it."""
    a_in, da_in, g = entered(layer, length), entered(layer, length, seed=5), drawn(2, length, 16, seed=9)

    def theirs(*signals: jax.Array) -> jax.Array:
        q, k, v = (part.reshape(2, length, -1, SIZE) for part in signals)
        k, v = (jnp.repeat(part, 4 // part.shape[2], axis=2) for part in (k, v))
        mask = flax.linen.make_causal_mask(jnp.ones((2, length)), dtype=bool) if layer.causal else None
        return flax.linen.dot_product_attention(q, k, v, mask=mask).reshape(2, length, -1)

    @jax.jit
    def expected(a_in: Any, da_in: Any, g: Any) -> Any:
        def back(*a_in: Any) -> Any:
            return jax.vjp(theirs, *a_in)[1](g)

        return theirs(*a_in), back(*a_in), jax.jvp(theirs, a_in, da_in)[1], jax.jvp(back, a_in, da_in)[1]

    o, left = by_hand(layer, a_in, g)
    saved = layer.net_input((), a_in)[1]
    along = jax.jit(partial(changes, layer))(saved, da_in, g)
    assert_close((o, left, *along), expected(a_in, da_in, g))


def changes(layer: Attention, saved: Any, da_in: Any, g: Any) -> Any:
    """Of o, and of its gradients along g."""
    return layer.pushforward((), saved, (), da_in), layer.change((), saved, (), da_in, g)[0]


NEAR = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}


@cache
def by_jax_nn(dtype: str) -> Any:
    """(q, k, v) and g of 4 heads and 2 of keys, and what jax.nn makes of them."""

    def o(q: Any, k: Any, v: Any) -> Any:
        heads = [part.reshape(*part.shape[:2], -1, SIZE) for part in (q, k, v)]
        return jax.nn.dot_product_attention(*heads, is_causal=True).reshape(q.shape)

    def with_gradients(a_in: Any, g: Any) -> Any:
        value, back = jax.vjp(o, *a_in)
        return value, back(g)

    data = entered(Attention(4, kv_heads=2), 9, dtype), drawn(2, 9, 16, seed=9, dtype=dtype)
    compiled = jax.jit(with_gradients) if dtype != "float16" else with_gradients  # under jit it asks for GPU products
    return *data, compiled(*data)


@pytest.mark.parametrize("block", [None, 4])
@jax.numpy_dtype_promotion("standard")  # jax.nn's own gradient needs it
def test_it_is_jax_nns_in_every_precision(block: int | None) -> None:
    """jax.nn computes softmax in float32 at most, so float64 is compared with Flax above."""
    ours = jax.jit(partial(by_hand, Attention(4, kv_heads=2, block=block)))
    for dtype, near in NEAR.items():
        a_in, g, theirs = by_jax_nn(dtype)
        for mine, other in zip(jax.tree.leaves(ours(a_in, g)), jax.tree.leaves(theirs), strict=True):
            assert mine.dtype == other.dtype == jnp.dtype(dtype)
            np.testing.assert_allclose(np.asarray(mine, float), np.asarray(other, float), rtol=near, atol=4 * near)


def test_the_illustrated_example() -> None:
    """Karim, Illustrated: Self-Attention (2019), to the digits printed there; it has no 1/sqrt(size)."""
    q = jnp.asarray([[[1.0, 0.0, 2.0], [2.0, 2.0, 2.0], [2.0, 1.0, 3.0]]]) * np.sqrt(3)
    k = jnp.asarray([[[0.0, 1.0, 1.0], [4.0, 4.0, 0.0], [2.0, 3.0, 1.0]]])
    v = jnp.asarray([[[1.0, 2.0, 3.0], [2.0, 8.0, 0.0], [2.0, 6.0, 3.0]]])
    o, saved = Attention(1, causal=False).net_input((), (q, k, v))
    weights = [[6.3379e-02, 4.6831e-01, 4.6831e-01], [6.0337e-06, 9.8201e-01, 1.7986e-02]]
    e, share = map(np.asarray, saved.kept[0])
    np.testing.assert_allclose((e * share)[0, 0, 0, :2], weights, rtol=1e-5)
    outputs = [[1.9366, 6.6831, 1.5951], [2.0000, 7.9640, 0.0540], [1.9997, 7.7599, 0.3584]]
    np.testing.assert_allclose(o[0], outputs, atol=5e-5)


def test_turns_depend_on_the_distance_alone_and_keep_lengths() -> None:
    layer = Attention(1, causal=False, rope=10.0)
    q, k = (array(np.broadcast_to(drawn(SIZE, seed=seed), (1, 6, SIZE))) for seed in (0, 1))
    _, saved = jax.jit(layer.net_input)((), (q, k, k))
    turned = np.asarray(saved.k)[0, 0]
    scores = np.asarray(saved.q)[0, 0, 0] @ turned.T
    for distance in range(-5, 6):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(k[0, 0]), rtol=1e-12)


def program(layer: Attention, length: int) -> Any:
    """The gradient of a sum over o, compiled, in float32."""

    def gradient(q: Any, k: Any, v: Any, g: Any) -> Any:
        o, saved = layer.net_input((), (q, k, v))
        return jnp.sum(o * g), layer.transport((), saved, g)

    signal = jax.ShapeDtypeStruct((1, length, 2 * SIZE), jnp.float32)
    return jax.jit(gradient).lower(*(signal,) * 4)


def test_in_blocks_nothing_is_as_large_as_the_scores() -> None:
    length = 512
    shapes = re.findall(r"tensor<([0-9x]+)x[a-z]", program(Attention(2, block=16), length).as_text())
    sizes = [[int(axis) for axis in shape.split("x")] for shape in shapes]
    assert max(np.prod(size) for size in sizes) <= 2 * 16 * length
    whole = re.findall(r"tensor<([0-9x]+)x[a-z]", program(Attention(2, causal=False), length).as_text())
    assert f"1x2x1x{length}x{length}" in whole


def test_a_causal_gradient_does_not_compute_the_scores_that_nobody_sees() -> None:
    flops = [program(Attention(2, causal=causal), 512).compile().cost_analysis()["flops"] for causal in (True, False)]
    assert flops[0] < 0.7 * flops[1]


NET = mb.Repeat(
    mb.Residual(
        mb.Serial(
            (
                mb.Parallel((mb.Dense(8, 8), mb.Dense(8, 4, bias=False), mb.Dense(8, 4))),
                Attention(4, kv_heads=2, rope=100.0, block=3),
                mb.Dense(8, 8),
            )
        )
    ),
    2,
)


def test_a_network_of_it_is_proven() -> None:
    """In bfloat16 `test_gpt` proves one; every other precision is compared with jax.nn above."""
    objective = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(0.01))
    params = jax.tree.map(lambda leaf: array(np.asarray(leaf) + 0.1), jax.jit(NET.init)(jax.random.key(3)))
    y = jnp.asarray(np.random.default_rng(4).integers(0, 8, (3, 7)))
    reference.check(objective, params, drawn(3, 7, 8), y).raise_if_failed()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(0), "heads must be an int >= 1, got 0"),
        (lambda: Attention(4, kv_heads=3), "kv_heads must divide heads = 4, got 3"),
        (lambda: Attention(4, block=0), "block must be an int >= 1, got 0"),
        (lambda: Attention(4, rope=1.0), "rope must be above 1"),
        (lambda: Attention(4).out_shape(((5, 6), (5, 6), (5, 6))), "q has 6 features, which 4 heads do not divide"),
        (lambda: Attention(2, 1).out_shape(((5, 6), (5, 6), (5, 6))), "a head of q has 3 features and one of k 6"),
        (lambda: Attention(2).out_shape(((5, 6), (4, 6), (4, 6))), "must have as many positions, got 5, 4 and 4"),
        (lambda: Attention(2, rope=9.0).out_shape(((5, 6),) * 3), "a head has 3, an odd number"),
        (lambda: Attention(2).out_shape((5, 6)), "takes \\(q, k, v\\)"),
        (
            lambda: Attention(2).out_shape((*((5, 6),) * 3, (4,))),
            "mask of an example is \\(4,\\), expected \\(5,\\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_wrong_kinds_are_said(without_hook: None) -> None:
    q = drawn(2, 5, 8)
    with pytest.raises(TypeError, match="the mask must hold booleans, True for a key that is there, got int"):
        mb.forward(Attention(2), (), (q, q, q, jnp.ones((2, 5), jnp.int32)))
    with pytest.raises(TypeError, match="rope must be a number, the base of the angles, or None, got bool True"):
        Attention(2, rope=True)
    with pytest.raises(TypeError, match="causal must be True or False, got int 1"):
        Attention(2, causal=1)
