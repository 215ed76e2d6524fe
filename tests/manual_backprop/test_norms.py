"""RMS norm and layer norm against autodiff, Flax and Equinox, in all precisions, and where rows are extreme."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import array, assert_close, batch, by_operation, generic, targets

import manual_backprop as mb
import reference
from manual_backprop.layers import Gain, GainAndBias
from manual_backprop.layers.normalization import Normalized, normalized
from reference import model

D, N = 6, 5
RMS, LAYER, PLAIN = mb.RMSNorm(D), mb.LayerNorm(D), mb.LayerNorm(D, bias=False)
ALL = (RMS, LAYER, PLAIN)
X = batch(D, N)
SEQUENCES = array(np.random.default_rng(5).normal(1, 2, (N, 3, D)))
NET = mb.Serial(
    (
        mb.Repeat(mb.Residual(mb.Serial((mb.RMSNorm(4), mb.Dense(4, 4, "tanh")))), 2),
        mb.Tied(mb.Residual(mb.LayerNorm(4, activation="gelu")), 2),
        mb.LayerNorm(4, bias=False),
        mb.Dense(4, 3),
    )
)
TWICE = mb.Tied(mb.LayerNorm(4, activation="gelu"), 2)
FLAT = mb.Serial((mb.RMSNorm(4, activation="tanh"), TWICE, mb.LayerNorm(4, bias=False), mb.Dense(4, 3)))
ROWS, LABELS = batch(4, N), targets(mb.softmax_cross_entropy, 3, N)


def named(value: Any) -> str:
    return str(value) if isinstance(value, mb.layers.Layer) else ""


@pytest.mark.parametrize(
    "layer", [mb.RMSNorm(D, eps=0.3, activation="tanh"), mb.LayerNorm(D, eps=0.3, activation="silu"), PLAIN], ids=named
)
def test_every_method_is_right(layer: Any) -> None:
    with by_operation():
        report = reference.check_layer(layer, generic(layer), SEQUENCES)
    assert report.passed, report
    assert not report.notes
    assert report.worst.used < 0.1


@pytest.mark.parametrize("layer", (RMS, LAYER), ids=named)
def test_positions_on_two_axes_are_as_on_one(layer: Any) -> None:
    params, delta = generic(layer), array(np.random.default_rng(7).normal(size=SEQUENCES.shape))

    @jax.jit
    def everything(x: Any, delta: Any) -> Any:
        z, saved = layer.net_input(params, x)
        along = layer.pushforward(params, saved, params, delta), layer.pushforward_params(params, x, saved, params)
        bent, moved = layer.change(params, saved, params, delta, z)
        rows = z, layer.transport(params, saved, delta), *along, bent
        factor = layer.factor(saved, delta)
        readings = factor.total(), factor.squared_norms(), factor.squared_sum(), factor.gram(factor)
        return [row.reshape(SEQUENCES.shape) for row in rows], readings, factor.per_example(), moved.weighted_sum()

    of_grids = everything(*(rows.reshape(N, 1, 3, D) for rows in (SEQUENCES, delta)))
    assert_close(of_grids, everything(SEQUENCES, delta))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_network_of_them_is_proven(dtype: str) -> None:
    """Results of rows in every narrow precision are held against float64 below."""
    objective = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    report = reference.check(objective, generic(NET), ROWS, LABELS, dtype=dtype)
    assert report.passed, report


def constant_statistics(self: Any, params: Any, saved: Any, delta: Any) -> Any:
    return saved.r * delta * jnp.broadcast_to(params.gain, delta.shape)


def constant_mean(self: Any, params: Any, saved: Any, delta: Any) -> Any:
    return mb.RMSNorm.transport(RMS, params, Normalized(normalized(saved) / saved.r, saved.r), delta)


def of_input(self: Any, saved: Any, delta: Any) -> Any:
    factor = mb.layers.normalization.Normalization.factor(self, saved, delta)
    return dataclasses.replace(factor, xhat=saved.x)


def without(name: str, value: float) -> Any:
    """A method that takes one parameter for a constant."""

    def of(method: Any) -> Any:
        def wrong(self: Any, params: Any, *args: Any) -> Any:
            constant = jnp.full_like(getattr(params, name), value)
            return method(self, dataclasses.replace(params, **{name: constant}), *args)

        return wrong

    return of


MISTAKES: dict[str, tuple[Any, str, Any, str]] = {
    "the gain is missing": (mb.RMSNorm, "net_input", without("gain", 1.0)(mb.RMSNorm.net_input), "(F1)"),
    "the bias is missing": (mb.LayerNorm, "net_input", without("bias", 0.0)(mb.LayerNorm.net_input), "(F1)"),
    "the mean is not subtracted": (mb.LayerNorm, "statistics", mb.RMSNorm.statistics, "(F1)"),
    "the gain is missing on the way back": (
        mb.RMSNorm,
        "transport",
        without("gain", 1.0)(mb.RMSNorm.transport),
        "(B5)",
    ),
    "the statistics are taken for constants": (mb.RMSNorm, "transport", constant_statistics, "(B5)"),
    "the mean is taken for a constant": (mb.LayerNorm, "transport", constant_mean, "(B5)"),
    "x where the normalised x is meant": (mb.RMSNorm, "factor", of_input, "(B3)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, method, wrong, equation = MISTAKES[mistake]
    net = mb.Serial((kind(4), mb.Dense(4, 3)))
    monkeypatch.setattr(kind, method, wrong)
    first = reference.check(mb.Objective(net, mb.squared_error), generic(net), ROWS, batch(3, N)).failures[0]
    assert (first.equation, first.kind) == (equation, "equation"), first
    assert mistake.removesuffix(" on the way back") in first.cause


def hand(layer: Any) -> Any:
    """The layer's output, and its gradients along a delta, by hand."""

    def both(params: Any, x: Any, delta: Any) -> Any:
        z, trace = mb.forward(layer, params, x)
        d_x, deltas = mb.backward(layer, params, trace, delta)
        ones = jnp.ones(len(x), mb.precision.accumulator(x.dtype))
        return z, mb.gradients(layer, trace, deltas, weights=ones), d_x

    return both


