"""Attention and norms as plain functions: proven by `check_vjp`, and used in Flax and Equinox models."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from helpers import array, assert_close

import reference
from manual_backprop.functions import attention, layer_norm, rms_norm

N, T, HEADS, SIZE = 2, 5, 2, 3
D = HEADS * SIZE
RNG = np.random.default_rng(0)
Q, K, V, X = (array(RNG.normal(size=shape)) for shape in ((N, T, HEADS, SIZE), *((N, T, 1, SIZE),) * 2, (N, T, D)))
GAIN, BIAS = (array(RNG.normal(size=D) + 1) for _ in range(2))
PRESENT = jnp.asarray([[True, True, False, True, True], [False, True, True, True, False]])


def plain_attention(q: Any, k: Any, v: Any, present: Any = None, causal: bool = True) -> Any:
    k, v = (jnp.repeat(part, q.shape[2] // part.shape[2], axis=2) for part in (k, v))
    length = q.shape[1]
    seen = jnp.broadcast_to(jnp.tri(length, dtype=bool) | (not causal), (q.shape[0], q.shape[2], length, length))
    if present is not None:
        seen = seen & jnp.broadcast_to(present[:, None, None], seen.shape)
    scores = jnp.where(seen, jnp.einsum("nthd,nshd->nhts", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype), -1e30)
    weights = jnp.where(seen.any(-1, keepdims=True), jax.nn.softmax(scores, -1), 0).astype(v.dtype)
    return jnp.einsum("nhts,nshd->nthd", weights, v)


def plain_rms_norm(x: Any, gain: Any) -> Any:
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * jnp.broadcast_to(gain, x.shape)


def plain_layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    rows = (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6)
    return rows * jnp.broadcast_to(gain, x.shape) + jnp.broadcast_to(bias, x.shape)


CASES = {
    "attention": (attention, plain_attention, (Q, K, V)),
    "in blocks": (partial(attention, block=2), plain_attention, (Q, K, V)),
    "rms norm": (rms_norm, plain_rms_norm, (X, GAIN)),
    "layer norm": (layer_norm, plain_layer_norm, (X, GAIN, BIAS)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("attention", "float64"), ("in blocks", "bfloat16"), ("rms norm", "bfloat16"), ("layer norm", "float64")],
)
def test_the_rule_is_proven(name: str, dtype: str) -> None:
    """Each in one format; in float64 the tests of masks, scans and other libraries' models hold the rest to theirs."""
    f, raw, arguments = CASES[name]
    reference.check_vjp(jax.jit(f), *arguments, raw=raw, transforms=("jit",), dtype=dtype).raise_if_failed()


def test_a_mask_is_an_argument() -> None:
    def gradient(f: Any) -> Any:
        return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(f(q, k, v))), (0, 1, 2))(Q, K, V)

    ours = partial(attention, present=PRESENT, causal=False, block=2)
    assert_close(
        *jax.jit(lambda: (gradient(ours), gradient(partial(plain_attention, present=PRESENT, causal=False))))()
    )


def test_scan_vmap_and_checkpoint_work_through_them() -> None:
    """Two mapped stacks of three rematerialised blocks."""

    def total(norm: Any, attend: Any, gains: Any) -> Any:
        def block(x: Any, gain: Any) -> Any:
            heads = norm(x, gain).reshape(N, T, HEADS, SIZE)
            return x + attend(heads, heads, heads).reshape(x.shape), None

        return jnp.sum(jnp.sin(jax.lax.scan(jax.checkpoint(block), X, gains)[0]))

    gains = jnp.stack([GAIN * i for i in (1, 2, 3)])

    def run(norm: Any, attend: Any) -> Any:
        return jax.vmap(jax.grad(partial(total, norm, attend)))(jnp.stack([gains, -gains]))

    assert_close(*jax.jit(lambda: (run(rms_norm, attention), run(plain_rms_norm, plain_attention)))())


IN_SHARDS = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, PartitionSpec as P
from manual_backprop import functions
assert jax.device_count() == 2
x, gain = jnp.sin(jnp.arange(96.0)).reshape(2, 8, 6), jnp.cos(jnp.arange(6.0))
mesh = Mesh(np.array(jax.devices()), ("data",))
def loss(x, gain):
    heads = functions.layer_norm(functions.rms_norm(x, gain), gain, gain).reshape(*x.shape[:2], 2, 3)
    return jnp.sum(jnp.sin(functions.attention(heads, heads, heads, block=3)))
