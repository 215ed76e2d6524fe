"""One table, at the input and at the output: its gradient is the sum over both uses, in every reading."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import array, assert_close, every_time, generic
from jax.flatten_util import ravel_pytree
from test_embeddings import FEW, IDS, LABELS, LAM, LENGTH, VOCAB, D, compared

import manual_backprop as mb
import reference
from manual_backprop.layers import Table
from manual_backprop.node import Node, Wrapper
from reference import model

BODY = mb.Serial((mb.PositionalEmbedding(LENGTH, D), mb.Dense(D, D, "tanh")))
NET = mb.TiedReadout(mb.Embedding(VOCAB, D, "tanh"), BODY)
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(LAM))


def tied(params, ids):
    """The logits of NET, from the definition."""
    table, (positions, hidden) = params
    x = jnp.tanh(jax.nn.one_hot(ids, VOCAB) @ table.W)
    x = x + jnp.broadcast_to(positions.P[: ids.shape[-1]], x.shape)
    return jnp.tanh(x @ hidden.W.T + jnp.broadcast_to(hidden.b, x.shape)) @ table.W.T


def test_every_reading_is_jaxs():
    compared(NET, tied, IDS, LABELS)


def test_readings_of_pairs_are_jaxs_where_positions_are_few():
    """Products of examples go another way where pairs of positions are fewer than rows of the table."""

    @jax.jit
    def both(params, ids, labels):
        step = mb.backprop(OBJECTIVE, params, ids, labels)
        at = NET, step.trace, step.deltas

        def loss(params, ids, labels):
            return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(tied(params, ids), labels))

        rows = jax.vmap(lambda *one: ravel_pytree(jax.grad(loss)(params, *one))[0])(ids, labels)
        return (mb.squared_norms(*at), mb.gram(*at)), (jnp.sum(rows**2, axis=1), rows @ rows.T)

    assert_close(*both(generic(NET), *FEW))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_check_proves_it(dtype):
    """Both uses have rows of their own in trace and deltas, and W one gradient."""
    report = reference.check(OBJECTIVE, generic(NET), IDS, LABELS, dtype=dtype)
    assert report.verdict != "fail", report.summary()
    if dtype == "float64":
        assert report.passed, report.summary()
    of_equations = [row.path for row in report.rows if row.kind == "equation"]
    assert of_equations.count("gradients[0].W") == 1
    assert {"trace[0].z", "trace[2].z", "deltas[0]", "deltas[2]"} <= set(of_equations)


def test_it_equals_two_tables_that_hold_the_same_numbers():
    """Untied: the same z and delta, and a gradient that is the sum of theirs; one penalty, not two (B6)."""
    params = generic(NET)
    apart = mb.Serial((NET.embedding, *BODY.nodes, mb.Dense(D, VOCAB, bias=False)))

    @jax.jit
    def both(params):
        same = (params[0], *params[1], mb.Affine(params[0].W))
        theirs = mb.backprop(mb.Objective(apart, mb.softmax_cross_entropy), same, IDS, LABELS)
        return mb.backprop(OBJECTIVE, params, IDS, LABELS), theirs

    ours, theirs = both(params)
    table, body, readout = ours.deltas
    assert_close((table, *body, readout), theirs.deltas)
    assert_close(ours.gradients[0].W, theirs.gradients[0].W + theirs.gradients[3].W + LAM * params[0].W)
    assert_close(
        ours.d_lam, 0.5 * sum(jnp.sum(jnp.square(leaf)) for leaf in (params[0].W, params[1][0].P, params[1][1].W))
    )


def test_gradients_are_flaxs():
    """`nnx.Embed` with `attend`, which is the same readout."""
    net = mb.TiedReadout(mb.Embedding(VOCAB, D), mb.Dense(D, D, "tanh"))
    params = generic(net)

    def loss(model):
        embed, hidden = model
        logits = embed.attend(jnp.tanh(hidden(embed(IDS))))
        return jnp.mean(jnp.sum(-jax.nn.log_softmax(logits) * jax.nn.one_hot(LABELS, VOCAB), axis=(1, 2)))

    rngs = nnx.Rngs(0)
    embed = nnx.Embed(VOCAB, D, param_dtype="float64", rngs=rngs)
    hidden = nnx.Linear(D, D, param_dtype="float64", rngs=rngs)
    embed.embedding[...] = params[0].W
    hidden.kernel[...], hidden.bias[...] = params[1].W.T, params[1].b
    theirs = nnx.jit(nnx.grad(loss))(nnx.List([embed, hidden]))
    ours = jax.jit(mb.value_and_grad(mb.Objective(net, mb.softmax_cross_entropy)))(params, IDS, LABELS)[1]
    assert_close(
        (ours[0].W, ours[1].W.T, ours[1].b),
        (theirs[0].embedding[...], theirs[1].kernel[...], theirs[1].bias[...]),
    )


def test_the_check_names_a_use_that_is_left_out():
    """(B4) of the table, and nothing else."""

    def forgetful(objective, params, x, y, **given):
        step = mb.backprop(objective, params, x, y, **given)
        readout = NET.readout.factor(step.trace[2].saved, step.deltas[2]).weighted_sum()
        return replace(step, gradients=(Table(readout.W + LAM * params[0].W), step.gradients[1]))

    report = reference.check(OBJECTIVE, generic(NET), IDS, LABELS, backprop=forgetful)
    failed = {(row.equation, row.path) for row in report.rows if row.verdict == "fail" and row.kind == "equation"}
    assert failed == {("(B4)", "gradients[0].W")}


INNER = mb.Serial((mb.PositionalEmbedding(LENGTH, D), mb.Repeat(mb.Residual(mb.Dense(D, D, "tanh")), 4, segments=2)))
DEEP = mb.Serial(
    (mb.TiedReadout(mb.Embedding(VOCAB, D), mb.Serial((INNER, mb.Tied(mb.Dense(D, D, "tanh"), 2)))), mb.Dense(VOCAB, 2))
)


@dataclass(frozen=True)
class Halved(Wrapper):
    """Half of a block's output, as a composite that the equation check must measure."""

    block: Node

    def forward(self, step, x, owned):
        output, kept = self.block.forward(step, x, owned)
        return jax.tree.map(lambda leaf: leaf / 2, output), kept

    def backward(self, step, d, owned, kept):
        return self.block.backward(step, jax.tree.map(lambda leaf: leaf / 2, d), owned, kept)


