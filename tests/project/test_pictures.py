"""The pictures of the README and the pages: all there on both papers, the graphs as the library draws them now."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import jax
import matplotlib
import numpy as np
import pytest
from matplotlib.textpath import TextPath

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)
THEMES = ("light", "dark")
NUMBER = re.compile(r"(-?\d+\.\d+)")


def stored(name: str, theme: str) -> str:
    return (pictures.FOLDER / f"{name}.{theme}.svg").read_text(encoding="utf-8")


def assert_same(before: str, now: str) -> None:
    """Pictures that are the same but for the sixth decimal, which depends on the version of NumPy."""
    (words, numbers), (words_now, numbers_now) = taken_apart(before), taken_apart(now)
    assert words == words_now, "run python docs/pictures.py"
    np.testing.assert_allclose(numbers_now, numbers, rtol=0, atol=1.5e-6, err_msg="run python docs/pictures.py")


def taken_apart(picture: str) -> tuple[list[str], list[float]]:
    parts = NUMBER.split(picture)
    return parts[::2], [float(number) for number in parts[1::2]]


GRAPHS = {"forward_graph": "light", "backward_graph": "dark", "composite_graph": "light", "gate_graph": "dark"}


@pytest.mark.parametrize(("name", "theme"), GRAPHS.items())  # on the other paper they are held against these, below
def test_stored_graphs_are_what_is_drawn_now(name, theme):
    now = pictures.PICTURES[name](theme)
    if f"matplotlib=={matplotlib.__version__}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        assert_same(stored(name, theme), now)
    else:  # another version draws the same in other words
        assert re.search(r'viewBox="[\d. ]+"', now)[0] == re.search(r'viewBox="[\d. ]+"', stored(name, theme))[0]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_the_same_on_both_papers_but_for_its_colours(name):
    light, dark = (pictures.COLOURS[theme].values() for theme in THEMES)
    on_dark = dict(zip(light, dark, strict=True))
    recoloured = re.sub("#[0-9a-f]{6}", lambda found: on_dark[found[0]], stored(name, "light"))
    assert recoloured == stored(name, "dark")


@pytest.mark.parametrize("pages", [["README.md", "docs/*.md"], ["README.zh-CN.md", "docs/zh-CN/*.md"]])
def test_the_pages_of_a_language_show_every_picture_on_both_papers(pages):
    texts = [path.read_text(encoding="utf-8") for pattern in pages for path in ROOT.glob(pattern)]
    shown = re.findall(r'(?:src|srcset)="(?:docs/|\.\./)?pictures/([\w.]+)"', "".join(texts))
    page = (ROOT / "docs/api/graph.md").read_text(encoding="utf-8")
    shown += re.findall(r'="\.\./pictures/((?:composite|gate)_[\w.]+)"', page)
    there = {path.name for path in pictures.FOLDER.iterdir()}
    assert {*shown} == there == {f"{p}.{theme}.svg" for p in pictures.PICTURES for theme in THEMES}


@pytest.mark.evidence
@pytest.mark.parametrize(("name", "theme"), [("heat_map", "light"), ("error_terms", "dark")])
def test_measured_pictures_can_be_made_again(name, theme):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        made = pictures.PICTURES[name](theme)
    for svg in (made, stored(name, theme)):
        assert f"fill: {pictures.COLOURS[theme]['paper']}" in svg  # the paper
        assert f"fill: {pictures.COLOURS[theme]['ink']}" in svg  # titles and labels
    assert re.search(r'viewBox="[\d. ]+"', made)[0] == re.search(r'viewBox="[\d. ]+"', stored(name, theme))[0]


def test_no_text_of_the_front_picture_is_clipped():
    root = ElementTree.parse(ROOT / "docs/_static/data_flow.svg").getroot()
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    texts = [element for element in root.iter() if element.tag.endswith("}text")]
    assert len(texts) > 10
    for element in texts:
        words, x, y = "".join(element.itertext()), float(element.attrib["x"]), float(element.attrib["y"])
        size = 12.5 if element.attrib["class"] == "c" else 16  # as docs/_static/pages.css has it
        half = TextPath((0, 0), words, size=size).get_extents().width / 2  # each is centred at x
        assert left <= x - half < x + half <= left + width, words
        assert top + size <= y <= top + height - size / 3, words
