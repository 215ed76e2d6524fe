"""The page and its pictures, read back by the standard library's parsers."""

import base64
import hashlib
import math
import re
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from test_formats import HOSTILE, PASSING, network, row, sample, score

from reference.cli.files import BadInput
from reference.reports import heat_maps, plots
from reference.reports.html import as_html
from reference.reports.run import Pictures
from reference.reports.words import visible

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Every element with its attributes, in order; it is an error to close what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), attrs
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, *tags: str) -> str:
        return "".join(text for tag, text in self.texts if tag in tags or (not tags and tag not in ("style", "script")))

    def texts_of(self, tag: str) -> list[str]:
        return [text for its, text in self.texts if its == tag]

    def having(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


@pytest.fixture(scope="module")
def text() -> str:
    return as_html(sample())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_from_anywhere(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    style = page.text("style")
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page.having("meta")[3]["content"]


def test_the_policy_lets_our_script_run_and_no_other(page: Page) -> None:
    digest = base64.b64encode(hashlib.sha256(page.text("script").encode()).digest()).decode()
    policy = page.having("meta")[3]["content"]
    assert f"script-src 'sha256-{digest}';" in policy
    assert len(page.having("script")) == 1


def test_the_verdict_comes_first_in_words(page: Page) -> None:
    shown = " ".join(page.text().split())
    assert shown.index("NOT PROVEN") < shown.index("PARTIAL") < shown.index("Networks") < shown.index("fine")
    assert "1 of 5 networks differs" in shown
    assert page.text("h1") == "NOT PROVEN"
    assert page.having("header")
    assert "PARTIAL" not in Page(as_html(PASSING)).text()
    assert Page(as_html(PASSING)).text("h1") == "ALL PROVEN"


def test_every_network_is_there_and_those_that_fail_first_and_open(page: Page) -> None:
    details = [a for a in page.having("details") if a.get("class", "").startswith("network")]
    assert [a["class"] for a in details] == ["network fail", *["network inconclusive"] * 3, "network pass"]
    assert ["open" in a for a in details] == [True, False, False, False, False]
    links = [a["href"].removeprefix("#") for a in page.having("a") if re.match("#n[0-9]", a["href"])]
    assert links == [f"n{i}" for i in range(1, 6)]
    for result in sample().networks:
        assert visible(result.name) in page.text("a")
        assert visible(result.name).strip() in page.text("h3")


def test_what_was_expected_to_fail_is_folded_and_says_why() -> None:
    known = network("known", row(verdict="fail"), expected="a <known> fault")
    page = Page(as_html(replace(PASSING, networks=(known, *PASSING.networks))))
    details = [a for a in page.having("details") if a.get("class", "").startswith("network")]
    assert [a["class"] for a in details] == ["network expected", "network pass"]
    assert not any("open" in a for a in details)
    assert page.text("h1") == "ALL PROVEN"
    assert "Expected to fail: a <known> fault" in page.text("p")
    assert "– EXPECTED TO FAIL" in page.text("dt")
    assert "– EXPECTED TO FAIL" not in Page(as_html(PASSING)).text("dt")


def test_links_and_labels_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        wanted = attributes.get("aria-labelledby", "").split()
        assert set(wanted) | {attributes.get("href", "").removeprefix("#")} - {"", "data:,"} <= set(ids)
    assert all("aria-labelledby" in a for a in page.having("svg", role="img"))
    assert len(page.having("svg")) == 2


def test_a_hostile_name_is_only_text(text: str) -> None:
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert text.encode()
    label = "<b>\x00</b>"
    pictures = Pictures((np.ones(2), np.ones(2)), (label, label), ((label, 1.0),))
    drawn = as_html(replace(PASSING, networks=(network(HOSTILE, row(HOSTILE), pictures=pictures),)))
    assert "<b>\\x00" not in drawn
    assert "\x00" not in drawn
    assert Page(drawn).text().count(r"<b>\x00</b>") >= 4


def test_the_same_run_gives_the_same_bytes(text: str) -> None:
    assert as_html(sample()) == text


def test_rows_mutants_notes_and_figures_are_shown(page: Page) -> None:
    shown = page.text()
    for part in (
        "probable cause: sign",
        "Note: a note",
        "mine.py:8 (f)",
        "a * b | c",
        "again: again fine",
        "0.298371109",
    ):
        assert part in shown, part
    assert "1 of 2 mutants killed (50.0 %); 1 survived, 1 unchanged." in shown
    assert "interrupted after 1 comparisons" in shown
    cells = page.text("td")
    assert cells.count("gradients[0].W") >= 6
    assert "data: digits" in shown


def test_mutants_called_equivalent_are_shown_with_the_argument() -> None:
    found = score("killed", "equivalent")
    mutants = (found.mutants[0], replace(found.mutants[1], argument="it adds nothing"))
    run = replace(PASSING, networks=(network("a", row(), mutation=replace(found, mutants=mutants)),))
    assert "it adds nothing" in Page(as_html(run)).text("td")


def test_interrupted_mutation_says_so() -> None:
    run = replace(PASSING, networks=(network("a", row(), mutation=score("killed", partial=True)),))
    assert "Mutation was interrupted after 1 of 2 mutants" in Page(as_html(run)).text()


def test_a_run_without_networks_is_a_page_too() -> None:
    page = Page(as_html(replace(PASSING, networks=(), published=())))
    assert "Nothing was checked" in page.text()
    assert page.text("h1") == "INCONCLUSIVE"


def test_what_is_not_a_network_is_not_called_one() -> None:
    shown = " ".join(Page(as_html(replace(sample(), unit="function"))).text().split())
    assert "1 of 5 functions differs" in shown
    assert "Functions that it had not reached" in shown
    assert "network" not in shown.lower()


def test_the_index_of_what_is_stacked_is_named() -> None:
    run = replace(PASSING, networks=(network("a", row(leading="for cotangent")),))
    assert "2 for cotangent 1" in Page(as_html(run)).texts_of("td")


def test_a_hundred_networks_would_stay_below_six_megabytes() -> None:
    rng = np.random.default_rng(0)
    steps = 10.0 ** np.arange(-12, 0.5, 0.5)
    rows = [row(f"{what}[{i}].{name}", layer=i + 1) for i in range(8) for what, name in [("trace", "z")] * 9]
    networks = []
    for i in range(10):
        entries = rng.normal(size=2000) ** 3
        pictures = Pictures((entries, entries * 1.5), ("a", "b"), (("x", 1.0),) * 8, Curve(steps, steps))
        networks.append(network(f"tanh, softmax_cross_entropy, depth 8, bfloat16, {i}", *rows, pictures=pictures))
    assert len(as_html(replace(PASSING, networks=tuple(networks))).encode()) < 6e5


def test_a_missing_jinja2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BadInput, match=r'python -m pip install -e "\.\[cli\]"'):
        as_html(PASSING)


# Heat maps


def _worst(used: float, verdict: Any = "pass") -> heat_maps.Cell:
    return heat_maps.Cell(used, verdict, "")


def test_rows_are_placed_by_layer_and_quantity() -> None:
    rows = [
        row("trace[0].z", kind="equation", layer=1),
        row("gradients[1].W[0]", kind="equation", layer=2),
        row("gradients[1].W[1]", "fail", kind="equation", layer=3),
        row("gradients[1].W[1]", kind="equation", layer=3, used=0.9),
        row("gradients[1].W", used=0.9),
        row("gradients[1].W", "inconclusive"),
        row("deltas[0]"),
        row("value_and_grad.gradients[0].b"),
        row("loss"),
        row("args[0]['W']", kind="witness", witness="jvp"),
    ]
    by_equation, end_to_end, rest = heat_maps.heat_maps(rows)
    assert by_equation.columns == ("z", "dW")
    assert [name for name, _ in by_equation.lines] == ["1", "2", "3"]
    assert by_equation.lines[0][1][1] is None
    assert by_equation.lines[2][1][1] == heat_maps.Cell(40.0, "fail", "gradients[1].W[1]")
    assert [name for name, _ in end_to_end.lines] == ["1", "2 to 3"]
    assert end_to_end.columns == ("delta", "value_and_grad: db", "dW")
    assert end_to_end.lines[1][1][2] == heat_maps.Cell(0.1, "inconclusive", "gradients[1].W")
    assert [name for name, _ in rest.lines] == ["loss", "args[0]['W']"]
    assert rest.columns == ("end to end: jax.grad", "witness: jvp")


def test_a_long_map_keeps_what_is_not_a_pass() -> None:
    rows = [row(f"args[{i}]", "fail" if i == 150 else "pass") for i in range(200)]
    (found,) = heat_maps.heat_maps(rows)
    assert len(found.lines) + found.left_out == 200
    assert found.lines[-1][0] == "args[150]"


def test_a_cell_is_marked_in_words_and_its_colour_grows_with_the_error() -> None:
    assert _worst(40.0, "fail").text == "✗ 40"
    assert _worst(0.031, "inconclusive").text == "? 0.031"
    assert _worst(2e-7).text == "2e-7"
    sizes = [0.0, 1e-9, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 9.9, 1e9, math.inf, math.nan]
    bins = [_worst(size).colour for size in sizes]
    assert bins == sorted(bins)
    assert (bins[0], bins[6], bins[-1]) == (0, 16, heat_maps.BINS - 1)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colours_are_cividis_and_their_text_has_the_contrast_that_wcag_asks_for() -> None:
    ends = {"#000": "#000000", "#fff": "#ffffff"}
    lights = []
    for background, front in heat_maps.colours():
        light, dark = sorted([_luminance(background), _luminance(ends[front])], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        lights.append(_luminance(background))
    assert lights == sorted(lights)  # it reads the same in grey


def test_colours_agree_with_matplotlib() -> None:
    cividis = matplotlib.colormaps["cividis"]
    for i, (background, _) in enumerate(heat_maps.colours()):
        ours = [int(background[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        assert np.allclose(ours, cividis(i / (heat_maps.BINS - 1))[:3], atol=0.003)


# Charts


@dataclass(frozen=True)
class Curve:
    steps: np.ndarray
    errors: np.ndarray


def _points(svg: str, kind: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    paths = [e.get("d", "") for e in root.iter("path") if e.get("class") == kind]
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path)]


def _described(svg: str) -> str:
    return str(ElementTree.fromstring(svg).findtext("desc"))


def test_equal_entries_lie_on_the_diagonal_and_others_are_crossed() -> None:
    values = np.array([-3.0, -1e-3, 0.0, 1e-9, 0.5, 2.0])
    svg = plots.scatter("i", values, values, ("by hand", "jax.grad"))
    assert _described(svg) == "6 entries, 0 of them visibly off the diagonal"
    assert _points(svg, "off") == []
    for x, y in _points(svg, "pt"):
        across = (x - 56) / (328 - 56)
        assert across == pytest.approx((208 - y) / (208 - 10), abs=0.005)
    wrong = values.copy()
    wrong[4] *= -1
    svg = plots.scatter("i", wrong, values, ("by hand", "jax.grad"))
    assert "6 entries, 1 of them visibly off" in _described(svg)
    assert len(_points(svg, "off")) == 1


def test_what_cannot_be_drawn_is_said() -> None:
    svg = plots.scatter("i", np.array([1.0, np.nan, 2.0]), np.array([1.0, 1.0, np.inf]), ("a", "b"))
    assert "2 are nan or inf and are not drawn" in _described(svg)
    assert _described(plots.scatter("i", np.zeros(3), np.zeros(3), ("a", "b"))).startswith("3 entries, 0")
    svg = plots.difference_curve("i", [1e-3, 1e-2, 1e-1], [0.0, math.nan, 1e-5])
    assert "exactly zero at 1 of them" in _described(svg)
    assert "1 are nan or inf" in _described(svg)
    svg = plots.delta_norms("i", [("a", 0.0), ("b", 1.0), ("c", math.inf)])
    assert len(_points(svg, "off")) == 2
    assert len(_points(svg, "pt")) == 1


def test_the_curve_is_a_v_and_names_its_bottom() -> None:
    steps = 10.0 ** np.arange(-10, 0.0)
    svg = plots.difference_curve("i", steps.tolist(), (1e-15 / steps + steps**2).tolist())
    assert "least error is 2e-10, at h = 1e-05" in _described(svg)
    heights = [y for _, y in _points(svg, "pt")]
    bottom = heights.index(max(heights))  # y grows downwards
    assert steps[bottom] == pytest.approx(1e-5)
    assert heights[:bottom] == sorted(heights[:bottom])
    assert heights[bottom:] == sorted(heights[bottom:], reverse=True)


def test_every_point_stays_in_the_frame() -> None:
    rng = np.random.default_rng(1)
    for scale in (1e-310, 1e-299, 1e-5, 1.0, 1e300):
        values = rng.normal(size=50) * scale
        found = _points(plots.scatter("i", values, -values, ("a", "b")), "pt")
        found += _points(plots.delta_norms("i", [("", float(abs(v))) for v in values]), "pt")
        found += _points(plots.difference_curve("i", np.abs(values).tolist(), np.abs(values).tolist()), "pt")
        assert all(56 <= x <= 328 and 10 <= y <= 208 for x, y in found)
