"""A run in every format, read back by parsers that are not ours."""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from reference.cli.check import _print as print_networks
from reference.cli.files import BadInput
from reference.mutation.report import Mutant, MutationScore
from reference.report import Report, Row
from reference.reports import formats
from reference.reports.html import as_html
from reference.reports.run import NetworkResult, Pictures, Published, Run
from reference.reports.words import visible

HOSTILE = "<script>alert('x|y')</script> \x1b[31m\ud800 100%0A `a` _b_ *c* $d$ a:b,c\nsecond & line"
COMMAND = "manual-backprop check --seed 3"
# The elements, attributes and children of JUnit's XML as Jenkins' xunit plugin defines them (junit-10.xsd).
JUNIT = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time"},
        {"name", "tests", "failures", "errors"},
        {"properties", "testcase"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": ({"name", "time", "classname"}, {"name"}, {"skipped", "failure"}),
    "failure": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
}
JUNIT_TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")


def row(path: str = "gradients[0].W", verdict: Any = "pass", **given: Any) -> Row:
    used = {"pass": 0.25, "fail": 40.0, "inconclusive": 0.1}[verdict]
    power = 3.0 if verdict == "inconclusive" else 1e-14
    values = {"error": used * 1e-15, "scale": 1.0, "tolerance": 1e-15, "where": (1, 2), "manual": 0.5, "reference": 0.5}
    return Row(**{"path": path, "shape": (4, 5), "used": used, "power": power, "verdict": verdict} | values | given)


def score(*verdicts: Any, partial: bool = False) -> MutationScore:
    mutants = tuple(
        Mutant(f"{i} mul", "mul", "sign flipped", f"mine.py:{i + 7} (f)", "a * b | c", verdict)
        for i, verdict in enumerate(verdicts)
    )
    return MutationScore(mutants, len(mutants) + partial, len(mutants) + partial, partial=partial)


def network(name: str, *rows: Row, partial: bool = False, **given: Any) -> NetworkResult:
    report = Report(rows, "float32", "Dense(5 -> 4)", 7, 0.1, ("a note",), f"again {name}", partial=partial)
    return NetworkResult(name, report, **given)


def sample() -> Run:
    """A run with every verdict, a hostile name, values that are not finite, mutants and published figures."""
    broken = row(verdict="fail", error=math.inf, manual=math.nan, equation="(B4)", layer=1, cause="sign")
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(30,))
    pictures = Pictures((entries, entries), delta_norms=(("deltas[0]", 0.5), ("deltas[1]", 2.0)))
    return Run(
        "Gradients",
        (
            network("fine", row(), row("loss"), pictures=pictures, seconds=1.5, dataset="digits"),
            network("undecided", row(), row(verdict="inconclusive")),
            network("cut", row(), partial=True),
            network(HOSTILE, row(), broken, row("deltas[0]", "fail")),
            network("let through", row(), mutation=score("killed", "survived", "unchanged")),
        ),
        (Published("mazur", "loss", "0.298371109", 0.298371109, True), Published("mazur", "dW", "0.5", 0.7, False)),
        COMMAND,
        3,
        {"jax": "0.10.2"},
        partial=True,
        seconds=12.0,
    )


PASSING = replace(sample(), networks=sample().networks[:1], published=sample().published[:1], partial=False)


@pytest.mark.parametrize(
    ("change", "verdict", "lead"),
    [
        ({}, "pass", "ALL PROVEN: 3 comparisons on 1 network"),
        ({"partial": True}, "inconclusive", "INCONCLUSIVE"),
        ({"networks": (), "published": ()}, "inconclusive", "INCONCLUSIVE: nothing was compared"),
        ({"published": sample().published}, "fail", "NOT PROVEN: 1 of 2 published figures missed"),
        ({"networks": (network("a", row(verdict="fail")),)}, "fail", "NOT PROVEN: 1 of 1 network differs"),
        ({"networks": (network("a", row(verdict="inconclusive")),)}, "inconclusive", "INCONCLUSIVE: 1 of 1 network"),
        ({"networks": (network("a", row(), mutation=score("survived")),)}, "inconclusive", "INCONCLUSIVE"),
        ({"networks": (network("a", row(), mutation=score("killed", partial=True)),)}, "inconclusive", "INCONCLUSIVE"),
        ({"networks": (network("a", row(), mutation=score("killed")),)}, "pass", "ALL PROVEN"),
        ({"networks": (network("a"),)}, "inconclusive", "INCONCLUSIVE"),
    ],
)
def test_verdict_of_a_run(change: dict[str, Any], verdict: str, lead: str) -> None:
    run = replace(PASSING, **change)
    assert run.verdict == verdict
    assert run.headline().startswith(lead)
    assert json.loads(formats.as_json(run))["verdict"] == verdict


