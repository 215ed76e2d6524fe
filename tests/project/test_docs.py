"""The documentation's pages: nothing public is missing, links lead somewhere, and the front page's program runs.

Sphinx itself (`.ci/run`) says whether the pages build; this says what it would not miss.
"""

import argparse
import json
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

import manual_backprop as mb
import reference
from reference.cli import command
from tests.project.test_conventions import TAGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
API = sorted((DOCS / "api").rglob("*.md"))
MODULES = sorted((ROOT / "manual_backprop").rglob("*.py"))
PAGES = [*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
PAGES += [*sorted(DOCS.rglob("[!_]*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def directives(text: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """(kind, names, options) of every directive that documents something."""
    for block in re.findall(r"^\.\. ((?:auto\w+|py:\w+):: .*(?:\n[ ]+.*|\n(?=\n {3}:))*)", text, re.MULTILINE):
        head, *rest = block.split("\n")
        kind, _, first = head.partition(":: ")
        options = dict(re.findall(r"^ +:([\w-]+): ?(.*)$", block, re.MULTILINE))
        yield kind, [first.strip(), *(line.strip() for line in rest if line and line.strip()[0] not in ":")], options


def documented(text: str) -> set[str]:
    """Full names of what these directives document."""
    names = set()
    for kind, targets, options in directives(text):
        names |= set(targets)
        if kind == "automodule" and "members" in options:
            module = import_module(targets[0])
            left_out = {name.strip() for name in options.get("exclude-members", "").split(",")}
            own = (n for n, it in vars(module).items() if getattr(it, "__module__", "") == module.__name__)
            names |= {f"{module.__name__}.{name}" for name in own if name[0] != "_" and name not in left_out}
    return names


@pytest.fixture(scope="module")
def places() -> set[str]:
    return set().union(*(documented(path.read_text(encoding="utf-8")) for path in API))


def public(package: ModuleType) -> set[str]:
    """Full names of what a package exports, its modules apart."""
    names = [name for name in getattr(package, "__all__", vars(package)) if name[0] != "_"]
    return {f"{package.__name__}.{name}" for name in names if not isinstance(getattr(package, name), ModuleType)}


@pytest.mark.parametrize("package", [mb, reference], ids=lambda package: package.__name__)
def test_every_public_name_is_on_a_page(package, places):
    wanted = public(package)
    assert len(wanted) > 20
    assert wanted - places == set()


def test_the_test_for_missing_names_can_fail():
    text = ".. automodule:: manual_backprop.textbook.jacobians\n   :members:\n   :exclude-members: dz_db, prod\n"
    assert documented(text) >= {"manual_backprop.textbook.jacobians", "manual_backprop.textbook.jacobians.dz_da"}
    assert not documented(text) & {
        "manual_backprop.textbook.jacobians.dz_db",
        "manual_backprop.textbook.jacobians.prod",
    }
    assert documented(".. py:data:: a.b\n             a.c\n\n   Words.\n") >= {"a.b", "a.c"}
    assert documented("Words about a.d\n") == set()


def object_of(name: str) -> object:
    """The object of that full name."""
    words = name.split(".")
    for i in range(len(words), 0, -1):
        try:
            found: object = import_module(".".join(words[:i]))
        except ModuleNotFoundError:
            continue
        for word in words[i:]:
            found = getattr(found, word)
        return found
    raise AssertionError(name)


@pytest.fixture(scope="module")
def homes(places) -> set[str]:
    return {getattr(object_of(name), "__module__", "") for name in places}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_module_has_its_place(path, places, homes):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert module in places | homes, f"{module} is on no page of docs/api"


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in API:
        assert f"\n{path.relative_to(DOCS).with_suffix('')}\n" in contents, path
        if path.name != "index.md":
            assert f"({path.relative_to(DOCS / 'api')})" in (DOCS / "api" / "index.md").read_text(encoding="utf-8"), (
                path
            )


def test_every_command_is_on_its_page():
    parser = command._parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    text = (DOCS / "api" / "reference" / "command.md").read_text(encoding="utf-8")
    assert set(re.findall(r"command-help:: (\w+)", text)) == set(commands)


@pytest.mark.parametrize("tag", sorted({*TAGS, "G1"}))
def test_every_equation_is_typeset_under_its_tag(tag):
    text = (DOCS / "equations.md").read_text(encoding="utf-8")
    assert re.search(rf"\(eq-{tag}\)=\n(?:(?!\n\n).)*\\tag\{{{tag}\}}", text, re.DOTALL)


def markdown(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(text: str) -> Iterator[str]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target and not re.match(r"[a-z]+:", str(target)):
                yield unquote(str(target))


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub and MyST make them, and of targets: `(name)=`."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    heads = [inline.content for head, inline in pairwise(tokens) if head.type == "heading_open"]
    slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def broken(path: Path, text: str) -> list[str]:
    """Links that lead nowhere."""
    lost = []
    for link in links(text):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        found = not file or (target.exists() and target.is_relative_to(ROOT))
        if not found or (anchor and anchor not in anchors(markdown(target) if file else text)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path):
    assert broken(path, markdown(path)) == []


def test_the_test_for_links_can_fail():
    text = "# A b's\n\n[1](#a-bs) [2](#c) [3](README.md) [4](nowhere.md) [5](README.md#the-equations) [6](README.md#x)"
    assert broken(ROOT / "x.md", text) == ["#c", "nowhere.md", "README.md#x"]


def test_the_front_page_runs():
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.S)
    told: dict[str, object] = {}
    exec(program, told)
    assert len(told["deltas"]) == 3  # type: ignore[arg-type]
