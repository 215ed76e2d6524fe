"""The pictures and texts of a graph: where everything stands on the page, every form, and the command `graph`."""

import dataclasses
import os
import re
import subprocess
import sys
from hashlib import sha256
from itertools import combinations, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.graph import picture
from manual_backprop.graph.layout import lay_out
from manual_backprop.graph.model import Box, Diagram, Place, Vertex
from manual_backprop.graph.rows import MARGIN, PAGE, Rows
from manual_backprop.graph.shapes import HALF, Shape, visible
from manual_backprop.graph.text import dot, mermaid
from manual_backprop.layers.base import Parameters
from tests.helpers import batch
from tests.manual_backprop.test_graph import BLOCK, BOTH, CHAINS, COMPOSITES, GATE, GATED, MEAN, of, problem
from tests.reference.test_layer_check import Convolution, X

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
OBJECTIVE = mb.Objective(mb.Dense(2, 2), mb.squared_error)
OPAQUE = {"forward": None, "backward": None}  # of a composite that no graph has heard of, and that is not run


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
    graphs = [draw(of(DRAWN[name]))]
    if graphs[0].boxes:
        graphs += [draw(of(DRAWN[name]), opened=levels) for levels in (1, False)]
    for graph in graphs:
        assert_laid_out(lay_out(graph), labels=graph is graphs[0])


def assert_laid_out(page, widest=12.5, labels=True):
    shapes = boxes(page)
    for (one, a), (other, b) in combinations(shapes.items(), 2):
        assert apart(a, b), (one, other)
    corners = [point for box in shapes.values() for point in (box[:2], box[2:])]
    corners += [point for path in page.paths for point in path.points]
    corners += [point for f in page.frames for point in ((f.left, f.bottom), (f.right, f.top))]
    assert all(0 <= x <= page.width and 0 <= y <= page.height for x, y in corners)
    assert page.width < widest
    for path in page.paths if labels else ():
        assert not path.arrow.label or all(apart(label_box(path), box) for box in shapes.values()), path


def label_box(path):
    half = 0.03 * visible(path.arrow.label)
    left, right = {"center": (half, half), "left": (0, 2 * half), "right": (2 * half, 0)}[path.align]
    x, y = path.label_at
    return x - left, y - 0.05, x + right, y + 0.05


@pytest.mark.parametrize("draw", BOTH)
def test_many_parameters_with_odd_names_have_vertices_and_room_of_their_own(draw):
    names = ("a", "z", "f", "elta", "W_", "input_projection_of_the_first_head", "c")
    kind = dataclasses.make_dataclass("Odd", [(name, Any) for name in names], bases=(Parameters,), frozen=True)
    jax.tree_util.register_dataclass(kind)
    odd = type("OddLayer", (Convolution,), {"init": lambda self, key, dtype=None: kind(*(X,) * len(names))})
    graph = draw(mb.Objective(mb.Serial((odd(), mb.Dense(4, 3))), mb.squared_error))
    assert len({v.key for v in graph.vertices}) == len(graph.vertices)
    page = lay_out(graph)
    assert_laid_out(page, widest=40)
    labels = [label_box(path) for path in page.paths if path.arrow.label.startswith(MEAN)]
    assert all(apart(one, other) for one, other in combinations(labels, 2))
    if draw is mb.backward_graph:  # whose arrows have labels
        assert graph.svg()


def test_a_long_name_widens_its_box():
    long = type("MixtureOfAFewExpertsOfWhichTwoAreChosen", (mb.node.Branches,), OPAQUE)((mb.Dense(4, 3),))
    assert_laid_out(lay_out(mb.forward_graph(mb.Objective(long, mb.squared_error))))


def test_a_composite_of_your_own_is_a_box_with_its_name_until_it_says_more():
    mean = type("Mean", (mb.node.Branches,), OPAQUE)((mb.Dense(4, 4), mb.Residual(mb.Dense(4, 4))))
    halved = type("Halved", (mb.node.Wrapper,), OPAQUE)(mb.Dense(4, 4))
    objective = of(mb.Serial((mean, mb.Residual(halved), mb.Dense(4, 3))))
    graph, back = (draw(objective) for draw in BOTH)
    assert [v.label for v in graph.vertices if v.kind == "composite"] == ["Mean", "Halved"]
    assert [v.label for v in graph.vertices if v.label[0] in "ah"] == ["a^(2)", "a^(3)", "h^(3)", "a^(4)"]
    assert {"da^(2)/dx", MEAN + "da^(2)/dtheta", "da^(3)/da^(2)"} <= {a.label for a in back.arrows}
    said = {"drawn": "opened", "caption": "half of"}
    opened = type("Said", (type(halved),), said)(mb.Dense(4, 3))
    graph = mb.forward_graph(mb.Objective(opened, mb.squared_error))
    assert [box.label for box in graph.boxes] == ["half of"]
    assert graph.into("plus_1")


