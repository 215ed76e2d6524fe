"""Heat maps of one network: errors in units of their tolerance, by layer and quantity, as plain tables of cells."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reference.report import Row, Verdict

# cividis, by Nunez, Anderton and Renslow (2018), designed to look the same with and without colour blindness
_CIVIDIS = (
    "#00224e",
    "#002c64",
    "#0c3470",
    "#273e6e",
    "#38476c",
    "#46516c",
    "#535a6d",
    "#5f636f",
    "#6b6d72",
    "#777776",
    "#828079",
    "#908b78",
    "#9c9576",
    "#aaa073",
    "#b8aa6e",
    "#c6b667",
    "#d4c15f",
    "#e4ce53",
    "#f2da44",
    "#fee838",
)
_LOWEST, _PER_DECADE = -4, 4  # the colours span errors of 1e-4 to 10 times the tolerance
BINS = len(_CIVIDIS)
_HEAT_LINES = 80
_OF_LAYERS = re.compile(r"(trace|deltas|(value_and_grad\.)?gradients)\b")  # the trees of a step that mirror the network
_INDEX = re.compile(r"\[(\d+)\]")
_KINDS = {"equation": "each equation by itself", "end to end": "end to end, from the inputs"}


@dataclass(frozen=True)
class Cell:
    """One square of a heat map: the worst row among those that belong there."""

    used: float
    verdict: Verdict
    path: str

    @property
    def text(self) -> str:
        """The error in units of the tolerance, with a mark if it is not a pass, so that colour is not needed."""
        return {"pass": "", "fail": "✗ ", "inconclusive": "? "}[self.verdict] + short(self.used)

    @property
    def colour(self) -> int:
        """The number of its colour, out of BINS."""
        if not math.isfinite(self.used):
            return BINS - 1
        place = (math.log10(self.used) - _LOWEST) * _PER_DECADE if self.used > 0 else 0
        return min(max(math.floor(place), 0), BINS - 1)


@dataclass(frozen=True)
class HeatMap:
    """Errors in units of the tolerance, by layer and quantity.

    Attributes:
        title: the kind of comparison.
        corner: the heading of the lines.
        columns: names of the quantities.
        lines: (name, one cell or None for each column).
        left_out: how many lines were left out; never the first ones that are not a pass.
    """

    title: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    left_out: int = 0


def heat_maps(rows: Sequence[Row]) -> list[HeatMap]:
    """One map by layer for each kind of comparison, and one for rows that belong to no layer.

    A row on a whole stack of layers, such as `gradients[2].W` of a repeated block, has a line of its own, "4 to 6".
    """
    layered = [(_INDEX.findall(row.path), row.layer) for row in rows if row.layer]
    layers = {row: _layers(row, layered) for row in rows}
    placed = [row for row in rows if layers[row]]
    maps = []
    for kind, witness in dict.fromkeys((row.kind, row.witness) for row in placed):
        of_kind = sorted(
            (row for row in placed if (row.kind, row.witness) == (kind, witness)), key=lambda row: layers[row][0]
        )
        title = _KINDS.get(kind, f"{kind}: {witness}")
        maps.append(_heat_map(title, "layer", of_kind, lambda row: (_span(layers[row]), quantity(row.path))))
    rest = [row for row in rows if not layers[row]]
    if rest:
        title = "of no one layer" if maps else "by quantity"
        maps.append(_heat_map(title, "quantity", rest, lambda row: (row.path, f"{row.kind}: {row.witness}")))
    return maps


def _layers(row: Row, layered: Sequence[tuple[list[str], int]]) -> list[int]:
    """The layers of a row: its own, or those of all rows whose path begins with its path."""
    if row.layer or not _OF_LAYERS.match(row.path):
        return [row.layer] if row.layer else []
    index = _INDEX.findall(row.path)
    return sorted({layer for other, layer in layered if other[: len(index)] == index})


def _span(layers: Sequence[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def _heat_map(title: str, corner: str, rows: Sequence[Row], key: Callable[[Row], tuple[str, str]]) -> HeatMap:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    cells = {at: _worst(found) for at, found in groups.items()}
    columns = tuple(dict.fromkeys(column for _, column in cells))
    names = list(dict.fromkeys(name for name, _ in cells))
    if len(names) > _HEAT_LINES:  # choose those that are not a pass first, then restore the order of computation
        bad = {name for (name, _), cell in cells.items() if cell.verdict != "pass"}
        kept = set(sorted(names, key=lambda name: name not in bad)[:_HEAT_LINES])
        shown = [name for name in names if name in kept]
    else:
        shown = names
    lines = tuple((name, tuple(cells.get((name, column)) for column in columns)) for name in shown)
    return HeatMap(title, corner, columns, lines, len(names) - len(shown))


def _worst(rows: Sequence[Row]) -> Cell:
    order: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")
    row = max(rows, key=lambda row: (order.index(row.verdict), row.used))
    return Cell(row.used, row.verdict, row.path)


def quantity(path: str) -> str:
    """The quantity of a row, without its layer: "gradients[1].W" is dW, "deltas[0]" is delta, "trace[2].z" is z."""
    head, _, name = re.sub(r"\[[^\]]*\]", "", path).rpartition(".")
    whose = f"{head.partition('.')[0]}: " if path.startswith("value_and_grad") else ""
    if "gradients" in path:
        return f"{whose}d{name}" if name and name != "gradients" else f"{whose}gradient"
    return "delta" if name == "deltas" else f"{whose}{name}"


def short(value: float) -> str:
    """Two digits, without the exponent's leading zero: 0.031, 3e+2."""
    return re.sub(r"e([+-])0", r"e\1", f"{value:.2g}")


def colours() -> list[tuple[str, str]]:
    """(background, text) of each of BINS colours; the text is black or white, whichever is more readable."""
    return [(colour, "#000" if luminance(colour) > 0.179 else "#fff") for colour in _CIVIDIS]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour "#rrggbb", 0 to 1, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
