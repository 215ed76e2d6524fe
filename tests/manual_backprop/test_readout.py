"""Readout and loss in chunks of rows: equal to jax.grad of the plain formula, and the logits never exist."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, batch, generic

import manual_backprop as mb
import reference
from manual_backprop import readout, rules
from reference import model

N, T, V = 5, 3, 7
OPTIONS = {"ignored": -1, "label_smoothing": 0.1, "z_loss": 0.05}
LABELS = np.random.default_rng(0).integers(-1, V, (N, T))
LABELS[2] = -1  # an example that counts nothing
BODY = (mb.Dense(4, 6, "tanh"), mb.Residual(mb.Dense(6, 6, "gelu")))
NETS = {
    "serial": mb.Serial((*BODY, mb.Dense(6, V))),
    "without bias": mb.Serial((*BODY, mb.Dense(6, V, bias=False))),
    "nested": mb.Serial((mb.Serial(BODY), mb.Serial((mb.Serial((mb.Dense(6, 5, "silu"), mb.Dense(5, V))),)))),
    "readout alone": mb.Dense(4, V),
    "readout in a serial": mb.Serial((mb.Dense(4, V),)),
}
X = batch(4 * T, N).reshape(N, T, 4)
Y = jnp.asarray(LABELS)
WEIGHTS = jnp.asarray([0.5, 1.0, 0.25, 0.0, 2.0])


def objective(net: Any, chunk: int | None = 4, lam: float = 0.1, **options: Any) -> mb.Objective:
    return mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk, **options), mb.Frobenius(lam))


def witness(net: mb.Serial, weights: Any) -> Any:
    """The objective from optax on the reference's forward, for the options above."""

    def J(params: Any, x: Any) -> Any:
        o = model.outputs(net, params, x)
        q = optax.smooth_labels(jax.nn.one_hot(LABELS, V, dtype=o.dtype), 0.1)
        terms = optax.losses.softmax_cross_entropy(o, q) + 0.05 * jax.nn.logsumexp(o, axis=-1) ** 2
        losses = jnp.where(LABELS >= 0, terms, 0).sum(axis=1)
        weight_leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        return (weights * losses).sum() + 0.05 * sum((leaf**2).sum() for leaf in weight_leaves)

    return J


@pytest.mark.parametrize(
    ("name", "chunks_of_mean", "chunks_of_sum"),
    [
        ("serial", (5,), (4, 100)),
        ("nested", (4,), ()),
        *((name, (), (4,)) for name in NETS if "serial" != name != "nested"),
    ],
    ids=str,
)
def test_value_and_gradient_equal_those_of_jax(name, chunks_of_mean, chunks_of_sum):
    """The mean and a weighted sum, for chunks that divide the rows, that do not, and that are larger; (B2) to (B6)."""
    net = NETS[name]
    params = generic(net)

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        def by_hand(chunk: int, weights: Any) -> Any:
            problem, given = objective(net, chunk, **OPTIONS), {"weights": weights}
            return problem(params, x, Y, **given), *mb.value_and_grad(problem, (0, 1))(params, x, Y, **given)

        def by_jax(weights: Any) -> Any:
            return jax.value_and_grad(witness(net, weights), (0, 1))(params, x)

        asked = (chunks_of_mean, None, jnp.full(N, 1 / N)), (chunks_of_sum, WEIGHTS, WEIGHTS)
        return [([by_hand(n, weights) for n in chunks], by_jax(same)) for chunks, weights, same in asked if chunks]

    for ours, (value, gradients) in run(params, X):
        for called, found, by_hand in ours:
            assert_close((called, found, by_hand), (value, value, gradients), 1e-13)


