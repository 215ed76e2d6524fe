"""Docstrings are plain text, for an editor: this makes of them what Sphinx can typeset, and links the names in them.

- In a docstring *, |, _ and the backslash stand for themselves, `name` is code, and an indented paragraph is a block of
  code or a table. Napoleon takes the Google sections apart.
- A signature is written as in the source, with jaxtyping's shapes in the place of the names that modules give them.
- On every page, code that names something documented links to it, (B4) to its equation, arXiv:1607.00133 to its paper.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any

import jaxtyping
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PyObject
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

OURS = ("manual_backprop", "reference")
EQUATIONS, IN_CHINESE = "docs/equations", "docs/zh-CN/equations"
ANCHORS = set(re.findall(r'<a id="(eq-\w+)">', (Path(__file__).parent / "equations.md").read_text(encoding="utf-8")))

# ---- docstrings

SECTION = re.compile(r"(Args|Attributes|Raises|Raises \(when used\)|Returns|Yields):")
# While Napoleon reads, a character that means something to it or to reStructuredText is a private one of Unicode's.
PRIVATE = {character: chr(0xE000 + i) for i, character in enumerate("\\*|_:")}
HIDE = str.maketrans(PRIVATE)
HIDE_IN_FIELDS = str.maketrans({c: p for c, p in PRIVATE.items() if c != ":"})  # "name: what it is" stays one
SHOW = str.maketrans({p: c if c == ":" else "\\" + c for c, p in PRIVATE.items()})


def hide(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before Napoleon."""
    lines[:] = [line for section, block in _sections(lines) for line in _hidden(section, block)]


def show(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """After Napoleon."""
    lines[:] = [line.translate(SHOW) for line in lines]


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of every Google section, "code" for indented paragraphs, and "" for the text between."""
    name, block, before = "", [], ""
    for line in lines:
        header = SECTION.fullmatch(line)
        if header:
            kind = header[1]
        elif line.startswith(" ") and name == "" and not before.strip():
            kind = "code"
        elif line.strip() and not line.startswith(" "):
            kind = ""
        else:
            kind = name
        if kind != name or header:
            yield name, block
            name, block = kind, []
        block.append(line)
        before = line
    yield name, block


def _hidden(section: str, block: list[str]) -> list[str]:
    if section == "code":
        language = "python" if any("def " in line for line in block) else "text"
        return [f".. code-block:: {language}", "", *block, ""]
    if section == "":
        return _escaped(block, HIDE)
    head = block[0].replace("(", "").replace(")", "")  # or Napoleon takes "Raises (when used):" for no header
    return [head, *_escaped(block[1:], HIDE if section in ("Returns", "Yields") else HIDE_IN_FIELDS)]


def _escaped(lines: list[str], table: dict[int, str]) -> list[str]:
    """Code between double backticks, as reStructuredText has it; everything else hidden."""
    parts = re.split(r"`([^`]+)`", "\n".join(lines))
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = part.translate(table)
        else:  # markup beside a letter needs an escaped space, which is shown as none
            before, after = ("\\ " if side.isalnum() else "" for side in (parts[i - 1][-1:], parts[i + 1][:1]))
            parts[i] = f"{before}``{part}``{after}"
    return "".join(parts).split("\n")


# ---- signatures


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Parameters as the source has them; None leaves it to autodoc."""
    if what == "class" and dataclasses.is_dataclass(obj):
        return _of_dataclass(obj), None
    if what not in ("function", "method") or given is None:
        return None
    function = inspect.unwrap(getattr(obj, "__func__", obj))
    definition = _parsed(function)
    if not isinstance(definition, ast.FunctionDef):
        return None
    _Shapes(function.__globals__).visit(definition)
    if what == "method" and not isinstance(obj, staticmethod):
        del (definition.args.posonlyargs or definition.args.args)[:1]  # self
    return f"({ast.unparse(definition.args)})", ast.unparse(definition.returns) if definition.returns else None


def _of_dataclass(kind: type) -> str:
    annotations = {}
    for owner in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        for node in getattr(_parsed(owner), "body", []):
            if isinstance(node, ast.AnnAssign):
                shown = _Shapes(vars(sys.modules[owner.__module__])).visit(node.annotation)
                annotations[ast.unparse(node.target)] = ast.unparse(shown)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    by_place = [_field(field, annotations[field.name]) for field in fields if not field.kw_only]
    by_name = [_field(field, annotations[field.name]) for field in fields if field.kw_only]
    return f"({', '.join([*by_place, *(['*'] if by_name else []), *by_name])})"


def _field(field: dataclasses.Field, annotation: str) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"{field.name}: {annotation} = ..."
    if field.default is dataclasses.MISSING:
        return f"{field.name}: {annotation}"
    plain = isinstance(field.default, str | int | float | tuple | None)
    return f"{field.name}: {annotation} = {repr(field.default) if plain else '...'}"


def _parsed(thing: Any) -> ast.stmt | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError):
        return None


