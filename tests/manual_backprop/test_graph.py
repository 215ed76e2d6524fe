"""The computational graph (G1): what it says is computed again from its arrows alone, and held against jax.grad."""

import dataclasses
import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from itertools import combinations, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
import reference
from manual_backprop.graph import picture
from manual_backprop.graph.layout import lay_out
from manual_backprop.graph.model import Box, Diagram, Place, Vertex
from manual_backprop.graph.rows import MARGIN, PAGE, Rows
from manual_backprop.graph.shapes import HALF, Shape, visible
from manual_backprop.graph.text import dot, mermaid
from manual_backprop.layers.base import Parameters
from reference import autodiff, cli
from reference.cli import command
from reference.model import ACTIVATIONS
from tests.helpers import assert_close, batch, fast, generic, in_its_own_process
from tests.reference.test_layer_check import Convolution, X

BLOCK = mb.Residual(mb.Serial((mb.Dense(4, 3, "tanh"), mb.Dense(3, 4, "sigmoid"))))
CHAINS = {
    "one layer": mb.mlp((4, 3)),
    "mlp": mb.mlp((4, 5, 6, 3), ("tanh", "softplus")),
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
    "a gate with f": mb.Serial((mb.Parallel((mb.Dense(4, 3), mb.Dense(4, 3, "tanh"))), mb.Product("tanh"))),
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
GATED_CHAINS = {
    "gates repeated": mb.Serial((mb.Repeat(mb.Residual(GATE), 3), mb.Dense(4, 3))),
    "gates tied": mb.Serial((mb.Dense(4, 4), mb.Tied(GATE, 3), mb.Dense(4, 3))),
    "chains in branches": mb.Serial(
        (mb.Parallel((mb.Repeat(BLOCK, 2), mb.Tied(GATE, 2), mb.Dense(4, 3))), mb.Parallel((mb.Dense(4, 3),) * 2))
    ),
    "a tuple repeated": mb.Serial(
        (
            mb.Parallel((mb.Dense(4, 3), mb.Dense(4, 3))),
            mb.Repeat(mb.Residual(mb.Parallel((mb.Product(), mb.Product()))), 2),
            mb.Product(),
        )
    ),
}  # fmt: skip
DRAWN = {**CHAINS, **GATED, **GATED_CHAINS, "composites": COMPOSITES} | {
    f"{n} layers": mb.mlp((4,) * (n + 1)) for n in range(1, 9)
}
BOTH = (mb.forward_graph, mb.backward_graph)


def problem(net, n=1, lam=0.1):
    objective = mb.Objective(net, mb.softmax_cross_entropy, None if lam is None else mb.Frobenius(lam))
    return objective, generic(net), batch(4, n), jnp.arange(n) % 3


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


@pytest.mark.parametrize("lam", [0.25, None])
@pytest.mark.parametrize("name", [*CHAINS, *GATED])
def test_the_forward_graph_computes_the_objective(name, lam):
    objective, params, x, y = problem(DRAWN[name], 5, lam)
    with jax.numpy_rank_promotion("allow"):
        values = computed_forward(mb.forward_graph(objective), by_layer(objective.net, params), x, y)
    J, _ = fast(reference.value_and_grad(objective))(params, x, y)
    assert_close(values["J"], J)


def local(label, forward, layers):
    """The local derivative that an arrow's label names, as what is done to a row vector."""
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


@pytest.mark.parametrize("name", [*CHAINS, *GATED])
def test_the_backward_graph_computes_every_gradient(name):
    assert_gradients(*problem(DRAWN[name]))


def assert_gradients(objective, params, x, y, drawn=None, n=0):
    """The graphs, of `drawn` with its chain of n blocks written out if given, against jax.grad of `objective`."""
    layers = by_layer(objective.net, params)
    forward_graph, graph = (draw(drawn or objective) for draw in BOTH)
    if drawn is not None:
        forward_graph, graph = unrolled(forward_graph, n), unrolled(graph, n)
    with jax.numpy_rank_promotion("allow"):
        forward = computed_forward(forward_graph, layers, x, y)
    forward["activations"] = {i: layer.f.name for i, layer in enumerate(objective.net.layers(), 1)}
    values = {"dJ": jnp.ones(())}
    for vertex in graph.vertices[1:]:
        arriving = [local(a.label, forward, layers)(values[a.tail]) for a in graph.into(vertex.key)]
        values[vertex.key] = sum(arriving[1:], arriving[0])
    J, gradients = fast(reference.value_and_grad(objective))(params, x, y)
    assert_close(forward["J"], J)
    for number, block in by_layer(objective.net, gradients).items():
        assert_close(values[f"dW_{number}"], block.W)
        assert_close(values[f"db_{number}"][0], block.b)
    deltas = jax.tree.leaves(fast(lambda *a: reference.deltas(objective, *a))(params, x, y))
    assert {f"delta_{number}" for number in range(1, len(deltas) + 1)} <= set(values)
    for number, delta in enumerate(deltas, 1):
        assert_close(values[f"delta_{number}"], delta)
    assert_close(values["dx"], fast(lambda *a: autodiff.d_x(objective, *a))(params, x, y))


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


@pytest.mark.parametrize(
    "block",
    [mb.Dense(4, 4, "tanh"), BLOCK, mb.Residual(mb.Residual(mb.Dense(4, 4, "tanh"))), GATE, mb.Residual(GATE)],
)
def test_opened_chains_compute_the_objective_and_every_gradient(block):
    n = 3
    net = mb.Serial((mb.Repeat(block, n), mb.Dense(4, 3)))
    objective, params, x, y = problem(net)
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


def test_deltas_carry_their_equations():
    graph = mb.backward_graph(problem(mb.mlp((4, 5, 5, 3)))[0])
    assert [graph[f"delta_{i}"].notes for i in (1, 2, 3)] == [("(B2)",), ("(B2)",), ("(B1)",)]
    assert graph["dx"].notes == ("(B5)",)
    assert graph["dW_1"].notes == ("(B4) (B6)",)
    assert mb.backward_graph(problem(mb.mlp((4, 3)), lam=None)[0])["dW_1"].notes == ("(B4)",)


def test_blocks_that_repeat_are_drawn_once_with_numbered_layers():
    graph = mb.forward_graph(problem(COMPOSITES)[0])
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
    graph = mb.forward_graph(problem(COMPOSITES)[0], opened=False)
    assert [v.label for v in graph.vertices if v.kind == "composite"] == ["Tied: 3 blocks", "Repeat: 8 blocks"]
    assert {(a.tail, a.head) for a in graph.arrows} >= {("a_1", "box_10"), ("box_10", "a_10"), ("box_10", "norm")}
    back = mb.backward_graph(problem(COMPOSITES)[0], opened=False)
    assert [a.label for a in back.into("da_10")] == ["dh^(26)/da^(10)"]


def test_a_closed_backward_graph_arrow_by_arrow():
    """Each composite passes its gradient on, gives its parameters theirs, and keeps (B1) for what the loss meets."""
    graph = mb.backward_graph(problem(COMPOSITES)[0], opened=False)
    signal = {(a.tail, a.head, a.label) for a in graph.arrows if a.lane == "straight" and "theta" not in a.head}
    assert signal >= {
        ("dh_26", "da_10", "dh^(26)/da^(10)"), ("da_10", "da_1", "da^(10)/da^(1)"),
        ("da_27", "delta_27", "diag f_27'(z^(27))"),
        ("delta_27", "dh_26", "(W^(27))^T"), ("delta_27", "dW_27", "(h^(26))^T"), ("delta_1", "dW_1", "x^T"),
    }  # fmt: skip
    thetas = {(a.tail, a.head, a.label, a.lane) for a in graph.arrows if "theta" in a.head}
    assert thetas == {
        ("da_10", "dtheta_10", "da^(10)/dtheta", "straight"), ("ds", "dtheta_10", "lambda W", "penalty"),
        ("dh_26", "dtheta_26", "dh^(26)/dtheta", "straight"), ("ds", "dtheta_26", "lambda W", "penalty"),
    }  # fmt: skip
    assert graph["dtheta_10"].label == "dJ/dtheta"
    assert [graph[key].notes for key in ("delta_1", "delta_27")] == [("(B2)",), ("(B1)",)]
    plain = mb.backward_graph(problem(COMPOSITES, lam=None)[0], opened=False)
    assert plain["dtheta_10"].label == "dL/dtheta"


@pytest.mark.parametrize(
    ("net", "opened", "tags"),
    [
        (mb.Serial((mb.Dense(4, 4), mb.Repeat(mb.Dense(4, 4), 3))), False, ["(B2)"]),
        (mb.Serial((mb.Dense(4, 4), mb.Repeat(mb.Dense(4, 4), 3))), True, ["(B2)", "(B1) (B2)"]),
        (mb.Residual(mb.Dense(4, 4)), True, ["(B2)"]),
        (mb.Dense(4, 4), True, ["(B1)"]),
    ],
)
def test_only_the_delta_that_the_loss_reaches_directly_is_of_b1(net, opened, tags):
    graph = mb.backward_graph(mb.Objective(net, mb.squared_error), opened=opened)
    deltas = [v for v in graph.vertices[::-1] if v.key.startswith("delta")]
    assert [vertex.notes[0] for vertex in deltas] == tags


def test_what_enters_is_named_for_every_block():
    block = mb.Serial((mb.Residual(mb.Dense(4, 4)), mb.Dense(4, 4)))
    net = mb.Serial((mb.Dense(4, 4), mb.Repeat(block, 3), mb.Tied(mb.Serial((block, mb.Repeat(mb.Dense(4, 4), 2))), 2)))
    labels = {a.head: a.label for a in mb.backward_graph(mb.Objective(net, mb.squared_error), opened=1).arrows}
    assert labels["dc_2_2k"] == "dh^(2+2k)/dc_k"
    assert labels["dW_3_2k"] == labels["dW_3_2k"] == "(h^(2+2k))^T"
    opened = {a.head: a.label for a in mb.backward_graph(mb.Objective(net, mb.squared_error)).arrows}
    assert opened["dW_2_2k"] == "c_k^T"
    assert opened["dW_10_j"] == "c_j^T"  # tied: W of every use k, but of block j
    assert {"dW_8", "dW_9"} <= set(opened)


def test_odd_names_are_drawn_as_they_are():
    layer = Convolution()
    for name in ("a", "z", "f", "elta", "W_", "input_projection_of_the_first_head"):
        kind = dataclasses.make_dataclass("Odd", [(name, Any), ("c", Any)], bases=(Parameters,), frozen=True)
        jax.tree_util.register_dataclass(kind)
        odd = type("OddLayer", (Convolution,), {"init": lambda self, key, dtype=None, kind=kind: kind(X, X)})
        for draw in BOTH:
            graph = draw(mb.Objective(odd(), mb.squared_error))
            assert len({v.key for v in graph.vertices}) == len(graph.vertices)
            shapes = boxes(lay_out(graph))
            assert all(apart(a, b) for a, b in combinations(shapes.values(), 2))
            assert graph.svg()
    assert mb.forward_graph(mb.Objective(layer, mb.squared_error))


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


def test_a_family_that_misnames_its_parameters_is_told():
    lost = type("Lost", (mb.Dense,), {"operators": (("×", ("W",)),)})(2, 2)
    with pytest.raises(ValueError, match=r"name the parameters \['W'\], but it has \['W', 'b'\]"):
        mb.forward_graph(mb.Objective(lost, mb.squared_error))
    vague = type("Vague", (mb.Dense,), {"local_derivatives": {"W": "{V}"}})(2, 2)
    with pytest.raises(ValueError, match="it can name {W}, {b}, {a_in}"):
        mb.backward_graph(mb.Objective(vague, mb.squared_error))


def test_a_gate_is_drawn_as_one_circle_and_branches_stand_apart():
    graph = mb.forward_graph(problem(GATE)[0])
    assert {a.tail for a in graph.into("times_3")} == {"a_1", "a_2"}
    assert {a.head for a in graph.arrows if a.tail == "x"} == {"times_1", "times_2"}
    lines = {vertex.key: vertex.place.line for vertex in graph.vertices}
    assert [key for key, line in lines.items() if line] == ["times_2", "W_2", "plus_2", "b_2", "z_2", "f_2", "a_2"]
    back = mb.backward_graph(problem(GATE)[0])
    into = {(a.tail, a.head): a.label for a in back.arrows}
    assert (into["delta_3", "da_1"], into["delta_3", "da_2"]) == ("diag a^(2)", "diag a^(1)")
    assert (into["delta_1", "dx"], into["delta_2", "dx"]) == ("(W^(1))^T", "(W^(2))^T")


def test_branches_that_fit_in_a_row_are_not_cut():
    def rows(name, *keys):
        places = Rows(mb.forward_graph(problem(DRAWN[name])[0]))
        return [places.row(key).row for key in keys]

    assert rows("gates in branches", "x", "a_1", "a_4", "a_5", "h_8", "a_9") == [0, 0, 0, 0, 0, 1]
    assert rows("branches longer than a row", "x", "a_1", "a_3", "a_6", "a_7") == [0, 0, 1, 2, 0]


@dataclasses.dataclass(frozen=True)
class Halved(mb.node.Wrapper):
    """A composite that no graph has heard of."""

    block: mb.node.Node

    def forward(self, step, x, owned):
        left, kept = self.block.forward(step, x, owned)
        return jax.tree.map(lambda leaf: leaf / 2, left), kept

    def backward(self, step, d, owned, kept):
        return self.block.backward(step, jax.tree.map(lambda leaf: leaf / 2, d), owned, kept)


@dataclasses.dataclass(frozen=True)
class Mean(mb.node.Branches):
    """Another one."""

    nodes: tuple

    def forward(self, step, x, owned):
        left, kept = zip(*(n.forward(step, x, own) for n, own in zip(self.nodes, owned, strict=True)), strict=True)
        return sum(left) / len(left), kept

    def backward(self, step, d, owned, kept):
        each = zip(self.nodes, owned, kept, strict=True)
        d_x, found = zip(*(n.backward(step, d / len(self.nodes), *of) for n, *of in each), strict=True)
        return sum(d_x), found


def test_a_composite_of_your_own_is_a_box_with_its_name_until_it_says_more():
    mean, halved = Mean((mb.Dense(4, 4), mb.Residual(mb.Dense(4, 4)))), Halved(mb.Dense(4, 4))
    objective, params, x, y = problem(mb.Serial((mean, mb.Residual(halved), mb.Dense(4, 3))), 5)
    for values in ((), (params, x, y)):
        graph = mb.forward_graph(objective, *values)
        assert [v.label for v in graph.vertices if v.kind == "composite"] == ["Mean", "Halved"]
        assert [v.label for v in graph.vertices if v.label[0] in "ah"] == ["a^(2)", "a^(3)", "h^(3)", "a^(4)"]
        back = mb.backward_graph(objective, *values)
        assert {"da^(2)/dx", "da^(2)/dtheta", "da^(3)/da^(2)"} <= {a.label for a in back.arrows}
    said = {"drawn": "opened", "caption": "half of"}
    opened = type("Said", (Halved,), said)(mb.Dense(4, 3))
    graph = mb.forward_graph(mb.Objective(opened, mb.squared_error))
    assert [box.label for box in graph.boxes] == ["half of"]
    assert graph.into("plus_1")
    long = type("MixtureOfAFewExpertsOfWhichTwoAreChosen", (Mean,), {})((mb.Dense(4, 3),))
    page = lay_out(mb.forward_graph(mb.Objective(long, mb.squared_error)))
    assert all(apart(a, b) for a, b in combinations(boxes(page).values(), 2))


def test_what_has_several_inputs_or_no_parameters_is_drawn(without_hook):
    u, v = jax.random.normal(jax.random.key(0), (2, 5, 3))
    gate = mb.Objective(mb.Product(), mb.squared_error, mb.Frobenius(0.1))
    for values in ((), ((), (u, v), u)):
        forward, backward = (draw(gate, *values) for draw in BOTH)
        assert {a.tail for a in forward.into("times_1")} == {"x_1", "x_2"}
        assert {(a.head, a.label) for a in backward.arrows if a.tail == "delta_1"} == {
            ("dx_1", "diag x_2"), ("dx_2", "diag x_1")
        }  # fmt: skip
    assert backward["dx_2"].notes[1] == "5×3"
    nameless = type("Nameless", (mb.Product,), {"inputs": ("a_in",), "operators": (), "local_derivatives": {}})()
    for drawn in [draw(mb.Objective(nameless, mb.squared_error), (), (u, v), u) for draw in BOTH]:
        assert {"x_1", "x_2"} <= {v.label.removeprefix("dL/d") for v in drawn.vertices}
        assert drawn.svg()
    net = mb.Serial((mb.Parallel((mb.Dense(3, 3),) * 2), mb.Residual(mb.Parallel((mb.Product(),) * 2)), mb.Product()))
    closed = mb.backward_graph(mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), opened=False)
    assert not [v for v in closed.vertices if "theta" in v.key]  # it has no parameters
    assert closed["dh_3"].notes == ("Residual: x + f(x)",)


