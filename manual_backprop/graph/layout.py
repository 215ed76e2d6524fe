"""The layout of a graph on the page: heights of rows, shapes, frames, and the arrows between them.

Chunks stand side by side, in a new row where the page ends. An arrow between neighbours runs straight, and one to
the next row runs through the gap between rows. Arrows from weights to their penalty run over the row, and arrows past
a block run under it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from manual_backprop.graph.lanes import Lanes
from manual_backprop.graph.model import Box, Diagram, Vertex
from manual_backprop.graph.paths import BELOW, WIRE, Paths
from manual_backprop.graph.rows import MARGIN, Line, Rows
from manual_backprop.graph.shapes import HALF, LINE, Frame, Page, Path, Shape, closed_half_width, half_width_of


def lay_out(graph: Diagram) -> Page:
    """Place a graph."""
    rows = Rows(graph)
    lanes = Lanes(rows)
    height = _stack(rows, lanes)
    shapes = {vertex.key: _shape(vertex, rows, lanes) for vertex in graph.vertices}
    frames = [frame for box in graph.boxes[::-1] for frame in _frames(box, rows, lanes, shapes)]
    right = MARGIN + max(row.width for row in rows.all)
    lines = max(row.line for row in rows.all)
    trunk = max([right + 0.1, *(frame.right for frame in frames)]) + (0.2 + WIRE * lines if lines else 0.1)
    ways = Paths(rows, lanes, shapes, frames, trunk)
    paths = [ways.path(arrow) for arrow in graph.arrows]
    width = max(right + MARGIN, *(x + 0.2 for path in paths for x, _ in path.points))
    return _raised(Page(width, height, shapes, tuple(paths), tuple(frames)))


def _stack(rows: Rows, lanes: Lanes) -> float:
    """Stack the rows downwards from 0, the top of the page, and return the page's height."""
    y = 0.0
    for number, row in enumerate(rows.all):
        _measure(number, row, rows, lanes)
        y -= row.up
        row.y = y
        y -= row.down
    return 0.12 - y


def _measure(number: int, row: Line, rows: Rows, lanes: Lanes) -> None:
    """Set how far a row reaches up, with its frames and its rail, and down, with its notes and its lanes."""
    vertices, graph = rows.members(number), rows.graph
    keys = {vertex.key for vertex in vertices}
    raised = [vertex for vertex in vertices if vertex.place.y > 0]
    over = max((LINE * len(vertex.notes) for vertex in raised if not lanes.notes_below[vertex.key]), default=0.0)
    top = max((vertex.place.y for vertex in raised), default=0.0) + HALF + over
    above, under = (_frames_room(row, rows, edge) for edge in (min, max))
    railed = any(a.lane == "penalty" and keys & {a.tail, a.head} for a in graph.arrows)
    labelled = any(a.label for a in graph.arrows if a.lane == "penalty")
    row.rail = top + above + (0.34 if labelled else 0.16)
    row.up = (row.rail if railed else top + above) + 0.12
    lowest = max([HALF + LINE * lanes.note_lines[number], *lanes.depths(number).values()])
    ends = row is rows.last(number) and number + 1 < len(rows.all)
    row.down = lowest + under + (0.3 + BELOW * rows.wires(number) if ends else 0.1)


def _frames_room(line: Line, rows: Rows, edge: Callable[[Iterable[int]], int]) -> float:
    """The space for the frames whose upper (`min`) or lower (`max`) edge is next to a line."""
    heights = [0]
    for box in rows.graph.boxes:
        lines = {rows.row(key).line for key in box.members if rows.row(key).row == line.row}
        if lines and edge(lines) == line.line:
            heights.append(1 + box.height)
    return 0.12 + 0.16 * max(heights) if max(heights) else 0.0


def _shape(vertex: Vertex, rows: Rows, lanes: Lanes) -> Shape:
    half_width, half_height = HALF, HALF
    if vertex.kind == "variable":
        half_width = half_width_of(vertex.label)
    elif vertex.kind == "composite":
        half_width, half_height = closed_half_width(vertex.label), 0.3
    x, y = rows.x(vertex.key), rows.row(vertex.key).y + vertex.place.y
    return Shape(
        vertex,
        x,
        y,
        half_width,
        half_height,
        lanes.notes_below[vertex.key],
        vertex.key in lanes.joined,
        vertex.key in lanes.forked,
    )


def _frames(box: Box, rows: Rows, lanes: Lanes, shapes: dict[str, Shape]) -> list[Frame]:
    """A box's frame, one part for each row that it spans."""
    members, frames = set(box.members), dict[int, Frame]()
    for number, line in enumerate(rows.all):
        inside = [shapes[v.key] for v in rows.members(number) if v.key in members]
        if inside:
            part = _frame(box, number, rows, lanes, inside)
            frames[line.row] = _around(frames[line.row], part) if line.row in frames else part
    return [replace(frame, label="" if i else box.label) for i, frame in enumerate(frames.values())]


def _frame(box: Box, number: int, rows: Rows, lanes: Lanes, inside: list[Shape]) -> Frame:
    """The frame around a box's shapes on one line."""
    y, pad, members = rows.all[number].y, 0.1 + 0.14 * box.height, set(box.members)
    below = [depth for arrow, depth in lanes.depths(number).items() if members & {arrow.tail, arrow.head}]
    deep = max([*below, *(HALF + LINE * s.note_lines for s in inside if s.vertex.place.y == 0)])
    high = max(s.y - y + s.half_height + (0 if s.notes_below else LINE * len(s.vertex.notes)) for s in inside)
    return Frame(
        box.label,
        min(s.x - s.half_width for s in inside) - pad,
        y - deep - pad,
        max(s.x + s.half_width for s in inside) + pad,
        y + high + pad + 0.06,
    )


def _around(one: Frame, other: Frame) -> Frame:
    """The frame around two frames of one box."""
    left, bottom = min(one.left, other.left), min(one.bottom, other.bottom)
    return Frame(one.label, left, bottom, max(one.right, other.right), max(one.top, other.top))


def _raised(page: Page) -> Page:
    """The page with its origin moved from the upper left corner to the lower left."""
    up = page.height

    def path(p: Path) -> Path:
        return replace(p, points=tuple((x, y + up) for x, y in p.points), label_at=(p.label_at[0], p.label_at[1] + up))

    return replace(
        page,
        shapes={key: replace(shape, y=shape.y + up) for key, shape in page.shapes.items()},
        paths=tuple(map(path, page.paths)),
        frames=tuple(replace(f, bottom=f.bottom + up, top=f.top + up) for f in page.frames),
    )
