"""Functions with a gradient of their own, for anybody's code: proven by `check_vjp`, and used where they would be."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import array, assert_close, every_time

import reference
from manual_backprop.functions import linear_cross_entropy, mean_linear_cross_entropy

R, T, D, V = 3, 4, 5, 7
RNG = np.random.default_rng(0)
X, W, B = (array(RNG.normal(size=shape)) for shape in ((R, T, D), (V, D), (V,)))
LABELS = jnp.asarray(RNG.integers(-1, V, (R, T)))
SHARES = array(RNG.uniform(0.1, 1, (R, T)))
OPTIONS = {"ignored": -1, "label_smoothing": 0.1, "z_loss": 0.05}


def plain(x: Any, W: Any, b: Any, labels: Any) -> Any:
    """The loss of every row from all logits, by optax, in the precision of sums."""
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.dtype("float32")
    o = (x @ W.T).astype(wide) + (0 if b is None else jnp.broadcast_to(b.astype(wide), (*x.shape[:-1], len(W))))
    q = optax.smooth_labels(jax.nn.one_hot(labels, len(W), dtype=wide), 0.1)
    terms = optax.losses.softmax_cross_entropy(o, q) + 0.05 * jax.nn.logsumexp(o, axis=-1) ** 2
    return jnp.where(labels != -1, terms, 0)


def plain_mean(x: Any, W: Any, b: Any, labels: Any, weights: Any = None) -> Any:
    terms = plain(x, W, b, labels)
    if weights is None:
        return terms.sum() / (labels != -1).sum().astype(terms.dtype)
    return (weights.astype(terms.dtype) * terms).sum()


each = jax.jit(partial(linear_cross_entropy, chunk=5, **OPTIONS))
mean = jax.jit(partial(mean_linear_cross_entropy, chunk=5, **OPTIONS))
CASES = {
    "each row": (each, plain, (X, W, B, LABELS)),
    "each row, no bias": (each, plain, (X, W, None, LABELS)),
    "weighted": (mean, plain_mean, (X, W, B, LABELS, SHARES)),
}


PROVEN = [
    *[("each row", "float64"), ("each row, no bias", "float32"), ("weighted", "bfloat16")],
    *[("each row", "float16"), ("weighted", "float64")],
]


@pytest.mark.parametrize(("name", "dtype"), every_time(PROVEN, *PROVEN[:3]))
def test_the_rule_is_proven(name, dtype):
    """The mean is the sum with equal weights; its value and gradient are held to JAX's below, for every chunk."""
    f, raw, arguments = CASES[name]
    transforms = ("jit", "vmap") if (name, dtype) == ("each row", "float64") else ("jit",)
    reference.check_vjp(f, *arguments, raw=raw, transforms=transforms, dtype=dtype).raise_if_failed()


def test_the_size_of_the_chunks_does_not_matter():
    """Of single rows, with a rest, of all rows, and more than there are."""

    @jax.jit
    def run(*given: Any) -> Any:
        def found(chunk: int) -> Any:
            ours = partial(mean_linear_cross_entropy, chunk=chunk, **OPTIONS)
            rows = linear_cross_entropy(*given, LABELS, chunk=chunk, **OPTIONS)
            return rows, jax.value_and_grad(ours, (0, 1, 2))(*given, LABELS)

        theirs = plain(*given, LABELS), jax.value_and_grad(plain_mean, (0, 1, 2))(*given, LABELS)
        return [found(chunk) for chunk in (1, 5, 12, 100)], theirs

    ours, theirs = run(X, W, B)
    for found in ours:
        assert_close(found, theirs, 1e-13)


def test_scan_vmap_and_checkpoint_work_through_it():
    """Several steps of a scan with shared W, rematerialised, mapped over two sets of parameters."""

    def total(loss: Any, W: Any) -> Any:
        def step(carry: Any, given: Any) -> Any:
            x, labels = given
            return carry + loss(x, W, None, labels).sum(), None

        return jax.lax.scan(jax.checkpoint(step), jnp.zeros(()), (X, LABELS))[0]

    def run(loss: Any) -> Any:
        return jax.vmap(jax.grad(partial(total, loss)))(jnp.stack([W, -2 * W]))

    both = jax.jit(lambda: (run(each), run(mean), run(plain), run(plain_mean)))()
    assert_close(both[:2], both[2:], 1e-13)


