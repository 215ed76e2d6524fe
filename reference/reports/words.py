"""Texts that all formats share: rows and figures in a sentence, and text without unprintable characters."""

from reference.report import Row
from reference.reports.fragment import visible as visible
from reference.reports.run import Published


def row_in_words(row: Row) -> str:
    """A row's result in a sentence."""
    if row.verdict == "fail":
        return row.explain()
    if row.verdict == "inconclusive" and row.reason:
        return f"{row.name()}: {row.reason} ({row.kind})"
    if row.verdict == "inconclusive":
        return f"{row.name()}: rounding could hide any fault below {row.power:.2g} of its value ({row.kind})"
    return f"{row.name()}: error {row.used:.2g} of its tolerance, against {row.witness}"


def figure_in_words(figure: Published) -> str:
    """A published figure's result in a sentence."""
    ours = f"{figure.name}: {figure.figure} was printed as {figure.printed}, ours is {figure.ours:.17g}"
    return ours if figure.passed else f"{ours}, which does not round to it"