@pytest.mark.parametrize("entries", [4 * 2, 4 * 3, 4 * 7], ids=["with a rest", "and a larger one", "all at once"])
def test_dW_is_added_up_by_blocks_of_classes(entries, monkeypatch):
    """Two, three and all seven classes at a time."""
    monkeypatch.setattr(readout, "BLOCK", entries)
    net = NETS["readout alone"]
    params = generic(net)
    ours = jax.jit(mb.value_and_grad(objective(net, **OPTIONS)))(params, X, Y, weights=WEIGHTS)
    assert_close(ours, jax.jit(jax.value_and_grad(witness(net, WEIGHTS)))(params, X), 1e-13)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_fused_gradient_is_proven(dtype):
    net = NETS["serial"]
    report = reference.check(objective(net, **OPTIONS), generic(net), X, LABELS, weights=WEIGHTS, dtype=dtype)
    report.raise_if_failed()
    assert any(row.path.startswith("value_and_grad.gradients") for row in report.rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_weights_enter_where_sums_are_formed(dtype):
    """2e-6 times a row would keep five bits in float16, though the sum over 600 rows keeps all."""
    net = mb.Dense(4, V)
    params, x, y = generic(net), jnp.tile(X.reshape(-1, 4), (40, 1)), jnp.tile(jnp.abs(Y.reshape(-1)), 40)

    def gradient(dtype: str, sums: str) -> Any:
        given = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(sums), (params, x))
        weights = jnp.full(y.size, 2e-6, "float32" if sums != "float64" else sums)
        problem = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=100))
        found = mb.value_and_grad(problem)(*given, y, weights=weights)
        return jax.tree.map(lambda leaf: leaf.astype("float64"), found[1])

    ours, exact = jax.jit(lambda: (gradient(dtype, dtype), gradient(dtype, "float64")))()
    assert_close(ours, exact, float(jnp.finfo(dtype).eps))


