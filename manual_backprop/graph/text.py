"""A graph as text that other programs draw: Mermaid and DOT."""

from collections.abc import Callable, Iterator

from manual_backprop.graph.model import Arrow, Box, Diagram, Vertex

COLOURS = {
    "data": "#dbeafe",
    "parameter": "#ffe8cc",
    "signal": "#f1f3f5",
    "objective": "#d3f9d8",
    "operator": "#ffffff",
    "composite": "#f3e8ff",
}
MERMAID = {"variable": ("[", "]"), "operator": ("((", "))"), "composite": ("[[", "]]")}
DOT = {"variable": "shape=box", "operator": "shape=circle", "composite": "shape=box, peripheries=2"}


def mermaid(graph: Diagram) -> str:
    """The graph as a Mermaid flowchart, left to right."""

    def vertex(v: Vertex) -> str:
        left, right = MERMAID[v.kind]
        return f'{v.key}{left}"{_lines(v, "<br/>", _html)}"{right}:::{v.role}'

    def arrow(a: Arrow) -> str:
        line = "-.->" if a.lane == "loop" else "-->"
        return f'{a.tail} {line}|"{_html(a.label)}"| {a.head}' if a.label else f"{a.tail} {line} {a.head}"

    lines = ["flowchart LR"]
    lines += _nested(graph, vertex, lambda number, box: f'subgraph box{number} ["{_html(box.label)}"]', "end")
    lines += [f"  {arrow(a)}" for a in graph.arrows]
    lines += [f"  classDef {role} fill:{colour},stroke:#1f2328,color:#1f2328" for role, colour in COLOURS.items()]
    return "\n".join(lines) + "\n"


def dot(graph: Diagram) -> str:
    """The graph in DOT, the language of Graphviz."""

    def vertex(v: Vertex) -> str:
        text = _lines(v, "\\n", _quoted)
        return f'{v.key} [label="{text}", {DOT[v.kind]}, style=filled, fillcolor="{COLOURS[v.role]}"];'

    def arrow(a: Arrow) -> str:
        said = [f'label="{_quoted(a.label)}"'] * bool(a.label) + ["style=dashed"] * (a.lane == "loop")
        return f"{a.tail} -> {a.head}" + (f" [{', '.join(said)}]" if said else "") + ";"

    def box(number: int, box: Box) -> str:
        return f'subgraph cluster{number} {{ label="{_quoted(box.label)}"; style=dashed;'

    lines = ["digraph computation {", "  rankdir=LR;", f'  label="{_quoted(graph.title)}";']
    lines += _nested(graph, vertex, box, "}")
    lines += [f"  {arrow(a)}" for a in graph.arrows]
    return "\n".join([*lines, "}"]) + "\n"


def _nested(
    graph: Diagram, vertex: Callable[[Vertex], str], begin: Callable[[int, Box], str], end: str
) -> Iterator[str]:
    """A line for every vertex; the vertices of a box stand between its `begin` and `end` lines."""

    def within(members: set[str], boxes: list[tuple[int, Box]], indent: str) -> Iterator[str]:
        outer = [(n, b) for n, b in boxes if not any(n < m and set(b.members) <= set(o.members) for m, o in boxes)]
        boxed = {key for _, b in outer for key in b.members}
        for v in graph.vertices:
            if v.key in members - boxed:
                yield indent + vertex(v)
        for number, b in outer:
            inner = [(n, o) for n, o in boxes if n != number and set(o.members) <= set(b.members)]
            yield indent + begin(number, b)
            yield from within(set(b.members), inner, indent + "  ")
            yield indent + end

    yield from within({v.key for v in graph.vertices}, list(enumerate(graph.boxes)), "  ")


def _lines(vertex: Vertex, newline: str, escaped: Callable[[str], str]) -> str:
    return newline.join(escaped(line) for line in (vertex.label, *vertex.notes))


def _html(text: str) -> str:
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
