"""The computational graph (G1): what it says is computed again from its arrows alone, and held against jax.grad."""

import dataclasses
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
import reference
from manual_backprop.layers.base import Parameters
from reference.model import ACTIVATIONS
from tests.helpers import assert_close, batch, generic
from tests.reference.test_layer_check import Convolution, X

BLOCK = mb.Residual(mb.Serial((mb.Dense(4, 3, "tanh"), mb.Dense(3, 4, "sigmoid"))))
CHAINS = {
    "one layer": mb.mlp((4, 3)),
    "mlp": mb.mlp((4, 5, 6, 3), ("tanh", "softplus")),
    "no bias": mb.Serial((mb.Dense(4, 5, "tanh", bias=False), mb.Dense(5, 5, "softplus"), mb.Dense(5, 3, bias=False))),
    "residual": mb.Serial((BLOCK, mb.Dense(4, 3))),
    "residual within": mb.Serial((mb.Residual(mb.Residual(mb.Dense(4, 4, "silu"))), mb.Dense(4, 3))),
    "ends in a sum": mb.Serial((mb.Dense(4, 3, "tanh"), mb.Residual(mb.Dense(3, 3, "tanh")))),
}  # fmt: skip
COMPOSITES = mb.Serial(
    (
        mb.Dense(4, 4, "tanh"),
        mb.Tied(mb.Serial((mb.Dense(4, 4, "relu"), mb.Repeat(mb.Dense(4, 4), 2))), 3),
        mb.Repeat(BLOCK, 8),
        mb.Dense(4, 3),
    )
)
GATE = mb.Serial((mb.Parallel((mb.Dense(4, 5, "silu"), mb.Dense(4, 5))), mb.Product(), mb.Dense(5, 4)))
GATED = {
    "a gate": GATE,
    "a gate past which goes x": mb.Serial((mb.Residual(GATE), mb.Dense(4, 3))),
    "residuals in branches": mb.Serial((mb.Parallel((mb.Residual(mb.Dense(4, 4)), BLOCK)), mb.Product())),
    "gates in branches": mb.Serial((mb.Parallel((GATE, mb.Residual(GATE))), mb.Product(), mb.Dense(4, 3))),
    "branches longer than a row": mb.Serial((mb.Parallel((mb.mlp((4,) * 7), mb.Dense(4, 4))), mb.Product())),
    "a tuple in a sum": mb.Serial(
        (
            mb.Parallel((mb.Dense(4, 3, "tanh"), mb.Dense(4, 3))),
            mb.Residual(mb.Parallel((mb.Product(), mb.Product("tanh")))),
            mb.Product(),
        )
    ),
}  # fmt: skip
BOTH = (mb.forward_graph, mb.backward_graph)
MEAN = "(1/N) sum_n "


def problem(net, n=1, lam=0.1):
    return of(net, lam), generic(net), batch(4, n), jnp.arange(n) % 3


def of(net, lam=0.1):
    return mb.Objective(net, mb.softmax_cross_entropy, None if lam is None else mb.Frobenius(lam))


def by_layer(net, params):
    """Parameters of every layer that has some, by its number."""
    numbers = iter(range(1, net.depth + 1))
    found = []
    net.map(lambda layer, own: found.append((next(numbers), own)), params)
    return {number: block for number, block in found if block != ()}