def test_what_has_several_inputs_or_no_parameters_is_drawn(without_hook):
    u, v = batch(3, 5), batch(3, 5, seed=2)
    forward, backward = (draw(mb.Objective(mb.Product(), mb.squared_error, mb.Frobenius(0.1))) for draw in BOTH)
    assert {a.tail for a in forward.into("times_1")} == {"x_1", "x_2"}
    ways = {(a.head, a.label) for a in backward.arrows if a.tail == "delta_1"}
    assert ways == {("dx_1", "diag x_2"), ("dx_2", "diag x_1")}
    nameless = type("Nameless", (mb.Product,), {"inputs": ("a_in",), "operators": (), "local_derivatives": {}})()
    for draw in BOTH:
        drawn = draw(mb.Objective(nameless, mb.squared_error), (), (u, v), u)
        assert [w.notes[-2] for w in drawn.vertices if w.label.removeprefix("dL/d") in ("x_1", "x_2")] == ["5×3"] * 2
        assert drawn.svg()
    net = mb.Serial((mb.Parallel((mb.Dense(3, 3),) * 2), mb.Residual(mb.Parallel((mb.Product(),) * 2)), mb.Product()))
    closed = mb.backward_graph(mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), opened=False)
    assert not [w for w in closed.vertices if "theta" in w.key]  # it has no parameters
    assert closed["dh_3"].notes == ("Residual: x + f(x)",)


def test_a_family_of_your_own_is_drawn_by_its_parameters():
    layer = Convolution()
    objective = mb.Objective(layer, mb.squared_error, mb.Frobenius(0.1))
    graph = mb.forward_graph(objective)
    names = {field for field in vars(layer.init(jax.random.key(0)))}
    assert {a.tail for a in graph.into("Convolution_1")} == {"x", *(f"{name}_1" for name in names)}
    assert graph["Convolution_1"].notes == ("Convolution",)
    labels = {a.label for a in mb.backward_graph(objective).arrows}
    assert "dz^(1)/dx" in labels
    assert {f"{MEAN}dz^(1)/d{name}^(1)" for name in names} <= labels


def test_a_family_that_misnames_its_parameters_is_told():
    lost = type("Lost", (mb.Dense,), {"operators": (("×", ("W",)),)})(2, 2)
    with pytest.raises(ValueError, match=r"name the parameters \['W'\], but it has \['W', 'b'\]"):
        mb.forward_graph(mb.Objective(lost, mb.squared_error))
    vague = type("Vague", (mb.Dense,), {"local_derivatives": {"W": "{V}"}})(2, 2)
    with pytest.raises(ValueError, match="it can name {W}, {b}, {a_in}"):
        mb.backward_graph(mb.Objective(vague, mb.squared_error))


def test_a_gate_is_drawn_as_one_circle_and_branches_stand_apart():
    graph = mb.forward_graph(of(GATE))
    assert {a.tail for a in graph.into("times_3")} == {"a_1", "a_2"}
    assert {a.head for a in graph.arrows if a.tail == "x"} == {"times_1", "times_2"}
    lines = {vertex.key: vertex.place.line for vertex in graph.vertices}
    assert [key for key, line in lines.items() if line] == ["times_2", "W_2", "plus_2", "b_2", "z_2", "f_2", "a_2"]
    back = mb.backward_graph(of(GATE))
    into = {(a.tail, a.head): a.label for a in back.arrows}
    assert (into["delta_3", "da_1"], into["delta_3", "da_2"]) == ("diag a^(2)", "diag a^(1)")
    assert (into["delta_1", "dx"], into["delta_2", "dx"]) == ("(W^(1))^T", "(W^(2))^T")


def test_branches_that_fit_in_a_row_are_not_cut():
    def rows(name, *keys):
        places = Rows(mb.forward_graph(of(DRAWN[name])))
        return [places.row(key).row for key in keys]

    assert rows("gates in branches", "x", "a_1", "a_4", "a_5", "h_8", "a_9") == [0, 0, 0, 0, 0, 1]
    assert rows("branches longer than a row", "x", "a_1", "a_3", "a_6", "a_7") == [0, 0, 1, 2, 0]


@pytest.mark.parametrize("draw", BOTH)
def test_arrows_begin_and_end_at_their_vertices_and_bend_squarely(draw):
    page = lay_out(draw(of(COMPOSITES)))
    for path in page.paths:
        for key, (x, y) in ((path.arrow.tail, path.points[0]), (path.arrow.head, path.points[-1])):
            shape = page.shapes[key]
            across, up = abs(x - shape.x) / shape.half_width, abs(y - shape.y) / shape.half_height
            on_circle = shape.vertex.kind == "operator" and np.hypot(across, up) == pytest.approx(1)
            assert on_circle or max(across, up) == pytest.approx(1)
        if len(path.points) > 2:
            assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(path.points))


