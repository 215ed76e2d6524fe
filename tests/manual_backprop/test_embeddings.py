"""Embeddings of ids and of positions: gradients and readings are JAX's, repeated ids add up, bad ids show."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, batch, by_method, by_operation, generic
from jax.flatten_util import ravel_pytree

import manual_backprop as mb
import reference
from manual_backprop.layers import Lookup, Positions, Table
from manual_backprop.layers.positional_embedding import Shifts

VOCAB, D, LENGTH, N, T = 7, 3, 5, 4, 4
IDS = jnp.asarray([[0, 3, 3, 3], [6, 1, 6, 2], [5, 5, 5, 5], [0, 1, 2, 3]])  # rows drawn several times in an example
LABELS = jnp.asarray([[3, 3, 3, 0], [1, 6, 2, 6], [5, 5, 0, 5], [1, 2, 3, 4]])
FEW = (IDS[:3, :2], LABELS[:3, :2])  # shorter, so that pairs of positions are fewer than rows
WEIGHTS = array(np.asarray([0.3, 0.0, 1.7, 0.4]))
LAM = 0.1
NET = mb.Serial(
    (mb.Embedding(VOCAB, D), mb.PositionalEmbedding(LENGTH, D), mb.Dense(D, D, "tanh"), mb.Dense(D, VOCAB, bias=False))
)


def untied(params: Any, ids: Any) -> Any:
    """The logits of NET, from the definition."""
    table, positions, hidden, last = params
    x = embedded(table, positions, ids)
    return jnp.tanh(x @ hidden.W.T + jnp.broadcast_to(hidden.b, x.shape)) @ last.W.T


def embedded(table: Any, positions: Any, ids: Any) -> Any:
    """The vectors of the ids plus those of their positions."""
    x = jax.nn.one_hot(ids, VOCAB) @ table.W
    return x + jnp.broadcast_to(positions.P[: ids.shape[-1]], x.shape)


def compared(net: Any, forward: Callable[..., Any], ids: Any, labels: Any) -> None:
    """Every reading by hand against JAX's, in one program."""
    params, v = generic(net), generic(net, seed=5)

    @jax.jit
    def both(*args: Any) -> Any:
        return readings(net, *args), by_jax(forward, *args)

    ours, theirs = both(params, ids, labels, v)
    assert ours.keys() == theirs.keys()
    for name, found in ours.items():
        assert_close({name: found}, {name: theirs[name]})


def readings(net: Any, params: Any, x: Any, y: Any, v: Any) -> dict[str, Any]:
    """Every reading of a language model by hand."""
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(LAM))
    step = mb.backprop(objective, params, x, y)
    at = (net, step.trace, step.deltas)
    weights, two = WEIGHTS[: len(x)], jax.tree.map(lambda leaf: leaf[:2], at[1:])
    return {
        "gradients": step.gradients,
        "value_and_grad, weighted": mb.value_and_grad(objective)(params, x, y, weights=weights),
        "per_example": mb.per_example_gradients(*at),
        "norms": mb.squared_norms(*at),
        "clipped": mb.clipped_gradients(*at, 0.7, weights=weights),
        "second_moment": mb.second_moment(*at),
        "second_moment, weighted": mb.second_moment(*at, weights=weights),
        "gram": mb.gram(*at, two),
        "noise_scale": mb.noise_scale(*at).scale,
        "fisher": mb.fisher_diagonal(objective, params, x, y),
        "gauss_newton": mb.gauss_newton_vector_product(objective, params, x, y, v, weights=weights),
        "hessian": mb.hessian_vector_product(objective, params, x, y, v, weights=weights),
    }


def decayed(params: Any) -> list[Any]:
    """What weight decay counts: every matrix of the network, the two tables among them."""
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]


