"""Softmax cross-entropy with ignored labels, smoothed labels and a z-loss, against optax, jax.grad and jax.hessian."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, batch, generic

import manual_backprop as mb
import reference

N, T, C = 4, 3, 5
OPTIONS = {
    "ignored": {"ignored": -1},
    "ignored class": {"ignored": 2},
    "smoothed": {"label_smoothing": 0.9},
    "z-loss": {"z_loss": 0.3},
    "all": {"ignored": -1, "label_smoothing": 0.1, "z_loss": 0.05},
}
DTYPES = ("float64", "float32", "bfloat16", "float16")
RNG = np.random.default_rng(0)
O = 2 * RNG.normal(size=(N, T, C))  # noqa: E741
LABELS = RNG.integers(0, C, (N, T))
LABELS[1, 2] = LABELS[3, 0] = -1
LABELS[0] = -1  # an example that counts nothing
DISTRIBUTION = RNG.uniform(size=(N, T, C))
V = RNG.normal(size=O.shape)


def labels(options: dict[str, Any]) -> np.ndarray:
    """The labels where the option ignores -1; else with a class in the place of -1."""
    return LABELS if options.get("ignored") == -1 else np.where(LABELS < 0, 2, LABELS)


def definition(o: Any, y: Any, ignored: Any = None, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Any:
    """The loss of every example from optax and the definition of the z-loss."""
    counts = jnp.ones(o.shape[:-1], bool)
    if jnp.issubdtype(y.dtype, jnp.integer):
        counts = y != ignored if ignored is not None else counts
        y = jax.nn.one_hot(jnp.where(counts, y, 0), o.shape[-1], dtype=o.dtype)
    terms = optax.losses.softmax_cross_entropy(o, optax.smooth_labels(y, label_smoothing))
    terms += z_loss * jax.nn.logsumexp(o, axis=-1) ** 2
    return jnp.where(counts, terms, 0).sum(axis=range(1, terms.ndim))


@cache
def found(name: str) -> dict[str, tuple[Any, Any]]:
    """(by hand, by jax) of every quantity of a loss with options, from one compiled program."""
    options = OPTIONS[name]
    loss = mb.SoftmaxCrossEntropy(**options)

    @jax.jit
    def run(o: Any, y: Any, q: Any, v: Any) -> dict[str, tuple[Any, Any]]:
        def total(y: Any) -> Any:
            return lambda o: definition(o, y, **options).sum()

        def hessian_product(y: Any) -> Any:
            return jax.jvp(jax.grad(total(y)), (o,), (v,))[1]

        results = {"dl/dy": (loss.target_derivative(o, q), jax.grad(lambda q: total(q)(o))(q))}
        for kind, t in (("labels", y), ("distribution", q)):
            results[f"{kind}: value"] = loss.value(o, t), definition(o, t, **options)
            results[f"{kind}: derivative"] = loss.derivative(o, t), jax.grad(total(t))(o)
            results[f"{kind}: hessian_product"] = loss.hessian_product(o, t, v), hessian_product(t)
            roots = loss.hessian_root(o, t)
            along = jnp.einsum("kntc,kn->ntc", roots, jnp.einsum("kntc,ntc->kn", roots, v))
            results[f"{kind}: hessian_root"] = along, hessian_product(t)
        return results

    return run(jnp.abs(O), labels(options), DISTRIBUTION, V)  # at logits > 0 every root is real


@pytest.mark.parametrize("name", OPTIONS)
def test_every_quantity_equals_that_of_optax_and_jax(name):
    """(J1) (B1) and the second order, for labels and for distributions that need not sum to one."""
    for which, (ours, theirs) in found(name).items():
        assert np.abs(np.asarray(theirs)).max() > 0.01, which
        assert_close(ours, theirs, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_positions_are_zero_whatever_their_logits_are(dtype):
    o = O.copy()
    o[0], o[1, 2], o[3, 0] = np.nan, np.inf, -np.inf
    loss = mb.SoftmaxCrossEntropy(ignored=-1, label_smoothing=0.1, z_loss=0.1)
    o, y = array(o, dtype), jnp.asarray(LABELS)

    @jax.jit
    def run(o, v):
        return loss.value(o, y), loss.derivative(o, y), loss.hessian_product(o, y, v)

    value, slope, product = run(o, array(V, dtype))
    assert np.isfinite(np.asarray(value, float)).all()
    assert float(value[0]) == 0
    assert slope.dtype == product.dtype == o.dtype
    for each in (slope, product):
        assert not np.asarray(each, float)[LABELS == -1].any()
        assert np.asarray(each, float)[LABELS != -1].any(axis=-1).all()


def test_labels_of_a_type_that_cannot_hold_the_ignored_label_all_count():
    o, y = jnp.asarray(O), jnp.asarray(np.where(LABELS < 0, 2, LABELS).astype("uint8"))
    assert_close(mb.SoftmaxCrossEntropy(ignored=-1).value(o, y), mb.softmax_cross_entropy.value(o, y), 1e-15)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_narrow_labels_reach_classes_beyond_their_own_range(dtype):
    """With 300 classes, class 256 is not class 0 of uint8, and 300 is no overflow of int8."""
    o, y, v = jnp.sin(jnp.arange(600.0)).reshape(2, 300), jnp.asarray([0, 100]), jnp.cos(jnp.arange(600.0))
    loss = mb.softmax_cross_entropy

    def found(y: Any) -> Any:
        v_like_o = v.reshape(o.shape)
        return (
            loss.value(o, y),
            loss.derivative(o, y),
            loss.chunk_derivative(o, y),
            loss.hessian_product(o, y, v_like_o),
        )

    wide = jax.jit(found)(y)
    assert_close(jax.jit(found)(y.astype(dtype)), wide, 0)
    assert_close(wide[1], wide[2], 1e-15)


def test_labels_out_of_range_are_refused_and_traced_are_nan():
    loss = mb.SoftmaxCrossEntropy(ignored=-1, label_smoothing=0.1)
    o = jax.ShapeDtypeStruct(O.shape, jnp.dtype("float64"))
    loss.check(o, jnp.asarray(LABELS))
    for wrong in (-2, C):
        y = jnp.asarray(np.where(LABELS == 2, wrong, LABELS))
        with pytest.raises(ValueError, match=rf"labels for {C} logits must lie in 0..{C - 1}, got"):
            loss.check(o, y)
        slope = np.asarray(jax.jit(loss.derivative)(O, y))
        np.testing.assert_array_equal(np.isnan(slope).any(axis=-1), np.asarray(y) == wrong)
    with pytest.raises(ValueError, match="got -1 to"):
        mb.softmax_cross_entropy.check(o, jnp.asarray(LABELS))


def test_a_root_that_is_not_real_is_refused_and_traced_is_nan():
    """1 + 2 z log sum exp < 0 makes the Hessian's eigenvalues negative."""
    loss, y = mb.SoftmaxCrossEntropy(z_loss=0.5), jnp.asarray([1, 2])
    o = jnp.asarray([[1.0, 2.0, 3.0], [-4.0, -5.0, -6.0]])
    with pytest.raises(ValueError, match=r"no real hessian_root here: .* falls to -2.59"):
        loss.hessian_root(o, y)
    roots = np.asarray(jax.jit(loss.hessian_root)(o, y))
    assert np.isnan(roots[:, 1]).any()
    assert not np.isnan(roots[:, 0]).any()
    eigenvalues = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda o: definition(o[None], y[1:], z_loss=0.5)[0]))(o[1]))
    assert eigenvalues[0] < -0.01


