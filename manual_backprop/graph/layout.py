"""Where everything of a graph stands on the page: rows of chunks, arrows as lines through lanes, frames. In inches.

Chunks stand side by side, in a new row where the page ends. An arrow between neighbours runs straight; to the
next row through the gap between the rows; from weights to their penalty over the row; past a block under it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from manual_backprop.graph.model import Arrow, Box, Diagram, Vertex

PAGE = 11.2  # the widest row
MANY = 64  # more chunks than any row has
MARGIN = 0.6  # left and right of the rows
HALF = 0.21  # half the height of a square, and the radius of a circle
LINE = 0.135  # one line of notes
LANE = 0.17  # from one lane to the next
PORT = 0.1  # how far from a vertex's middle an arrow past a block begins and ends; those between blocks do in it

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A vertex on the page: its middle and half its extent; `in_lane` where an arrow from under the row is joined."""

    vertex: Vertex
    x: float
    y: float
    half_width: float
    half_height: float
    notes_below: bool
    in_lane: bool

    @property
    def note_lines(self) -> int:
        """How many lines of notes stand below it."""
        return len(self.vertex.notes) if self.notes_below else 0


@dataclass(frozen=True)
class Path:
    """An arrow on the page, through its points in turn; `label_at` is the middle of its label."""

    arrow: Arrow
    points: tuple[Point, ...]
    label_at: Point
    align: str = "center"


@dataclass(frozen=True)
class Frame:
    """A part of an opened composite's box, in one row; the first part has the label."""

    label: str
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True)
class Page:
    """A graph laid out; y grows upwards from 0."""

    width: float
    height: float
    shapes: dict[str, Shape]
    paths: tuple[Path, ...]
    frames: tuple[Frame, ...]


@dataclass
class _Row:
    """A row's chunks; its vertices' line is at `y`, and it reaches so far `up` and `down` from there."""

    chunks: list[int]
    width: float
    y: float = 0.0
    up: float = 0.0
    down: float = 0.0
    rail: float = 0.0


def visible(label: str) -> float:
    """About how many letters wide a label is; raised ones are smaller."""
    raised = sum(len(part) for part in re.findall(r"\^\(([^)]*)\)", label))
    plain = re.sub(r"\^\([^)]*\)|[\^_]", "", label)
    plain = re.sub(r"delta|lambda|theta", "d", plain)
    return len(plain) + 0.75 * (raised + 1.2 * (raised > 0))


def half_width_of(label: str) -> float:
    """Half the width of a variable's box, in inches."""
    return max(HALF, 0.05 * visible(label) + 0.06)


def lay_out(graph: Diagram) -> Page:
    """Place a graph."""
    return _Layout(graph).page()