def by_jax(forward: Callable[..., Any], params: Any, x: Any, y: Any, v: Any) -> dict[str, Any]:
    """The same by JAX, from a forward written in the test."""
    weights, n = WEIGHTS[: len(x)], len(x)
    mean = jnp.full(n, 1 / n)

    def loss(params: Any, ids: Any, labels: Any) -> Any:
        logits = forward(params, ids)
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))

    def summed(weights: Any, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), tree)

    def J(params: Any, weights: Any) -> Any:
        weighted = jnp.dot(weights, jax.vmap(loss, (None, 0, 0))(params, x, y))
        return weighted + LAM / 2 * optax.tree.norm(decayed(params), squared=True)

    def J_gauss_newton(params: Any) -> Any:
        """J with the logits linearised at the parameters, so that its Hessian is the Gauss-Newton matrix."""
        logits, slope = jax.linearize(lambda p: forward(p, x), at)
        z = logits + slope(jax.tree.map(jnp.subtract, params, at))
        each = optax.losses.softmax_cross_entropy_with_integer_labels(z, y)
        return jnp.dot(weights, jnp.sum(each, axis=1)) + LAM / 2 * optax.tree.norm(decayed(params), squared=True)

    at = params
    per_example = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)
    rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(per_example)
    norms = jnp.sum(rows**2, axis=1)
    clip = weights * jnp.minimum(1, 0.7 / jnp.sqrt(norms))
    squares = jax.tree.map(jnp.square, per_example)
    of_mean, of_one = jnp.sum(jnp.mean(rows, axis=0) ** 2), jnp.mean(norms)

    def curved(ids: Any) -> Any:
        """The diagonal of J_n^T H_n J_n, from the whole Jacobian."""
        p = jax.nn.softmax(forward(params, ids))
        H = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
        jacobian = jax.jacrev(lambda params: forward(params, ids))(params)

        def of_leaf(leaf: Any) -> Any:
            by_entry = leaf.reshape(*p.shape, -1)
            return jnp.einsum("tip,tij,tjp->p", by_entry, H, by_entry).reshape(leaf.shape[2:])

        return jax.tree.map(of_leaf, jacobian)

    return {
        "gradients": jax.grad(J)(params, mean),
        "value_and_grad, weighted": jax.value_and_grad(J)(params, weights),
        "per_example": per_example,
        "norms": norms,
        "clipped": summed(clip, per_example),
        "second_moment": summed(mean, squares),
        "second_moment, weighted": summed(weights, squares),
        "gram": rows @ rows[:2].T,
        "noise_scale": n * (of_one - of_mean) / (n * of_mean - of_one),
        "fisher": summed(mean, jax.vmap(curved)(x)),
        "gauss_newton": jax.jvp(jax.grad(J_gauss_newton), (params,), (v,))[1],
        "hessian": jax.jvp(jax.grad(lambda p: J(p, weights)), (params,), (v,))[1],
    }


def test_every_reading_is_jaxs():
    compared(NET, untied, IDS, LABELS)


def test_products_of_few_positions_are_jaxs():
    """Pairs of positions are fewer than rows, so the tables of the examples are not formed."""
    params, (ids, labels) = generic(NET), FEW
    objective = mb.Objective(NET, mb.softmax_cross_entropy)

    def loss(params, ids, labels):
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(untied(params, ids), labels))

    @jax.jit
    def both(params):
        step = mb.backprop(objective, params, ids, labels)
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, ids, labels)
        ours = mb.gram(NET, step.trace, step.deltas), mb.per_example_gradients(NET, step.trace, step.deltas)
        return ours, each

    (gram, each), theirs = both(params)
    assert_close(each, theirs)
    rows = np.concatenate([np.asarray(leaf).reshape(len(ids), -1) for leaf in jax.tree.leaves(theirs)], axis=1)
    assert_close(gram, rows @ rows.T)


def test_embedding_passes_its_check():
    layer = mb.Embedding(VOCAB, D, "tanh")
    with by_method(mb.Embedding, Lookup):
        assert reference.check_layer(layer, generic(layer), IDS).verdict == "pass"


