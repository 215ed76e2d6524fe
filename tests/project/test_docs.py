"""The documentation's pages: nothing public is missing, links lead somewhere, and their programs run.

Sphinx itself (`.ci/run`) says whether the pages build; this says what it would not miss.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
from helpers import in_its_own_process
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
    for path in [*DOCS.glob("*.md"), *DOCS.glob("zh-CN/*.md")]:
        page = path.relative_to(DOCS).with_suffix("")
        assert f"\n{page}\n" in contents or path.name == "index.md", path
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
    assert re.search(rf'<a id="eq-{tag}"></a>\n\n\$\$(?:(?!\n\n).)*\\tag\{{{tag}\}}\$\$', text, re.DOTALL)


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
    text = "# A b's\n\n[1](#a-bs) [2](#c) [3](README.md) [4](nowhere.md) [5](README.md#two-commands) [6](README.md#x)"
    assert broken(ROOT / "x.md", text) == ["#c", "nowhere.md", "README.md#x"]


def lost_files(path: Path) -> list[str]:
    """Files and folders of ours that a page names in code and that are not there; a page may name what it builds."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(path))
    code = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    named = [text for text in code if re.fullmatch(r"(manual_backprop|reference|benchmarks|docs|tests)/[\w/.]*", text)]
    kept = [text for text in named if not text.startswith("docs/_build/")]
    return [text for text in kept if not (ROOT / text).exists()]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_files_that_a_page_names_are_there(path):
    assert lost_files(path) == []


def test_the_test_for_files_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("In `reference/model.py`, `reference/nowhere.py` and `1/N`.", encoding="utf-8")
    assert lost_files(page) == ["reference/nowhere.py"]


PROGRAMS = [p for p in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if "```python" in markdown(p)]
NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


def program(text: str) -> str:
    """The Python of a page, every line at its own place, so that a traceback shows it."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = line != "```" and (inside or line == "```python")
        lines.append(line if inside and line != "```python" else "")
    return "\n".join(lines)


def promised(text: str) -> list[str]:
    """The lines that a page says its program prints: behind a `print`, and in a block after the word "prints"."""
    blocks = re.findall(r"\bprints\n\n```\n(.*?)```", text, re.DOTALL)
    behind = re.findall(r"^ *print\(.*\)  # (.*)$", program(text), re.MULTILINE)
    return [*behind, *(line.strip() for block in blocks for line in block.splitlines())]


def says(printed: str, line: str) -> bool:
    """Whether that line is printed, where `...` stands for anything and numbers may differ by 2 %."""
    parts = re.split(rf"({NUMBER}|\.\.\.)", line)
    numbers = [float(part) for part in parts[1::2] if part != "..."]
    kinds = [".*" if part == "..." else f"({NUMBER})" for part in parts[1::2]] + [""]
    pattern = "".join(re.escape(text) + kind for text, kind in zip(parts[::2], kinds, strict=True))
    found = (map(float, match.groups()) for match in re.finditer(pattern, printed))
    return any(all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(each, numbers, strict=True)) for each in found)


@pytest.mark.evidence
@pytest.mark.parametrize("path", PROGRAMS, ids=named)
def test_a_pages_program_runs_and_prints_what_the_page_says(path):
    """With JAX as it is without the tests' settings."""
    source = program(markdown(path))
    if named(path) == "README.md":
        source += "\nassert all(layer.b.any() for layer in params), 'b = 0 hides a penalised bias'"
    done = in_its_own_process(source)
    assert done.returncode == 0, done.stderr
    missing = [line for line in promised(markdown(path)) if not says(done.stdout, line)]
    assert not missing, f"{missing} not in {done.stdout}"


@pytest.mark.parametrize(
    ("printed", "line", "found"),
    [
        ("epoch 5: J = 0.2111\n", "epoch 5: J = 0.211", True),
        ("epoch 5: J = 0.25\n", "epoch 5: J = 0.211", False),
        ("PROVEN: 51 comparisons in float64", "PROVEN: 49 comparisons", False),
        ("DIFFERS: 49 comparisons in float64, W[2, 1]", "DIFFERS: ... comparisons ... W[2, 1]", True),
        ("PROVEN: 49 comparisons", "DIFFERS: 49 comparisons", False),
        ("", "PROVEN: ...", False),
    ],
)
def test_the_test_for_what_is_printed_can_fail(printed, line, found):
    assert says(printed, line) is found


def test_a_pages_program_and_promises_are_read():
    text = "# A\n\n```python\nprint(1)  # 1\n```\n\nIt prints\n\n```\n  one\n```\n\n```sh\nls\n```\n"
    assert program(text).strip() == "print(1)  # 1" and program(text).count("\n") == text.count("\n") - 1
    assert promised(text) == ["1", "one"]
    assert sum(len(promised(markdown(path))) for path in PROGRAMS) >= 14