@pytest.mark.parametrize("draw", BOTH)
@pytest.mark.parametrize("name", [*GATED, *GATED_CHAINS])
def test_gates_are_drawn_in_every_form_opened_or_not(name, draw):
    for opened in (True, 1, False):
        graph = draw(problem(DRAWN[name])[0], opened=opened)
        page = lay_out(graph)
        assert all(apart(a, b) for a, b in combinations(boxes(page).values(), 2))
        assert len(graph.mermaid().splitlines()) > len(graph.vertices)
        assert graph.dot().count("->") == len(graph.arrows)


def test_words_that_are_no_mathematics_are_drawn_as_words():
    odd = mb.Activation("$\\foo$ 100%", f=jnp.sin, df=lambda z, a: jnp.cos(z))
    kind = type("my_$Loss", (type(mb.huber),), {})
    graph = mb.forward_graph(mb.Objective(mb.Dense(2, 2, odd), kind(), mb.Frobenius(0.12345)))
    assert graph["f_1"].notes == ("$\\foo$ 100%",)
    assert graph["loss"].notes == ("my", "$", "loss")
    assert graph["norm"].notes[-1] == "λ = 0.12345"
    assert graph.svg()


def test_mathtext_says_what_the_label_says():
    for label, expected in (
        ("W^(2)", "$W^{(2)}$"), ("z^(3+2k)", "$z^{(3{+}2k)}$"), ("dL/da^(1)", r"$\partial L/\partial a^{(1)}$"),
        ("dl/do", r"$\partial \ell/\partial o$"), ("delta^(1)", r"$\delta ^{(1)}$"), ("l", r"$\ell$"),
        ("(W^(2))^T", r"$(W^{(2)})^{\mathrm{T}}$"), ("c_k^T", r"$c_{k}^{\mathrm{T}}$"),
        ("dh'^(2)/dx", r"$\partial h'^{(2)}/\partial x$"), ("lambda W^(1)", r"$\lambda  W^{(1)}$"),
    ):  # fmt: skip
        assert picture.math(label) == expected


