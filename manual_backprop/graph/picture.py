"""A graph as SVG and PNG by matplotlib alone; the bytes are the same every time, whatever the user's settings."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal

from manual_backprop.graph.layout import lay_out
from manual_backprop.graph.model import Diagram
from manual_backprop.graph.shapes import LINE, Frame, Page, Path, Shape, visible

Theme = Literal["light", "dark"]
COLOURS = {
    "light": {
        "paper": "#ffffff", "ink": "#1f2328", "faint": "#57606a", "frame": "#8c959f", "data": "#dbeafe",
        "parameter": "#ffe8cc", "signal": "#f1f3f5", "objective": "#d3f9d8", "operator": "#ffffff",
        "composite": "#f3e8ff",
    },
    "dark": {
        "paper": "#0d1117", "ink": "#e6edf3", "faint": "#9da7b1", "frame": "#6e7681", "data": "#1c3d5a",
        "parameter": "#5a3a12", "signal": "#262c34", "objective": "#1b4a2a", "operator": "#0d1117",
        "composite": "#3d2a5a",
    },
}  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "path",  # looks the same on systems without the font
    "svg.hashsalt": "manual-backprop",
    "mathtext.fontset": "cm",
    "path.simplify": False,
}


def svg(graph: Diagram, theme: Theme) -> str:
    """The picture as SVG text."""
    return _rendered(graph, theme, "svg").decode()


def png(graph: Diagram, theme: Theme, dpi: int) -> bytes:
    """The picture as PNG."""
    return _rendered(graph, theme, "png", dpi)


def _rendered(graph: Diagram, theme: Theme, form: str, dpi: int | None = None) -> bytes:
    page = lay_out(graph)
    size = page.width, page.height + 0.3
    return rendered(size, theme, form, lambda figure: _Drawing(figure, page, theme).draw(graph.title), dpi)


def rendered(
    size: tuple[float, float], theme: Theme, form: str, draw: Callable[[Any], None], dpi: int | None = None
) -> bytes:
    """The bytes of a picture of this size in inches, which `draw` draws on a matplotlib Figure; PNG has a dpi.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
        ValueError: an unknown theme, or a dpi that is not above 0 and at most 2400.
    """
    if not isinstance(theme, str) or theme not in COLOURS:
        raise ValueError(f"theme must be one of {', '.join(COLOURS)}, got {theme!r}")
    if form == "png" and not (isinstance(dpi, int | float) and 0 < dpi <= 2400):
        raise ValueError(f"dpi must be above 0 and at most 2400, got {dpi!r}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a picture needs matplotlib, which is not installed; in the clone of the repository, run"
            ' python -m pip install -e ".[cli]"; a graph\'s .mermaid() and .dot() do without it'
        ) from error
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    options: dict[str, Any] = {"metadata": metadata} if dpi is None else {"metadata": metadata, "dpi": dpi}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, facecolor=COLOURS[theme]["paper"])
        draw(figure)
        file = BytesIO()
        figure.savefig(file, format=form, facecolor=figure.get_facecolor(), **options)
    return file.getvalue()


def math(label: str) -> str:
    """A label in the note's notation as matplotlib's mathtext."""
    for pattern, replacement in (
        (r"\^\(([^)]*)\)", r"^{(\1)}"),
        (r"_([\w+]+)", r"_{\1}"),
        (r"\bd([A-Za-z]'*)(\^\{[^}]*\})?/d(?=[A-Za-z])", r"\\partial \1\2/\\partial "),
        (r"\b(delta|lambda|theta)", r"\\\1 "),
        (r"\^T", r"^{\\mathrm{T}}"),
        (r"diag ", r"\\mathrm{diag}\\,"),
        ("‖·‖", r"\\Vert\\cdot\\Vert "),
        ("×", r"\\times "),
        (r"\(1/N\) sum_\{n\}", r"\\frac{1}{N}\\Sigma_{n}\\,"),
        (r"partial l/", r"partial \\ell/"),
        (r"^l$", r"\\ell"),
        (r"(?<=\w)\+(?=\w)", "{+}"),
    ):
        label = re.sub(pattern, replacement, label)
    return f"${label}$"


class _Drawing:
    def __init__(self, figure: Any, page: Page, theme: Theme) -> None:
        self.page, self.colours = page, COLOURS[theme]
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, page.width), ylim=(0, page.height + 0.3))
        self.axes.axis("off")

    def draw(self, title: str) -> None:
        """Draw frames, then arrows, then vertices, so that no text is covered."""
        colours = self.colours
        self._text(0.2, self.page.height + 0.1, title, size=9, color=colours["faint"], ha="left", va="center")
        for frame in self.page.frames:
            self._frame(frame)
        for path in self.page.paths:
            self._arrow(path)
        for shape in self.page.shapes.values():
            self._vertex(shape)

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "center", "color": self.colours["ink"], "size": 11} | style
        self.axes.text(x, y, text, **{"parse_math": False} | style)

    def _math(self, x: float, y: float, label: str, **style: Any) -> None:
        """Typeset a label; if matplotlib cannot parse it, because of a user's name in it, write it as plain text."""
        from matplotlib.mathtext import MathTextParser

        text = math(label)
        try:
            MathTextParser("path").parse(text)
        except ValueError:
            self._text(x, y, label, **style)
        else:
            self._text(x, y, text, parse_math=True, **style)

    def _frame(self, frame: Frame) -> None:
        from matplotlib.patches import FancyBboxPatch

        size = frame.right - frame.left, frame.top - frame.bottom
        corner = (frame.left, frame.bottom)
        box = "round,pad=0,rounding_size=0.08"
        self.axes.add_patch(
            FancyBboxPatch(corner, *size, boxstyle=box, fill=False, ls=(0, (4, 3)), lw=0.9, ec=self.colours["frame"])
        )
        if frame.label:
            paper = {"facecolor": self.colours["paper"], "edgecolor": "none", "pad": 1.5}
            at = (frame.left + 0.12, frame.top)
            self._text(*at, frame.label, size=8, color=self.colours["faint"], ha="left", bbox=paper)

    def _arrow(self, path: Path) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Outline

        ink = self.colours["faint" if path.arrow.lane in ("penalty", "loop") else "ink"]
        dashes = (0, (4, 2)) if path.arrow.lane == "loop" else "solid"
        outline = Outline(path.points)
        self.axes.add_patch(
            FancyArrowPatch(
                path=outline, arrowstyle="-|>,head_length=4.5,head_width=2.2", lw=1.0, edgecolor=ink, facecolor=ink,
                ls=dashes, joinstyle="miter", capstyle="butt",
            )
        )  # fmt: skip
        if path.arrow.label:
            plain = path.arrow.lane == "loop"
            paper = {"facecolor": self.colours["paper"], "edgecolor": "none", "pad": 1.0}
            write = self._text if plain else self._math
            write(*path.label_at, path.arrow.label, size=8 if plain else 10, color=ink, ha=path.align, bbox=paper)

    def _vertex(self, shape: Shape) -> None:
        from matplotlib.patches import Circle, Rectangle

        vertex, colours = shape.vertex, self.colours
        style: dict[str, Any] = {"facecolor": colours[vertex.role], "edgecolor": colours["ink"], "lw": 1.0}
        corner = (shape.x - shape.half_width, shape.y - shape.half_height)
        if vertex.kind == "operator":
            self.axes.add_patch(Circle((shape.x, shape.y), shape.half_height, **style))
        else:
            self.axes.add_patch(Rectangle(corner, 2 * shape.half_width, 2 * shape.half_height, **style))
        if vertex.kind == "composite":
            inner = 0.04
            at = (corner[0] + inner, corner[1] + inner)
            extent = 2 * (shape.half_width - inner), 2 * (shape.half_height - inner)
            self.axes.add_patch(Rectangle(at, *extent, fill=False, edgecolor=colours["ink"], lw=0.6))
        plain = vertex.kind == "composite"
        letters = visible(vertex.label)
        size = 8.5 if plain else 12 if letters < 3 else 11 if vertex.kind != "operator" else 9 if letters < 7 else 6.5
        (self._text if plain else self._math)(shape.x, shape.y, vertex.label, size=size)
        self._notes(shape)

    def _notes(self, shape: Shape) -> None:
        paper = {"facecolor": self.colours["paper"], "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        lines = shape.vertex.notes if shape.notes_below else shape.vertex.notes[::-1]
        for number, line in enumerate(lines):
            away = shape.half_height + LINE * (number + 0.62)
            middle = shape.in_lane or (shape.notes_below and not shape.forked)
            x, y = shape.x + (0 if middle else 0.06), shape.y + (-away if shape.notes_below else away)
            self._text(
                x,
                y,
                line,
                size=7,
                color=self.colours["faint"],
                ha="center" if middle else "left",
                bbox=paper,
            )
