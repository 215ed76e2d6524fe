"""A result as a piece of HTML for a notebook: one element, no script or style sheet, for light and dark paper."""

import re
from collections.abc import Mapping, Sequence
from html import escape

# Characters that XML 1.0 does not allow, and those that are invisible in a page or a terminal; tab and newline stay.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_RGB = {"pass": "46, 160, 67", "fail": "218, 54, 51", "inconclusive": "191, 135, 0"}
SYMBOLS: Mapping[str, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?", "expected": "–"}
"""The sign of a verdict, and of what was expected to fail, so that none is told by colour alone."""


def visible(text: str) -> str:
    r"""The text with unprintable characters written out, such as a bell as \x07, which would be an error in XML."""
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def framed(verdict: str, headline: str, *parts: str) -> str:
    """The headline beside a bar in the verdict's colour, and the parts below it.

    Args:
        verdict: "pass", "fail" or "inconclusive".
        headline: plain text; its first words, up to a colon, are bold.
        parts: HTML, as the functions below make it.
    """
    lead, colon, rest = headline.partition(":")
    bar = f"border-left: 4px solid rgb({_RGB[verdict]}); background: {_tint(verdict)}; padding: 0.5em 0.8em"
    said = f"<b>{SYMBOLS[verdict]} {_text(lead)}{colon}</b>{_text(rest)}"
    head = f'<div style="{bar}; white-space: pre-wrap; overflow-wrap: anywhere">{said}</div>'
    return f'<div style="max-width: 100%; overflow-x: auto">{head}{"".join(parts)}</div>'


def paragraph(text: str) -> str:
    """Plain text in small letters; "" where there is none."""
    return f'<p style="font-size: 85%; margin: 0.5em 0">{_text(text)}</p>' if text else ""


def table(
    caption: str, header: Sequence[str], lines: Sequence[Sequence[str]], verdicts: Sequence[str] | None = None
) -> str:
    """A table of plain texts; "" where it would have no line.

    Args:
        caption: a line above it.
        header: one text for each column.
        lines: one text for each column.
        verdicts: one for each line, which is tinted unless it is "pass"; None tints no line.
    """
    if not lines:
        return ""
    cell = 'style="text-align: left; padding: 0.15em 0.7em 0.15em 0"'
    head = "".join(f'<th scope="col" {cell}>{_text(name)}</th>' for name in header)
    said = zip(lines, verdicts or ["pass"] * len(lines), strict=True)
    body = "".join(_line(line, verdict, cell) for line, verdict in said)
    title = f'<caption style="text-align: left; caption-side: top">{_text(caption)}</caption>'
    style = "border-collapse: collapse; font-size: 85%; margin: 0.5em 0"
    return f'<table style="{style}">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _line(line: Sequence[str], verdict: str, cell: str) -> str:
    tint = "" if verdict == "pass" else f' style="background: {_tint(verdict)}"'
    return f"<tr{tint}>{''.join(f'<td {cell}>{_text(text)}</td>' for text in line)}</tr>"


def _text(text: str) -> str:
    return escape(visible(text))


def _tint(verdict: str) -> str:
    return f"rgba({_RGB[verdict]}, 0.12)"