def test_what_is_not_a_network_is_not_called_one() -> None:
    run = replace(sample(), unit="gradient check")
    assert run.headline().startswith(
        "NOT PROVEN: 1 of 5 gradient checks differs, 1 of 2 published figures missed, 3 of 5"
    )
    assert json.loads(formats.as_json(run))["unit"] == "gradient check"
    text = formats.as_markdown(run)
    assert _tables(text)[0][1] == "gradient check"
    assert "network" not in text
    many = replace(run, networks=tuple(network(str(i), row(verdict="fail"), row(verdict="fail")) for i in range(600)))
    text = formats.as_markdown(many)
    assert "... and 100 more gradient checks." in text
    assert "and 580 more gradient checks that are not proven" in text
    with pytest.raises(ValueError, match="gradient checks of one run need names of their own"):
        replace(run, networks=run.networks * 2)


def test_those_that_fail_come_first() -> None:
    assert [n.verdict for n in sample().by_verdict] == ["fail", *["inconclusive"] * 3, "pass"]


EXPECTED = network("known", row(), row("loss", "fail"), expected="a known fault\nof `ours`")


def test_what_was_expected_to_fail_is_told_and_not_counted() -> None:
    run = replace(PASSING, networks=(EXPECTED, *PASSING.networks))
    assert run.verdict == "pass" and run.unproven == ()
    assert run.headline() == "ALL PROVEN: 3 comparisons on 1 network besides 1 expected to fail"
    assert [n.standing for n in run.by_verdict] == ["expected", "pass"]
    assert EXPECTED.verdict == "fail"
    read = json.loads(formats.as_json(run))
    assert read["expected"] == 1 and read["networks"][0]["expected"] == EXPECTED.expected
    text = formats.as_markdown(run)
    assert _tables(text)[1][:2] == ["➖ EXPECTED TO FAIL", "known"]
    assert "### Expected to fail: 1\n\n- known: a known fault of \\`ours\\`\n" in text
    assert "❌" not in text
    root = ElementTree.fromstring(formats.as_junit(run).encode())
    _check_junit(root)
    (skipped,) = root.iter("skipped")
    assert (skipped.get("type"), skipped.get("message")) == ("pytest.xfail", "a known fault")
    assert "40 times the tolerance" in str(skipped.text)
    assert root.get("failures") == "0"
    assert [_command(line)[0] for line in formats.github_annotations(run)] == ["notice"]


def test_beside_what_was_expected_the_rest_makes_the_verdict() -> None:
    alone = replace(PASSING, networks=(EXPECTED,), published=())
    assert alone.verdict == "inconclusive"
    assert alone.headline() == "INCONCLUSIVE: nothing was compared besides 1 expected to fail"
    run = replace(PASSING, networks=(EXPECTED, network("a", row(verdict="fail"))), partial=True)
    assert run.headline() == (
        "NOT PROVEN: 1 of 1 network differs, 2 comparisons on 1 network besides 1 expected to fail;"
        " the run stopped early, so networks may be missing"
    )
    passing = replace(EXPECTED, report=PASSING.networks[0].report)
    assert passing.standing == "pass"


def test_names_are_unique_and_pictures_fit() -> None:
    with pytest.raises(ValueError, match="'fine'"):
        replace(PASSING, networks=PASSING.networks * 2)
    with pytest.raises(ValueError, match=r"\[3\] and \[4\]"):
        Pictures((np.zeros(3), np.zeros(4)))


def test_why_a_passing_network_is_inconclusive() -> None:
    survivor = network("a", row(), mutation=score("survived"))
    assert "mine.py:7 (f)" in survivor.reason()
    assert "again a" in survivor.reason()
    assert "INTERRUPTED after 1 of 2" in network("a", row(), mutation=score("killed", partial=True)).reason()


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_json_says_its_version_and_every_row_comes_back() -> None:
    text = formats.as_json(sample())
    read = json.loads(text, parse_constant=_no_constant)
    assert next(iter(read)) == "schema"
    assert read["schema"] == "manual-backprop/check/2"
    assert read["partial"] is True
    assert read["seed"] == 3
    for ours, theirs in zip(sample().networks, read["networks"], strict=True):
        assert theirs["name"] == ours.name
        assert theirs["verdict"] == ours.verdict
        for before, after in zip(ours.report.rows, theirs["report"]["rows"], strict=True):
            after.pop("relative")
            numbers = {key: float(after[key]) for key in ("error", "manual", "used")}
            again = Row(**after | numbers | {"shape": tuple(after["shape"]), "where": tuple(after["where"])})
            assert repr(again) == repr(before)
    bad = read["networks"][3]["report"]["rows"][1]
    assert (bad["manual"], bad["error"]) == ("nan", "inf")
    assert read["networks"][4]["mutation"]["counts"]["survived"] == 1
    assert [p["passed"] for p in read["published"]] == [True, False]
    assert read["networks"][0]["pictures"]["delta_norms"][1] == {"name": "deltas[1]", "norm": 2.0}