def peers(layer: Any, params: Any) -> dict[str, tuple[Any, Any]]:
    """Functions of (their parameters, x) from other libraries, with ours among their parameters."""
    gain, bias, centred = params.gain, getattr(params, "bias", None), isinstance(layer, mb.LayerNorm)
    named = {"scale": gain} if bias is None else {"scale": gain, "bias": bias}
    if centred:
        linen: Any = nn.LayerNorm(layer.eps, use_bias=layer.bias, use_fast_variance=False)
        other: Any = nnx.LayerNorm(D, epsilon=layer.eps, use_bias=layer.bias, use_fast_variance=False, rngs=nnx.Rngs(0))
        module: Any = eqx.nn.LayerNorm(D, layer.eps, use_bias=layer.bias)
    else:
        linen = nn.RMSNorm(layer.eps, use_fast_variance=False)
        other = nnx.RMSNorm(D, epsilon=layer.eps, use_fast_variance=False, rngs=nnx.Rngs(0))
        module = eqx.nn.RMSNorm(D, layer.eps, use_bias=False)
    definition, _ = nnx.split(other)

    def of_linen(p: Any, x: Any) -> Any:
        return linen.apply({"params": p}, x)

    def of_nnx(p: Any, x: Any) -> Any:
        return nnx.merge(definition, nnx.State({name: nnx.Param(leaf) for name, leaf in p.items()}))(x)

    def of_equinox(p: Any, x: Any) -> Any:
        filled = eqx.tree_at(
            lambda m: (m.weight, m.bias), module, (p["scale"], p.get("bias")), is_leaf=lambda n: n is None
        )
        return jax.vmap(jax.vmap(filled))(x)

    return {"linen": (of_linen, named), "nnx": (of_nnx, named), "equinox": (of_equinox, named)}