def test_drawn_labels_have_a_meaning_only_where_the_loss_is_a_likelihood():
    key = jax.random.key(0)
    plain = mb.softmax_cross_entropy.sample_derivative(key, jnp.asarray(O))
    smoothed = mb.SoftmaxCrossEntropy(label_smoothing=0.3).sample_derivative(key, jnp.asarray(O))
    np.testing.assert_array_equal(plain, smoothed)  # H does not know of the smoothing
    for options, why in (({"z_loss": 0.1}, "z_loss is no part"), ({"ignored": 0}, "which positions are ignored")):
        with pytest.raises(NotImplementedError, match=why):
            mb.SoftmaxCrossEntropy(**options).sample_derivative(key, jnp.asarray(O))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_every_equation_with_all_options_is_proven(dtype):
    net = mb.mlp((3, 4, C))
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(-1, 0.1, 0.5), mb.Frobenius(0.1))
    x = np.asarray(batch(3 * T, N)).reshape(N, T, 3)
    reference.check(objective, generic(net), x, LABELS, dtype=dtype).raise_if_failed()


def test_a_loss_prints_the_options_that_are_set():
    assert str(mb.softmax_cross_entropy) == "SoftmaxCrossEntropy()"
    assert str(mb.SoftmaxCrossEntropy(-1, 0.1, chunk=8)) == (
        "SoftmaxCrossEntropy(ignored=-1, label_smoothing=0.1, chunk=8)"
    )


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be in 0..1, got -0.1"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be in 0..1, got 1.5"),
        ({"z_loss": -1e-4}, ValueError, "z_loss must be finite and >= 0, got -0.0001"),
        ({"z_loss": float("nan")}, ValueError, "z_loss must be finite and >= 0, got nan"),
        ({"z_loss": float("inf")}, ValueError, "z_loss must be finite and >= 0, got inf"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a number, got str '0.1'"),
        ({"ignored": -1.0}, TypeError, "ignored must be an int or None, got float -1.0"),
        ({"ignored": True}, TypeError, "ignored must be an int or None, got bool True"),
        ({"chunk": 0}, ValueError, "chunk must be a number of rows >= 1, got 0"),
        ({"chunk": 2.0}, TypeError, "chunk must be an int or None, got float 2.0"),
    ],
)
def test_options_out_of_range_are_refused(without_hook, options, error, says):
    with pytest.raises(error, match=says):
        mb.SoftmaxCrossEntropy(**options)