def test_second_derivatives_by_forward_over_reverse():
    def product(loss: Any) -> Any:
        gradient = jax.grad(lambda W: loss(X, W, None, LABELS).sum())
        return jax.jvp(gradient, (W,), (jnp.cos(W),))[1]

    assert_close(*jax.jit(lambda: (product(each), product(plain)))(), 1e-12)
    assert_close(*jax.jit(lambda: (product(mean), product(plain_mean)))(), 1e-12)


def test_rows_that_are_all_ignored_have_mean_zero_and_gradient_zero():
    nothing = jnp.full_like(LABELS, -1)
    value, gradient = jax.jit(jax.value_and_grad(mean, (0, 1, 2)))(X, W, B, nothing)
    assert float(value) == 0
    assert not any(np.asarray(leaf).any() for leaf in gradient)


def test_one_row_and_no_row():
    one = linear_cross_entropy(X[0, 0], W, B, LABELS[0, 0] * 0)
    assert_close(one, optax.softmax_cross_entropy_with_integer_labels(X[0, 0] @ W.T + B, 0), 1e-14)
    assert linear_cross_entropy(X[:0], W, B, LABELS[:0]).shape == (0, T)
    assert float(mean_linear_cross_entropy(X[:0], W, B, LABELS[:0])) == 0


def test_ten_thousand_neither_overflows_nor_gives_nan():
    x, w = jnp.asarray([[1.0], [-1.0]], "float32"), jnp.asarray([[1e4], [-1e4]], "float32")
    value, gradient = jax.value_and_grad(lambda w: linear_cross_entropy(x, w, None, jnp.asarray([0, 0])).sum())(w)
    assert_close((value, gradient), (2e4, np.asarray([[1.0], [-1.0]])), 1e-6)


def test_16_bit_arguments_give_losses_in_float32_and_gradients_like_them():
    given = [jax.ShapeDtypeStruct(leaf.shape, "bfloat16") for leaf in (X, W, B)]
    assert {jax.eval_shape(loss, *given, LABELS).dtype for loss in (each, mean)} == {jnp.dtype("float32")}
    gradients = jax.eval_shape(jax.grad(mean, (0, 1, 2)), *given, LABELS)
    assert {leaf.dtype for leaf in gradients} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("loss", [linear_cross_entropy, mean_linear_cross_entropy])
def test_the_logits_never_exist(loss):
    x, w = jnp.zeros((96, 2)), jnp.zeros((64, 2))
    gradient = jax.grad(lambda x, w: loss(x, w, None, jnp.zeros(96, int), chunk=32).sum(), (0, 1))
    text = str(jax.make_jaxpr(gradient)(x, w))
    assert "[32,64]" in text
    assert "[96,64]" not in text


def in_shards(function: str) -> str:
    return f"""
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
from manual_backprop import functions
assert jax.device_count() == 2
x, W, b = jnp.sin(jnp.arange(40.0)).reshape(8, 5), jnp.cos(jnp.arange(35.0)).reshape(7, 5), jnp.sin(jnp.arange(7.0))
labels, mesh = jnp.arange(8) % 7, Mesh(np.array(jax.devices()), ("data",))
loss = partial(functions.{function}, chunk=3, z_loss=0.1)
def gradient(x, W, b, labels):
    return jax.grad(lambda *a: jax.lax.pmean(jnp.mean(loss(*a, labels)), "data"), argnums=(0, 1, 2))(x, W, b)
where = {{"in_specs": (P("data"), P(), P(), P("data")), "out_specs": (P("data"), P(), P())}}
sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, **where))(x, W, b, labels)
alone = jax.jit(jax.grad(lambda *a: jnp.mean(loss(*a, labels)), argnums=(0, 1, 2)))(x, W, b)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), sharded, alone)
"""