def test_a_notebook_without_matplotlib_shows_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    graph = mb.forward_graph(OBJECTIVE)
    assert graph._repr_svg_() is None
    assert repr(graph).startswith("Graph('Forward: ")


def test_a_family_of_your_own_is_drawn_by_its_parameters():
    layer = Convolution()
    objective = mb.Objective(layer, mb.squared_error, mb.Frobenius(0.1))
    graph = mb.forward_graph(objective)
    names = {field for field in vars(layer.init(jax.random.key(0)))}
    assert {a.tail for a in graph.into("Convolution_1")} == {"x", *(f"{name}_1" for name in names)}
    assert graph["Convolution_1"].notes == ("Convolution",)
    labels = {a.label for a in mb.backward_graph(objective).arrows}
    assert "dz^(1)/dx" in labels
    assert {f"dz^(1)/d{name}^(1)" for name in names} <= labels


def test_values_are_those_of_the_step():
    objective, params, x, y = problem(CHAINS["mlp"], 6)
    step = fast(lambda *a: mb.backprop(objective, *a))(params, x, y)
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


def boxes(page):
    return {
        key: (s.x - s.half_width, s.y - s.half_height, s.x + s.half_width, s.y + s.half_height)
        for key, s in page.shapes.items()
    }


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("draw", BOTH)
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_lies_on_anything_and_all_is_on_the_page(name, draw):
    page = lay_out(draw(problem(DRAWN[name])[0]))
    shapes = boxes(page)
    for (one, a), (other, b) in combinations(shapes.items(), 2):
        assert apart(a, b), (one, other)
    corners = [point for box in shapes.values() for point in (box[:2], box[2:])]
    corners += [point for path in page.paths for point in path.points]
    corners += [point for f in page.frames for point in ((f.left, f.bottom), (f.right, f.top))]
    assert all(0 <= x <= page.width and 0 <= y <= page.height for x, y in corners)
    assert page.width < 12.5
    for path in page.paths:
        half = 0.03 * visible(path.arrow.label)
        left, right = {"center": (half, half), "left": (0, 2 * half), "right": (2 * half, 0)}[path.align]
        x, y = path.label_at
        label = (x - left, y - 0.05, x + right, y + 0.05)
        assert not path.arrow.label or all(apart(label, box) for box in shapes.values()), path