def test_large_logits_neither_overflow_nor_give_nan():
    net = mb.Dense(1, 2)
    params = mb.Affine(jnp.asarray([[1e4], [-1e4]], "float32"), jnp.zeros(2, "float32"))
    x, y = jnp.asarray([[1.0], [-1.0], [1.0]], "float32"), jnp.asarray([0, 0, 1])
    value, gradient = jax.jit(mb.value_and_grad(mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=2))))(params, x, y)
    np.testing.assert_allclose(value, 4e4 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient.W, [[2 / 3], [-2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(gradient.b, [0, 0], atol=1e-6)


def test_an_example_that_is_ignored_throughout_gives_zeros():
    net = NETS["serial"]
    problem = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=4, **OPTIONS))
    value, gradients = jax.jit(mb.value_and_grad(problem, (0, 1)))(generic(net), X, jnp.full_like(Y, -1))
    assert float(value) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_a_label_out_of_range_is_refused_and_traced_gives_nan():
    net = NETS["serial"]
    problem, params, wrong = objective(net), generic(net), jnp.where(Y < 0, V, Y)
    with pytest.raises(ValueError, match=f"labels for {V} logits must lie in 0..{V - 1}"):
        mb.value_and_grad(problem)(params, X, wrong)
    value, gradients = jax.jit(mb.value_and_grad(problem))(params, X, wrong)
    assert np.isnan(value)
    assert np.isnan(gradients[0].W).all()


def test_other_rules_and_target_distributions_go_the_ordinary_way():
    net = NETS["serial"]
    params, other = generic(net), generic(net, seed=5)
    q = jax.nn.softmax(jnp.asarray(np.random.default_rng(3).normal(size=(N, T, V))))

    @jax.jit
    def run(params: Any) -> Any:
        def found(chunk: int | None) -> Any:
            gradient = mb.value_and_grad(objective(net, chunk, ignored=-1), (0, 1))
            aligned = gradient(params, X, Y, rule=rules.FeedbackAlignment(other))
            d_q = jax.grad(mb.as_custom_vjp(objective(net, chunk)), argnums=2)(params, X, q)
            return aligned, gradient(params, X, q), d_q

        return found(4), found(None), mb.value_and_grad(objective(net, 4, ignored=-1), (0, 1))(params, X, Y)

    fused, plain, backpropagated = run(params)
    assert_close(fused, plain, 1e-15)
    assert np.abs(fused[0][1][0][0].W - backpropagated[1][0][0].W).max() > 0.01


def test_as_a_custom_rule_every_argument_gets_its_cotangent():
    net = NETS["serial"]
    problem = objective(net, **OPTIONS)
    arguments = generic(net), X, Y, jnp.asarray(0.3), WEIGHTS

    def plain(*given: Any) -> Any:
        return model.value(problem, *given[:3], lam=given[3], weights=given[4])

    report = reference.check_vjp(jax.jit(mb.as_custom_vjp(problem)), *arguments, raw=plain, transforms=("jit",))
    report.raise_if_failed()


def test_backprop_shows_the_logits_and_agrees():
    net = NETS["serial"]
    problem, params = objective(net, **OPTIONS), generic(net)
    step, (value, gradients) = jax.jit(
        lambda *given: (mb.backprop(problem, *given), mb.value_and_grad(problem)(*given))
    )(params, X, Y)
    assert step.output.shape == (N, T, V)
    assert_close((step.value, step.gradients), (value, gradients), 1e-14)


def test_the_logits_never_exist():
    """No array of the program has rows times classes entries, and its memory is a fraction of theirs."""
    rows, d, classes, chunk = 2048, 16, 1024, 64
    net = mb.Serial((mb.Dense(8, d, "tanh"), mb.Dense(d, classes)))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), "float32"))
    x, y = jax.ShapeDtypeStruct((rows, 8), "float32"), jax.ShapeDtypeStruct((rows,), "int32")

    def memory(chunk: int | None) -> int:
        problem = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk))
        for function in (mb.value_and_grad(problem), problem, jax.grad(mb.as_custom_vjp(problem))):
            text = str(jax.make_jaxpr(function)(params, x, y))
            assert (f"[{rows},{classes}]" in text) == (chunk is None)
        compiled = jax.jit(mb.value_and_grad(problem)).lower(params, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * rows * classes
    assert memory(chunk) < 0.15 * logits
    assert memory(None) > 0.9 * logits


@pytest.mark.parametrize(
    "net",
    [
        mb.mlp((4, V), output_activation="tanh"),
        mb.Serial((mb.Dense(4, V), mb.Residual(mb.Dense(V, V)))),
        mb.Repeat(mb.Dense(V, V), 2),
    ],
    ids=str,
)
def test_a_network_without_a_linear_end_is_refused_with_chunks(net):
    with pytest.raises(ValueError, match=r"chunk=4\) makes logits in chunks, so the network must end in a Dense"):
        mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=4))
    mb.Objective(net, mb.SoftmaxCrossEntropy())


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_taken_apart_and_put_together(name):
    net = NETS[name]
    found = readout.split(net)
    params = generic(net)
    body, last = found.of_body(params), found.readout(params)
    assert last.W.shape[0] == V
    assert (found.body is None) == (body == ())
    joined = found.joined(body, last)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert_close(joined, params, 0)
    if found.body is not None:
        z = mb.forward(found.body, body, X)[0] @ last.W.T
        assert_close(z if last.b is None else z + last.b[None, None], mb.forward(net, params, X)[0], 1e-14)


def test_sums_over_chunks_are_formed_in_float32():
    """dW is summed over all chunks in float32 and rounded once: 600 equal rows would stall a bfloat16 sum at 256."""
    net = mb.Dense(1, 2, bias=False)
    params, x = mb.Affine(jnp.zeros((2, 1), "bfloat16")), jnp.ones((600, 1), "bfloat16")
    weights = jnp.full(600, 2.0, "float32")
    problem = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=1))
    gradient = jax.jit(mb.value_and_grad(problem))(params, x, jnp.zeros(600, int), weights=weights)[1]
    np.testing.assert_array_equal(np.asarray(gradient.W, float), array(np.asarray([[-600.0], [600.0]]), "bfloat16"))