class _Shapes(ast.NodeTransformer):
    """A name of a shape (Batch, Weights) becomes what it stands for, a class of ours its full name; Tree stays."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.AST:
        kind = self.known.get(node.id)
        text = _shape(kind)
        if not text and isinstance(kind, type) and kind.__module__.startswith(OURS):
            text = f"~{kind.__module__}.{kind.__qualname__}"  # Sphinx writes its last word, and links it
        return ast.parse(text, mode="eval").body if text else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, str):
            return node
        return self.visit_Name(ast.Name(node.value)) if node.value in self.known else ast.Constant(node.value.strip())


def _shape(kind: Any) -> str:
    """`Float[Array, "N d"]` of a jaxtyping annotation, and of a union with one; "" of anything else."""
    if isinstance(kind, UnionType):
        parts = [_shape(part) for part in kind.__args__]
        names = [part or getattr(of, "__name__", "") for part, of in zip(parts, kind.__args__, strict=True)]
        return " | ".join(names) if any(parts) and all(names) else ""
    if isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray) and hasattr(kind, "dim_str"):
        array = kind.array_type.__name__.rpartition(".")[2]
        return f'{kind.__name__.partition("[")[0]}[{array}, "{kind.dim_str.strip()}"]'
    return ""


# ---- links


class Names:
    """Everything documented, by the names that prose has for it."""

    def __init__(self, objects: dict[str, ObjectEntry]) -> None:
        self.objects = objects
        self.endings: dict[str, dict[tuple[str, str], ObjectEntry]] = {}
        for full, entry in objects.items():
            words = full.split(".")
            for i in range(1, len(words)):
                self.endings.setdefault(".".join(words[i:]), {})[entry.docname, entry.node_id] = entry

    def find(self, text: str, scopes: list[str]) -> ObjectEntry | None:
        """What `text` names, seen from inside `scopes`, innermost first: `name`, `mb.name`, `Class.name(...)`."""
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", text.strip(), re.DOTALL)
        if not match:
            return None
        name = re.sub(r"^mb\.", "manual_backprop.", match[1])
        for scope in [*scopes, "manual_backprop"]:
            if f"{scope}.{name}" in self.objects:
                return self.objects[f"{scope}.{name}"]
        if name in self.objects:
            return self.objects[name]
        found = list(self.endings.get(name, {}).values()) if "." in name or name[0].isupper() else []
        return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1)
def _of_domain(domain: Any, count: int) -> Names:
    return Names(domain.objects)


def names_of(env: Any) -> Names:
    """Those of all pages that were read: made once, since every annotation of a signature asks."""
    domain = env.domains["py"]
    return _of_domain(domain, len(domain.objects))


CITED = re.compile(r"(\([BCFGJU]\d\)|arXiv:\d{4}\.\d{5}|doi:10\.[\w./-]*\w)")
PAPERS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
NO_PROSE = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw,
            addnodes.pending_xref, addnodes.desc_signature)  # fmt: skip


class Link(SphinxPostTransform):
    """Names, equations and papers in the running text of a page become links."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """On one page."""
        names = names_of(self.env)
        for code in list(self.document.findall(nodes.literal)):
            scopes, here = _scopes(code, self.env.docname)
            entry = None if _inside(code, NO_PROSE) else names.find(code.astext(), scopes)
            if entry and entry.node_id not in here:
                code.parent.replace(code, self._link(entry.docname, entry.node_id, code.deepcopy()))
        for text in list(self.document.findall(nodes.Text)):
            if text == " -- " and _inside(text, (nodes.field_body,)):  # between a parameter and what it is
                text.parent.replace(text, nodes.Text(": "))
            elif CITED.search(text) and not _inside(text, NO_PROSE):
                text.parent.replace(text, list(self._cited(text)))

    def _cited(self, text: str) -> Iterator[nodes.Node]:
        for piece in CITED.split(text):
            tag, (scheme, _, number) = piece[1:-1], piece.partition(":")
            if CITED.fullmatch(piece) and scheme in PAPERS:
                yield nodes.reference("", piece, refuri=PAPERS[scheme] + number, internal=False)
            elif CITED.fullmatch(piece) and f"eq-{tag}" in ANCHORS:
                page = IN_CHINESE if "zh-CN" in self.env.docname else EQUATIONS
                yield self._link(page, f"eq-{tag}", nodes.inline(text=piece))
            else:
                yield nodes.Text(piece)

    def _link(self, docname: str, node_id: str, content: nodes.Node) -> nodes.reference:
        return make_refnode(self.app.builder, self.env.docname, docname, node_id, content)


def _scopes(node: nodes.Node, docname: str) -> tuple[list[str], set[str]]:
    """The classes, modules and package that a node's text is about, innermost first, and the ids of these."""
    scopes, ids = [], set()
    for parent in _parents(node):
        if isinstance(parent, addnodes.desc) and isinstance(parent[0], addnodes.desc_signature):
            ids |= set(parent[0]["ids"])
            module, name = parent[0].get("module") or "", parent[0].get("fullname", "")
            words = f"{module}.{name}".split(".")
            scopes += [".".join(words[:i]) for i in range(len(words), 0, -1)]
    return [*scopes, *(["reference"] if "/reference/" in docname else [])], ids


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(parent, kinds) for parent in _parents(node))


def link_annotation(
    app: Sphinx, env: Any, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """A class in a signature is a link also where it is documented by a shorter name than that of its module."""
    if node.get("refdomain") != "py":
        return None
    entry = names_of(env).find(node["reftarget"].rpartition(".")[2], [])
    return entry and make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)


def say_mb(app: Sphinx, domain: str, objtype: str, content: addnodes.desc_content) -> None:
    """`mb.Objective`, as one writes it."""
    for prefix in content.parent.findall(addnodes.desc_addname):
        if prefix.astext().startswith("manual_backprop."):
            short = prefix.astext().replace("manual_backprop.", "mb.", 1)
            prefix.children = []
            prefix += nodes.Text(short)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", hide, priority=100)
    app.connect("autodoc-process-docstring", show, priority=900)
    app.connect("autodoc-process-signature", signature)
    app.connect("object-description-transform", say_mb)
    app.connect("missing-reference", link_annotation)
    app.add_post_transform(Link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
