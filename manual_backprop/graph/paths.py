"""The course of an arrow between shapes: straight, to the next row, over its row, or under the row past a block."""

from collections.abc import Mapping, Sequence

from manual_backprop.graph.lanes import Lanes
from manual_backprop.graph.model import Arrow
from manual_backprop.graph.rows import MARGIN, Rows
from manual_backprop.graph.shapes import Frame, Path, Point, Shape

PORT = 0.1  # distance from a vertex's middle to the end of an arrow past a block; a loop's arrow ends in the middle
WIRE = 0.05  # distance between the wires that leave a row's branches for the next row
BELOW = 0.22  # the same distance where the wires run below the row, each with its label


class Paths:
    """The arrows between placed shapes; arrows over the rows change rows at `trunk`."""

    def __init__(
        self, rows: Rows, lanes: Lanes, shapes: Mapping[str, Shape], frames: Sequence[Frame], trunk: float
    ) -> None:
        self.rows, self.lanes, self.shapes, self.frames, self.trunk = rows, lanes, shapes, frames, trunk

    def path(self, arrow: Arrow) -> Path:
        """The path of one arrow."""
        if arrow.lane == "penalty":
            return self._over(arrow)
        if arrow.lane in ("skip", "loop"):
            return self._under(arrow)
        if self.lanes.bends(arrow):
            return self._between_lines(arrow)
        if self.rows.together(arrow.tail, arrow.head):
            return self._straight(arrow)
        return self._to_next_row(arrow)

    def _straight(self, arrow: Arrow, *, crossed: bool = False) -> Path:
        """From border to border; an arrow that may be `crossed` has its label near its tail, outside of both arrows."""
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        start, end = tail.border((head.x, head.y)), head.border((tail.x, tail.y))
        share = 0.35 if crossed else 0.5
        x, y = (one * (1 - share) + other * share for one, other in zip(start, end, strict=True))
        if tail.y == head.y:
            return Path(arrow, (start, end), (x, y - 0.13))
        leftwards = (head.x < tail.x) != crossed
        aside = -0.07 if leftwards else 0.07
        return Path(arrow, (start, end), (x + aside, y), "right" if leftwards else "left")

    def _to_next_row(self, arrow: Arrow) -> Path:
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        upper, lower = sorted((tail, head), key=lambda shape: -shape.y)
        number, wire = (
            self.rows.number(upper.vertex.key),
            max(self.rows.row(key).line for key in (arrow.tail, arrow.head)),
        )
        last = self.rows.last(number)
        lane, left = last.y - last.down + 0.1 + BELOW * wire, MARGIN - 0.2 - WIRE * wire
        right = self._right_of(number, upper) + 0.2 + WIRE * (self.rows.wires(number) - wire)
        points = [
            (upper.x + upper.half_width, upper.y), (right, upper.y), (right, lane), (left, lane), (left, lower.y),
            (lower.x - lower.half_width, lower.y),
        ]  # fmt: skip
        return Path(arrow, tuple(points if upper is tail else points[::-1]), ((left + right) / 2, lane + 0.09))

    def _right_of(self, line: int, shape: Shape) -> float:
        """The right edge of a shape; in a row with several lines, the right edge of all that the row holds."""
        row = self.rows.all[line].row
        lines = [number for number, other in enumerate(self.rows.all) if other.row == row]
        edge = shape.x + shape.half_width
        if len(lines) == 1:
            return edge
        around = [frame.right - 0.1 for frame in self.frames if frame.bottom < shape.y < frame.top]
        inside = [self.shapes[vertex.key] for number in lines for vertex in self.rows.members(number)]
        return max(edge, *around, *(other.x + other.half_width for other in inside))

    def _between_lines(self, arrow: Arrow) -> Path:
        """Along the lower line, then up or down next to the upper vertex; straight where something is in the way."""
        tail, head = self.shapes[arrow.tail], self.shapes[arrow.head]
        upper, lower = sorted((tail, head), key=lambda shape: -shape.y)
        foot = upper.foot(self._free_port(upper.vertex.key))
        corner = foot[0], lower.y
        side = lower.x + (-lower.half_width if upper.x < lower.x else lower.half_width), lower.y
        if not (self._clear(foot, corner, arrow) and self._clear(corner, side, arrow)):
            return self._straight(arrow, crossed=True)
        points = (foot, corner, side)
        return Path(arrow, points if upper is tail else points[::-1], ((corner[0] + side[0]) / 2, lower.y - 0.13))

    def _ports(self, arrow: Arrow) -> tuple[float, float]:
        """How far to the right of the middle of its tail and of its head an arrow under a line begins and ends."""
        if arrow.lane == "loop":
            return 0.0, 0.0
        return (PORT, -PORT) if self.shapes[arrow.tail].x <= self.shapes[arrow.head].x else (-PORT, PORT)

    def _free_port(self, key: str) -> float:
        """A port of the vertex at which no arrow under a line begins or ends."""
        under = [arrow for arrow in self.rows.graph.arrows if arrow.lane in ("skip", "loop")]
        ends = [(end, port) for a in under for end, port in zip((a.tail, a.head), self._ports(a), strict=True)]
        taken = {port for end, port in ends if end == key}
        return next(port for port in (0.0, -PORT, PORT, 1.7 * PORT) if port not in taken)

    def _clear(self, one: Point, other: Point, arrow: Arrow) -> bool:
        """Whether a horizontal or vertical line touches no shape but the arrow's own ends."""
        (left, right), (low, high) = sorted((one[0], other[0])), sorted((one[1], other[1]))
        return not any(
            s.x - s.half_width < right and left < s.x + s.half_width and s.y - s.half_height < high
            and low < s.y + s.half_height
            for key, s in self.shapes.items() if key not in (arrow.tail, arrow.head)
        )  # fmt: skip

    def _over(self, arrow: Arrow) -> Path:
        """From W up to the rail over its row, along it, by the trunk at the right if the row changes, and down."""
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
        ports = self._ports(arrow)
        feet = [shape.foot(port) for shape, port in zip(ends, ports, strict=True)]
        aside = MARGIN - 0.34 - 0.1 * (self.lanes.across.index(arrow) % 3 if rows[0] != rows[1] else 0)
        between = [] if rows[0] == rows[1] else [(aside, lanes[0]), (aside, lanes[1])]
        points = [feet[0], (feet[0][0], lanes[0]), *between, (feet[1][0], lanes[1]), feet[1]]
        middle = (ends[0].x + (ends[1].x if rows[0] == rows[1] else aside)) / 2
        return Path(arrow, tuple(points), (middle, lanes[0]))
