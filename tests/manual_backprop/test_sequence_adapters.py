"""Sequence models of Flax, Equinox and PyTorch, carried by names: logits, gradients, bits, and all that is refused."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import array, assert_close, generic
from test_adapters import Tensor, filled, same_bits

import manual_backprop as mb
from manual_backprop import adapters
from manual_backprop.layers import Parameters

VOCAB, D, HEADS, LAYERS, LENGTH, HIDDEN = 7, 8, 2, 2, 5, 12
SIZES = (VOCAB, D, HEADS, LAYERS, LENGTH)
IDS, Y = (jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (3, LENGTH))) for seed in (0, 1))
LLAMA = mb.gpt(*SIZES, kv_heads=1, hidden=HIDDEN)
GPT_2 = mb.gpt(*SIZES, hidden=HIDDEN, norm="layer", gated=False, activation="gelu_tanh", bias=True, tied=True)
PLAIN = mb.gpt(*SIZES, hidden=HIDDEN, norm="layer", gated=False, activation="relu", tied=True)


def loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).sum(1).mean()


@partial(jax.jit, static_argnums=0)
def ours(net, params):
    """Logits and gradient, by hand."""
    step = mb.backprop(mb.Objective(net, mb.softmax_cross_entropy), params, IDS, Y)
    return step.output, step.gradients


@jax.numpy_dtype_promotion("standard")  # Flax promotes float32 with float64 to know which is wider
def theirs(outputs, tree):
    """The logits of the other library, and the gradient of their cross-entropy."""

    def with_logits(tree):
        logits = outputs(tree)
        return loss(logits), logits

    gradient, logits = jax.jit(jax.grad(with_logits, has_aux=True))(tree)
    return logits, gradient


def attention(q, k, v):
    """q, k, v by head, (..., T, heads, size) -> (..., T, heads * size); jax.nn's own takes its softmax in float32."""
    k, v = (jnp.repeat(part, q.shape[-2] // part.shape[-2], axis=-2) for part in (k, v))
    scores = jnp.einsum("...thi,...shi->...hts", q, k) / np.sqrt(q.shape[-1])
    seen = jnp.broadcast_to(jnp.tri(q.shape[-3], dtype=bool), scores.shape)
    o = jnp.einsum("...hts,...shi->...thi", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)
    return o.reshape(*o.shape[:-2], -1)


# The same models there


class Block(nnx.Module):
    def __init__(self, rngs):
        linear = partial(nnx.Linear, use_bias=False, param_dtype=jnp.float64, rngs=rngs)
        self.ln_1, self.ln_2 = (nnx.RMSNorm(D, param_dtype=jnp.float64, rngs=rngs) for _ in range(2))
        self.q, self.k, self.v, self.proj = linear(D, D), linear(D, D // HEADS), linear(D, D // HEADS), linear(D, D)
        self.gate, self.up, self.down = linear(D, HIDDEN), linear(D, HIDDEN), linear(HIDDEN, D)

    def __call__(self, x):
        h = self.ln_1(x)
        q, k, v = (f(h).reshape(*h.shape[:2], -1, D // HEADS) for f in (self.q, self.k, self.v))
        x = x + self.proj(attention(q, k, v))
        h = self.ln_2(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h))


class Llama(nnx.Module):
    def __init__(self, rngs):
        self.wte, self.wpe = (nnx.Embed(n, D, param_dtype=jnp.float64, rngs=rngs) for n in (VOCAB, LENGTH))
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.ln_f = nnx.RMSNorm(D, param_dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(D, VOCAB, use_bias=False, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jnp.tile(jnp.arange(ids.shape[1])[None], (len(ids), 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class StackedLlama(Llama):
    """The same with its blocks' arrays in one."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.blocks = nnx.vmap(Block, in_axes=0, axis_size=LAYERS)(rngs.split(LAYERS))


def llama_names(net=LLAMA, block="blocks.{}", **changed):
    inside = {"norm_1": "ln_1", "q": "q", "k": "k", "v": "v", "out": "proj", "norm_2": "ln_2", "down": "down"}
    outside = {"embedding": "wte", "positions": "wpe", "last": "ln_f", "readout": "head"}
    mlp = {"gate": "gate", "up": "up"}
    return adapters.gpt_names(net, **{"block": block, **inside, **mlp, **outside, **changed})


def llama(kind=Llama):
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(nnx.Rngs(0))), nnx.Param, ...)[:2]
    return graph, filled(state)


class EquinoxBlock(eqx.Module):
    ln_1: eqx.nn.LayerNorm
    ln_2: eqx.nn.LayerNorm
    qkv: tuple[eqx.nn.Linear, ...]
    proj: eqx.nn.Linear
    mlp: eqx.nn.MLP
    mask: jax.Array

    def __init__(self, eps):
        linear = partial(eqx.nn.Linear, key=jax.random.key(0))
        self.ln_1, self.ln_2 = (eqx.nn.LayerNorm(D, eps) for _ in range(2))
        self.qkv = linear(D, D), linear(D, D, use_bias=False), linear(D, D)
        self.proj = linear(D, D)
        self.mlp = eqx.nn.MLP(D, D, HIDDEN, 1, jax.nn.gelu, key=jax.random.key(0))
        self.mask = jnp.ones((LENGTH, LENGTH), bool)

    def __call__(self, x):
        h = jax.vmap(self.ln_1)(x)
        x = x + jax.vmap(self.proj)(attention(*(jax.vmap(f)(h).reshape(len(h), HEADS, -1) for f in self.qkv)))
        return x + jax.vmap(self.mlp)(jax.vmap(self.ln_2)(x))


class EquinoxGPT(eqx.Module):
    wte: eqx.nn.Embedding
    wpe: eqx.nn.Embedding
    blocks: list[EquinoxBlock]
    ln_f: eqx.nn.LayerNorm

    def __init__(self, eps=1e-6):
        self.wte, self.wpe = (eqx.nn.Embedding(n, D, key=jax.random.key(0)) for n in (VOCAB, LENGTH))
        self.blocks = [EquinoxBlock(eps) for _ in range(LAYERS)]
        self.ln_f = eqx.nn.LayerNorm(D, eps)

    def __call__(self, ids):
        x = jax.vmap(self.wte)(ids) + self.wpe.weight[: len(ids)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.ln_f)(x) @ self.wte.weight.T


def equinox_model(**given):
    model = eqx.filter_eval_shape(EquinoxGPT, **given)
    floats, rest = eqx.partition(model, lambda leaf: hasattr(leaf, "dtype") and leaf.dtype != bool)
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool) if hasattr(leaf, "shape") else leaf, rest)
    return eqx.combine(filled(floats), mask)


def equinox_names(net=GPT_2, **changed):
    given = {"embedding": "wte", "positions": "wpe", "last": "ln_f", "block": "blocks.{}"}
    given |= {"norm_1": "ln_1", "q": "qkv.0", "k": "qkv.1", "v": "qkv.2", "out": "proj", "norm_2": "ln_2"}
    return adapters.gpt_names(net, **{**given, "up": "mlp.layers.0", "down": "mlp.layers.1", **changed})


TORCH = {"embedding": "wte", "positions": "wpe", "last": "ln_f", "readout": "lm_head", "block": "h.{}"}
TORCH |= {"norm_1": "ln_1", "norm_2": "ln_2", "out": "attn.proj", "up": "mlp.fc", "down": "mlp.proj"}
FUSED = {name: f"attn.qkv[{i * D}:{(i + 1) * D}]" for i, name in enumerate("qkv")}


def state_dict():
    """As a module with one matrix for q, k and v, no biases, and its table as readout writes it."""
    shapes = {"wte.weight": (VOCAB, D), "wpe.weight": (LENGTH, D)}
    for i in range(LAYERS):
        shapes |= {f"h.{i}.ln_1.weight": (D,), f"h.{i}.attn.qkv.weight": (3 * D, D), f"h.{i}.attn.proj.weight": (D, D)}
        shapes |= {
            f"h.{i}.ln_2.weight": (D,),
            f"h.{i}.mlp.fc.weight": (HIDDEN, D),
            f"h.{i}.mlp.proj.weight": (D, HIDDEN),
        }
    rng = np.random.default_rng(5)
    state = {name: rng.normal(0, 0.6, shape) for name, shape in {**shapes, "ln_f.weight": (D,)}.items()}
    return {**state, "lm_head.weight": state["wte.weight"].copy()}


def through_a_state_dict(state):
    """With the table alone in both its places, as there."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T

    def norm(name, x):
        x = jax.nn.standardize(x, epsilon=1e-6)
        return x * jnp.broadcast_to(state[f"{name}.weight"], x.shape)

    x = state["wte.weight"][IDS]
    x = x + jnp.broadcast_to(state["wpe.weight"], x.shape)
    for i in range(LAYERS):
        qkv = linear(f"h.{i}.attn.qkv", norm(f"h.{i}.ln_1", x))
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(qkv, 3, axis=-1))
        x = x + linear(f"h.{i}.attn.proj", attention(q, k, v))
        x = x + linear(f"h.{i}.mlp.proj", jax.nn.relu(linear(f"h.{i}.mlp.fc", norm(f"h.{i}.ln_2", x))))
    return linear("wte", norm("ln_f", x))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OfScale(Parameters):
    gain: Any
    all: Any


@dataclass(frozen=True)
class Scale(mb.RMSNorm):
    """Somebody's own family, as far as its parameters go."""

    d: int = D

    def init(self, key, dtype=None):
        return OfScale(jnp.ones((1, self.d), dtype), jnp.ones((), dtype))


# Logits, gradients and bits


def test_flax():
    graph, state = llama()
    names = llama_names()
    params = adapters.from_flax(state, LLAMA, names=names)
    logits, by_hand = ours(LLAMA, params)
    outputs, gradient = theirs(lambda state: nnx.merge(graph, state)(IDS), state)
    assert_close(logits, outputs)
    assert_close(adapters.to_flax(by_hand, state, names=names), gradient)
    same_bits(adapters.to_flax(params, state, names=names), state)
    same_bits(adapters.from_flax(nnx.to_pure_dict(state), LLAMA, names=names), params)


def test_stacked_blocks_have_no_number():
    _, state = llama(StackedLlama)
    names = llama_names(block="blocks")
    params = adapters.from_flax(state, LLAMA, names=names)
    same_bits(params[2][0][1][0].W, state["blocks"]["q"]["kernel"][...].swapaxes(1, 2))
    same_bits(adapters.to_flax(params, state, names=names), state)


def test_heads_of_flax_are_joined():
    """Linen's own attention: kernels (d, heads, size) and (heads, size, d)."""
    net = mb.Serial((mb.Parallel((mb.Dense(D, D),) * 3), mb.Attention(HEADS), mb.Dense(D, D)))
    names = adapters.by_names(net, (("query", "key", "value"), None, "out"))
    model = nn.MultiHeadDotProductAttention(HEADS, param_dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(3, LENGTH, D)))
    mask = nn.make_causal_mask(IDS)
    variables = filled(jax.eval_shape(lambda: model.init(jax.random.key(0), x, mask=mask)))
    params = adapters.from_flax(variables, net, names=names)

    def squares(variables):
        return jnp.sum(jnp.square(model.apply(variables, x, mask=mask))) / (2 * len(x))

    value, gradient = jax.jit(jax.value_and_grad(squares))(variables)
    objective = mb.Objective(net, mb.squared_error)
    by_hand, of_ours = jax.jit(mb.value_and_grad(objective))(params, x, jnp.zeros_like(x))
    carried = adapters.to_flax(of_ours, variables, names=names)
    for tree in (carried, gradient):
        tree["params"]["key"]["bias"] = jnp.ones(1)  # softmax does not see it: rounding of 0 on both sides
    assert_close((by_hand, carried), (value, gradient))
    same_bits(adapters.to_flax(params, variables, names=names), variables)


def test_equinox():
    model, names = equinox_model(), equinox_names()
    params = adapters.from_equinox(model, GPT_2, names=names)
    logits, by_hand = ours(GPT_2, params)

    floats, rest = eqx.partition(model, eqx.is_inexact_array)
    outputs, gradient = theirs(lambda floats: jax.vmap(eqx.combine(floats, rest))(IDS), floats)
    assert_close(logits, outputs)
    assert_close(adapters.to_equinox(by_hand, model, names=names), gradient)
    same_bits(adapters.to_equinox(params, model, names=names), eqx.filter(model, eqx.is_inexact_array))
    same_bits(adapters.to_equinox(adapters.from_equinox(gradient, GPT_2, names=names), model, names=names), gradient)


@pytest.mark.parametrize("box", [np.asarray, Tensor], ids=["arrays", "tensors"])
def test_torch(box):
    arrays, names = state_dict(), adapters.gpt_names(PLAIN, **TORCH, **FUSED)
    state = {name: box(value) for name, value in arrays.items()}
    params = adapters.from_torch_state_dict(state, PLAIN, names=names)
    back = adapters.to_torch_state_dict(params, state, names=names)
    assert list(back) == list(arrays)
    same_bits(back, arrays)
    if box is Tensor:
        return
    logits, by_hand = ours(PLAIN, params)
    outputs, gradient = theirs(through_a_state_dict, jax.tree.map(jnp.asarray, arrays))
    assert_close(logits, outputs)
    gradient["lm_head.weight"] = gradient["wte.weight"]  # one tensor there, with one gradient
    assert_close(adapters.to_torch_state_dict(by_hand, state, names=names), gradient)


def test_a_name_for_each_array():
    """PyTorch's MultiheadAttention, whose fused arrays are no module's weight and bias; and a family of one's own."""
    net = mb.Serial((mb.Parallel((mb.Dense(D, D),) * 3), mb.Attention(HEADS), mb.Dense(D, D)))
    parts = [f"[{i * D}:{(i + 1) * D}]" for i in range(3)]
    fused = tuple({"W": f"attn.in_proj_weight{part}", "b": f"attn.in_proj_bias{part}"} for part in parts)
    names = adapters.by_names(net, (fused, None, "attn.out_proj"))
    rng = np.random.default_rng(7)
    shapes = {"in_proj_weight": (3 * D, D), "in_proj_bias": (3 * D,), "out_proj.weight": (D, D), "out_proj.bias": (D,)}
    state = {f"attn.{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    params = adapters.from_torch_state_dict(state, net, names=names)
    same_bits(jnp.concatenate([one.W for one in params[0]]), state["attn.in_proj_weight"])
    same_bits(params[0][1].b, state["attn.in_proj_bias"][D : 2 * D])
    same_bits(adapters.to_torch_state_dict(params, state, names=names), state)


def test_rows_of_stacked_blocks():
    names = adapters.gpt_names(PLAIN, **{**TORCH, **FUSED, "block": "h"})
    params = generic(PLAIN)
    numbered = adapters.gpt_names(PLAIN, **TORCH, **FUSED)
    state = adapters.to_torch_state_dict(params, state_dict(), names=numbered)
    stacked = {name: value for name, value in state.items() if not name.startswith("h.")}
    for name in (name for name in state if name.startswith("h.0.")):
        stacked[name.replace("h.0.", "h.")] = np.stack([state[name.replace("h.0.", f"h.{i}.")] for i in range(LAYERS)])
    same_bits(adapters.from_torch_state_dict(stacked, PLAIN, names=names), params)
    same_bits(adapters.to_torch_state_dict(params, stacked, names=names), stacked)


def test_blocks_in_blocks_have_a_number_each():
    net = mb.Repeat(mb.Serial((mb.Repeat(mb.Dense(D, D), 3), mb.RMSNorm(D))), 2)
    state = {f"{i}.norm.weight": np.full(D, i + 1.0) for i in range(2)}
    for i, j in np.ndindex(2, 3):
        state |= {f"{i}.in{j}.weight": np.full((D, D), 10.0 * i + j), f"{i}.in{j}.bias": np.arange(D) + 10.0 * i + j}
    for inner in ("{}.in{}", "{0}.in{1}"):
        names = adapters.by_names(net, (inner, "{}.norm"))
        dense, norm = adapters.from_torch_state_dict(state, net, names=names)
        assert dense.W.shape == (2, 3, D, D)
        np.testing.assert_array_equal(dense.W[:, :, 0, 0], [[0, 1, 2], [10, 11, 12]])
        np.testing.assert_array_equal(norm.gain[:, 0], [1, 2])
        same_bits(adapters.to_torch_state_dict((dense, norm), state, names=names), state)
    half = {
        f"{i}.in.{name}": np.stack([state[f"{i}.in{j}.{name}"] for j in range(3)])
        for i in range(2)
        for name in ("weight", "bias")
    }
    half |= {name: value for name, value in state.items() if "norm" in name}
    names = adapters.by_names(net, ("{}.in", "{}.norm"))  # the inner blocks are in front of one array
    same_bits(adapters.from_torch_state_dict(half, net, names=names)[0], dense)
    same_bits(adapters.to_torch_state_dict((dense, norm), half, names=names), half)


def test_a_family_of_ones_own_has_a_name_for_each_array():
    """Its layout is then ours."""
    net = mb.Serial((mb.Dense(D, D), Scale()))
    state = {"a.weight": np.ones((D, D)), "a.bias": np.ones(D), "own": np.ones((1, D)), "all": np.ones(())}
    with pytest.raises(TypeError, match=r"arrays of a Scale are not known; give a name for each of \['gain', 'all'\]"):
        adapters.from_torch_state_dict(state, net, names=adapters.by_names(net, ("a", "own")))
    names = adapters.by_names(net, ("a", {"gain": "own", "all": "all"}))
    params = adapters.from_torch_state_dict(state, net, names=names)
    same_bits(params[1].gain, state["own"])
    same_bits(adapters.to_torch_state_dict(params, state, names=names), state)


def test_under_jit():
    _, state = llama()
    names = llama_names()
    back = jax.jit(lambda s: adapters.to_flax(adapters.from_flax(s, LLAMA, names=names), s, names=names))(state)
    same_bits(back, state)
    arrays, tied = state_dict(), adapters.gpt_names(PLAIN, **TORCH, **FUSED)
    with pytest.raises(TypeError, match="'wte.weight' and 'lm_head.weight' must hold the same.*not known under jit"):
        jax.jit(lambda s: adapters.from_torch_state_dict(s, PLAIN, names=tied))(arrays)


# The table of names


def test_names_are_a_table():
    lines = str(llama_names()).splitlines()
    assert len(lines) == len(
        list(layer for layer in LLAMA.layers() if not isinstance(layer, mb.Attention | mb.Product))
    )
    assert lines[0].split() == ["[0]", "Embedding(vocab=7,", "d=8,", "identity)", "wte"]
    assert lines[4].startswith("[2][0][1][1]  Dense(8 -> 4, identity, no bias)")
    assert lines[4].endswith("  blocks.{}.k")
    both = str(adapters.gpt_names(PLAIN, **TORCH, **{**FUSED, "q": {"W": "qkv[0:8]"}})).splitlines()
    assert both[0].endswith("  wte = lm_head")
    assert any(line.endswith("  W: h.{}.qkv[0:8]") for line in both)


# Refusals


def lacking(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: lacking(s, "h.1.ln_2.weight"),
            r"no 'h.1.ln_2.weight', for gain of .*LayerNorm.*near it are \['h.1.ln_1",
        ),
        (
            lambda s: {**s, "h.1.attn.bias": np.ones((1, 5, 5))},
            r"'h.1.attn.bias' \[1, 5, 5\] is taken by no layer; if it",
        ),
        (lambda s: {**s, "ln_f.bias": np.ones(D)}, r"'ln_f.bias' \[8\] is taken by no layer"),
        (lambda s: {**s, "wpe.weight": np.ones((D, LENGTH))}, r"'wpe.weight' is \[8, 5\], expected \[5, 8\], for P of"),
        (
            lambda s: {**s, "h.0.mlp.fc.weight": np.ones((D, HIDDEN))},
            r"is \[8, 12\], expected \[12, 8\], for W of .*Dense",
        ),
        (lambda s: {**s, "h.0.mlp.fc.weight": np.ones((HIDDEN, 2, 4))}, r"is \[12, 2, 4\], expected \[12, 8\]"),
        (lambda s: {**s, "h.0.attn.qkv.weight": np.ones((3 * D, D + 1))}, r"is \[24, 9\], expected \[24, 8\], for W"),
        (lambda s: {**s, "h.0.attn.qkv.weight": np.ones((2 * D, D))}, r"is \[16, 8\], expected \[24, 8\], for W"),
        (
            lambda s: {**s, "h.0.attn.qkv.weight": np.ones((4 * D, D))},
            "rows 24:32 of 'h.0.attn.qkv.weight' are taken by no",
        ),
    ],
)
def test_state_dicts_that_do_not_fit(change, says):
    state, names = change(state_dict()), adapters.gpt_names(PLAIN, **TORCH, **FUSED)
    with pytest.raises(ValueError, match=says):
        adapters.from_torch_state_dict(state, PLAIN, names=names)
    with pytest.raises(ValueError, match=says):
        adapters.to_torch_state_dict(generic(PLAIN), state, names=names)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"q": "attn.qkv[8:16]"},
            r"(?s)rows 0:8 of .* are taken by no layer.*rows 8:16 of .* are taken twice, for W of .* and",
        ),
        ({"k": "attn.qkv"}, r"'h.0.attn.qkv.weight' is \[24, 8\], expected \[8, 8\], for W of"),
        ({"down": "mlp.fc"}, r"'h.0.mlp.fc.weight' is \[12, 8\], expected \[8, 12\]"),
        ({"norm_2": "ln_1"}, "'h.0.ln_1.weight' is taken twice, for gain of .*LayerNorm.* and gain of"),
        ({"block": "h"}, "(?s)there is no 'h.ln_1.weight'.*and .* more"),
        ({"readout": None}, r"'lm_head.weight' \[7, 8\] is taken by no layer"),
    ],
)
def test_names_that_do_not_fit_the_state(changed, says):
    names = adapters.gpt_names(PLAIN, **{**TORCH, **FUSED, **changed})
    with pytest.raises(ValueError, match=says):
        adapters.from_torch_state_dict(state_dict(), PLAIN, names=names)


def test_a_second_name_must_hold_the_same_bits():
    names = adapters.gpt_names(PLAIN, **TORCH, **FUSED)
    state = state_dict()
    state["lm_head.weight"][3, 2] = np.nextafter(state["lm_head.weight"][3, 2], 1)
    with pytest.raises(
        ValueError, match="'wte.weight' and 'lm_head.weight' must hold the same values.*but they differ"
    ):
        adapters.from_torch_state_dict(state, PLAIN, names=names)


def test_dtypes_are_not_cast():
    names, state = adapters.gpt_names(PLAIN, **TORCH, **FUSED), state_dict()
    mixed = {**state, "ln_f.weight": state["ln_f.weight"].astype("float32")}
    with pytest.raises(TypeError, match="mix the dtypes"):
        adapters.from_torch_state_dict(mixed, PLAIN, names=names)
    with pytest.raises(TypeError, match="ln_f.weight is float32 in like, float64 in tree; nothing is cast"):
        adapters.to_torch_state_dict(generic(PLAIN), mixed, names=names)
    brain = {name: array(value, "bfloat16") for name, value in state.items()}
    params = adapters.from_torch_state_dict(brain, PLAIN, names=names)
    same_bits(adapters.to_torch_state_dict(params, brain, names=names), brain)


def test_flax_state_that_does_not_fit():
    _, state = llama()
    pure = nnx.to_pure_dict(state)
    names = llama_names()
    for kernel, says in (
        (jnp.ones((D, 2, D // 4)), r"'blocks/1/k/kernel' is \[8, 2, 2\], expected \[8, 4\], for W"),
        (jnp.ones((2, 2 * D, 1)), r"'blocks/1/k/kernel' is \[2, 16, 1\], expected \[8, 4\], for W"),
        (jnp.ones((D // 2, D)), r"'blocks/1/k/kernel' is \[4, 8\], expected \[8, 4\], for W"),
    ):
        pure["blocks"][1]["k"]["kernel"] = kernel
        if kernel.shape == (D, 2, D // 4):
            adapters.from_flax(pure, LLAMA, names=names)  # heads and their features
            continue
        with pytest.raises(ValueError, match=says):
            adapters.from_flax(pure, LLAMA, names=names)
    _, stacked = llama(StackedLlama)
    with pytest.raises(ValueError, match="no 'blocks/0/ln_1/scale', for gain of"):
        adapters.from_flax(stacked, LLAMA, names=names)
    deeper = mb.gpt(*SIZES[:3], LAYERS + 1, LENGTH, kv_heads=1, hidden=HIDDEN)
    with pytest.raises(ValueError, match=r"'blocks/down/kernel' is \[2, 12, 8\], expected \[3, 12, 8\]"):
        adapters.from_flax(stacked, deeper, names=llama_names(deeper, block="blocks"))
    with pytest.raises(ValueError, match="order is for models whose layers are found"):
        adapters.from_flax(state, LLAMA, names=names, order=["wte"])
    with pytest.raises(ValueError, match="(?s)these names are for another network.*net is"):
        adapters.from_flax(state, deeper, names=names)
    with pytest.raises(ValueError, match="structure"):
        adapters.to_flax(generic(LLAMA)[:4], state, names=names)


def test_equinox_modules_are_compared():
    model, names = equinox_model(), equinox_names()
    with pytest.raises(ValueError, match=r"blocks/0/ln_1 has eps=1e-05, but .*LayerNorm\(8, eps=1e-06"):
        adapters.from_equinox(equinox_model(eps=1e-5), GPT_2, names=names)
    scale = eqx.tree_at(lambda m: m.ln_f, model, eqx.nn.RMSNorm(D, eps=1e-6, dtype=jnp.float64))
    with pytest.raises(ValueError, match=r"ln_f is a RMSNorm, which .*LayerNorm.* is not"):
        adapters.from_equinox(scale, GPT_2, names=names)
    with pytest.raises(ValueError, match="no 'blocks/0/qkv/3/weight'.*near it are"):
        adapters.from_equinox(model, GPT_2, names=equinox_names(v="qkv.3"))
    with pytest.raises(ValueError, match="'blocks/0/qkv/1/bias' .* is taken by no layer"):
        adapters.from_equinox(
            eqx.tree_at(lambda m: m.blocks[0].qkv[1].bias, model, jnp.ones(D), is_leaf=lambda leaf: leaf is None),
            GPT_2,
            names=names,
        )


TINY = mb.Serial((mb.Repeat(mb.Dense(D, D), 2), mb.Product(), mb.Dense(D, 4)))


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("tree", "error", "says"),
    [
        (
            ("a.{}", None),
            ValueError,
            r"(?s)names must mirror.*\('Dense\(8 -> 8, identity\)', None, 'Dense\(8 -> 4, ident",
        ),
        (["a.{}", None, "b"], ValueError, "names must mirror the network"),
        (
            ("a.{}", "gate", "b"),
            ValueError,
            r"\[1\] Product\(identity\) has no parameters, so its name is None; got 'gate'",
        ),
        (("a.{}", None, None), TypeError, r"\[2\] Dense.* needs a name, or a name for each of \['W', 'b'\], got None"),
        (("a.{}", None, ("b", "c")), TypeError, "needs a name, .* got tuple"),
        (("a.{}", None, {"W": "b.weight"}), ValueError, r"has the arrays \['W', 'b'\], got names for \['W'\]"),
        (("a.{}", None, {"W": "b.weight", "b": 3}), TypeError, "a name is text, got int 3"),
        (("a.{}", None, []), ValueError, "an empty list of names"),
        (("a.{}", None, ""), TypeError, "a name is text"),
        (("a.{}", None, "b.{}"), ValueError, r"'b.\{\}' has 1 numbers of blocks, but the layer is in 0 Repeat"),
        (("a.{1}", None, "b"), ValueError, r"may have \{\}, or \{0\} and \{1\}"),
        (("a.{i}", None, "b"), ValueError, r"'a.\{i\}' may have"),
        (("a.{", None, "b"), ValueError, r"'a.\{' may have"),
        (("a.{}", None, "b[0:5]"), ValueError, r"'b\[0:5\]' has 5 rows, but W is \[4, 8\]"),
    ],
)
def test_trees_that_are_no_names(tree, error, says):
    with pytest.raises(error, match=says):
        adapters.by_names(TINY, tree)


@pytest.mark.usefixtures("without_hook")
def test_names_that_are_none():
    with pytest.raises(TypeError, match="expected a layer or composite.*for the network"):
        adapters.by_names("net", ())
    for names in (("a.{}", None, "b"), {}):
        with pytest.raises(
            TypeError, match=r"names must be what adapters.by_names\(net, tree\) or gpt_names gives, got"
        ):
            adapters.from_torch_state_dict({}, TINY, names=names)
        with pytest.raises(TypeError, match="names must be what"):
            adapters.to_flax(generic(TINY), {}, names=names)
    with pytest.raises(TypeError, match="mapping of names to tensors, got list"):
        adapters.from_torch_state_dict([], PLAIN, names=adapters.gpt_names(PLAIN, **TORCH, **FUSED))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gate": None}, "gate is None, but the network has one"),
        ({"positions": None}, "positions is None, but the network has one"),
        ({"readout": None}, "readout is None, but the network has one"),
        ({"net": mb.gpt(*SIZES, rope=10.0)}, "positions is 'wpe', but the network has none"),
        ({"net": mb.gpt(*SIZES, gated=False)}, "gate is 'gate', but the network has none"),
        ({"net": mb.Serial((LLAMA,))}, "names must mirror the network"),
    ],
)
def test_gpt_names_that_do_not_fit_the_network(changed, says):
    with pytest.raises(ValueError, match=says):
        llama_names(**changed)