class _Layout:
    def __init__(self, graph: Diagram) -> None:
        self.graph = graph
        self.vertices = {vertex.key: vertex for vertex in graph.vertices}
        self.in_lanes = {key for a in graph.arrows if a.lane in ("skip", "loop") for key in (a.tail, a.head)}
        self.rows, self.row_of = _rows(graph)
        self.levels = self._levels()
        self.apart = [arrow for arrow, rows in self.levels.items() if len(rows) > 1]  # each has a line in the margin
        for row in range(len(self.rows)):
            self._measure(row)
        y = 0.0
        for each in self.rows:
            y -= each.up
            each.y = y
            y -= each.down
        self.height = 0.12 - y
        self.right = MARGIN + max(row.width for row in self.rows)
        self.shapes = {vertex.key: self._shape(vertex) for vertex in graph.vertices}
        self.frames = [frame for box in graph.boxes[::-1] for frame in self._frames(box)]
        self.trunk = max([self.right + 0.1, *(frame.right for frame in self.frames)]) + 0.1

    def page(self) -> Page:
        """Everything, moved so that the lower left corner is the origin."""
        paths = [self._path(arrow) for arrow in self.graph.arrows]
        width = max(self.right + MARGIN, *(x + 0.2 for path in paths for x, _ in path.points))
        up = self.height
        return Page(
            width,
            up,
            {key: replace(s, y=s.y + up) for key, s in self.shapes.items()},
            tuple(
                Path(p.arrow, tuple((x, y + up) for x, y in p.points), (p.label_at[0], p.label_at[1] + up), p.align)
                for p in paths
            ),
            tuple(Frame(f.label, f.left, f.bottom + up, f.right, f.top + up) for f in self.frames),
        )

    def _row(self, key: str) -> int:
        return self.row_of[self.vertices[key].place.chunk]

    def _x(self, vertex: Vertex) -> float:
        chunks = self.rows[self.row_of[vertex.place.chunk]].chunks
        before = (self.graph.chunks[chunk] for chunk in chunks if chunk < vertex.place.chunk)
        return MARGIN + sum(before) + vertex.place.x

    def _shape(self, vertex: Vertex) -> Shape:
        half_width, half_height = HALF, HALF
        if vertex.kind == "variable":
            half_width = half_width_of(vertex.label)
        elif vertex.kind == "composite":
            half_width, half_height = 0.75, 0.3
        y = self.rows[self.row_of[vertex.place.chunk]].y + vertex.place.y
        in_lane = vertex.key in self.in_lanes
        return Shape(vertex, self._x(vertex), y, half_width, half_height, self._notes_below(vertex), in_lane)

    def _notes_below(self, vertex: Vertex) -> bool:
        """On the line unless an arrow is joined from below, and above it where none from the line is."""
        if vertex.place.y == 0:
            return vertex.key not in self.in_lanes
        joined = {
            a.head if a.tail == vertex.key else a.tail
            for a in self.graph.arrows
            if vertex.key in (a.tail, a.head) and a.lane == "straight"
        }
        return all(self.vertices[key].place.y > 0 for key in joined)

    def _of_row(self, row: int) -> list[Vertex]:
        return [vertex for vertex in self.graph.vertices if self.row_of[vertex.place.chunk] == row]

    def _levels(self) -> dict[Arrow, dict[int, int]]:
        """Which lane under each row an arrow past a block takes: shorter ones nearer, none over another."""
        taken: dict[int, list[tuple[float, float, int]]] = {row: [] for row in range(len(self.rows))}
        levels: dict[Arrow, dict[int, int]] = {}
        below = [arrow for arrow in self.graph.arrows if arrow.lane in ("skip", "loop")]
        for arrow in sorted(below, key=self._span):
            levels[arrow] = {}
            for row in {self._row(arrow.tail), self._row(arrow.head)}:
                left, right = self._interval(arrow, row)
                over = [level for start, end, level in taken[row] if start < right and left < end]
                levels[arrow][row] = 1 + max(over, default=-1)
                taken[row].append((left, right, levels[arrow][row]))
        return levels

    def _span(self, arrow: Arrow) -> tuple[int, float]:
        tail, head = self.vertices[arrow.tail], self.vertices[arrow.head]
        return abs(self._row(arrow.tail) - self._row(arrow.head)), abs(self._x(tail) - self._x(head))

    def _interval(self, arrow: Arrow, row: int) -> tuple[float, float]:
        ends = [self._x(self.vertices[key]) for key in (arrow.tail, arrow.head) if self._row(key) == row]
        return (min(ends), max(ends)) if len(ends) == 2 else (0.0, ends[0])

    def _notes_depth(self, row: int) -> int:
        return max((len(v.notes) for v in self._of_row(row) if v.place.y == 0 and self._notes_below(v)), default=0)

    def _lane(self, arrow: Arrow, row: int) -> float:
        """How far below a row's line the lane of an arrow past a block runs."""
        return HALF + LINE * self._notes_depth(row) + 0.15 + LANE * self.levels[arrow][row]

    def _box_heights(self, row: int) -> int:
        keys = {vertex.key for vertex in self._of_row(row)}
        return max((1 + box.height for box in self.graph.boxes if keys & set(box.members)), default=0)

    def _measure(self, row: int) -> None:
        vertices, at = self._of_row(row), self.rows[row]
        raised = [vertex for vertex in vertices if vertex.place.y > 0]
        over = max((LINE * len(vertex.notes) for vertex in raised if not self._notes_below(vertex)), default=0.0)
        top = max((vertex.place.y for vertex in raised), default=0.0) + HALF + over
        boxes = self._box_heights(row)
        frames = 0.12 + 0.16 * boxes if boxes else 0.0
        keys = {vertex.key for vertex in vertices}
        railed = any(a.lane == "penalty" and keys & {a.tail, a.head} for a in self.graph.arrows)
        labelled = any(a.label for a in self.graph.arrows if a.lane == "penalty")
        at.rail = top + frames + (0.34 if labelled else 0.16)
        at.up = (at.rail if railed else top + frames) + 0.12
        lanes = [self._lane(arrow, row) for arrow, rows in self.levels.items() if row in rows]
        at.down = (
            max([HALF + LINE * self._notes_depth(row), *lanes]) + frames + (0.3 if row + 1 < len(self.rows) else 0.1)
        )

    def _frames(self, box: Box) -> list[Frame]:
        members, pad = set(box.members), 0.1 + 0.14 * box.height
        frames: list[Frame] = []
        for row in range(len(self.rows)):
            inside = [self.shapes[v.key] for v in self._of_row(row) if v.key in members]
            if not inside:
                continue
            lanes = [
                self._lane(arrow, row)
                for arrow, rows in self.levels.items()
                if row in rows and members & {arrow.tail, arrow.head}
            ]
            y = self.rows[row].y
            deep = max([*lanes, *(HALF + LINE * s.note_lines for s in inside if s.vertex.place.y == 0)])
            high = max(s.y - y + s.half_height + (0 if s.notes_below else LINE * len(s.vertex.notes)) for s in inside)
            frames.append(
                Frame(
                    "" if frames else box.label,
                    min(s.x - s.half_width for s in inside) - pad,
                    y - deep - pad,
                    max(s.x + s.half_width for s in inside) + pad,
                    y + high + pad + 0.06,
                )
            )
        return frames

    def _path(self, arrow: Arrow) -> Path:
        if arrow.lane == "penalty":
            return self._over(arrow)
        if arrow.lane in ("skip", "loop"):
            return self._under(arrow)
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        rows = self._row(arrow.tail), self._row(arrow.head)
        return self._straight(arrow, tail, head) if rows[0] == rows[1] else self._to_next_row(arrow, tail, head)

    def _straight(self, arrow: Arrow, tail: Shape, head: Shape) -> Path:
        start, end = _border(tail, (head.x, head.y)), _border(head, (tail.x, tail.y))
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if tail.y == head.y:
            return Path(arrow, (start, end), (x, y - 0.13))
        leftwards = head.x < tail.x
        aside = -0.07 if leftwards else 0.07
        return Path(arrow, (start, end), (x + aside, y), "right" if leftwards else "left")

    def _to_next_row(self, arrow: Arrow, tail: Shape, head: Shape) -> Path:
        upper, lower = sorted((tail, head), key=lambda shape: -shape.y)
        row = self.rows[self._row(upper.vertex.key)]
        lane, left, right = row.y - row.down + 0.1, MARGIN - 0.2, upper.x + upper.half_width + 0.2
        points = [
            (upper.x + upper.half_width, upper.y), (right, upper.y), (right, lane), (left, lane), (left, lower.y),
            (lower.x - lower.half_width, lower.y),
        ]  # fmt: skip
        return Path(arrow, tuple(points if upper is tail else points[::-1]), ((left + right) / 2, lane + 0.09))

    def _over(self, arrow: Arrow) -> Path:
        """From W up to the rail over its row, along it, past the right end where there are rows between, and down."""
        ends = [self.shapes[arrow.tail], self.shapes[arrow.head]]
        rows = [self.rows[self._row(shape.vertex.key)] for shape in ends]
        rails = [row.y + row.rail for row in rows]
        feet = [(shape.x, shape.y + shape.half_height) for shape in ends]
        between = [] if rows[0] is rows[1] else [(self.trunk, rails[0]), (self.trunk, rails[1])]
        points = [feet[0], (ends[0].x, rails[0]), *between, (ends[1].x, rails[1]), feet[1]]
        return Path(arrow, tuple(points), (ends[1].x - 0.06, rails[1] - 0.15), "right")

    def _under(self, arrow: Arrow) -> Path:
        ends = [self.shapes[arrow.tail], self.shapes[arrow.head]]
        rows = [self._row(shape.vertex.key) for shape in ends]
        lanes = [self.rows[row].y - self._lane(arrow, row) for row in rows]
        ports = [0.0, 0.0] if arrow.lane == "loop" else [PORT, -PORT] if ends[0].x <= ends[1].x else [-PORT, PORT]
        feet = [_foot(shape, port) for shape, port in zip(ends, ports, strict=True)]
        aside = MARGIN - 0.34 - 0.1 * (self.apart.index(arrow) % 3 if rows[0] != rows[1] else 0)
        between = [] if rows[0] == rows[1] else [(aside, lanes[0]), (aside, lanes[1])]
        points = [feet[0], (feet[0][0], lanes[0]), *between, (feet[1][0], lanes[1]), feet[1]]
        middle = (ends[0].x + (ends[1].x if rows[0] == rows[1] else aside)) / 2
        return Path(arrow, tuple(points), (middle, lanes[0]))


