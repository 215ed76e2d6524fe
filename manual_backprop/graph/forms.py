"""A computational graph and its four output formats: SVG, PNG, Mermaid and DOT."""

from dataclasses import dataclass

from manual_backprop.graph import picture, text
from manual_backprop.graph.model import Diagram
from manual_backprop.graph.picture import Theme


@dataclass(frozen=True, repr=False)
class Graph(Diagram):
    """Vertices, arrows and boxes, as in `Diagram`, with methods to draw them and to write them as text."""

    def svg(self, *, theme: Theme = "light") -> str:
        """The picture as SVG, the same bytes every time; needs matplotlib.

        Raises:
            ImportError: matplotlib is not installed; says how to get it.
            ValueError: an unknown theme.
        """
        return picture.svg(self, theme)

    def png(self, *, theme: Theme = "light", dpi: int = 144) -> bytes:
        """The picture as PNG, the same bytes every time; needs matplotlib.

        Args:
            theme: "light" or "dark", the paper.
            dpi: pixels an inch; lettering is 10 points high.

        Raises:
            ImportError, ValueError: as `svg`; a dpi that is not above 0 and at most 2400.
        """
        return picture.png(self, theme, dpi)

    def mermaid(self) -> str:
        """The graph as Mermaid text, which GitHub, GitLab and notebooks draw."""
        return text.mermaid(self)

    def dot(self) -> str:
        """The graph as DOT text, which Graphviz draws."""
        return text.dot(self)

    def _repr_svg_(self) -> str | None:
        try:
            return self.svg()
        except ImportError:  # the notebook then shows the repr
            return None