def computed_forward(graph, layers, x, y):
    """Every vertex's value, from the arrows and the labels of the circles alone."""
    values = {"x": x, "y": y}
    for number, block in layers.items():
        values |= {f"W_{number}": block.W, f"b_{number}": block.b}
    for vertex in graph.vertices:
        if vertex.key in values:
            continue
        entering = {arrow.tail for arrow in graph.into(vertex.key)}
        weights = [values[key] for key in entering if key.startswith("W_")]
        others = [values[key] for key in sorted(entering) if not key.startswith("W_")]
        if vertex.label == "‖·‖_F^2":
            lam = float(vertex.notes[-1].removeprefix("λ = "))
            values[vertex.key] = lam / 2 * sum(jnp.sum(W * W) for W in weights)
        elif vertex.label == "×":
            values[vertex.key] = others[0] @ weights[0].T if weights else others[0] * others[1]
        elif vertex.label == "+":
            rows = [jnp.broadcast_to(value, jnp.broadcast_shapes(*map(jnp.shape, others))) for value in others]
            values[vertex.key] = sum(rows[1:], rows[0])
        elif vertex.label.startswith("f_"):
            values[vertex.key] = ACTIVATIONS[vertex.notes[0]](others[0])
        elif vertex.label == "l":
            logits = next(value for value in others if value is not y)
            values[vertex.key] = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
        else:
            (values[vertex.key],) = others
    return values


WITHIN = {"mlp", "residual within", "a gate"}  # parts of other networks here, or of the opened chains below


@pytest.mark.parametrize(
    ("name", "lam"), [*((name, 0.1) for name in [*CHAINS, *GATED] if name not in WITHIN), ("residual", None)]
)
def test_the_graphs_compute_the_objective_and_every_gradient(name, lam):
    assert_gradients(*problem({**CHAINS, **GATED}[name], 5, lam))


def local(label, forward, layers):
    """The local derivative that an arrow's label names, as what is done to one row an example."""
    if label.startswith(MEAN):  # over the examples; without it the gradient of a parameter is a sum, or one an example
        own, n = label.removeprefix(MEAN), len(forward["x"])
        return (lambda g: g.sum(axis=0) / n) if own == "I" else lambda g: local(own, forward, layers)(g) / n
    number = int((re.findall(r"\((\d+)\)", label) or ["0"])[-1])
    key = re.sub(r"\W+", "_", label.removesuffix("^T").replace("'", "p")).strip("_")
    if label in ("1", "I"):
        return lambda g: g
    if label == "dl/do":
        logits = next(forward[k] for k in reversed(list(forward)) if k[:2] in ("a_", "h_") or k[:3] == "hp_")
        return lambda g: g * (jax.nn.softmax(logits) - jax.nn.one_hot(forward["y"], logits.shape[-1]))
    if label.startswith("(W"):
        return lambda g: g @ layers[number].W
    if label.startswith("diag f"):
        f = ACTIVATIONS[forward["activations"][number]]
        return lambda g: g * jax.vmap(jax.vmap(jax.grad(f)))(forward[f"z_{number}"])
    if label.startswith("diag"):
        return lambda g: g * forward[key.removeprefix("diag_")]
    if label.startswith("lambda"):
        return lambda g: g * 0.1 * layers[number].W
    assert label.endswith("^T"), label
    return lambda g: jnp.einsum("ni,nj->ij", g, forward[key])


def assert_gradients(objective, params, x, y, drawn=None, n=0):
    """The graphs, of `drawn` with its chain of n blocks written out if given, against jax.grad of `objective`."""
    graphs = [draw(drawn or objective) for draw in BOTH]
    if drawn is not None:
        graphs = [unrolled(graph, n) for graph in graphs]

    def both_ways(*given):  # one program: most of the time goes into compiling
        return *computed(objective.net, *graphs, *given), reference.backprop(objective, *given)

    with jax.numpy_rank_promotion("allow"):
        forward_J, values, step = jax.jit(both_ways)(params, x, y)
    assert_close(forward_J, step.value)
    for number, block in by_layer(objective.net, step.gradients).items():
        assert_close(values[f"dW_{number}"], block.W)
        assert (f"db_{number}" in values) == (block.b is not None)
        if block.b is not None:
            assert_close(values[f"db_{number}"], block.b)
    deltas = jax.tree.leaves(step.deltas)
    assert {f"delta_{number}" for number in range(1, len(deltas) + 1)} <= set(values)
    for number, delta in enumerate(deltas, 1):
        assert_close(values[f"delta_{number}"], delta)
    assert_close(values["dx"], step.d_x)


