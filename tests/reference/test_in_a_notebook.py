"""A report and a mutation score as a notebook shows them: a piece of HTML that needs nothing else."""

import re
import sys
from dataclasses import replace

import pytest
from test_formats import HOSTILE, row, sample, score
from test_html import Page

from reference.mutation.report import MutationScore
from reference.report import Report
from reference.reports.fragment import SYMBOLS
from reference.reports.words import visible

TAGS = {"div", "b", "p", "table", "caption", "thead", "tbody", "tr", "th", "td"}


def _in_a_notebook(result: Report | MutationScore) -> tuple[str, Page]:
    text = result._repr_html_()
    return text, Page(text)


@pytest.mark.parametrize("at", range(5))
def test_a_notebook_shows_the_verdict_of_a_report_and_its_words(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # it is in the extra cli alone
    report = replace(sample().networks[at].report, subject=HOSTILE)
    text, page = _in_a_notebook(report)
    shown = page.text()
    assert shown.startswith(SYMBOLS[report.verdict] + " " + visible(report.summary()))
    assert visible(HOSTILE) in shown
    assert "a note" in shown
    assert {tag for tag, _ in page.elements} <= TAGS
    assert {name for _, attributes in page.elements for name in attributes} <= {"style", "scope"}
    assert not re.search(r"[^-]color: |url\(", text)  # the page's own ink, on light and on dark
    assert repr(report) == f"<Report {report.summary()}>"


def test_a_notebook_shows_the_rows_that_are_not_proven_else_the_worst() -> None:
    rows = tuple(row(f"args[{i}]", used=i / 100) for i in range(20))
    text, page = _in_a_notebook(Report(rows, "float32", "f"))
    assert [cell for cell in page.texts_of("td") if "args" in cell] == [f"args[{i}]" for i in range(19, 11, -1)]
    assert "8 of 20 comparisons, those with the largest share of their tolerance" in text
    wrong = [row("b", "inconclusive"), row("a", "fail")]
    text, page = _in_a_notebook(Report((*rows, *wrong), "float32", "f"))
    assert page.texts_of("td")[0] == "b"
    assert page.texts_of("td").count("DIFFERS") == 1
    assert "2 of 2 comparisons that are not proven, in the order of computation" in text
    assert text.count("<tr style=") == 2
    assert "<table" not in _in_a_notebook(Report((), "float32", "f"))[0]


def test_a_notebook_shows_the_survivors_of_a_mutation_score() -> None:
    found = score("killed", *["survived"] * 7)
    text, page = _in_a_notebook(found)
    assert page.text().startswith(f"? {found.headline()}")
    assert "SURVIVED: wrong, and the check passes: 5 of 7" in text
    assert page.texts_of("td").count("a * b | c") == 5
    refuted = replace(found, mutants=(replace(found.mutants[0], argument="<it> adds nothing"),))
    assert "<it> adds nothing" in _in_a_notebook(refuted)[1].text("td")
    assert [_in_a_notebook(each)[1].text()[0] for each in (refuted, score("killed"), score())] == ["✗", "✓", "?"]
    assert repr(found) == f"<MutationScore {found.headline()}>"
