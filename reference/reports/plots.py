"""Pictures of one network: small SVG charts, drawn here.

A page holds hundreds of them. By matplotlib each chart took 0.17 s and 120 kB; here it takes a few milliseconds and
kilobytes, and it follows the page's colours in dark mode and in print.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

_WIDTH, _HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 328, 10, 208  # the frame; ticks and labels stand outside it
_TINY = 1e-300  # a chart takes anything below this as zero
_OFF = 3.0  # distance from the diagonal, in pixels, from which a point is drawn as off it


@dataclass(frozen=True)
class _Axis:
    """One axis of a chart: its label, the map from values to positions (0 to 1), and its ticks."""

    label: str
    place: Callable[[Any], Any]
    ticks: tuple[tuple[float, str], ...]


def _thinned(items: Sequence[Any], most: int) -> list[Any]:
    return list(items[:: max(1, math.ceil(len(items) / most))])


def _log_axis(label: str, values: Sequence[float], most: int = 6) -> _Axis:
    """An axis of whole decades around the positive values; all other values are at its lower end."""
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += high == low
    decades = _thinned(range(low, high + 1), most)
    return _Axis(
        label,
        lambda v: (math.log10(v) - low) / (high - low) if v > 0 else 0.0,
        tuple((10.0**d, f"1e{d}") for d in decades),
    )


def _symlog_axis(label: str, largest: float) -> _Axis:
    """An axis for both signs: linear below a ten-thousandth of the largest magnitude, logarithmic above."""
    threshold = 10.0 ** (math.floor(math.log10(largest)) - 4)
    span = 2.08 * math.log10(1 + largest / threshold)
    decades = [threshold * 10.0**k for k in (2, 4)]
    ticks = [(-d, f"-{d:.0e}") for d in reversed(decades)] + [(0.0, "0")] + [(d, f"{d:.0e}") for d in decades]
    return _Axis(
        label,
        lambda v: 0.5 + np.sign(v) * np.log10(1 + np.abs(v) / threshold) / span,
        tuple((v, text.replace("e-0", "e-").replace("e+0", "e+")) for v, text in ticks),
    )


def _x(axis: _Axis, value: Any) -> Any:
    return np.round(_LEFT + axis.place(value) * (_RIGHT - _LEFT), 1)


def _y(axis: _Axis, value: Any) -> Any:
    return np.round(_BOTTOM - axis.place(value) * (_BOTTOM - _TOP), 1)


def _chart(ident: str, title: str, description: str, x: _Axis, y: _Axis, marks: Sequence[str]) -> str:
    """The SVG of a frame, its grid and ticks, and the marks in it."""
    lines = [f"M{_x(x, v):g} {_TOP}V{_BOTTOM}" for v, _ in x.ticks] + [
        f"M{_LEFT} {_y(y, v):g}H{_RIGHT}" for v, _ in y.ticks
    ]
    below = "".join(f'<text x="{_x(x, v):g}" y="{_BOTTOM + 16}">{escape(t)}</text>' for v, t in x.ticks)
    beside = "".join(f'<text x="{_LEFT - 6}" y="{_y(y, v) + 4:g}">{escape(t)}</text>' for v, t in y.ticks)
    middle, centre = (_TOP + _BOTTOM) // 2, (_LEFT + _RIGHT) // 2
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(description)}</desc>'
        f'<path class="gr" d="{"".join(lines)}"/>'
        f'<rect class="ax" x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/>'
        f'<g class="tx">{below}</g><g class="ty">{beside}</g>'
        f'<text class="lx" x="{centre}" y="{_HEIGHT - 6}">{escape(x.label)}</text>'
        f'<text class="ly" x="{-middle}" y="11" transform="rotate(-90)">{escape(y.label)}</text>'
        f"{''.join(marks)}</svg>"
    )


def _dots(points: Sequence[tuple[float, float]]) -> str:
    """Dots drawn as round line ends, in one short path."""
    return f'<path class="pt" d="{"".join(f"M{x:g} {y:g}h0" for x, y in points)}"/>' if points else ""


def _crosses(points: Sequence[tuple[float, float]]) -> str:
    path = "".join(f"M{x - 3:g} {y - 3:g}l6 6m0-6l-6 6" for x, y in points)
    return f'<path class="off" d="{path}"/>' if points else ""


def scatter(ident: str, manual: np.ndarray, reference: np.ndarray, labels: tuple[str, str]) -> str:
    """Every entry by hand against the witness, on axes that show both signs; entries off the diagonal are crosses.

    Points on the same half pixel are drawn once. Entries that are nan or inf are only counted in the description.
    """
    ours, theirs = np.ravel(manual).astype(np.float64), np.ravel(reference).astype(np.float64)
    drawn = np.isfinite(ours) & np.isfinite(theirs)
    largest = max(np.abs(ours[drawn]).max(initial=0.0), np.abs(theirs[drawn]).max(initial=0.0))
    largest = float(largest) if largest > _TINY else 1.0
    x, y = _symlog_axis(labels[1], largest), _symlog_axis(labels[0], largest)
    height = _y(y, ours[drawn])
    far = np.abs(height - _y(y, theirs[drawn])) > _OFF
    points = np.round(2 * np.stack([_x(x, theirs[drawn]), height], axis=-1)) / 2
    count = int(far.sum())
    undrawn = int((~drawn).sum())
    text = f"{ours.size} entries, {count} of them visibly off the diagonal"
    text += f"; {undrawn} are nan or inf and are not drawn" if undrawn else ""
    diagonal = f'<path class="dg" d="M{_LEFT} {_BOTTOM}L{_RIGHT} {_TOP}"/>'
    marks = [diagonal, _dots(_once(points[~far])), _crosses(_once(points[far]))]
    return _chart(ident, f"{labels[0]} against {labels[1]}", text, x, y, marks)


def _once(points: np.ndarray) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.unique(points, axis=0)]


def delta_norms(ident: str, norms: Sequence[tuple[str, float]]) -> str:
    """The norm of every layer's delta, from input to output; a norm that is not positive is a cross at the bottom."""
    y = _log_axis("norm of delta", [norm for _, norm in norms])
    last = max(len(norms) - 1, 1)
    numbers = _thinned(range(len(norms)), 8)
    x = _Axis(
        "layer, from input to output",
        lambda i: 0.04 + 0.92 * i / last,
        tuple((float(i), str(i + 1)) for i in numbers),
    )
    points = [(_x(x, float(i)), _y(y, norm)) for i, (_, norm) in enumerate(norms) if norm > 0 and math.isfinite(norm)]
    odd = [
        (_x(x, float(i)), float(_BOTTOM)) for i, (_, norm) in enumerate(norms) if not (norm > 0 and math.isfinite(norm))
    ]
    text = ", ".join(f"{name} {norm:.2g}" for name, norm in norms)
    return _chart(ident, "norm of delta by depth", text, x, y, [_line(points), _dots(points), _crosses(odd)])


