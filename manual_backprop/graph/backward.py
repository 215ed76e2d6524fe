"""The backward graph: gradients from J back to x, the local derivative on every arrow, delta at every z (C5)."""

import re
from dataclasses import replace
from typing import Any

from manual_backprop.graph.assembly import ABOVE, Assembly
from manual_backprop.graph.forms import Graph
from manual_backprop.graph.model import Role
from manual_backprop.graph.pieces import (
    Closed,
    Enter,
    Index,
    LayerPiece,
    Opened,
    Sum,
    notes,
    opening,
    pieces,
    values_of,
)
from manual_backprop.graph.shapes import half_width_of, visible
from manual_backprop.layers.factor import Tree
from manual_backprop.objective import Objective, Step

STEP = 1.5  # from one gradient to the next, in inches: between them stands a local derivative
APART = 1.0  # from one parameter's gradient to the next


def backward_graph(
    objective: Objective, params: Tree | None = None, x: Any = None, y: Any = None, *, opened: Opened = True
) -> Graph:
    """What the backward sweep multiplies: a gradient in every square, on every arrow the local derivative.

    What is at an arrow's tail, multiplied by what is written on it, is what arrives at its head; where several
    arrive they are summed. So (B1) and (B2) are the path from J to x, (B3), (B4) and (B6) the ways up from it. It
    is the graph of one example; over a batch, what arrives at parameters is the mean over the examples.

    Args:
        objective: J = L + s.
        params: with x and y: delta, dL/dx and the parameters' gradients, which the sweep has as values, show their
            shapes and Frobenius norms.
        x: a batch, as for `backprop`.
        y: its targets.
        opened: as for `forward_graph`.

    Raises:
        TypeError, ValueError: as `forward_graph`.
    """
    opened = opening(objective, opened)
    values, step = values_of(objective, params, x, y)
    drawing = _Backward()
    drawing.regularised = objective.regularizer is not None
    drawing.input(step)
    drawing.draw(pieces(objective.net, Index(1), values, opened))
    drawing.objective(objective, step)
    graph = drawing.graph("Backward: local derivatives on the arrows, delta at every z")
    return replace(graph, vertices=graph.vertices[::-1], arrows=graph.arrows[::-1])