def computed(net, forward_graph, graph, params, x, y):
    """J by the forward graph, and every gradient by the backward graph."""
    layers = by_layer(net, params)
    forward = computed_forward(forward_graph, layers, x, y)
    forward["activations"] = {i: layer.f.name for i, layer in enumerate(net.layers(), 1)}
    values = {"dJ": jnp.ones(())}
    for vertex in graph.vertices[1:]:
        arriving = [local(a.label, forward, layers)(values[a.tail]) for a in graph.into(vertex.key)]
        values[vertex.key] = sum(arriving[1:], arriving[0])
    return forward["J"], values


def unrolled(graph, n):
    """The graph of a chain with its n blocks written out: numbers for the sums, and the loop's arrow between blocks."""
    (box,) = [box for box in graph.boxes if box.label.startswith("Repeat")]
    (loop,) = [arrow for arrow in graph.arrows if arrow.lane == "loop"]
    backward = loop.tail.startswith("d")
    inner, outer = (loop.tail, loop.head) if backward else (loop.head, loop.tail)
    members, order = set(box.members), range(n)[:: -1 if backward else 1]

    def numbered(text, k):
        text = re.sub(r"(\d+)[+_](\d*)k", lambda m: str(int(m[1]) + k * int(m[2] or 1)), text)
        return text.replace("c_k", f"c_{k}")

    def at(key, k):
        own = ("dc_k" if backward else "c_k") if key == inner else key
        return numbered(own, k) if key in members else key

    first = next(i for i, v in enumerate(graph.vertices) if v.key in members)
    block = [v for v in graph.vertices if v.key in members]
    copies = [replace(v, key=at(v.key, k), label=numbered(v.label, k)) for k in order for v in block]
    around = [v for v in graph.vertices if v.key not in members]
    arrows = []
    for arrow in graph.arrows:
        ends = {arrow.tail, arrow.head} & members
        for k in range(n) if ends else [0]:
            tail, head = at(arrow.tail, k), at(arrow.head, k)
            if arrow is loop:
                tail, head = (at(inner, k + 1), at(outer, k)) if backward else (at(outer, k), at(inner, k + 1))
                if k + 1 == n:
                    continue
            elif arrow.lane != "penalty" and ((ends == {inner} and k > 0) or (ends == {outer} and k + 1 < n)):
                continue  # into the first block alone, and out of the last
            label = arrow.label.split(",")[0] if arrow is loop else numbered(arrow.label, k)
            arrows.append(replace(arrow, tail=tail, head=head, label=label))
    return replace(graph, vertices=(*around[:first], *copies, *around[first:]), arrows=tuple(arrows), boxes=())


@pytest.mark.parametrize("block", [mb.Residual(mb.Residual(mb.Dense(4, 4, "tanh"))), GATE, mb.Residual(GATE)])
def test_opened_chains_compute_the_objective_and_every_gradient(block):
    n = 3
    net = mb.Serial((mb.Repeat(block, n), mb.Dense(4, 3)))
    objective, params, x, y = problem(net, 2)
    written = mb.Serial((*(block,) * n, mb.Dense(4, 3)))
    parts = (*(jax.tree.map(lambda leaf, k=k: leaf[k], params[0]) for k in range(n)), params[1])
    assert_gradients(mb.Objective(written, objective.loss, objective.regularizer), parts, x, y, objective, n)


def test_a_two_layer_graph_is_the_published_one():
    """Which operator needs which variable, as D2L section 5.3 draws it, with the note's biases."""
    objective, *_ = problem(mb.mlp((4, 5, 3)))
    graph = mb.forward_graph(objective)
    needs = {v.key: {a.tail for a in graph.into(v.key)} for v in graph.vertices if v.kind == "operator"}
    assert needs == {
        "times_1": {"x", "W_1"}, "plus_1": {"times_1", "b_1"}, "f_1": {"z_1"},
        "times_2": {"a_1", "W_2"}, "plus_2": {"times_2", "b_2"}, "f_2": {"z_2"},
        "loss": {"a_2", "y"}, "norm": {"W_1", "W_2"}, "plus": {"L", "s"},
    }  # fmt: skip
    squares = {v.key for v in graph.vertices if v.kind == "variable"}
    assert squares == {"x", "y", "W_1", "b_1", "W_2", "b_2", "z_1", "a_1", "z_2", "a_2", "L", "s", "J"}