def _check_junit(element: ElementTree.Element) -> None:
    allowed, required, children = JUNIT[element.tag]
    assert required <= set(element.attrib) <= allowed | required, element.attrib
    assert {child.tag for child in element} <= children
    assert JUNIT_TIME.fullmatch(element.get("time", ""))
    for child in element:
        _check_junit(child)


def test_junit_keeps_the_schema_and_counts_right() -> None:
    root = ElementTree.fromstring(formats.as_junit(sample()).encode())
    _check_junit(root)
    suites = {suite.attrib["name"]: suite for suite in root}
    assert list(suites)[:3] == ["fine", "undecided", "cut"]
    for suite in root:
        for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("skipped", "skipped")):
            assert len(list(suite.iter(tag))) == int(suite.attrib[attribute])
    counts = {name: (s.get("tests"), s.get("failures"), s.get("skipped")) for name, s in suites.items()}
    assert counts["fine"] == ("2", "0", "0")
    assert counts["undecided"] == ("2", "0", "1")
    assert counts["cut"] == ("2", "0", "1")
    assert counts["let through"] == ("2", "1", "0")
    assert counts["published: mazur"] == ("2", "1", "0")
    assert counts["the run itself"] == ("1", "0", "1")
    assert root.get("failures") == "4"
    properties = {p.get("name"): p.get("value") for p in suites["fine"].iter("property")}
    assert properties["partial"] == "true"
    assert properties["command"] == COMMAND
    assert properties["reproduce"] == "again fine"


def test_junit_cases_are_named_apart_and_say_why() -> None:
    run = replace(PASSING, networks=(network("a", row(verdict="fail"), row(verdict="fail")),))
    cases = list(ElementTree.fromstring(formats.as_junit(run).encode()).iter("testcase"))
    assert len({case.get("name") for case in cases}) == len(cases) == 3
    assert "40 times the tolerance" in str(cases[0][0].text)
    assert "again: again a" in str(cases[0][0].text)


def test_what_xml_cannot_hold_is_written_out() -> None:
    run = replace(PASSING, networks=(network("a\x00\x1b\ud800\ufffe\x85b", row()),))
    root = ElementTree.fromstring(formats.as_junit(run).encode("utf-8"))
    assert root[0].get("name") == r"a\x00\x1b\ud800\ufffe\x85b"


def _tables(text: str) -> list[list[str]]:
    """The cells of every line of every table, as a reader of the Markdown sees them."""
    lines: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            lines.append([])
        if token.type == "inline" and token.level >= 4 and lines:
            lines[-1].append("".join(child.content for child in token.children or []))
    return lines


def test_markdown_cells_show_hostile_text_as_it_is() -> None:
    text = formats.as_markdown(sample())
    lines = _tables(text)
    shown = " ".join(visible(HOSTILE).split())
    assert [len(line) for line in lines] == [6] * 6 + [5] * 2
    assert shown in lines[1]
    assert lines[-1] == ["let through", "mine.py:8 (f)", "mul", "sign flipped", "a * b | c"]
    assert "<script>" not in re.sub("```.*?```", "", text, flags=re.DOTALL)


def test_markdown_says_the_verdict_first_then_why_and_how_to_run_it_again() -> None:
    text = formats.as_markdown(sample())
    assert text.splitlines()[0].startswith("## ❌ NOT PROVEN: 1 of 5 networks differs")
    assert "PARTIAL" in text
    blocks = [t.content for t in MarkdownIt().parse(text) if t.type == "fence"]
    assert "probable cause: sign" in blocks[0]
    assert f"again: again {visible(HOSTILE)}" in blocks[0]
    assert blocks[-1].strip() == COMMAND
    assert "dW was printed as 0.5, ours is 0.69999999999999996" in text
    assert "1 later failure in this network; the first is where to look" in text
    assert formats.as_markdown(PASSING).startswith("## ✅ ALL PROVEN")


