"""What the forward and the backward graph are put together with: vertices in chunks, arrows, and boxes."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

from manual_backprop.graph.forms import Graph
from manual_backprop.graph.model import Arrow, Box, Kind, Lane, Place, Role, Vertex
from manual_backprop.graph.pieces import Closed, Enter, LayerPiece, Piece, Sum

ABOVE = 0.95  # how high parameters stand over the signal, in inches
GUTTER = 0.16  # left free for the edge of a box


class Assembly(ABC):
    """A graph in the making, from x to J; `line` is the key of what the signal has come to, `entering` its name.

    The forward and the backward graph say how a layer, a closed composite and a sum are drawn, and which way an
    arrow points.
    """

    def __init__(self) -> None:
        self.line = ""
        self.entering = "x"
        self.penalised: list[tuple[str, str]] = []  # (key, label) of what the regulariser counts
        self._keys: set[str] = set()
        self._chunks: list[float] = []
        self._vertices: list[Vertex] = []
        self._arrows: list[Arrow] = []
        self._boxes: list[Box] = []
        self._open: list[tuple[Enter, str, int, int]] = []

    def draw(self, pieces: Iterator[Piece]) -> None:
        """Draw a network."""
        for piece in pieces:
            if isinstance(piece, LayerPiece):
                self.layer(piece)
                self.entering = f"a^({piece.index})"
            elif isinstance(piece, Closed):
                self.closed(piece)
                self.entering = f"{piece.output}^({piece.index})"
            elif isinstance(piece, Enter):
                self._enter(piece)
            elif isinstance(piece, Sum):
                self.sum(piece, self._open[-1][1])
                self.entering = f"{piece.letter}^({piece.index})"
            else:
                self._leave()
                self.entering = piece.output

    @abstractmethod
    def layer(self, piece: LayerPiece) -> None:
        """Draw a layer."""

    @abstractmethod
    def closed(self, piece: Closed) -> None:
        """Draw a composite as one box."""

    @abstractmethod
    def sum(self, piece: Sum, entered: str) -> None:
        """Draw where a residual block's output meets what entered it, the vertex `entered`."""

    @abstractmethod
    def block_input(self, piece: Enter, label: str) -> None:
        """Draw what enters a block that repeats: for the first what entered the chain, then what left the last."""

    @abstractmethod
    def loop(self, loop: str, first: str, last: str) -> None:
        """Draw that what leaves a block, `last`, enters the next one, as `first`."""

    def chunk(self, width: float) -> None:
        """Begin a chunk; what is placed from now on stands in it."""
        self._chunks.append(width)

    def variable(self, key: str, label: str, x: float, y: float = 0.0, *, role: Role, notes: Iterable[str] = ()) -> str:
        """Place a square; returns its key."""
        return self._place(key, "variable", role, label, x, y, notes)

    def operator(self, key: str, label: str, x: float, y: float = 0.0, *, notes: Iterable[str] = ()) -> str:
        """Place a circle; returns its key."""
        return self._place(key, "operator", "operator", label, x, y, notes)

    def composite(self, key: str, label: str, x: float) -> str:
        """Place a closed box; returns its key."""
        return self._place(key, "composite", "composite", label, x, 0.0, ())

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

    def _place(self, key: str, kind: Kind, role: Role, label: str, x: float, y: float, notes: Iterable[str]) -> str:
        key = self._fresh(key)
        self._vertices.append(Vertex(key, kind, role, label, Place(len(self._chunks) - 1, x, y), tuple(notes)))
        return key

    def _fresh(self, key: str) -> str:
        """The key made of letters, digits and underscores, and like no other: a parameter may be called z."""
        key = re.sub(r"\W", "_", key)
        while key in self._keys:
            key += "_"
        self._keys.add(key)
        return key

    def _enter(self, piece: Enter) -> None:
        self.chunk(GUTTER)
        inside = len(self._vertices)
        if piece.loop:
            self.entering = f"c_{piece.loop}"
            self.block_input(piece, self.entering)
        self._open.append((piece, self.line, inside, len(self._boxes)))

    def _leave(self) -> None:
        self.chunk(GUTTER)
        piece, _, vertices, boxes = self._open.pop()
        inside = self._vertices[vertices:]
        height = 1 + max((box.height for box in self._boxes[boxes:]), default=-1)
        self._boxes.append(Box(piece.label, tuple(vertex.key for vertex in inside), height))
        if piece.loop:
            signal = [vertex.key for vertex in inside if vertex.place.y == 0]
            self.loop(piece.loop, signal[0], signal[-1])
