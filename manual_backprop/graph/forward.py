"""The forward graph (G1): x -> z^(1) -> a^(1) -> ... -> o -> L -> J, and every W^(l) -> s -> J."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import PRNGKeyArray

from manual_backprop.graph.assembly import ABOVE, Assembly, Signal, numbered
from manual_backprop.graph.forms import Graph
from manual_backprop.graph.pieces import Closed, Index, LayerPiece, Levels, Opened, pieces
from manual_backprop.graph.shapes import closed_half_width, half_width_of
from manual_backprop.graph.values import entering, notes, opening, values_of, words
from manual_backprop.objective import Objective, Step
from manual_backprop.types import Tree

STEP = 0.64  # distance between the signal's vertices, in inches
SIGNS = {"×": "times", "+": "plus"}


def forward_graph(
    objective: Objective,
    params: Tree | None = None,
    x: Any = None,
    y: Any = None,
    *,
    key: PRNGKeyArray | None = None,
    opened: Levels = True,
) -> Graph:
    """Draw how the objective is computed: squares are variables, circles operators (G1).

    Args:
        objective: J = L + s.
        params: with x and y, the graph shows shapes and Frobenius norms of x, y, z, a and the parameters, and the
            values of L, s and J. Shapes are of the whole batch, with the number of blocks in front where blocks
            repeat. Without params, the graph shows only dependencies.
        x: a batch, as for `backprop`.
        y: its targets.
        key: as for `backprop`: the values are those of what it draws. Without it, dropout is off in the values.
        opened: how many levels of composites such as Residual, Repeat and Tied are opened to show their contents;
            False draws each as one box, True opens all. One block stands for all that repeat, its layers numbered by
            the block's number. The contents of Serial and Parallel are always shown.

    Raises:
        TypeError: no `Objective`; otherwise as `backprop`.
        ValueError: some of params, x, y but not all; a key without them; values that are being traced; otherwise as
            `backprop`.
    """
    opened = opening(objective, opened)
    values, step = values_of(objective, params, x, y, key)
    drawing = _Forward()
    drawing.input(entering(objective, x))
    drawing.draw(pieces(objective.net, Index(1), values, opened))
    drawing.objective(objective, y, step)
    return drawing.graph("Forward: what is computed from what (G1)")


class _Forward(Assembly):
    def input(self, values: Sequence[Any]) -> None:
        """X = a^(0)."""
        self.chunk(STEP)
        self.signals = tuple(
            Signal(self.variable(label, label, STEP / 2, role="data", notes=notes(value), below=i), label)
            for i, value in enumerate(values)
            for label in [numbered("x", i, len(values))]
        )

    def layer(self, piece: LayerPiece) -> None:
        """Draw (F1), a circle for each operator with its parameters above it, and (F2)."""
        operators = piece.operators
        room = [max(1, len(names)) for _, names in operators]
        at, slug, trace = piece.index, piece.index.slug, piece.values.trace
        step = max(STEP, *(2 * half_width_of(f"{name}^({at})") + 0.12 for name in ("z", *piece.parameters)))
        self.chunk((sum(room) + 3) * step)
        left = 0.0
        for (sign, names), width in zip(operators, room, strict=True):
            circle = self._operator(sign, f"{SIGNS.get(sign, sign)}_{slug}", (left + width / 2) * step)
            for i, name in enumerate(names):
                self.arrow(self._parameter(piece, name, (left + i + 0.5) * step), circle)
            left += width
        at_z, at_f, at_a = ((left + i) * step for i in (0.5, 1.5, 2.5))
        self._go_on(self.variable(f"z_{slug}", f"z^({at})", at_z, role="signal", notes=notes(trace and trace.z)))
        self._go_on(self.operator(f"f_{slug}", f"f_{at}", at_f, notes=(piece.layer.f.name,)))
        self._go_on(
            self.variable(f"a_{slug}", f"a^({at})", at_a, role="signal", notes=notes(trace and trace.a)), f"a^({at})"
        )

    def closed(self, piece: Closed) -> None:
        """Draw one box and its outputs."""
        wider = closed_half_width(piece.label) - closed_half_width("")
        self.chunk(3.5 * STEP + 2 * wider)
        box = self._go_on(self.composite(f"box_{piece.index.slug}", piece.label, 1.25 * STEP + wider))
        if piece.penalised:
            self.penalised.append((box, ""))
        left = []
        for i, output in enumerate(piece.outputs):
            key, at = f"{output.letter}_{output.index.slug}", 3 * STEP + 2 * wider
            left.append(Signal(self.variable(key, str(output), at, role="signal", below=i), str(output)))
            self.arrow(box, left[-1].key)
        self.signals = tuple(left)

    def sum(self, piece: Opened, entered: tuple[Signal, ...]) -> None:
        """Draw h^(l) = the block's input + its a^(l)."""
        self.chunk(2 * STEP)
        left = []
        for i, (signal, before, output) in enumerate(zip(self.signals, entered, piece.outputs, strict=True)):
            circle = self.operator(f"sum_{output.slug}", "+", 0.5 * STEP, below=i)
            self.arrow(signal.key, circle)
            self.arrow(before.key, circle, lane="skip")
            left.append(
                Signal(self.variable(output.slug, str(output), 1.5 * STEP, role="signal", below=i), str(output))
            )
            self.arrow(circle, left[-1].key)
        self.signals = tuple(left)

    def block_input(self, piece: Opened) -> None:
        self.chunk(STEP)
        left = []
        for i, signal in enumerate(self.signals):
            label = numbered(f"c_{piece.loop}", i, len(self.signals))
            key = numbered(f"c_{piece.index.slug}", i, len(self.signals))
            left.append(Signal(self.variable(key, label, 0.5 * STEP, role="signal", below=i), label))
            self.arrow(signal.key, left[-1].key)
        self.signals = tuple(left)

    def loop(self, loop: str, first: str, last: str) -> None:
        self.arrow(last, first, f"{loop}+1", "loop")

    def objective(self, objective: Objective, y: Any, step: Step | None) -> None:
        """Draw (J1) (J2) (J3)."""
        for signal in self.signals:
            self.note(signal.key, "= o")
        regularizer = objective.regularizer
        self.chunk((2 if regularizer is None else 4) * STEP)
        target = self.variable("y", "y", 0.5 * STEP, ABOVE, role="data", notes=notes(y))
        self._go_on(self.operator("loss", "l", 0.5 * STEP, notes=words(objective.loss)))
        self.arrow(target, "loss")
        if regularizer is None:
            self._go_on(
                self.variable("J", "J", 1.5 * STEP, role="objective", notes=("= L", *notes(step and step.value)))
            )
            return
        self._go_on(self.variable("L", "L", 1.5 * STEP, role="objective", notes=notes(step and step.loss)))
        norm = self.operator("norm", "‖·‖_F^2", 1.5 * STEP, ABOVE, notes=("λ/2 Σ", f"λ = {regularizer.lam:g}"))
        for key, _ in self.penalised:
            self.arrow(key, norm, lane="penalty")
        s = self.variable("s", "s", 2.5 * STEP, ABOVE, role="objective", notes=notes(step and step.penalty))
        self.arrow(norm, s)
        self._go_on(self.operator("plus", "+", 2.5 * STEP))
        self.arrow(s, "plus")
        self._go_on(self.variable("J", "J", 3.5 * STEP, role="objective", notes=notes(step and step.value)))

    def _operator(self, sign: str, key: str, x: float) -> str:
        """Place a circle with a sign in it; a name in place of a sign stands below the circle."""
        short = len(sign) == 1
        return self._go_on(self.operator(key, sign if short else "g", x, notes=() if short else (sign,)))

    def _parameter(self, piece: LayerPiece, name: str, x: float) -> str:
        label, of = f"{name}^({piece.weights})", notes(piece.parameters[name])
        key = self.variable(f"{name}_{piece.weights.slug}", label, x, ABOVE, role="parameter", notes=of)
        if name in piece.penalised:
            self.penalised.append((key, label))
        return key

    def _go_on(self, key: str, label: str = "") -> str:
        for signal in self.signals:
            self.arrow(signal.key, key)
        self.signals = (Signal(key, label),)
        return key
