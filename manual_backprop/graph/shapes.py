"""The elements of a page, in inches: shapes, arrows as lines, frames, and the widths of labels."""

import re
from dataclasses import dataclass

from manual_backprop.graph.model import Arrow, Vertex

HALF = 0.21  # half the height of a square, and the radius of a circle
LINE = 0.135  # one line of notes

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A vertex on the page: its middle and half its extent.

    Attributes:
        notes_below: whether its notes stand below it rather than above.
        in_lane: whether an arrow from under the row joins it.
        forked: whether an arrow from a lower line joins it; its notes then stand next to the arrow.
    """

    vertex: Vertex
    x: float
    y: float
    half_width: float
    half_height: float
    notes_below: bool
    in_lane: bool
    forked: bool = False

    @property
    def note_lines(self) -> int:
        """The number of lines of notes below the shape."""
        return len(self.vertex.notes) if self.notes_below else 0

    def foot(self, port: float) -> Point:
        """The point on its lower edge at this distance to the right of its middle."""
        down = (HALF**2 - port**2) ** 0.5 if self.vertex.kind == "operator" else self.half_height
        return self.x + port, self.y - down

    def border(self, towards: Point) -> Point:
        """The point of its border on the line from its middle to a given point."""
        dx, dy = towards[0] - self.x, towards[1] - self.y
        if self.vertex.kind == "operator":
            scale = self.half_height / (dx * dx + dy * dy) ** 0.5
        else:
            scale = 1 / max(abs(dx) / self.half_width, abs(dy) / self.half_height)
        return self.x + scale * dx, self.y + scale * dy


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


def visible(label: str) -> float:
    """A label's approximate width in letters; superscripts count less."""
    raised = sum(len(part) for part in re.findall(r"\^\(([^)]*)\)", label))
    plain = re.sub(r"\^\([^)]*\)|[\^_]", "", label)
    plain = re.sub(r"delta|lambda|theta|\bsumn", "d", plain)
    return len(plain) + 0.75 * (raised + 1.2 * (raised > 0))


def closed_half_width(label: str) -> float:
    """Half the width of a closed composite's box, in inches."""
    return max(0.75, 0.04 * len(label))


def half_width_of(label: str) -> float:
    """Half the width of a variable's box, in inches."""
    return max(HALF, 0.05 * visible(label) + 0.06)
