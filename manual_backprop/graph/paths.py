"""How an arrow runs from shape to shape: straight, to the next row, over its row, or past a block under it."""

from collections.abc import Mapping

from manual_backprop.graph.lanes import Lanes
from manual_backprop.graph.model import Arrow
from manual_backprop.graph.rows import MARGIN, Rows
from manual_backprop.graph.shapes import Path, Shape

PORT = 0.1  # how far from a vertex's middle an arrow past a block begins and ends; those between blocks do in it


class Paths:
    """The arrows between shapes that have their places; `trunk` is where those over the rows go from row to row."""

    def __init__(self, rows: Rows, lanes: Lanes, shapes: Mapping[str, Shape], trunk: float) -> None:
        self.rows, self.lanes, self.shapes, self.trunk = rows, lanes, shapes, trunk

    def path(self, arrow: Arrow) -> Path:
        """The way of one arrow."""
        if arrow.lane == "penalty":
            return self._over(arrow)
        if arrow.lane in ("skip", "loop"):
            return self._under(arrow)
        if self.rows.number(arrow.tail) == self.rows.number(arrow.head):
            return self._straight(arrow)
        return self._to_next_row(arrow)

    def _straight(self, arrow: Arrow) -> Path:
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        start, end = tail.border((head.x, head.y)), head.border((tail.x, tail.y))
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if tail.y == head.y:
            return Path(arrow, (start, end), (x, y - 0.13))
        leftwards = head.x < tail.x
        aside = -0.07 if leftwards else 0.07
        return Path(arrow, (start, end), (x + aside, y), "right" if leftwards else "left")

    def _to_next_row(self, arrow: Arrow) -> Path:
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        upper, lower = sorted((tail, head), key=lambda shape: -shape.y)
        row = self.rows.row(upper.vertex.key)
        lane, left, right = row.y - row.down + 0.1, MARGIN - 0.2, upper.x + upper.half_width + 0.2
        points = [
            (upper.x + upper.half_width, upper.y), (right, upper.y), (right, lane), (left, lane), (left, lower.y),
            (lower.x - lower.half_width, lower.y),
        ]  # fmt: skip
        return Path(arrow, tuple(points if upper is tail else points[::-1]), ((left + right) / 2, lane + 0.09))

    def _over(self, arrow: Arrow) -> Path:
        """From W up to the rail over its row, along it, past the right end where there are rows between, and down."""
        ends = [self.shapes[arrow.tail], self.shapes[arrow.head]]
        rows = [self.rows.row(shape.vertex.key) for shape in ends]
        rails = [row.y + row.rail for row in rows]
        feet = [(shape.x, shape.y + shape.half_height) for shape in ends]
        between = [] if rows[0] is rows[1] else [(self.trunk, rails[0]), (self.trunk, rails[1])]
        points = [feet[0], (ends[0].x, rails[0]), *between, (ends[1].x, rails[1]), feet[1]]
        return Path(arrow, tuple(points), (ends[1].x - 0.06, rails[1] - 0.15), "right")

    def _under(self, arrow: Arrow) -> Path:
        """Down to its lane, along it, through the left margin where it goes to another row, and up."""
        ends = [self.shapes[arrow.tail], self.shapes[arrow.head]]
        rows = [self.rows.number(shape.vertex.key) for shape in ends]
        lanes = [self.rows.all[row].y - self.lanes.depth(arrow, row) for row in rows]
        ports = [0.0, 0.0] if arrow.lane == "loop" else [PORT, -PORT] if ends[0].x <= ends[1].x else [-PORT, PORT]
        feet = [shape.foot(port) for shape, port in zip(ends, ports, strict=True)]
        aside = MARGIN - 0.34 - 0.1 * (self.lanes.across.index(arrow) % 3 if rows[0] != rows[1] else 0)
        between = [] if rows[0] == rows[1] else [(aside, lanes[0]), (aside, lanes[1])]
        points = [feet[0], (feet[0][0], lanes[0]), *between, (feet[1][0], lanes[1]), feet[1]]
        middle = (ends[0].x + (ends[1].x if rows[0] == rows[1] else aside)) / 2
        return Path(arrow, tuple(points), (middle, lanes[0]))