def test_frames_hold_their_vertices_and_no_other():
    graph = mb.forward_graph(of(COMPOSITES))
    page = lay_out(graph)
    for box in graph.boxes:
        frames = [f for f in page.frames if f.label == box.label]
        assert frames
    for key, (left, bottom, right, top) in boxes(page).items():
        around = [f for f in page.frames if f.left < left and right < f.right and f.bottom < bottom and top < f.top]
        assert len(around) == sum(key in box.members for box in graph.boxes), key


@pytest.mark.parametrize("draw", BOTH)
def test_text_forms_declare_what_they_join(draw):
    for net, opened in ((COMPOSITES, True), (COMPOSITES, 1), *((net, False) for net in GATED_CHAINS.values())):
        assert_declared(draw(of(net), opened=opened))


def assert_declared(graph):
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


def test_names_that_are_no_mathematics_and_no_markup_stay_text():
    odd = mb.Activation('a"<b>\\ $\\foo$ 100%', f=jnp.sin, df=lambda z, a: jnp.cos(z))
    kind = type("my_$Loss", (type(mb.huber),), {})
    graph = mb.forward_graph(mb.Objective(mb.Dense(2, 2, odd), kind(), mb.Frobenius(0.12345)))
    assert graph["f_1"].notes == ('a"<b>\\ $\\foo$ 100%',)
    assert graph["loss"].notes == ("my", "$", "loss")
    assert graph["norm"].notes[-1] == "λ = 0.12345"
    assert 'a#quot;#lt;b#gt;\\ $\\foo$ 100%"))' in graph.mermaid()
    assert r"a\"<b>\\ $\\foo$ 100%" in graph.dot()
    assert graph.svg()


def test_mathtext_says_what_the_label_says():
    for label, expected in (
        ("W^(2)", "$W^{(2)}$"), ("z^(3+2k)", "$z^{(3{+}2k)}$"), ("dL/da^(1)", r"$\partial L/\partial a^{(1)}$"),
        ("dl/do", r"$\partial \ell/\partial o$"), ("delta^(1)", r"$\delta ^{(1)}$"), ("l", r"$\ell$"),
        ("(W^(2))^T", r"$(W^{(2)})^{\mathrm{T}}$"), ("c_k^T", r"$c_{k}^{\mathrm{T}}$"),
        ("dh'^(2)/dx", r"$\partial h'^{(2)}/\partial x$"),
        ("(1/N) sum_n x^T", r"$\frac{1}{N}\Sigma_{n}\, x^{\mathrm{T}}$"), ("lambda W^(1)", r"$\lambda  W^{(1)}$"),
    ):  # fmt: skip
        assert picture.math(label) == expected


@pytest.mark.evidence
def test_in_another_process_pictures_are_the_same_bytes_whatever_the_settings_and_the_command_prints():
    code = """
import sys, manual_backprop.graph.picture
assert "matplotlib" not in sys.modules  # it is no part of an import
import hashlib, matplotlib
matplotlib.rcParams.update({"font.size": 20, "svg.fonttype": "none", "lines.linewidth": 5, "savefig.dpi": 33})
import manual_backprop as mb
graph = mb.backward_graph(mb.Objective(mb.Dense(4, 3), mb.squared_error, mb.Frobenius(0.1)))
print(hashlib.sha256(graph.svg().encode() + graph.png(theme="dark", dpi=60)).hexdigest())
assert matplotlib.rcParams["font.size"] == 20
from reference.cli import main
sys.exit(main(["graph", "--sizes", "4,3"]))
"""
    one_byte_a_letter = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, env=one_byte_a_letter, check=False)
    assert there.returncode == 0, there.stderr
    said, _, printed = there.stdout.decode("utf-8").partition("\n")
    graph = mb.backward_graph(mb.Objective(mb.Dense(4, 3), mb.squared_error, mb.Frobenius(0.1)))
    assert said.strip() == sha256(graph.svg().encode() + graph.png(theme="dark", dpi=60)).hexdigest()
    assert "λ = 0.0001" in printed


def test_pictures_are_pictures_and_of_a_diagram_the_same():
    graph = mb.forward_graph(OBJECTIVE)
    svg, png = graph._repr_svg_(), graph.png(dpi=30)
    assert svg.startswith("<?xml")
    assert "Date" not in svg
    assert svg != graph.svg(theme="dark")
    assert png.startswith(b"\x89PNG")
    assert len(png) < len(graph.png(dpi=60))
    diagram = Diagram(**{field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)})
    assert repr(diagram) == repr(graph).replace("Graph", "Diagram")
    assert (mermaid(diagram), dot(diagram)) == (graph.mermaid(), graph.dot())
    assert picture.svg(diagram, "light") == svg


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


def test_without_matplotlib_words_are_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    graph = mb.forward_graph(OBJECTIVE)
    with pytest.raises(ImportError, match="needs matplotlib.*mermaid"):
        graph.svg()
    assert graph._repr_svg_() is None  # a notebook then shows the repr
    assert repr(graph).startswith("Graph('Forward: ")
    assert "flowchart" in graph.mermaid()


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