def difference_curve(ident: str, steps: Sequence[float], errors: Sequence[float]) -> str:
    """The error of a finite difference against its step: a V where the gradient is right, flat where it is wrong."""
    pairs = sorted((float(h), float(e)) for h, e in zip(steps, errors, strict=True))
    shown = [(h, e) for h, e in pairs if h > 0 and e > 0 and math.isfinite(e)]
    x, y = _log_axis("step h", [h for h, _ in pairs]), _log_axis("error of the difference", [e for _, e in shown])
    points = [(_x(x, h), _y(y, e)) for h, e in shown]
    exact = [(_x(x, h), float(_BOTTOM)) for h, e in pairs if e == 0]
    text = f"{len(pairs)} steps"
    if shown:
        step, error = min(shown, key=lambda pair: pair[1])
        text += f"; the least error is {error:.2g}, at h = {step:.2g}"
    if exact:
        text += f"; the error is exactly zero at {len(exact)} of them, drawn at the foot"
    undrawn = sum(not math.isfinite(e) for _, e in pairs)
    text += f"; {undrawn} are nan or inf and are not drawn" if undrawn else ""
    title = "error of a finite difference against its step"
    return _chart(ident, title, text, x, y, [_line(points), _dots(points + exact)])


def _line(points: Sequence[tuple[float, float]]) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="ln" d="M{path}"/>' if len(points) > 1 else ""
