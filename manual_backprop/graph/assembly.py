"""The base that builds forward and backward graphs from vertices in chunks, arrows and boxes."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

from manual_backprop.graph.forms import Graph
from manual_backprop.graph.model import PAGE, Arrow, Box, Lane, Place, Role, Vertex
from manual_backprop.graph.pieces import Beside, Closed, LayerPiece, Opened, Piece

ABOVE = 0.95  # height of the parameters above the signal, in inches
GUTTER = 0.16  # space left free for the edge of a box


@dataclass(frozen=True)
class Signal:
    """The vertex that the signal has reached.

    Attributes:
        key: the vertex's key.
        label: its label, as used by the vertices that follow.
        delta: for a layer's a in a backward graph, the key of the layer's error term.
    """

    key: str
    label: str
    delta: str = ""


def numbered(name: str, i: int, many: int) -> str:
    """The name of one of several signals side by side, numbered from 1; a single signal has no number."""
    return name if many == 1 else f"{name}_{i + 1}"


class Assembly(ABC):
    """A graph being built from x to J; `signals` holds the vertices reached so far, several where a tuple flows.

    The subclasses, for the forward and the backward graph, say how to draw a layer, a closed composite and a sum, and
    which way an arrow points.
    """

    def __init__(self) -> None:
        self.signals: tuple[Signal, ...] = ()
        self.penalised: list[tuple[str, str]] = []  # (key, label) of the weights that the regulariser counts
        self._keys: set[str] = set()
        self._chunks: list[float] = []
        self._line = self._lowest = 0  # the line to place vertices on, and the lowest line in use
        self._vertices: list[Vertex] = []
        self._arrows: list[Arrow] = []
        self._boxes: list[Box] = []

    def draw(self, pieces: Iterable[Piece]) -> None:
        """Draw a network."""
        for piece in pieces:
            if isinstance(piece, LayerPiece):
                self.layer(piece)
            elif isinstance(piece, Closed):
                self.closed(piece)
            elif isinstance(piece, Opened):
                self._opened(piece)
            else:
                self._beside(piece)

    @abstractmethod
    def layer(self, piece: LayerPiece) -> None:
        """Draw a layer."""

    @abstractmethod
    def closed(self, piece: Closed) -> None:
        """Draw a composite as one box."""

    @abstractmethod
    def sum(self, piece: Opened, entered: tuple[Signal, ...]) -> None:
        """Draw the sum of a residual block's output and its input."""

    @abstractmethod
    def block_input(self, piece: Opened) -> None:
        """Draw the input of a repeated block: the chain's input for the first, then the previous block's output."""

    @abstractmethod
    def loop(self, loop: str, first: str, last: str) -> None:
        """Draw that a block's output, `last`, is the next block's input, `first`."""

    def chunk(self, width: float) -> None:
        """Begin a chunk; later vertices are placed in it."""
        self._chunks.append(width)

    def variable(
        self, key: str, label: str, x: float, y: float = 0.0, *, role: Role, notes: Iterable[str] = (), below: int = 0
    ) -> str:
        """Place a square, `below` lines down, and return its key."""
        return self._place(Vertex(key, "variable", role, label, self._at(x, y, below), tuple(notes)))

    def operator(
        self, key: str, label: str, x: float, y: float = 0.0, *, notes: Iterable[str] = (), below: int = 0
    ) -> str:
        """Place a circle, `below` lines down, and return its key."""
        return self._place(Vertex(key, "operator", "operator", label, self._at(x, y, below), tuple(notes)))

    def composite(self, key: str, label: str, x: float) -> str:
        """Place a closed box and return its key."""
        return self._place(Vertex(key, "composite", "composite", label, self._at(x)))

    def arrow(self, tail: str, head: str, label: str = "", lane: Lane = "straight") -> None:
        """Join two vertices."""
        self._arrows.append(Arrow(tail, head, label, lane))

    def note(self, key: str, text: str) -> None:
        """Write a line above the other notes of a vertex."""
        at = next(i for i, vertex in enumerate(self._vertices) if vertex.key == key)
        vertex = self._vertices[at]
        self._vertices[at] = replace(vertex, notes=(text, *vertex.notes))

    def graph(self, title: str) -> Graph:
        """The graph, finished."""
        return Graph(title, tuple(self._vertices), tuple(self._arrows), tuple(self._boxes), tuple(self._chunks))

    def _at(self, x: float, y: float = 0.0, below: int = 0) -> Place:
        self._lowest = max(self._lowest, self._line + below)
        return Place(len(self._chunks) - 1, x, y, self._line + below)

    def _place(self, vertex: Vertex) -> str:
        vertex = replace(vertex, key=self._fresh(vertex.key))
        self._vertices.append(vertex)
        return vertex.key

    def _fresh(self, key: str) -> str:
        """The key in letters, digits and underscores, made unique, since a parameter may be called z."""
        key = re.sub(r"\W", "_", key)
        while key in self._keys:
            key += "_"
        self._keys.add(key)
        return key

    def _opened(self, piece: Opened) -> None:
        self.chunk(GUTTER)
        vertices, boxes, entered = len(self._vertices), len(self._boxes), self.signals
        if piece.loop:
            self.block_input(piece)
        firsts = self.signals
        self.draw(piece.inside)
        if piece.added:
            self.sum(piece, entered)
        self.chunk(GUTTER)
        members = tuple(vertex.key for vertex in self._vertices[vertices:])
        self._boxes.append(Box(piece.label, members, 1 + max((box.height for box in self._boxes[boxes:]), default=-1)))
        if piece.loop:
            for first, last in zip(firsts, self.signals, strict=True):
                self.loop(piece.loop, first.key, last.key)
        left = zip(self.signals, piece.outputs, strict=True)
        self.signals = tuple(replace(signal, label=str(output)) for signal, output in left)

    def _beside(self, piece: Beside) -> None:
        """Draw branch below branch, each on lines of its own."""
        entered, chunks, line, lowest = self.signals, self._chunks, self._line, self._lowest
        left: list[Signal] = []
        widths: list[list[float]] = []  # of the chunks of every branch
        starts = []
        self._lowest = line - 1
        for branch in piece.branches:
            starts.append(len(self._vertices))
            self.signals, self._chunks, self._line = entered, [], self._lowest + 1
            self.draw(branch)
            left.extend(self.signals)
            widths.append(self._chunks)
        self._vertices[starts[0] :] = [
            replace(vertex, place=place)
            for own, start, end in zip(widths, starts, [*starts[1:], len(self._vertices)], strict=True)
            for vertex in self._vertices[start:end]
            for place in [_joined(vertex.place, len(chunks), own, together=_fit(widths))]
        ]
        beside = (
            [max(map(sum, widths))] if _fit(widths) else [max(each) for each in zip_longest(*widths, fillvalue=0.0)]
        )
        self.signals, self._chunks = tuple(left), [*chunks, *beside]
        self._line, self._lowest = line, max(lowest, self._lowest)


def _fit(branches: list[list[float]]) -> bool:
    """Whether branches with chunks of these widths can stand in one row, and so be one chunk."""
    return max(map(sum, branches)) <= PAGE


def _joined(place: Place, start: int, widths: list[float], *, together: bool) -> Place:
    """Convert a place in a branch to a place in the graph, where the branch begins with the chunk `start`."""
    if together:
        return replace(place, chunk=start, x=sum(widths[: place.chunk]) + place.x)
    return replace(place, chunk=start + place.chunk)
