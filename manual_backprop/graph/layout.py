"""Where everything of a graph stands on the page: the heights of rows, shapes, frames, and the arrows between.

Chunks stand side by side, in a new row where the page ends. An arrow between neighbours runs straight; to the
next row through the gap between the rows; from weights to their penalty over the row; past a block under it.
"""

from dataclasses import replace

from manual_backprop.graph.lanes import Lanes
from manual_backprop.graph.model import Box, Diagram, Vertex
from manual_backprop.graph.paths import Paths
from manual_backprop.graph.rows import MARGIN, Row, Rows
from manual_backprop.graph.shapes import HALF, LINE, Frame, Page, Path, Shape, half_width_of


def lay_out(graph: Diagram) -> Page:
    """Place a graph."""
    rows = Rows(graph)
    lanes = Lanes(rows)
    height = _stack(rows, lanes)
    shapes = {vertex.key: _shape(vertex, rows, lanes) for vertex in graph.vertices}
    frames = [frame for box in graph.boxes[::-1] for frame in _frames(box, rows, lanes, shapes)]
    right = MARGIN + max(row.width for row in rows.all)
    trunk = max([right + 0.1, *(frame.right for frame in frames)]) + 0.1
    ways = Paths(rows, lanes, shapes, trunk)
    paths = [ways.path(arrow) for arrow in graph.arrows]
    width = max(right + MARGIN, *(x + 0.2 for path in paths for x, _ in path.points))
    return _raised(Page(width, height, shapes, tuple(paths), tuple(frames)))


def _stack(rows: Rows, lanes: Lanes) -> float:
    """Put the rows below one another, the first at the top of the page, which is 0; returns the page's height."""
    y = 0.0
    for number, row in enumerate(rows.all):
        _measure(number, row, rows, lanes)
        y -= row.up
        row.y = y
        y -= row.down
    return 0.12 - y


def _measure(number: int, row: Row, rows: Rows, lanes: Lanes) -> None:
    """How far a row reaches up, with its frames and its rail, and down, with its notes and its lanes."""
    vertices, graph = rows.members(number), rows.graph
    keys = {vertex.key for vertex in vertices}
    raised = [vertex for vertex in vertices if vertex.place.y > 0]
    over = max((LINE * len(vertex.notes) for vertex in raised if not lanes.notes_below[vertex.key]), default=0.0)
    top = max((vertex.place.y for vertex in raised), default=0.0) + HALF + over
    boxes = max((1 + box.height for box in graph.boxes if keys & set(box.members)), default=0)
    frames = 0.12 + 0.16 * boxes if boxes else 0.0
    railed = any(a.lane == "penalty" and keys & {a.tail, a.head} for a in graph.arrows)
    labelled = any(a.label for a in graph.arrows if a.lane == "penalty")
    row.rail = top + frames + (0.34 if labelled else 0.16)
    row.up = (row.rail if railed else top + frames) + 0.12
    lowest = max([HALF + LINE * lanes.note_lines[number], *lanes.depths(number).values()])
    row.down = lowest + frames + (0.3 if number + 1 < len(rows.all) else 0.1)


def _shape(vertex: Vertex, rows: Rows, lanes: Lanes) -> Shape:
    half_width, half_height = HALF, HALF
    if vertex.kind == "variable":
        half_width = half_width_of(vertex.label)
    elif vertex.kind == "composite":
        half_width, half_height = 0.75, 0.3
    x, y = rows.x(vertex.key), rows.row(vertex.key).y + vertex.place.y
    return Shape(vertex, x, y, half_width, half_height, lanes.notes_below[vertex.key], vertex.key in lanes.joined)


def _frames(box: Box, rows: Rows, lanes: Lanes, shapes: dict[str, Shape]) -> list[Frame]:
    """A box's frame, in as many parts as it has rows."""
    members, pad = set(box.members), 0.1 + 0.14 * box.height
    frames: list[Frame] = []
    for number, row in enumerate(rows.all):
        inside = [shapes[v.key] for v in rows.members(number) if v.key in members]
        if not inside:
            continue
        below = [depth for arrow, depth in lanes.depths(number).items() if members & {arrow.tail, arrow.head}]
        deep = max([*below, *(HALF + LINE * s.note_lines for s in inside if s.vertex.place.y == 0)])
        high = max(s.y - row.y + s.half_height + (0 if s.notes_below else LINE * len(s.vertex.notes)) for s in inside)
        frames.append(
            Frame(
                "" if frames else box.label,
                min(s.x - s.half_width for s in inside) - pad,
                row.y - deep - pad,
                max(s.x + s.half_width for s in inside) + pad,
                row.y + high + pad + 0.06,
            )
        )
    return frames


def _raised(page: Page) -> Page:
    """The same with the lower left corner for the origin, in place of the upper one."""
    up = page.height

    def path(p: Path) -> Path:
        return replace(p, points=tuple((x, y + up) for x, y in p.points), label_at=(p.label_at[0], p.label_at[1] + up))

    return replace(
        page,
        shapes={key: replace(shape, y=shape.y + up) for key, shape in page.shapes.items()},
        paths=tuple(map(path, page.paths)),
        frames=tuple(replace(f, bottom=f.bottom + up, top=f.top + up) for f in page.frames),
    )