def test_ids_without_positions_are_as_those_of_one_position():
    layer = mb.Embedding(VOCAB, D)
    own, change, delta = generic(layer), generic(layer, seed=5), batch(D, N)

    def everything(ids, delta):
        z, saved = layer.net_input(own, ids)
        dz = layer.pushforward(own, saved, change, None)
        one = layer.factor(saved, delta)
        uses = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), one).tied()
        readings = [
            (f.total(), f.weighted_sum(), f.per_example(), f.squared_norms(), f.squared_sum(), f.gram(one))
            for f in (one, uses)
        ]
        return (z, dz), readings

    @jax.jit
    def both():
        return everything(IDS[:, 0], delta), everything(IDS[:, :1], delta[:, None])

    ours, expected = both()
    assert_close(ours[1], expected[1])
    assert_close([np.asarray(part) for part in ours[0]], [np.asarray(part)[:, 0] for part in expected[0]])
    assert layer.out_shape(()) == (D,)


def test_positional_embedding_passes_its_check():
    layer = mb.PositionalEmbedding(LENGTH, D, "tanh")
    x = array(np.random.default_rng(1).normal(size=(N, T, D)))
    with by_method(mb.PositionalEmbedding, Shifts):
        assert reference.check_layer(layer, generic(layer), x).verdict == "pass"


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_check_proves_a_language_model(dtype):
    objective = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(LAM))
    report = reference.check(objective, generic(NET), IDS, LABELS, dtype=dtype)
    assert report.verdict != "fail", report.summary()
    if dtype == "float64":
        assert report.passed, report.summary()
    assert {row.path for row in report.rows} >= {"gradients[0].W", "gradients[1].P"}


def test_gradients_are_equinoxs():
    W, delta = generic(mb.Embedding(VOCAB, D)).W, array(np.random.default_rng(3).normal(size=(N, T, D)))

    @jax.jit
    def theirs(table, delta):
        out, pull = jax.vjp(lambda table: jax.vmap(jax.vmap(table))(IDS), table)
        return out, pull(delta)[0].weight

    out, d_table = theirs(equinox.nn.Embedding(weight=W), delta)
    layer = mb.Embedding(VOCAB, D)
    with by_operation():
        z, saved = layer.net_input(Table(W), IDS)
        assert_close((z, layer.factor(saved, delta).total().W), (out, d_table))


def test_a_sequence_reads_the_first_positions_alone():
    layer, delta = mb.PositionalEmbedding(LENGTH, D), jnp.ones((N, 2, D))
    found = layer.factor((), delta).total()
    np.testing.assert_array_equal(found.P, np.repeat([[N], [N], [0], [0], [0]], D, axis=1))
    other = layer.factor((), jnp.ones((1, 4, D)))  # a longer one, which shares two positions with these
    for one, another in ((layer.factor((), delta), other), (other, layer.factor((), delta))):
        np.testing.assert_array_equal(one.gram(another).ravel(), np.full(N, 2.0 * D))


def test_sums_are_wide():
    """In bfloat16 a sum of ones stops at 256; formed in float32, it does not."""
    ids, delta = np.zeros((1000, 1), "int32"), array(np.ones((1000, 1, 1)), "bfloat16")
    narrow = np.full((1000, 1), 100, "int8")  # which cannot hold the number of rows

    @jax.jit
    def sums(ids, narrow, delta):
        return (
            Lookup(ids, delta, 2).total().W[0, 0],
            Lookup(narrow, delta, 300).total().W[100, 0],
            mb.PositionalEmbedding(1, 1).factor((), delta).total().P[0, 0],
            Lookup(ids.reshape(1, -1), delta.reshape(1, -1, 1), 2).squared_norms()[0],
        )

    assert list(map(float, sums(ids, narrow, delta))) == [1000, 1000, 1000, 1e6]


BAD = [jnp.asarray([[0, 1], [2, VOCAB]]), jnp.asarray([[0, 1], [-1, 2]]), np.asarray([[0, 1], [2, 200]], "uint8")]