def test_without_a_bias_there_is_no_sum_and_no_gradient_of_one():
    objective, params, x, y = problem(mb.Serial((mb.Dense(4, 5, "tanh", bias=False), mb.Dense(5, 3))), 5)
    for given in ((), (params, x, y)):
        graph = mb.forward_graph(objective, *given)
        needs = {v.key: {a.tail for a in graph.into(v.key)} for v in graph.vertices if v.kind == "operator"}
        assert needs.keys() == {"times_1", "f_1", "times_2", "plus_2", "f_2", "loss", "norm", "plus"}
        assert {a.tail for a in graph.into("z_1")} == {"times_1"}
        back = mb.backward_graph(objective, *given)
        assert [v.key for v in back.vertices if v.role == "parameter"] == ["db_2", "dW_2", "dW_1"]


def test_blocks_that_repeat_are_drawn_once_with_numbered_layers():
    graph = mb.forward_graph(of(COMPOSITES))
    labels = {vertex.label for vertex in graph.vertices}
    assert {"z^(2+3k)", "z^(3+3k+j)", "z^(11+2k)", "h^(12+2k)", "z^(27)"} <= labels
    assert {"W^(2)", "W^(3+j)", "W^(11+2k)"} <= labels  # of tied blocks the parameters are the same for every k
    assert "W^(2+3k)" not in labels
    loops = {(arrow.tail, arrow.head, arrow.label) for arrow in graph.arrows if arrow.lane == "loop"}
    assert loops == {
        ("a_3_3k_j", "c_3_3k_j", "j+1"), ("a_3_3k_j", "c_2_3k", "k+1"), ("h_12_2k", "c_11_2k", "k+1"),
    }  # fmt: skip
    assert [box.label for box in graph.boxes][-1] == "Repeat: 8 blocks, k = 0..7"


@pytest.mark.parametrize("draw", BOTH)
def test_composites_open_by_levels(draw):
    objective, *_ = problem(COMPOSITES)
    closed, once, everything = (draw(objective, opened=levels) for levels in (False, 1, True))
    assert not closed.boxes
    assert [box.label.split(":")[0] for box in once.boxes] == ["Tied", "Repeat"]
    assert [box.label.split(":")[0] for box in everything.boxes] == ["Repeat", "Tied", "Residual", "Repeat"]
    assert len(closed.vertices) < len(once.vertices) < len(everything.vertices)


def test_closed_composites_are_boxes_between_variables():
    graph = mb.forward_graph(of(COMPOSITES), opened=False)
    assert [v.label for v in graph.vertices if v.kind == "composite"] == ["Tied: 3 blocks", "Repeat: 8 blocks"]
    assert {(a.tail, a.head) for a in graph.arrows} >= {("a_1", "box_10"), ("box_10", "a_10"), ("box_10", "norm")}