@pytest.mark.parametrize("draw", BOTH)
def test_arrows_begin_and_end_at_their_vertices_and_bend_squarely(draw):
    page = lay_out(draw(problem(COMPOSITES)[0]))
    for path in page.paths:
        for key, (x, y) in ((path.arrow.tail, path.points[0]), (path.arrow.head, path.points[-1])):
            shape = page.shapes[key]
            across, up = abs(x - shape.x) / shape.half_width, abs(y - shape.y) / shape.half_height
            on_circle = shape.vertex.kind == "operator" and np.hypot(across, up) == pytest.approx(1)
            assert on_circle or max(across, up) == pytest.approx(1)
        if len(path.points) > 2:
            assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(path.points))


def test_frames_hold_their_vertices_and_no_other():
    graph = mb.forward_graph(problem(COMPOSITES)[0])
    page = lay_out(graph)
    for box in graph.boxes:
        frames = [f for f in page.frames if f.label == box.label]
        assert frames
    for key, (left, bottom, right, top) in boxes(page).items():
        around = [f for f in page.frames if f.left < left and right < f.right and f.bottom < bottom and top < f.top]
        assert len(around) == sum(key in box.members for box in graph.boxes), key


@pytest.mark.parametrize("draw", BOTH)
def test_text_forms_declare_what_they_join(draw):
    graph = draw(problem(COMPOSITES)[0])
    keys = {vertex.key for vertex in graph.vertices}
    assert len(keys) == len(graph.vertices)
    mermaid, dot = graph.mermaid(), graph.dot()
    assert mermaid.startswith("flowchart LR\n")
    assert set(re.findall(r"^ *(\w+)[\[(]+\"", mermaid, re.M)) == keys
    assert set(re.findall(r"^ *(\w+) \[label", dot, re.M)) == keys
    joined = {(arrow.tail, arrow.head) for arrow in graph.arrows}
    assert set(re.findall(r"^ *(\w+) -\.?->(?:\|\".*?\"\|)? (\w+)$", mermaid, re.M)) == joined
    assert set(re.findall(r"^ *(\w+) -> (\w+)", dot, re.M)) == joined
    assert mermaid.count("subgraph") == len(graph.boxes) == len(re.findall(r"^ *end$", mermaid, re.M))
    assert dot.count("{") == dot.count("}") == 1 + len(graph.boxes)


