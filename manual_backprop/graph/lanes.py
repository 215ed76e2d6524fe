"""The space under a row: lines of notes, and below them the lanes of the arrows past a block."""

from manual_backprop.graph.model import Arrow, Vertex
from manual_backprop.graph.rows import Rows
from manual_backprop.graph.shapes import HALF, LINE

LANE = 0.17  # distance between lanes


class Lanes:
    """The lane of every arrow past a block, and the notes that stand above the lanes.

    Attributes:
        joined: keys of the vertices that such an arrow leaves or enters, from below.
        forked: keys of the vertices that an arrow between two lines of a row leaves or enters, from below.
        across: the arrows from one line to another.
        notes_below: by key, whether a vertex has its notes below it.
        note_lines: by row, how many lines of notes stand below its line.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        graph = rows.graph
        below = [arrow for arrow in graph.arrows if arrow.lane in ("skip", "loop")]
        self.joined = {key for arrow in below for key in (arrow.tail, arrow.head)}
        self.forked = {self._upper(arrow) for arrow in graph.arrows if self.bends(arrow)}
        self._levels = self._chosen(below)
        self.across = [arrow for arrow, levels in self._levels.items() if len(levels) > 1]
        self.notes_below = {vertex.key: self._has_notes_below(vertex) for vertex in graph.vertices}
        self.note_lines = [self._most_lines(row) for row in range(len(rows.all))]

    def depth(self, arrow: Arrow, row: int) -> float:
        """How far below a row's line an arrow's lane runs."""
        return HALF + LINE * self.note_lines[row] + 0.15 + LANE * self._levels[arrow][row]

    def depths(self, row: int) -> dict[Arrow, float]:
        """The depth of every arrow that has a lane under a row."""
        return {arrow: self.depth(arrow, row) for arrow, levels in self._levels.items() if row in levels}

    def bends(self, arrow: Arrow) -> bool:
        """Whether an arrow runs from one line of a row to another, such as where branches begin and end."""
        rows, ends = self.rows, (arrow.tail, arrow.head)
        return arrow.lane == "straight" and rows.together(*ends) and rows.number(ends[0]) != rows.number(ends[1])

    def _upper(self, arrow: Arrow) -> str:
        return min(arrow.tail, arrow.head, key=self.rows.number)

    def _has_notes_below(self, vertex: Vertex) -> bool:
        """Whether a vertex has its notes below it.

        A vertex on the line does unless an arrow joins it from below. A vertex above the line does if no arrow from
        the line joins it.
        """
        if vertex.place.y == 0:
            return vertex.key not in self.joined
        joined = {
            a.head if a.tail == vertex.key else a.tail
            for a in self.rows.graph.arrows
            if vertex.key in (a.tail, a.head) and a.lane == "straight"
        }
        return all(self.rows.vertices[key].place.y > 0 for key in joined)

    def _most_lines(self, row: int) -> int:
        lines = (len(v.notes) for v in self.rows.members(row) if v.place.y == 0 and self.notes_below[v.key])
        return max(lines, default=0)

    def _chosen(self, below: list[Arrow]) -> dict[Arrow, dict[int, int]]:
        """The number of each arrow's lane, by row: shorter arrows are nearer, and no two overlap."""
        taken: dict[int, list[tuple[float, float, int]]] = {row: [] for row in range(len(self.rows.all))}
        levels: dict[Arrow, dict[int, int]] = {}
        for arrow in sorted(below, key=self._span):
            levels[arrow] = {}
            for row in {self.rows.number(arrow.tail), self.rows.number(arrow.head)}:
                left, right = self._interval(arrow, row)
                over = [level for start, end, level in taken[row] if start < right and left < end]
                levels[arrow][row] = 1 + max(over, default=-1)
                taken[row].append((left, right, levels[arrow][row]))
        return levels

    def _span(self, arrow: Arrow) -> tuple[int, float]:
        number, x = self.rows.number, self.rows.x
        return abs(number(arrow.tail) - number(arrow.head)), abs(x(arrow.tail) - x(arrow.head))

    def _interval(self, arrow: Arrow, row: int) -> tuple[float, float]:
        ends = [self.rows.x(key) for key in (arrow.tail, arrow.head) if self.rows.number(key) == row]
        return (min(ends), max(ends)) if len(ends) == 2 else (0.0, ends[0])