def gradient(x, gain):
    return jax.grad(lambda *a: jax.lax.psum(loss(*a), "data"), argnums=(0, 1))(x, gain)
where = {"in_specs": (P("data"), P()), "out_specs": (P("data"), P())}
sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, **where))(x, gain)
alone = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, gain)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), sharded, alone)
"""


@pytest.mark.evidence
def test_shard_map_on_two_devices() -> None:
    """Examples in shards, gains replicated: their cotangent is summed over the shards, as jax.grad's is."""
    two = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    flags = {**os.environ, "XLA_FLAGS": two, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", IN_SHARDS], capture_output=True, text=True, check=False, env=flags)
    assert done.returncode == 0, done.stderr


class Flax(nnx.Module):
    """One attention block of a Flax model, with the functions to compute it by."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(D, use_fast_variance=False, dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs)
        self.mixed = nnx.Linear(D, 3 * D, param_dtype=jnp.float64, rngs=rngs)

    def heads(self, entered: Any) -> tuple[Any, ...]:
        """q, k and v by head."""
        return tuple(part.reshape(N, T, HEADS, SIZE) for part in jnp.split(self.mixed(entered), 3, axis=-1))


@jax.numpy_dtype_promotion("standard")  # Flax's norm needs it
def test_a_flax_model_gets_its_own_gradient() -> None:
    def ours(model: Flax) -> Any:
        entered = layer_norm(X, model.norm.scale[...], model.norm.bias[...])
        return jnp.sum(jnp.sin(attention(*model.heads(entered))))

    def theirs(model: Flax) -> Any:
        q, k, v = model.heads(model.norm(X))
        return jnp.sum(jnp.sin(linen.dot_product_attention(q, k, v, mask=linen.make_causal_mask(jnp.ones((N, T))))))

    by_hand, by_jax = (nnx.jit(nnx.value_and_grad(loss))(Flax()) for loss in (ours, theirs))
    assert_close(*((value, jax.tree.leaves(gradient)) for value, gradient in (by_hand, by_jax)))


class Equinox(eqx.Module):
    """A norm before a linear map, in Equinox."""

    norm: eqx.nn.RMSNorm
    mixed: eqx.nn.Linear


def test_an_equinox_model_gets_its_own_gradient() -> None:
    norm = eqx.nn.RMSNorm(D, eps=1e-6, use_bias=False, dtype=jnp.float64)
    model = Equinox(norm, eqx.nn.Linear(D, D, use_bias=False, dtype=jnp.float64, key=jax.random.key(0)))

    def ours(model: Equinox) -> Any:
        heads = jax.vmap(jax.vmap(model.mixed))(rms_norm(X, model.norm.weight)).reshape(N, T, HEADS, SIZE)
        return jnp.sum(jnp.sin(attention(heads, heads, heads, block=2)))

    def theirs(model: Equinox) -> Any:
        heads = jax.vmap(jax.vmap(lambda row: model.mixed(model.norm(row))))(X).reshape(N, T, HEADS, SIZE)
        return jnp.sum(jnp.sin(plain_attention(heads, heads, heads)))

    assert_close(*jax.jit(lambda: tuple(jax.value_and_grad(loss)(model) for loss in (ours, theirs)))())


def test_one_row_and_bad_input(without_hook: None) -> None:
    assert_close(rms_norm(X[0, 0], GAIN), plain_rms_norm(X[0, 0], GAIN))
    with pytest.raises(
        ValueError, match=r"attention takes q, k and v as \(N, positions, heads, size\), got \[5, 2, 3\]"
    ):
        attention(Q[0], K[0], V[0])
    with pytest.raises(ValueError, match="kv_heads must divide heads = 2, got 3"):
        attention(Q, jnp.zeros((N, T, 3, SIZE)), jnp.zeros((N, T, 3, SIZE)))
    with pytest.raises(ValueError, match="k and v must have as many heads, got 1 and 2"):
        attention(Q, K, Q)
    with pytest.raises(TypeError, match="x is float32 but params are float64"):
        rms_norm(X.astype("float32"), GAIN)
    with pytest.raises(ValueError, match="gain must be one array with a number for each feature"):
        layer_norm(X, jnp.ones((1, D)))