def test_a_closed_backward_graph_arrow_by_arrow():
    """Each composite passes its gradient on, gives its parameters theirs, and keeps (B1) for what the loss meets."""
    graph = mb.backward_graph(of(COMPOSITES), opened=False)
    signal = {(a.tail, a.head, a.label) for a in graph.arrows if a.lane == "straight" and "theta" not in a.head}
    assert signal >= {
        ("dh_26", "da_10", "dh^(26)/da^(10)"), ("da_10", "da_1", "da^(10)/da^(1)"),
        ("da_27", "delta_27", "diag f_27'(z^(27))"),
        ("delta_27", "dh_26", "(W^(27))^T"), ("delta_27", "dW_27", MEAN + "(h^(26))^T"),
        ("delta_1", "dW_1", MEAN + "x^T"), ("delta_1", "db_1", MEAN + "I"),
    }  # fmt: skip
    thetas = {(a.tail, a.head, a.label, a.lane) for a in graph.arrows if "theta" in a.head}
    assert thetas == {
        ("da_10", "dtheta_10", MEAN + "da^(10)/dtheta", "straight"), ("ds", "dtheta_10", "lambda W", "penalty"),
        ("dh_26", "dtheta_26", MEAN + "dh^(26)/dtheta", "straight"), ("ds", "dtheta_26", "lambda W", "penalty"),
    }  # fmt: skip
    assert [a.label for a in graph.into("da_10")] == ["dh^(26)/da^(10)"]
    assert graph["dtheta_10"].label == "dJ/dtheta"
    assert [graph[key].notes for key in ("delta_1", "delta_27")] == [("(B2)",), ("(B1)",)]
    plain = mb.backward_graph(of(COMPOSITES, lam=None), opened=False)
    assert plain["dtheta_10"].label == "dL/dtheta"
    assert [drawn["dW_1"].notes for drawn in (graph, plain)] == [("(B4) (B6)",), ("(B4)",)]


@pytest.mark.parametrize(
    ("net", "opened", "tags"),
    [
        (mb.Serial((mb.Dense(4, 4), mb.Repeat(mb.Dense(4, 4), 3))), False, ["(B2)"]),
        (mb.Serial((mb.Dense(4, 4), mb.Repeat(mb.Dense(4, 4), 3))), True, ["(B2)", "(B1) (B2)"]),
        (mb.Residual(mb.Dense(4, 4)), True, ["(B2)"]),
        (mb.Dense(4, 4), True, ["(B1)"]),
        (mb.mlp((4, 5, 5, 3)), True, ["(B2)", "(B2)", "(B1)"]),
    ],
)
def test_only_the_delta_that_the_loss_reaches_directly_is_of_b1(net, opened, tags):
    graph = mb.backward_graph(mb.Objective(net, mb.squared_error), opened=opened)
    deltas = [v for v in graph.vertices[::-1] if v.key.startswith("delta")]
    assert [vertex.notes[0] for vertex in deltas] == tags
    assert graph["dx"].notes[0] == "(B5)"


def test_what_enters_is_named_for_every_block():
    block = mb.Serial((mb.Residual(mb.Dense(4, 4)), mb.Dense(4, 4)))
    net = mb.Serial((mb.Dense(4, 4), mb.Repeat(block, 3), mb.Tied(mb.Serial((block, mb.Repeat(mb.Dense(4, 4), 2))), 2)))
    labels = {a.head: a.label for a in mb.backward_graph(mb.Objective(net, mb.squared_error), opened=1).arrows}
    assert labels["dc_2_2k"] == "dh^(2+2k)/dc_k"
    assert labels["dW_3_2k"] == MEAN + "(h^(2+2k))^T"
    opened = {a.head: a.label for a in mb.backward_graph(mb.Objective(net, mb.squared_error)).arrows}
    assert opened["dW_2_2k"] == MEAN + "c_k^T"
    assert opened["dW_10_j"] == MEAN + "c_j^T"  # tied: W of every use k, but of block j
    assert {"dW_8", "dW_9"} <= set(opened)


def test_parameters_within_tied_blocks_are_numbered_by_owner():
    net = mb.Tied(mb.Serial((mb.Repeat(mb.Dense(4, 4), 2), mb.Dense(4, 4))), 3)
    labels = {vertex.label for vertex in mb.forward_graph(mb.Objective(net, mb.squared_error)).vertices}
    assert {label for label in labels if label[0] == "W"} == {"W^(1+j)", "W^(3)"}
    assert {label for label in labels if label[0] == "z"} == {"z^(1+3k+j)", "z^(3+3k)"}


