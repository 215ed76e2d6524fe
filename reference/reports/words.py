"""Texts that all formats share: rows and figures in a sentence, and text without unprintable characters."""

import re

from reference.report import Row
from reference.reports.run import Published

# Characters that XML 1.0 does not allow, and those that are invisible in a page or a terminal; tab and newline stay.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    r"""The text with unprintable characters written out, such as a bell as \x07, which would be an error in XML."""
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def row_in_words(row: Row) -> str:
    """A row's result in a sentence."""
    if row.verdict == "fail":
        return row.explain()
    if row.verdict == "inconclusive":
        return f"{row.name()}: rounding could hide any fault below {row.power:.2g} of its value ({row.kind})"
    return f"{row.name()}: error {row.used:.2g} of its tolerance, against {row.witness}"


def figure_in_words(figure: Published) -> str:
    """A published figure's result in a sentence."""
    ours = f"{figure.name}: {figure.figure} was printed as {figure.printed}, ours is {figure.ours:.17g}"
    return ours if figure.passed else f"{ours}, which does not round to it"
