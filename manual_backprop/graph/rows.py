"""The rows of a page: chunks side by side, in a new row where the page ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from manual_backprop.graph.model import Diagram, Vertex

PAGE = 11.2  # the widest row, in inches
MANY = 64  # more chunks than any row has
MARGIN = 0.6  # left and right of the rows


@dataclass
class Row:
    """A row's chunks; its vertices' line is at `y`, and it reaches so far `up` and `down` from there.

    Attributes:
        chunks: their numbers.
        width: of all of them.
        y: 0 until it is known how high the rows above it are.
        up: to its upper edge.
        down: to its lower edge.
        rail: up to the line of arrows that run over it.
    """

    chunks: list[int]
    width: float
    y: float = 0.0
    up: float = 0.0
    down: float = 0.0
    rail: float = 0.0


class Rows:
    """As few rows as the page allows, and these no wider than they must be; and who stands in which."""

    def __init__(self, graph: Diagram) -> None:
        self.graph = graph
        self.vertices = {vertex.key: vertex for vertex in graph.vertices}
        self.all = _rows(graph)
        self._of_chunk = [number for number, row in enumerate(self.all) for _ in row.chunks]

    def number(self, key: str) -> int:
        """The row of a vertex."""
        return self._of_chunk[self.vertices[key].place.chunk]

    def row(self, key: str) -> Row:
        """The row of a vertex, itself."""
        return self.all[self.number(key)]

    def members(self, row: int) -> list[Vertex]:
        """The vertices in a row."""
        return [vertex for vertex in self.graph.vertices if self._of_chunk[vertex.place.chunk] == row]

    def x(self, key: str) -> float:
        """How far from the left edge of the page the middle of a vertex is."""
        place = self.vertices[key].place
        before = (self.graph.chunks[chunk] for chunk in self.row(key).chunks if chunk < place.chunk)
        return MARGIN + sum(before) + place.x


def _rows(graph: Diagram) -> list[Row]:
    together = _boxed(graph)
    few = len(_filled(graph.chunks, together, PAGE))
    starts = range(len(graph.chunks))
    widths = {round(width, 6) for i in starts for width in accumulate(graph.chunks[i : i + MANY]) if width < PAGE}
    widest = max((width for width in together.values() if width < PAGE), default=0.0)  # a box is not cut for this
    fits = (w for w in widths if w >= widest and len(_filled(graph.chunks, together, w)) == few)
    return _filled(graph.chunks, together, min(fits, default=PAGE))


def _boxed(graph: Diagram) -> dict[int, float]:
    """By the chunk that it begins with, the width of a box that should not be cut: the widest that fits in a row."""
    widths: dict[int, float] = {}
    for box in graph.boxes:
        chunks = {graph[key].place.chunk for key in box.members}
        width = sum(graph.chunks[min(chunks) : max(chunks) + 1])
        if width <= PAGE:
            widths[min(chunks)] = max(width, widths.get(min(chunks), 0.0))
    return widths


def _filled(chunks: Sequence[float], together: Mapping[int, float], limit: float) -> list[Row]:
    """Rows, each as full as the limit allows; a chunk that is wider has one to itself."""
    rows = [Row([], 0.0)]
    for number, width in enumerate(chunks):
        if rows[-1].chunks and rows[-1].width + together.get(number, width) > limit + 1e-9:
            rows.append(Row([], 0.0))
        rows[-1].chunks.append(number)
        rows[-1].width += width
    return rows
