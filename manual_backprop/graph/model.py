"""A computational graph as plain data: vertices, arrows, boxes, and their places."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["variable", "operator", "composite"]
Role = Literal["data", "parameter", "signal", "objective", "operator", "composite"]
Lane = Literal["straight", "penalty", "skip", "loop"]

PAGE = 11.2  # the widest row, in inches


@dataclass(frozen=True)
class Place:
    """The position of a vertex in its chunk, in inches to the right and up; a chunk is never split over two rows.

    Attributes:
        chunk: its number.
        x: from the chunk's left edge.
        y: from its line.
        line: the number of its line from the top, from 0; every branch has lines of its own.
    """

    chunk: int
    x: float
    y: float = 0.0
    line: int = 0


@dataclass(frozen=True)
class Vertex:
    """A variable (square), an operator (circle) or a closed composite (double box).

    Attributes:
        key: unique in the graph, letters, digits and underscores.
        kind: "variable", "operator" or "composite".
        role: decides its colour.
        label: in the note's notation, such as "z^(1)".
        notes: lines below it: the name of a function, a shape, a norm, an equation's tag.
        place: its position.
    """

    key: str
    kind: Kind
    role: Role
    label: str
    place: Place
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrow:
    """From `tail` to `head`, keys of vertices.

    Attributes:
        label: in a backward graph, the local derivative that multiplies the gradient at the tail.
        lane: its course: straight on, over the row (weights and their penalty), or under it (past a residual
            block, or dashed from one block of a `Repeat` or `Tied` to the next).
    """

    tail: str
    head: str
    label: str = ""
    lane: Lane = "straight"


@dataclass(frozen=True)
class Box:
    """An opened composite: a frame around its vertices.

    Attributes:
        label: the composite's caption.
        members: keys of the vertices in it, including those of inner boxes.
        height: 0 for a box without inner boxes, else one more than the highest of these.
    """

    label: str
    members: tuple[str, ...]
    height: int = 0


@dataclass(frozen=True, repr=False)
class Diagram:
    """Vertices, arrows and boxes in the order of computation; parameters are next to the operator that they enter.

    Attributes:
        title: one line.
        vertices: no two with one key.
        arrows: from vertex to vertex.
        boxes: outer ones after the boxes that they contain.
        chunks: the width of every chunk, in inches.
    """

    title: str
    vertices: tuple[Vertex, ...]
    arrows: tuple[Arrow, ...]
    boxes: tuple[Box, ...]
    chunks: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title!r}, {len(self.vertices)} vertices, {len(self.arrows)} arrows)"

    def __getitem__(self, key: str) -> Vertex:
        """The vertex with this key.

        Raises:
            KeyError: there is none; says which there are.
        """
        for vertex in self.vertices:
            if vertex.key == key:
                return vertex
        raise KeyError(f"no vertex {key!r} in this graph; there are {', '.join(v.key for v in self.vertices)}")

    def into(self, key: str) -> Iterator[Arrow]:
        """The arrows that end at a vertex."""
        return (arrow for arrow in self.arrows if arrow.head == key)
