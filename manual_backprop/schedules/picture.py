"""A schedule as SVG and PNG: a row of cells for every stage, a colour for every kind of operation."""

from typing import Any

from manual_backprop.graph.picture import COLOURS, Theme, rendered

CELL = 0.34
MARGIN = 0.2
LETTERS = 0.75
ROLES = {"F": "data", "B": "parameter", "W": "objective"}
"""The colours of the graphs: blue for what goes up, orange for what goes down, green for the gradient."""

Words = list[list[str]]


def svg(words: Words, theme: Theme) -> str:
    """The picture as SVG text."""
    return _drawn(words, theme, "svg").decode()


def png(words: Words, theme: Theme, dpi: int) -> bytes:
    """The picture as PNG."""
    return _drawn(words, theme, "png", dpi)


def _drawn(words: Words, theme: Theme, form: str, dpi: int | None = None) -> bytes:
    size = 2 * MARGIN + LETTERS + CELL * len(words[0]), 2 * MARGIN + CELL * len(words)
    return rendered(size, theme, form, lambda figure: _draw(figure, words, size, theme), dpi)


def _draw(figure: Any, words: Words, size: tuple[float, float], theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    colours = COLOURS[theme]
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    for stage, row in enumerate(words):
        bottom = size[1] - MARGIN - CELL * (stage + 1)
        middle = bottom + CELL / 2
        axes.text(MARGIN, middle, f"stage {stage}", size=8, color=colours["faint"], ha="left", va="center")
        for tick, word in enumerate(row):
            left = MARGIN + LETTERS + CELL * tick
            paper = colours[ROLES[word[0]]] if word else colours["paper"]
            axes.add_patch(Rectangle((left, bottom), CELL, CELL, facecolor=paper, edgecolor=colours["frame"], lw=0.6))
            axes.text(left + CELL / 2, middle, word, size=7, color=colours["ink"], ha="center", va="center")