def test_quotes_in_a_name_stay_text():
    odd = mb.Activation('a"<b>\\', f=jnp.sin, df=lambda z, a: jnp.cos(z))
    graph = mb.forward_graph(mb.Objective(mb.Dense(2, 2, odd), mb.squared_error))
    assert 'a#quot;#lt;b#gt;\\"))' in graph.mermaid()
    assert r"a\"<b>\\" in graph.dot()
    assert graph.svg()


def test_pictures_are_the_same_bytes_in_every_process_and_whatever_the_settings():
    code = """
import hashlib, matplotlib
matplotlib.rcParams.update({"font.size": 20, "svg.fonttype": "none", "lines.linewidth": 5, "savefig.dpi": 33})
import manual_backprop as mb
graph = mb.backward_graph(mb.Objective(mb.mlp((4, 5, 3)), mb.squared_error, mb.Frobenius(0.1)))
print(hashlib.sha256(graph.svg().encode() + graph.png(theme="dark", dpi=60)).hexdigest())
assert matplotlib.rcParams["font.size"] == 20
"""
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    graph = mb.backward_graph(mb.Objective(mb.mlp((4, 5, 3)), mb.squared_error, mb.Frobenius(0.1)))
    assert there.stdout.strip() == sha256(graph.svg().encode() + graph.png(theme="dark", dpi=60)).hexdigest()