def _rows(graph: Diagram) -> tuple[list[_Row], list[int]]:
    """As few rows as the page allows, and these no wider than they must be; and the row of every chunk."""
    together = _boxed(graph)
    few = len(_filled(graph.chunks, together, PAGE))
    starts = range(len(graph.chunks))
    widths = {round(width, 6) for i in starts for width in accumulate(graph.chunks[i : i + MANY]) if width < PAGE}
    widest = max((width for width in together.values() if width < PAGE), default=0.0)  # a box is not cut for this
    fits = (w for w in widths if w >= widest and len(_filled(graph.chunks, together, w)) == few)
    rows = _filled(graph.chunks, together, min(fits, default=PAGE))
    return rows, [number for number, row in enumerate(rows) for _ in row.chunks]


def _boxed(graph: Diagram) -> dict[int, float]:
    """By the chunk that it begins with, the width of a box that should not be cut: the widest that fits in a row."""
    widths: dict[int, float] = {}
    for box in graph.boxes:
        chunks = {graph[key].place.chunk for key in box.members}
        width = sum(graph.chunks[min(chunks) : max(chunks) + 1])
        if width <= PAGE:
            widths[min(chunks)] = max(width, widths.get(min(chunks), 0.0))
    return widths


def _filled(chunks: Sequence[float], together: Mapping[int, float], limit: float) -> list[_Row]:
    """Rows, each as full as the limit allows; a chunk that is wider has one to itself."""
    rows = [_Row([], 0.0)]
    for number, width in enumerate(chunks):
        if rows[-1].chunks and rows[-1].width + together.get(number, width) > limit + 1e-9:
            rows.append(_Row([], 0.0))
        rows[-1].chunks.append(number)
        rows[-1].width += width
    return rows


def _foot(shape: Shape, port: float) -> Point:
    """The lower edge of a shape, so far from its middle."""
    down = (HALF**2 - port**2) ** 0.5 if shape.vertex.kind == "operator" else shape.half_height
    return shape.x + port, shape.y - down


def _border(shape: Shape, towards: Point) -> Point:
    """Where the line from a shape's middle to a point leaves the shape."""
    dx, dy = towards[0] - shape.x, towards[1] - shape.y
    if shape.vertex.kind == "operator":
        scale = shape.half_height / (dx * dx + dy * dy) ** 0.5
    else:
        scale = 1 / max(abs(dx) / shape.half_width, abs(dy) / shape.half_height)
    return shape.x + scale * dx, shape.y + scale * dy
