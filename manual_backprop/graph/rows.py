"""The rows of a page: chunks side by side, in a new row where the page ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from manual_backprop.graph.model import PAGE, Diagram, Vertex

MANY = 64  # more chunks than any row has
MARGIN = 0.6  # left and right of the rows


@dataclass
class Line:
    """A line of vertices at height `y`; branches are lines below one another in one row.

    Attributes:
        chunks: the numbers of its chunks, the same for all lines of a row.
        width: of all its chunks together.
        row: the number of its row on the page.
        line: its number within that row.
        y: its height on the page; 0 until the heights of the rows above are known.
        up: distance to its upper edge.
        down: distance to its lower edge.
        rail: distance up to the line of arrows that run over it.
    """

    chunks: list[int]
    width: float
    row: int = 0
    line: int = 0
    y: float = 0.0
    up: float = 0.0
    down: float = 0.0
    rail: float = 0.0


class Rows:
    """As few rows as the page allows, no wider than needed, and the place of every vertex in them.

    Attributes:
        graph: the graph that is laid out.
        vertices: its vertices by key.
        all: the lines, from the top of the page to its bottom.
    """

    def __init__(self, graph: Diagram) -> None:
        self.graph = graph
        self.vertices = {vertex.key: vertex for vertex in graph.vertices}
        rows = _rows(graph)
        self._of_chunk = [number for number, row in enumerate(rows) for _ in row.chunks]
        lines = {(self._of_chunk[vertex.place.chunk], vertex.place.line) for vertex in graph.vertices}
        lines |= {(number, 0) for number in range(len(rows))}
        self.all = [replace(rows[number], row=number, line=line) for number, line in sorted(lines)]
        self._numbers = {(line.row, line.line): number for number, line in enumerate(self.all)}

    def number(self, key: str) -> int:
        """The number of a vertex's line, counted from the top of the page."""
        place = self.vertices[key].place
        return self._numbers[self._of_chunk[place.chunk], place.line]

    def row(self, key: str) -> Line:
        """The line of a vertex."""
        return self.all[self.number(key)]

    def together(self, one: str, other: str) -> bool:
        """Whether two vertices are in one row of the page, on the same line or not."""
        return self.row(one).row == self.row(other).row

    def members(self, line: int) -> list[Vertex]:
        """The vertices on a line."""
        return [vertex for vertex in self.graph.vertices if self.number(vertex.key) == line]

    def last(self, line: int) -> Line:
        """The lowest line in the row of a line."""
        return max((other for other in self.all if other.row == self.all[line].row), key=lambda other: other.line)

    def wires(self, line: int) -> int:
        """How many wires besides the first may run below a line's row to the next row."""
        row = self.all[line].row
        return max(other.line for other in self.all if other.row in (row, row + 1))

    def x(self, key: str) -> float:
        """The distance from the left edge of the page to the middle of a vertex."""
        place = self.vertices[key].place
        before = (self.graph.chunks[chunk] for chunk in self.row(key).chunks if chunk < place.chunk)
        return MARGIN + sum(before) + place.x


def _rows(graph: Diagram) -> list[Line]:
    together = _boxed(graph)
    few = len(_filled(graph.chunks, together, PAGE))
    starts = range(len(graph.chunks))
    widths = {round(width, 6) for i in starts for width in accumulate(graph.chunks[i : i + MANY]) if width < PAGE}
    widest = max((width for width in together.values() if width < PAGE), default=0.0)  # such rows cut no box
    fits = (w for w in widths if w >= widest and len(_filled(graph.chunks, together, w)) == few)
    return _filled(graph.chunks, together, min(fits, default=PAGE))


def _boxed(graph: Diagram) -> dict[int, float]:
    """By first chunk, the width of the widest box that begins there and fits in a row; it should not be cut."""
    widths: dict[int, float] = {}
    for box in graph.boxes:
        chunks = {graph[key].place.chunk for key in box.members}
        width = sum(graph.chunks[min(chunks) : max(chunks) + 1])
        if width <= PAGE:
            widths[min(chunks)] = max(width, widths.get(min(chunks), 0.0))
    return widths


def _filled(chunks: Sequence[float], together: Mapping[int, float], limit: float) -> list[Line]:
    """Rows, each as full as the limit allows; a chunk wider than the limit has a row to itself."""
    rows = [Line([], 0.0)]
    for number, width in enumerate(chunks):
        if rows[-1].chunks and rows[-1].width + together.get(number, width) > limit + 1e-9:
            rows.append(Line([], 0.0))
        rows[-1].chunks.append(number)
        rows[-1].width += width
    return rows