def test_pictures_are_pictures():
    graph = mb.forward_graph(problem(CHAINS["one layer"])[0])
    svg = graph._repr_svg_()
    assert svg.startswith("<?xml")
    assert "Date" not in svg
    assert svg != graph.svg(theme="dark")
    assert graph.png(dpi=50).startswith(b"\x89PNG")
    assert len(graph.png(dpi=50)) < len(graph.png(dpi=100))


def test_bad_input_is_refused(without_hook):
    objective, params, x, y = problem(CHAINS["mlp"])
    graph = mb.forward_graph(objective)
    for call, error, text in (
        (lambda: mb.forward_graph(objective.net), TypeError, "Objective.net, loss. makes one"),
        (lambda: mb.forward_graph(objective, params), ValueError, "needs params, x and y, got only params"),
        (lambda: mb.backward_graph(objective, params, x), ValueError, "got only params and x"),
        (lambda: mb.forward_graph(objective, opened=-1), ValueError, "0 or more levels"),
        (lambda: mb.forward_graph(objective, opened="all"), TypeError, "a number of levels"),
        (lambda: mb.forward_graph(objective, params, batch(3, 1), y), ValueError, "Dense"),
        (lambda: graph.svg(theme="sepia"), ValueError, "light, dark, got 'sepia'"),
        (lambda: graph.png(dpi=0), ValueError, "dpi must be above 0"),
        (lambda: graph["z_9"], KeyError, "there are x, times_1"),
        (lambda: jax.jit(lambda p: mb.forward_graph(objective, p, x, y) and 1)(params), ValueError, "under jit"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_without_matplotlib_the_text_is_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    graph = mb.forward_graph(problem(CHAINS["one layer"])[0])
    with pytest.raises(ImportError, match="needs matplotlib.*mermaid"):
        graph.svg()
    assert "flowchart" in graph.mermaid()


def test_pictures_stand_below_graphs_and_matplotlib_is_no_part_of_an_import():
    code = "import sys, manual_backprop.graph.picture; sys.exit('matplotlib' in sys.modules)"
    assert in_its_own_process(code).returncode == 0
    graph = mb.forward_graph(problem(CHAINS["one layer"])[0])
    diagram = Diagram(**{field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)})
    assert repr(diagram) == repr(graph).replace("Graph", "Diagram")
    for form, now in ((mermaid, graph.mermaid()), (dot, graph.dot())):
        assert form(diagram) == now
    assert picture.svg(diagram, "light") == graph.svg()


def test_rows_are_as_few_as_the_page_allows_and_no_box_that_fits_is_cut():
    def diagram(widths, *boxes):
        vertices = tuple(Vertex(f"v{i}", "variable", "signal", "v", Place(i, w / 2)) for i, w in enumerate(widths))
        return Diagram("", vertices, (), tuple(Box("", tuple(f"v{i}" for i in box)) for box in boxes), widths)

    def chunks(*given):
        return [row.chunks for row in Rows(diagram(*given)).all]

    fifth = PAGE / 5
    assert chunks((fifth,) * 5) == [[0, 1, 2, 3, 4]]
    assert chunks((fifth,) * 6) == [[0, 1, 2], [3, 4, 5]]  # two rows it must be, and then of one width
    assert chunks((fifth,) * 6, (2, 3, 4)) == [[0, 1], [2, 3, 4, 5]]
    assert chunks((fifth, 2 * PAGE, fifth)) == [[0], [1], [2]]
    rows = Rows(diagram((fifth,) * 6))
    assert [rows.number(f"v{i}") for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert rows.x("v4") == pytest.approx(MARGIN + 1.5 * fifth)
    assert [vertex.key for vertex in rows.members(1)] == ["v3", "v4", "v5"]


@pytest.mark.parametrize("kind", ["variable", "operator"])
def test_an_arrow_leaves_a_shape_where_its_border_is(kind):
    shape = Shape(Vertex("v", kind, "signal", "v", Place(0, 0.0)), 1.0, 2.0, HALF, HALF, True, False)
    assert shape.border((5.0, 2.0)) == pytest.approx((1 + HALF, 2))
    assert shape.foot(0.0) == pytest.approx((1, 2 - HALF))
    corner = HALF if kind == "variable" else HALF / np.sqrt(2)
    assert shape.border((3.0, 4.0)) == pytest.approx((1 + corner, 2 + corner))
    x, y = shape.foot(0.1)
    assert x == pytest.approx(1.1)
    assert 2 - y == pytest.approx(HALF if kind == "variable" else np.sqrt(HALF**2 - 0.01))


def run(capsys, *arguments):
    status = cli.main(["graph", *arguments])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("form", ["svg", "png", "mmd", "dot"])
def test_the_command_writes_every_form(capsys, tmp_path, form):
    out = tmp_path / f"graph.{form}"
    status, said, _ = run(capsys, "--sizes", "4,5,3", "--backward", "--out", str(out))
    objective = mb.Objective(mb.mlp((4, 5, 3)), mb.softmax_cross_entropy, mb.Frobenius(1e-4))
    graph = mb.backward_graph(objective)
    expected = {"svg": graph.svg, "png": graph.png, "mmd": graph.mermaid, "dot": graph.dot}[form]()
    assert out.read_bytes() == (expected if isinstance(expected, bytes) else expected.encode())
    assert status == 0
    assert "12 vertices, 13 arrows" in said
    assert not [p for p in tmp_path.iterdir() if p != out]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "huber", "binary_cross_entropy"])