@pytest.mark.parametrize("layer", ALL, ids=named)
def test_other_libraries_give_the_same_values_and_gradients(layer: Any) -> None:
    params, delta = generic(layer), array(np.random.default_rng(7).normal(size=SEQUENCES.shape))
    others = peers(layer, params)

    @jax.jit
    def everything(params: Any, theirs: Any, x: Any, delta: Any) -> Any:
        found = {}
        for name, (apply, _) in others.items():
            value, pull = jax.vjp(apply, theirs[name], x)
            found[name] = value, pull(delta)
        return hand(layer)(params, x, delta), found

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        named = {name: params for name, (_, params) in others.items()}
        (z, gradient, d_x), found = everything(params, named, SEQUENCES, delta)
    ours = {"scale": gradient.gain} | ({"bias": gradient.bias} if layer is LAYER else {})
    assert found.keys() == {"linen", "nnx", "equinox"}
    for theirs in found.values():
        assert_close((z, (ours, d_x)), theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("layer", ALL, ids=named)
def test_statistics_of_large_rows_are_wide_and_results_are_rounded_once(layer: Any, dtype: str) -> None:
    """Rows around 1000 and near the largest float16, held against float64 on the same numbers."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(1e3, 4, (2, D)), 6e4 * rng.choice([-1, 1], (2, D)) + rng.normal(0, 100, (2, D))])
    params, x, delta = generic(layer, dtype=dtype), array(rows, dtype), array(rng.normal(size=rows.shape), dtype)
    wide = jax.tree.map(lambda leaf: leaf.astype("float64"), (params, x, delta))
    with by_operation():
        found, exact = hand(layer)(params, x, delta), hand(layer)(*wide)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))
    u, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        cancelled = 32 * float(jnp.finfo("float32").eps) * np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours, "float64"), theirs, rtol=u / 2, atol=cancelled + tiny)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -6e4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_constant_row_is_zero_and_has_a_finite_gradient(value: float, dtype: str) -> None:
    """The mean of seven equal numbers is not always that number; the deviations are zero all the same."""
    x, delta = array(np.full((2, 7), value), dtype), array(np.ones((2, 7)), dtype)
    for layer in (mb.LayerNorm(7), mb.RMSNorm(7)):
        with by_operation():
            found = hand(layer)(layer.init(jax.random.key(0), dtype), x, delta)
        z, gradient, d_x = jax.tree.map(lambda leaf: np.asarray(leaf, float), found)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((z, gradient, d_x)))
        if isinstance(layer, mb.LayerNorm):
            assert not z.any() and not gradient.gain.any() and not d_x.any()


def test_a_row_far_from_zero_keeps_its_digits() -> None:
    """In float32, a spread of 1 around 2^20: exact numbers, so float64 says what is right."""
    rows = 2.0**20 + np.random.default_rng(0).integers(-8, 8, (4, D)) / 8
    z, exact = (mb.forward(PLAIN, PLAIN.init(jax.random.key(0), d), array(rows, d))[0] for d in ("float32", "float64"))
    np.testing.assert_allclose(np.asarray(z, "float64"), exact, atol=1e-6)


@pytest.mark.parametrize("layer", ALL, ids=named)
def test_every_reading_is_that_of_the_examples_gradients(layer: Any) -> None:
    params, delta = generic(layer), array(np.random.default_rng(9).normal(size=SEQUENCES.shape))
    weights = array(np.random.default_rng(2).uniform(size=N))

    def one(params: Any, x: Any, delta: Any) -> Any:
        return jnp.sum(model.apply(layer, params, x[None])[0] * delta)

    @jax.jit
    def by_hand(*at: Any) -> Any:
        return (
            mb.gradients(layer, *at),
            mb.gradients(layer, *at, weights=weights),
            mb.factors(layer, *at).total(),
            mb.per_example_gradients(layer, *at),
            mb.squared_norms(layer, *at),
            mb.second_moment(layer, *at),
            mb.gram(layer, *at),
            mb.clipped_gradients(layer, *at, 2.0),
        )

    _, trace = mb.forward(layer, params, SEQUENCES)
    each = jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(params, SEQUENCES, delta))
    flat = np.concatenate(jax.tree.leaves(each), axis=1)
    clip = np.minimum(1, 2 / np.linalg.norm(flat, axis=1))
    expected = (
        jax.tree.map(lambda g: np.mean(g, axis=0), each),
        jax.tree.map(lambda g: np.asarray(weights) @ g, each),
        jax.tree.map(lambda g: np.sum(g, axis=0), each),
        each,
        np.sum(flat**2, axis=1),
        jax.tree.map(lambda g: np.mean(g**2, axis=0), each),
        flat @ flat.T,
        jax.tree.map(lambda g: clip @ g, each),
    )
    assert_close(by_hand(trace, delta), expected)


def test_tied_uses_add_up_before_they_are_squared() -> None:
    net = mb.Tied(mb.LayerNorm(4, activation="tanh"), 3)
    params, objective = generic(net), mb.Objective(net, mb.squared_error)
    y = batch(4, N, seed=8)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return reference.value_and_grad(objective)(params, x[None], y[None])[1]

    @jax.jit
    def both(*data: Any) -> Any:
        step = mb.backprop(objective, *data)
        return mb.squared_norms(net, step.trace, step.deltas), jax.vmap(loss, (None, 0, 0))(*data)

    norms, each = both(params, ROWS, y)
    flat = np.concatenate(jax.tree.leaves(each), axis=1)
    assert_close(norms, np.sum(flat**2, axis=1))


def test_hessian_vector_products_are_jvps_of_grad() -> None:
    objective = mb.Objective(FLAT, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    grad = jax.grad(lambda params: model.value(objective, params, ROWS, LABELS))

    @jax.jit
    def both(params: Any, v: Any) -> Any:
        ours = mb.curvature.hessian_vector_product(objective, params, ROWS, LABELS, v)
        return ours, jax.jvp(grad, (params,), (v,))[1]

    assert_close(*both(generic(FLAT), generic(FLAT, seed=3)), 1e-11)


def test_what_is_kept_is_the_input_and_numbers_of_each_row() -> None:
    x = jax.ShapeDtypeStruct(SEQUENCES.shape, "bfloat16")

    def kept(layer: Any, x: Any) -> Any:
        z, saved = layer.net_input(layer.init(jax.random.key(0), "bfloat16"), x)
        assert z.dtype == x.dtype and saved.x is x
        return saved

    for layer, numbers in ((RMS, 1), (LAYER, 2)):
        saved = jax.eval_shape(partial(kept, layer), x)
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(saved)[1:]]
        assert shapes == [((N, 3, 1), "float32")] * numbers


def test_they_start_from_the_standardized_row_and_are_not_regularised() -> None:
    z, _ = mb.forward(LAYER, LAYER.init(jax.random.key(0)), X)
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((z**2).mean(axis=1), 1, atol=1e-4)
    assert RMS.weights == LAYER.weights == ()
    assert isinstance(RMS.init(jax.random.key(0)), Gain)
    assert isinstance(PLAIN.init(jax.random.key(0)), GainAndBias) and PLAIN.init(jax.random.key(0)).bias is None


def test_they_say_what_they_are_and_are_drawn() -> None:
    assert str(mb.RMSNorm(4, activation="tanh")) == "RMSNorm(4, eps=1e-06, tanh)"
    assert str(mb.LayerNorm(4, 1e-5, False)) == "LayerNorm(4, eps=1e-05, identity, no bias)"
    objective = mb.Objective(mb.Serial((mb.RMSNorm(3), mb.LayerNorm(3), mb.LayerNorm(3, bias=False))), mb.squared_error)
    assert "gain" in mb.forward_graph(objective).mermaid()
    assert "g' diag gain^(1)" in mb.backward_graph(objective).mermaid()


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("kind", [mb.RMSNorm, mb.LayerNorm])
def test_bad_input_is_refused_in_words(kind: Any) -> None:
    name = kind.__name__
    for d in (0, -1, 2.0, True, "4"):
        with pytest.raises(ValueError, match=f"{name} d must be an int >= 1"):
            kind(d)
    for eps in (0.0, -1e-6, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps must be finite and above 0"):
            kind(4, eps)
    with pytest.raises(TypeError, match="eps must be a number"):
        kind(4, "1e-6")
    with pytest.raises(TypeError, match="eps is static and must be a Python number"):
        kind(4, jnp.asarray(1e-6))
    with pytest.raises(ValueError, match="no activation is called 'tahn'"):
        kind(4, activation="tahn")
    with pytest.raises(ValueError, match=f"{name}.* takes 4 features on the last axis, got an example of shape"):
        kind(4).out_shape((3,))
    with pytest.raises(ValueError, match="takes 4 features on the last axis"):
        mb.forward(kind(4), kind(4).init(jax.random.key(0)), X)
    with pytest.raises(TypeError, match="LayerNorm bias must be True or False"):
        mb.LayerNorm(4, bias=jnp.zeros(4))
