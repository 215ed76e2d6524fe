"""The backward graph: gradients from J back to x, the local derivative on every arrow, delta at every z (C5)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import PRNGKeyArray

from manual_backprop.graph.assembly import ABOVE, Assembly, Signal, numbered
from manual_backprop.graph.forms import Graph
from manual_backprop.graph.model import Role
from manual_backprop.graph.pieces import Closed, Index, LayerPiece, Levels, Opened, pieces
from manual_backprop.graph.shapes import half_width_of, visible
from manual_backprop.graph.values import entering, notes, opening, parts, values_of
from manual_backprop.objective import Objective
from manual_backprop.types import Tree

STEP = 1.5  # distance between gradients, in inches, with room for a local derivative
APART = 1.0  # distance between the gradients of two parameters
MEAN = "(1/N) sum_n "  # before the derivative by a parameter (B3) (B4)


def backward_graph(
    objective: Objective,
    params: Tree | None = None,
    x: Any = None,
    y: Any = None,
    *,
    key: PRNGKeyArray | None = None,
    opened: Levels = True,
) -> Graph:
    """Draw the products of the backward sweep: a gradient in every square, the local derivative on every arrow.

    The gradient at an arrow's head is the gradient at its tail times the derivative on the arrow, summed over all
    arrows that end there. So (B1) and (B2) are the path from J to x; (B3), (B4) and (B6) are the ways up from it. The
    gradients on that path, delta among them, are those of one example, n. The arrows from delta to the gradients of
    parameters carry (1/N) sum_n: each of these gradients is the mean over the N examples of a batch.

    Args:
        objective: J = L + s.
        params: with x and y, the graph shows shapes and Frobenius norms of delta, dL/dx and the parameters'
            gradients, which are values of the sweep.
        x: a batch, as for `backprop`.
        y: its targets.
        key: as for `forward_graph`.
        opened: as for `forward_graph`.

    Raises:
        TypeError, ValueError: as `forward_graph`.
    """
    opened = opening(objective, opened)
    values, step = values_of(objective, params, x, y, key)
    drawing = _Backward(regularised=objective.regularizer is not None)
    many = len(entering(objective, x))
    drawing.input(tuple(parts(step.d_x)) if step else (None,) * many)
    drawing.draw(pieces(objective.net, Index(1), values, opened))
    drawing.objective(objective)
    graph = drawing.graph("Backward: local derivatives on the arrows, delta at every z")
    return replace(graph, vertices=graph.vertices[::-1], arrows=graph.arrows[::-1])


class _Backward(Assembly):
    """Built from x to J like the forward graph, so that the two look alike; its arrows point back."""

    def __init__(self, *, regularised: bool) -> None:
        super().__init__()
        self.regularised = regularised
        self._deltas: dict[str, bool] = {}  # by the key of a delta, whether its layer repeats

    def input(self, values: Sequence[Any]) -> None:
        """Draw dL/dx (B5)."""
        self.chunk(0.8)
        names = [numbered("x", i, len(values)) for i in range(len(values))]
        self.signals = tuple(
            Signal(self._gradient(f"d{x}", f"dL/d{x}", 0.4, role="data", tag="(B5)", value=value, below=i), x)
            for i, (x, value) in enumerate(zip(names, values, strict=True))
        )

    def layer(self, piece: LayerPiece) -> None:
        """Draw (B2) along the line, or (B1) where dl/do arrives, and (B3), (B4) up from it."""
        parameters, slug, at = list(piece.parameters), piece.index.slug, piece.index
        labels = {name: f"{name}^({piece.weights})" for name in parameters}
        entering = list(piece.entering([signal.label for signal in self.signals]))
        slope, z = f"diag f_{at}'(z^({at}))", f"z^({at})"  # (C7)
        labels |= dict(entering)
        means = [MEAN + self._local(piece, name, labels, f"d{z}/d{labels[name]}") for name in parameters]
        widest = max(2 * half_width_of(f"dL/d{name}^({at})") for name in ("a", *parameters))
        apart, step = max(_apart(means), widest + 0.1), max(STEP, widest + 0.055 * visible(slope) + 0.1)
        reach = (len(parameters) - 1) / 2 * apart + widest / 2 + 0.05
        middle = max(0.95, reach)
        self.chunk(middle + max(step + widest / 2 + 0.15, reach))
        left = middle - (len(parameters) - 1) / 2 * apart
        above = [self._parameter(piece, name, left + i * apart) for i, name in enumerate(parameters)]
        delta = self._gradient(f"delta_{slug}", f"delta^({at})", middle, role="signal", value=piece.values.deltas)
        self._deltas[delta] = bool(at.loops)
        for key, local in zip(above, means, strict=True):  # placed first: they come last from J
            self.arrow(delta, key, local)
        for signal, (name, label) in zip(self.signals, entering, strict=True):
            self.arrow(delta, signal.key, self._local(piece, name, labels | {name: label}, f"d{z}/d{label}"))
        after = self._gradient(f"da_{slug}", f"dL/da^({at})", middle + step, role="signal")
        self.arrow(after, delta, slope)
        self.signals = (Signal(after, f"a^({at})", delta),)

    def closed(self, piece: Closed) -> None:
        """Draw one arrow past the box, and one to the gradient of all its parameters."""
        self.chunk(STEP + 0.75)
        slug, theta = piece.index.slug, ""
        J = "J" if piece.penalised and self.regularised else "L"
        if piece.owns:
            label = f"d{J}/dtheta"
            theta = self._gradient(f"dtheta_{slug}", label, STEP / 2, ABOVE, role="parameter", tag=piece.label)
        left = []
        for i, out in enumerate(piece.outputs):
            tag, key = "" if theta else piece.label, f"d{out.letter}_{out.index.slug}"
            after = self._gradient(key, f"dL/d{out}", STEP + 0.2, role="signal", tag=tag, below=i)
            if theta:
                self.arrow(after, theta, f"{MEAN}d{out}/dtheta")
            for signal in self.signals:
                self.arrow(after, signal.key, f"d{out}/d{signal.label}")
            left.append(Signal(after, str(out)))
        self.signals = tuple(left)
        if piece.penalised:
            self.penalised.append((theta, "W"))

    def sum(self, piece: Opened, entered: tuple[Signal, ...]) -> None:
        """Draw a sum, whose gradient goes both ways unchanged."""
        self.chunk(1.3)
        left = []
        for i, (signal, before, out) in enumerate(zip(self.signals, entered, piece.outputs, strict=True)):
            h = self._gradient(f"d{out.slug}", f"dL/d{out}", 0.75, role="signal", below=i)
            self.arrow(h, signal.key, "I")
            self.arrow(h, before.key, "I", "skip")
            left.append(Signal(h, str(out)))
        self.signals = tuple(left)

    def block_input(self, piece: Opened) -> None:
        """Draw the gradient of a block's input: it goes unchanged to the block before, or out of the chain."""
        self.chunk(1.15)
        left = []
        for i, signal in enumerate(self.signals):
            label = numbered(f"c_{piece.loop}", i, len(self.signals))
            key = numbered(f"dc_{piece.index.slug}", i, len(self.signals))
            left.append(Signal(self._gradient(key, f"dL/d{label}", 0.7, role="signal", below=i), label))
            self.arrow(left[-1].key, signal.key, "I")
        self.signals = tuple(left)

    def loop(self, loop: str, first: str, last: str) -> None:
        self.arrow(first, last, f"I, {loop}-1", "loop")

    def objective(self, objective: Objective) -> None:
        """Draw (J3) back to (B1), and (B6)."""
        for signal in self.signals:
            self.note(signal.key, "= dL/do")
        direct = {signal.delta for signal in self.signals}  # these have no vertex between them and the loss
        for delta, in_loop in self._deltas.items():
            self.note(delta, "(B2)" if delta not in direct else "(B1) (B2)" if in_loop else "(B1)")
        if objective.regularizer is None:
            self.chunk(STEP)
            self._back_to(self._gradient("dJ", "dJ/dJ", 0.95, role="objective", tag="= 1, J = L"), "dl/do")
            return
        self.chunk(2 * STEP - 0.4)
        self._back_to(self._gradient("dL", "dJ/dL", 0.95, role="objective", tag="= 1"), "dl/do")
        s = self._gradient("ds", "dJ/ds", 0.95 + STEP * 0.8, ABOVE, role="objective", tag="= 1")
        dJ = self._gradient("dJ", "dJ/dJ", 0.95 + STEP * 0.8, role="objective", tag="= 1")
        self._back_to(dJ, "1")
        self.arrow(dJ, s, "1")
        for key, label in self.penalised:
            self.arrow(s, key, f"lambda {label}", "penalty")

    def _gradient(
        self,
        key: str,
        label: str,
        x: float,
        y: float = 0.0,
        *,
        role: Role,
        tag: str = "",
        value: Any = None,
        below: int = 0,
    ) -> str:
        """Place a square with a gradient in it and return its key."""
        said = (*([tag] if tag else []), *notes(value))
        return self.variable(key, label, x, y, role=role, notes=said, below=below)

    def _parameter(self, piece: LayerPiece, name: str, x: float) -> str:
        label = f"{name}^({piece.weights})"
        counted = name in piece.penalised and self.regularised
        tag = {"W": "(B4)", "b": "(B3)"}.get(name, "") if piece.layer.local_derivatives else ""
        tag = " ".join(filter(None, [tag, "(B6)" if counted else ""]))
        of = piece.gradients.get(name)
        key = f"d{name}_{piece.weights.slug}"
        key = self._gradient(key, f"d{'J' if counted else 'L'}/d{label}", x, ABOVE, role="parameter", tag=tag, value=of)
        if counted:
            self.penalised.append((key, label))
        return key

    def _local(self, piece: LayerPiece, name: str, labels: dict[str, str], otherwise: str) -> str:
        """The layer's own text for the arrow, with the labels filled in; else the derivative's name."""
        template = piece.layer.local_derivatives.get(name)
        if template is None:
            return otherwise
        try:
            local = template.format(**labels)
        except (KeyError, IndexError) as error:
            known = ", ".join(f"{{{label}}}" for label in labels)
            raise ValueError(
                f"{piece.layer}: local_derivatives[{name!r}] is {template!r}; it can name {known}"
            ) from error
        return re.sub(r"\((\w(?:_\w+)?)\)\^T", r"\1^T", local)  # (x)^T

    def _back_to(self, key: str, local: str) -> None:
        """Draw an arrow from the vertex `key` back to every vertex that the signal had reached."""
        for signal in self.signals:
            self.arrow(key, signal.key, local)
        self.signals = (Signal(key, ""),)


def _apart(labels: Sequence[str]) -> float:
    """The distance between the gradients of parameters: more than two arrows leave room for the labels between them."""
    if len(labels) < 3:
        return APART
    return max(APART, *(2 * (0.065 * visible(label) + 0.1) for label in labels))  # halfway up it is half as wide