def test_the_command_shows_values_for_every_kind_of_target(capsys, loss):
    last = "sigmoid" if loss == "binary_cross_entropy" else "identity"
    with jax.enable_x64(False):
        status, said, _ = run(capsys, "--sizes", "4,3", "--values", "--loss", loss, "--output-activation", last)
    assert status == 0
    assert "32×3<br/>‖·‖" in said


def test_the_command_prints_to_a_console_of_one_byte_a_letter():
    code = "import sys; from reference.cli import main; sys.exit(main(['graph', '--sizes', '4,3']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert done.returncode == 0, done.stderr
    assert "λ = 0.0001" in done.stdout.decode("utf-8")


def test_the_command_knows_every_loss():
    assert set(command.LOSSES) == set(mb.losses.TABLE)


def test_the_command_draws_an_objective_of_yours(capsys, tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "import manual_backprop as mb\nnet = mb.Residual(mb.Dense(3, 3))\nJ = mb.Objective(net, mb.squared_error)\n"
    )
    monkeypatch.chdir(tmp_path)
    status, said, _ = run(capsys, "of_mine:J")
    assert status == 0
    assert "Residual: x + f(x)" in said
    assert "subgraph" not in run(capsys, "of_mine:J", "--open", "0")[1]
    assert run(capsys, "of_mine:net")[2].endswith("of_mine:net is a Residual, not a manual_backprop.Objective\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --sizes"),
        (["--sizes", "4"], "at least inputs and outputs"),
        (["--sizes", "4,3", "--activation", "swoosh"], "no activation is called"),
        (["--sizes", "4,3", "--out", "graph.jpg"], "write one of .svg"),
        (["--sizes", "4,3", "--out", "nowhere/graph.svg"], "does not exist"),
        (["a:b", "--sizes", "4,3"], "--sizes describe an MLP"),
        (["a:b", "--lam", "0.1", "--loss", "huber"], "--loss, --lam describe an MLP"),
        (["--sizes", "4,3", "--out", "graph"], "has no ending"),
        (["--sizes", "4,3", "--values", "--loss", "binary_cross_entropy"], "add --output-activation sigmoid"),
        (["no_such_module:b"], "there is no module"),
        (["tests.manual_backprop.test_graph:OBJECTIVE", "--values"], "use Python"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(capsys, arguments, text):
    status, said, error = run(capsys, *arguments)
    assert (status, said) == (2, "")
    assert text in error


OBJECTIVE = mb.Objective(mb.Dense(2, 2), mb.squared_error)