@model.through.register
def _(node: Halved, at, x, params, *uses):
    output, found = model.through(node.block, at, x, params, *uses)
    return output / 2, found


@pytest.mark.parametrize("net", every_time([DEEP, Halved(NET)], Halved(NET)), ids=["deep", "wrapped"])
def test_it_is_a_part_like_any_other(net):
    loss = mb.squared_error if net is DEEP else mb.softmax_cross_entropy
    y = array(np.random.default_rng(4).normal(size=(*IDS.shape, 2))) if net is DEEP else LABELS
    objective, params, v = mb.Objective(net, loss, mb.Frobenius(LAM)), generic(net), generic(net, seed=5)
    report = reference.check(objective, params, IDS, y)
    assert report.passed, report.summary()

    def second(value_and_grad):
        return jax.jvp(lambda p: value_and_grad(objective)(p, IDS, y)[1], (params,), (v,))[1]

    both = jax.jit(lambda: (mb.hessian_vector_product(objective, params, IDS, y, v), second(reference.value_and_grad)))
    assert_close(*both())


def test_rules():
    """Each use has an entry of its own in a rule: W's feedback is B, and an edit draws for each use."""
    net = mb.TiedReadout(mb.Embedding(VOCAB, D), mb.Dense(D, D, "tanh"))
    objective = mb.Objective(net, mb.softmax_cross_entropy)
    params, feedback = generic(net), generic(net, seed=8)

    @jax.jit
    def steps(params):
        def under(rule):
            return mb.backprop(objective, params, IDS, LABELS, rule=rule)

        drawn = mb.rules.on_delta(lambda site: jax.random.normal(site.key, site.delta.shape), key=jax.random.key(1))
        return [under(rule) for rule in (mb.rules.backprop, mb.rules.FeedbackAlignment(feedback), drawn)]

    true, aligned, drawn = steps(params)
    assert_close(aligned.deltas[2], true.deltas[2])
    assert_close(aligned.deltas[1], (true.deltas[2] @ feedback[0].W) * (1 - true.trace[1].a ** 2))
    first, last = (np.asarray(drawn.deltas[use]).ravel() for use in (0, 2))
    assert len(np.intersect1d(first, last)) == 0
    with pytest.raises(ValueError, match="the network ends in"):
        mb.rules.direct_feedback(NET, jax.random.key(0))
    with pytest.raises(ValueError, match="2 edits in a tuple do not mirror"):
        mb.backprop(objective, params, IDS, LABELS, rule=mb.rules.on_delta((None, None)))


def test_it_is_drawn_and_diagnosed():
    params = generic(NET)
    for draw in (mb.forward_graph, mb.backward_graph):
        for graph in (draw(OBJECTIVE), draw(OBJECTIVE, params, IDS, LABELS)):
            assert "TiedReadout" in {text for vertex in graph.vertices for text in (vertex.label, *vertex.notes)}
    step = jax.jit(partial(mb.backprop, OBJECTIVE))(params, IDS, LABELS)
    text = mb.diagnosis.table(mb.diagnose(NET, step.trace, step.deltas))
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["[0]", "[1][0]", "[1][1]", "[2]"]


def test_bad_input(without_hook):
    with pytest.raises(TypeError, match="TiedReadout embedding must be an Embedding, whose W is used, got Dense"):
        mb.TiedReadout(mb.Dense(3, 3), BODY)
    with pytest.raises(TypeError, match="TiedReadout is made of layers and composites, got None"):
        mb.TiedReadout(mb.Embedding(VOCAB, D), None)
    with pytest.raises(ValueError, match=r"Readout\(3 -> 7, by the embedding's W\) takes 3 features on the last axis"):
        mb.TiedReadout(mb.Embedding(VOCAB, D), mb.Dense(D, 4)).out_shape((2,))
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.6, got 0 to 9"):
        mb.forward(NET, generic(NET), IDS.at[0, 0].set(9))
    step = jax.jit(partial(mb.backprop, OBJECTIVE))(generic(NET), IDS, LABELS)
    with pytest.raises(ValueError, match="delta is float64"):
        mb.gradients(NET, step.trace, (step.deltas[0][:2], *step.deltas[1:]))
    for columns in (False, True):
        deltas = jax.tree.map(lambda leaf: leaf[None], step.deltas) if columns else step.deltas
        with pytest.raises(TypeError, match="outer product .Dense., got OfBoth"):
            mb.kronecker_factors(NET, step.trace, deltas, columns=columns)