def test_published_figures_are_counted_as_they_are() -> None:
    printed = [("0.298371109", 0.2983711087600027, True), ("0.13849856162855", 0.13849856162856, True)]
    printed += [("-0.09", -0.0896, True), ("1.2e-05", 1.249e-5, True), ("0.5", 0.7, False)]
    figures = tuple(Published("mazur", str(i), *figure) for i, figure in enumerate(printed))
    assert [figure.exact for figure in figures] == [True, False, True, True, False]
    run = replace(PASSING, published=figures)
    said = (
        "4 of 5 numbers that others printed agree within the tolerance of their printed digits, 3 of them to the last"
    )
    assert run.agreement() == f"{said} digit"
    for text in (formats.as_markdown(run), as_html(run)):
        assert said in text
        assert "reproduced" not in text
    assert as_html(run).count("✓ within its tolerance") == 1
    for not_a_number in (math.nan, math.inf):
        assert not Published("mazur", "W", "0.5", not_a_number, False).exact


def test_the_smallest_fault_that_would_be_seen_is_called_so_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    report = sample().networks[0].report
    print_networks(PASSING.networks, {})
    assert " of tolerance  would see  where" in capsys.readouterr().out
    for text in (str(report), report._repr_html_(), as_html(sample())):
        assert "would see" in text
        assert text.count("he smallest relative fault that would have been seen") == 1
        assert not re.search(r"\bpower\b", text)
    assert json.loads(formats.as_json(sample()))["networks"][0]["report"]["rows"][0]["power"] == 1e-14


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    run = replace(PASSING, command="a ```` b\n```\n# c")
    blocks = [t.content for t in MarkdownIt().parse(formats.as_markdown(run)) if t.type == "fence"]
    assert blocks == ["a ```` b\n```\n# c\n"]


def test_markdown_of_a_disaster_fits_a_step_summary() -> None:
    networks = tuple(network(f"{i}: {'x' * 90}", row(verdict="fail")) for i in range(1000))
    text = formats.as_markdown(replace(PASSING, networks=networks))
    assert len(text.encode()) < 2**20
    assert "and 500 more networks" in text
    assert "and 980 more networks that are not proven" in text


def _command(line: str) -> tuple[str, Mapping[str, str], str]:
    """A workflow command as GitHub's runner reads it."""

    def unescaped(text: str, *more: tuple[str, str]) -> str:
        for escaped, character in [("%0D", "\r"), ("%0A", "\n"), *more, ("%25", "%")]:
            text = text.replace(escaped, character)
        return text

    head, _, message = line.removeprefix("::").partition("::")
    name, _, given = head.partition(" ")
    pairs = (pair.partition("=") for pair in given.split(","))
    return name, {k: unescaped(v, ("%3A", ":"), ("%2C", ",")) for k, _, v in pairs}, unescaped(message)


def test_annotations_are_one_line_each_and_read_back() -> None:
    lines = list(formats.github_annotations(sample()))
    assert all(len(line.splitlines()) == 1 for line in lines)
    read = [_command(line) for line in lines]
    assert [name for name, _, _ in read] == ["error", "error", "warning", "warning", "warning", "error", "warning"]
    assert read[0][2].startswith("NOT PROVEN")
    assert read[1][1] == {"title": visible(HOSTILE)}
    assert read[1][2] == visible(sample().by_verdict[0].reason())
    assert read[-1][1] == {"file": "mine.py", "line": "8", "title": "let through"}
    assert [_command(line)[0] for line in formats.github_annotations(PASSING)] == ["notice"]


def test_the_step_summary_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    assert formats.write_step_summary(sample(), {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text() == "before\n" + formats.as_markdown(sample())
    assert not formats.write_step_summary(sample(), {})
    with pytest.raises(BadInput, match="GITHUB_STEP_SUMMARY"):
        formats.write_step_summary(sample(), {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_every_format_is_written(tmp_path: Path) -> None:
    names = {"json": "a.json", "junit": "a.xml", "markdown": "a.md", "html": "a.html"}
    written = formats.write_reports(sample(), **{kind: tmp_path / name for kind, name in names.items()})
    assert [path.name for path in written] == list(names.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names.values())
    for path in written:
        assert "partial" in path.read_text(encoding="utf-8").lower(), path


def test_nothing_is_written_unless_everything_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "a.json"
    with pytest.raises(BadInput, match="does not exist"):
        formats.write_reports(sample(), json=good, junit=tmp_path / "missing" / "a.xml")
    with pytest.raises(BadInput, match="one file"):
        formats.write_reports(sample(), json=good, junit=str(good))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BadInput, match=r'jinja2, .* python -m pip install -e "\.\[cli\]"'):
        formats.write_reports(sample(), json=good, html=tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_of_a_scatter_only_its_size_is_written() -> None:
    assert Pictures(scatter=(np.zeros(3), np.ones(3))).as_dict()["scatter_entries"] == 3
    assert Pictures().as_dict()["scatter_entries"] == 0