@pytest.mark.evidence
@pytest.mark.parametrize("function", ["linear_cross_entropy", "mean_linear_cross_entropy"])
def test_shard_map_on_two_devices(function):
    """Rows in shards, W and b replicated: their cotangent is summed over the shards, as jax.grad's is."""
    two = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    flags = {**os.environ, "XLA_FLAGS": two, "JAX_PLATFORMS": "cpu"}
    code = in_shards(function)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=flags)
    assert done.returncode == 0, done.stderr


class Flax(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(D, D, param_dtype=jnp.float64, rngs=rngs)
        self.readout = nnx.Linear(D, V, param_dtype=jnp.float64, rngs=rngs)


def test_a_flax_model_gets_its_own_gradient():
    model = Flax()

    def ours(model: Flax) -> Any:
        h = nnx.tanh(model.hidden(X))
        return mean(h, model.readout.kernel[...].T, model.readout.bias[...], LABELS)

    def theirs(model: Flax) -> Any:
        o = model.readout(nnx.tanh(model.hidden(X)))
        return plain_mean(o, jnp.eye(V), None, LABELS)

    by_hand, by_jax = (nnx.jit(nnx.value_and_grad(loss))(model) for loss in (ours, theirs))
    assert_close(*((value, jax.tree.leaves(gradient)) for value, gradient in (by_hand, by_jax)), 1e-13)


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    readout: eqx.nn.Linear


def test_an_equinox_model_gets_its_own_gradient():
    keys = jax.random.split(jax.random.key(0), 2)
    model = Equinox(*(eqx.nn.Linear(D, n, dtype=jnp.float64, key=key) for n, key in zip((D, V), keys, strict=True)))
    x = X.reshape(-1, D)

    def ours(model: Equinox) -> Any:
        h = jnp.tanh(jax.vmap(model.hidden)(x))
        return mean(h, model.readout.weight, model.readout.bias, LABELS.reshape(-1))

    def theirs(model: Equinox) -> Any:
        o = jax.vmap(lambda row: model.readout(jnp.tanh(model.hidden(row))))(x)
        return plain_mean(o, jnp.eye(V), None, LABELS.reshape(-1))

    by_hand, by_jax = (eqx.filter_jit(eqx.filter_value_and_grad(loss))(model) for loss in (ours, theirs))
    assert_close(*((value, jax.tree.leaves(gradient)) for value, gradient in (by_hand, by_jax)), 1e-13)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": X[..., :4]}, ValueError, r"x is \[3, 4, 4\] and W is \[7, 5\], expected \[..., d\] and \[V, d\]"),
        ({"W": W.T}, ValueError, r"W is \[5, 7\], expected"),
        ({"b": B[:3]}, ValueError, r"b is \[3\], expected \[7\]"),
        ({"labels": LABELS[:2]}, ValueError, r"labels are \[2, 4\], expected \[3, 4\]"),
        ({"labels": LABELS.astype(float)}, TypeError, "labels must be integers, got float64"),
        ({"labels": LABELS + V}, ValueError, "labels for 7 logits must lie in 0..6"),
        ({"x": X.astype("float32")}, TypeError, "W is float64 but x is float32"),
        ({"x": X.astype(int)}, TypeError, "x must hold floats, got int64"),
        ({"weights": SHARES[0]}, ValueError, r"weights are \[4\] but labels are \[3, 4\]"),
        ({"weights": SHARES.astype("float32")}, TypeError, "weights are float32 but x is float64"),
        ({"chunk": 0}, ValueError, "chunk must be a number of rows >= 1"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing must be in 0..1"),
    ],
)
def test_what_does_not_fit_is_refused(without_hook, change, error, says):
    given = {"x": X, "W": W, "b": B, "labels": LABELS, "ignored": -1} | change
    with pytest.raises(error, match=says):
        mean_linear_cross_entropy(**given)
    if "weights" not in change:
        with pytest.raises(error, match=says):
            linear_cross_entropy(**given)