@pytest.mark.parametrize("ids", BAD, ids=["too large", "negative", "8 bits"])
def test_ids_out_of_range_are_refused_where_they_are_known_and_nan_where_they_are_not(ids):
    params, y = generic(NET), jnp.zeros((2, 2), int)
    objective = mb.Objective(NET, mb.softmax_cross_entropy)
    low, high = int(ids.min()), int(ids.max())
    for call in (lambda: mb.forward(NET, params, ids), lambda: mb.value_and_grad(objective)(params, ids, y)):
        with pytest.raises(ValueError, match=rf"ids must lie in 0\.\.6, got {low} to {high}"):
            call()
    layer, (own, *_) = NET.nodes[0], params
    z, _ = jax.jit(layer.net_input)(own, jnp.asarray(ids))
    wrong = (np.asarray(ids, int) < 0) | (np.asarray(ids, int) >= VOCAB)
    np.testing.assert_array_equal(np.isnan(z), np.repeat(wrong[..., None], D, axis=2))


def test_a_bad_id_does_not_vanish_from_gradients():
    """Its delta belongs to no row, so the gradient, and every reading of that example, is nan."""

    @jax.jit
    def readings(factor):
        sums = factor.total(), factor.weighted_sum(), factor.squared_sum()
        return sums, factor.per_example().W, factor.squared_norms(), factor.gram(factor)

    for positions in (2, 3):  # fewer and more pairs of positions than rows
        ids = np.zeros((2, positions), int)
        ids[1, 0] = 9
        factor = Lookup(jnp.asarray(ids), jnp.asarray(np.ones((2, positions, 3))), 5)
        sums, each, norms, gram = readings(factor)
        assert all(np.isnan(table.W).all() for table in sums)
        np.testing.assert_array_equal(np.isnan(each).all(axis=(1, 2)), [False, True])
        np.testing.assert_array_equal(np.isnan(norms), [False, True])
        np.testing.assert_array_equal(np.isnan(gram), [[False, True], [True, True]])


def test_bad_input(without_hook):
    layer = mb.Embedding(VOCAB, D)
    params = generic(layer)
    with pytest.raises(TypeError, match=r"Embedding\(vocab=7, d=3, identity\) takes integer ids, got float64; convert"):
        mb.forward(layer, params, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="takes integer ids, got 2 inputs"):
        mb.forward(layer, params, (IDS, IDS))
    with pytest.raises(ValueError, match="Embedding vocab must be an int >= 1, got 0"):
        mb.Embedding(0, 3)
    with pytest.raises(ValueError, match="PositionalEmbedding length must be an int >= 1, got 2.5"):
        mb.PositionalEmbedding(2.5, 3)
    with pytest.raises(ValueError, match=r"up to 5 positions with 3 features each, got an example of shape \(6, 3\)"):
        mb.forward(mb.PositionalEmbedding(LENGTH, D), Positions(jnp.ones((LENGTH, D))), jnp.ones((2, 6, D)))
    with pytest.raises(TypeError, match="x must hold floats, got int64; convert it .* takes no integers"):
        mb.forward(mb.Dense(2, 2), generic(mb.Dense(2, 2)), IDS[:, :2])
    objective = mb.Objective(NET, mb.softmax_cross_entropy)
    step = jax.eval_shape(lambda: mb.backprop(objective, generic(NET), IDS, LABELS))
    with pytest.raises(TypeError, match="kronecker_factors are known for layers whose gradient is an outer product"):
        jax.eval_shape(partial(mb.kronecker_factors, NET), step.trace, step.deltas)
    lookup, shifts = Lookup(IDS, jnp.ones((N, T, 1)), 7), mb.PositionalEmbedding(4, 1).factor((), jnp.ones((N, T, 1)))
    for one, other in ((lookup, shifts), (shifts, lookup)):
        with pytest.raises(TypeError, match="both must be of one layer"):
            one.gram(other)