class _Backward(Assembly):
    """Put together from x to J like the forward graph, so that it stands like it; its arrows point back."""

    regularised = False
    delta = ""  # the key of the last delta, which (B1) or (B2) gives, as what is above it will show
    in_loop = direct = False  # whether its layer repeats; whether nothing stands between it and the loss

    def input(self, step: Step | None) -> None:
        """(B5)."""
        self.chunk(0.8)
        self.line = self._gradient("dx", "dL/dx", 0.4, role="data", tag="(B5)", value=step and step.d_x)

    def layer(self, piece: LayerPiece) -> None:
        """(B2) along the line, or (B1) where dl/do arrives, and (B3), (B4) up from it."""
        parameters, slug, at = list(piece.parameters), piece.index.slug, piece.index
        widest = max(2 * half_width_of(f"dL/d{name}^({at})") for name in ("a", *parameters))
        slope = f"diag f_{at}'(z^({at}))"  # (C7)
        apart, step = max(APART, widest + 0.1), max(STEP, widest + 0.055 * visible(slope) + 0.1)
        middle = max(0.95, (len(parameters) - 1) / 2 * apart + widest / 2 + 0.05)
        self.chunk(middle + step + widest / 2 + 0.15)
        labels = {name: f"{name}^({piece.weights})" for name in parameters}
        labels["a_in"] = self.entering
        self._tag_delta("(B2)")
        self.in_loop, self.direct = bool(at.loops), True
        left = middle - (len(parameters) - 1) / 2 * apart
        above = [self._parameter(piece, name, left + i * apart) for i, name in enumerate(parameters)]
        self.delta = self._gradient(f"delta_{slug}", f"delta^({at})", middle, role="signal", value=piece.values.deltas)
        for name, key in zip(parameters, above, strict=True):  # placed before: read from J back they come after
            self.arrow(self.delta, key, self._local(piece, name, labels, f"dz^({at})/d{labels[name]}"))
        self._back_to(self.delta, self._local(piece, "a_in", labels, f"dz^({at})/d{labels['a_in']}"))
        self._back_to(self._gradient(f"da_{slug}", f"dL/da^({at})", middle + step, role="signal"), slope)

    def closed(self, piece: Closed) -> None:
        """One arrow past the box, and one to the gradient of all its parameters."""
        self.chunk(STEP + 0.75)
        self.direct = False
        out, slug = f"{piece.output}^({piece.index})", piece.index.slug
        J = "J" if piece.penalised and self.regularised else "L"
        theta = self._gradient(f"dtheta_{slug}", f"d{J}/dtheta", STEP / 2, ABOVE, role="parameter", tag=piece.label)
        after = self._gradient(f"d{piece.output}_{slug}", f"dL/d{out}", STEP + 0.2, role="signal")
        self.arrow(after, theta, f"d{out}/dtheta")
        self._back_to(after, f"d{out}/d{self.entering}")
        if piece.penalised:
            self.penalised.append((theta, "W"))

    def sum(self, piece: Sum, entered: str) -> None:
        """What arrives at a sum goes both ways as it is."""
        self.chunk(1.3)
        label = f"{piece.letter}^({piece.index})"
        self.direct = False
        h = self._gradient(f"d{piece.slug}", f"dL/d{label}", 0.75, role="signal")
        self._back_to(h, "I")
        self.arrow(h, entered, "I", "skip")

    def block_input(self, piece: Enter, label: str) -> None:
        """The gradient of what enters a block goes as it is to the block before, from the first out of the chain."""
        self.chunk(1.15)
        self._back_to(self._gradient(f"dc_{piece.index.slug}", f"dL/d{label}", 0.7, role="signal"), "I")

    def loop(self, loop: str, first: str, last: str) -> None:
        self.arrow(first, last, f"I, {loop}-1", "loop")

    def objective(self, objective: Objective, step: Step | None) -> None:
        """(J3) back to (B1), and (B6)."""
        self.note(self.line, "= dL/do")
        self._tag_delta("(B2)" if not self.direct else "(B1) (B2)" if self.in_loop else "(B1)")
        if objective.regularizer is None:
            self.chunk(STEP)
            self._back_to(self._gradient("dJ", "dJ/dJ", 0.95, role="objective", tag="= 1, J = L"), "dl/do")
            return
        self.chunk(2 * STEP - 0.4)
        self._back_to(self._gradient("dL", "dJ/dL", 0.95, role="objective", tag="= 1"), "dl/do")
        s = self._gradient("ds", "dJ/ds", 0.95 + STEP * 0.8, ABOVE, role="objective", tag="= 1")
        self._back_to(self._gradient("dJ", "dJ/dJ", 0.95 + STEP * 0.8, role="objective", tag="= 1"), "1")
        self.arrow(self.line, s, "1")
        for key, label in self.penalised:
            self.arrow(s, key, f"lambda {label}", "penalty")

    def _gradient(
        self, key: str, label: str, x: float, y: float = 0.0, *, role: Role, tag: str = "", value: Any = None
    ) -> str:
        return self.variable(key, label, x, y, role=role, notes=(*([tag] if tag else []), *notes(value)))

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

    def _tag_delta(self, tag: str) -> None:
        if self.delta:
            self.note(self.delta, tag)

    def _local(self, piece: LayerPiece, name: str, labels: dict[str, str], otherwise: str) -> str:
        """What the layer writes on its arrow, with the labels filled in; else the derivative's name."""
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
        """An arrow from the vertex `key` back to where the signal had come."""
        self.arrow(key, self.line, local)
        self.line = key