def test_a_closed_box_without_weights_has_no_penalty():
    kind = dataclasses.make_dataclass("Free", [("g", Any)], bases=(Parameters,), frozen=True)
    jax.tree_util.register_dataclass(kind)
    free = type("FreeLayer", (Convolution,), {"init": lambda self, key, dtype=None: kind(X)})()
    net = mb.Serial((mb.Residual(free), mb.Residual(mb.Dense(2, 2))))
    forward, backward = (draw(mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), opened=False) for draw in BOTH)
    assert {arrow.tail for arrow in forward.arrows if arrow.lane == "penalty"} == {"box_2"}
    assert {arrow.head for arrow in backward.arrows if arrow.lane == "penalty"} == {"dtheta_2"}
    assert backward["dtheta_1"].label == "dL/dtheta"


def test_values_are_those_of_the_step():
    net = mb.Serial((mb.Dense(4, 5, "tanh"), mb.Residual(mb.Dense(5, 5)), mb.Dense(5, 3)))
    objective, params, x, y = problem(net, 6)
    step = jax.jit(lambda *a: mb.backprop(objective, *a))(params, x, y)
    forward = mb.forward_graph(objective, params, x, y)
    backward = mb.backward_graph(objective, params, x, y)

    def shown(array):
        return "×".join(map(str, array.shape)), f"‖·‖ {np.linalg.norm(array):.3g}"

    assert forward["x"].notes == shown(x)
    assert forward["z_2"].notes == shown(step.trace[1].z)
    assert forward["W_3"].notes == shown(params[2].W)
    assert forward["J"].notes == (f"{float(step.value):.4g}",)
    assert forward["s"].notes == (f"{float(step.penalty):.4g}",)
    assert backward["delta_2"].notes[1:] == shown(step.deltas[1])
    assert backward["dW_1"].notes[1:] == shown(step.gradients[0].W)
    assert backward["dx"].notes[1:] == shown(step.d_x)


DROPPED = mb.Residual(mb.Serial((mb.Dropout(0.3), mb.Dense(4, 4))))
WITH_DROPOUT = mb.Serial((mb.Dense(4, 4, "tanh"), mb.Dropout(0.5), mb.Repeat(DROPPED, 2), mb.Dense(4, 3)))


@pytest.mark.parametrize("key", [None, jax.random.key(2)])
def test_a_network_with_dropout_is_drawn_with_the_values_of_the_keys_draws(key):
    objective, *batch_of = problem(WITH_DROPOUT, 5)
    forward, backward = (draw(objective, *batch_of, key=key) for draw in BOTH)
    step = jax.jit(reference.backprop, static_argnums=0)(objective, *batch_of, key=key)
    said = {vertex.key: " ".join(vertex.notes) for graph in (forward, backward) for vertex in graph.vertices}
    expected = {"a_2": step.trace[1].a, "a_3_2k": step.trace[2][0].a, "z_4_2k": step.trace[2][1].z}
    expected |= {"dW_1": step.gradients[0].W, "delta_2": step.deltas[1]}
    for name, value in expected.items():
        assert f"‖·‖ {np.linalg.norm(value):.3g}" in said[name], name
    assert said["J"] == f"{float(step.value):.4g}"
    assert (said["a_2"] == said["a_1"]) == (key is None)
    assert [(arrow.tail, arrow.head) for arrow in forward.arrows] == [
        (arrow.tail, arrow.head) for arrow in mb.forward_graph(objective).arrows
    ]
    (local_derivative,) = (arrow.label for arrow in backward.arrows if (arrow.tail, arrow.head) == ("delta_2", "da_1"))
    assert local_derivative == "diag m / (1 - rate)"


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("draw", BOTH)
def test_a_key_of_a_graph_needs_a_batch_and_is_no_seed(draw):
    objective, *batch_of = problem(WITH_DROPOUT, 2)
    with pytest.raises(ValueError, match="a graph has none without a batch: give it params, x and y too"):
        draw(objective, key=jax.random.key(2))
    with pytest.raises(TypeError, match=r"key must be a JAX key, such as jax.random.key\(0\), got int 2"):
        draw(objective, *batch_of, key=2)
