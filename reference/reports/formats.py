"""A run as JSON, JUnit XML, Markdown, and GitHub's annotations and step summary."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reference.cli.files import BadInput, require_writable, write_atomically
from reference.reports.html import as_html
from reference.reports.run import WORDS, NetworkResult, Run, counted
from reference.reports.words import figure_in_words, row_in_words, visible

SCHEMA = "manual-backprop/check/2"
SHOWN = 20  # networks written out in full in Markdown, since a step summary may hold 1 MiB
LISTED = 500  # lines of the table in Markdown
_MARKDOWN = re.compile(r"(^[#+-]|[\\`*~|\[\]$]|(?<![^\W_])_|_(?![^\W_]))")
_SOURCE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?::\d+)?(?: \(.*\))?")


def as_json(run: Run) -> str:
    """The run as one JSON document, `schema` first, with nan and the infinities as strings."""
    document = {"schema": SCHEMA} | run.as_dict()
    return json.dumps(finite(document), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value for JSON, which has no nan and no inf: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def as_junit(run: Run) -> str:
    """The run as JUnit XML: a testsuite for each network and published example, a testcase for each row.

    An inconclusive row is marked as skipped, with the reason, and so is the work that a run left undone. So is a row
    that was expected to fail, by the type that pytest gives it, pytest.xfail. A surviving mutant is a failure. Counts
    are those of the testcases.
    """
    root = ElementTree.Element("testsuites", name=visible(run.title), time=f"{run.seconds:.3f}")
    about = {"seed": str(run.seed), "command": run.command, **{f"version {k}": v for k, v in run.versions.items()}}
    if run.partial:
        about["partial"] = "true"
    for network in run.networks:
        _junit_network(root, network, about)
    for name in dict.fromkeys(figure.name for figure in run.published):
        suite = _suite(root, f"published: {name}", 0.0, about)
        for figure in run.published:
            if figure.name == name:
                _case(suite, figure.figure, "" if figure.passed else "failure", figure_in_words(figure), "Published")
    if run.partial or not run.comparisons:
        suite = _suite(root, "the run itself", 0.0, about)
        _case(suite, "complete", "skipped", run.headline(), "Partial")
    for suite in root:
        _count(suite, suite)
    _count(root, root)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_network(root: ElementTree.Element, network: NetworkResult, about: Mapping[str, str]) -> None:
    report = network.report
    facts = {"subject": report.subject, "dtype": report.dtype, "dataset": network.dataset} | dict(about)
    facts |= {"examples": str(report.n_examples), "lam": f"{report.lam:g}", "reproduce": report.reproduce}
    facts |= {f"note {i}": note for i, note in enumerate(report.notes, 1)}
    suite = _suite(root, network.name, network.seconds, facts)
    seen: Counter[str] = Counter()
    for row in report.rows:
        name = f"{row.name()} [{row.kind}, {row.witness}]"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""  # readers of JUnit keep one case for each name
        outcome = {"pass": "", "fail": "failure", "inconclusive": "skipped"}[row.verdict]
        text = row_in_words(row) + (f"\nagain: {report.reproduce}" if report.reproduce else "")
        if network.expected and outcome:
            _case(suite, name, "skipped", f"{network.expected}\n{text}", "pytest.xfail")
        else:
            _case(suite, name, outcome, text, "GradientMismatch")
    if report.partial or not report.rows:
        _case(suite, "complete", "skipped", report.summary(), "Partial")
    for mutant in network.mutation.survivors if network.mutation else ():
        text = f"{mutant}\nthe check passes the gradient with this fault"
        _case(suite, f"mutant {mutant.where}: {mutant.what}", "failure", text, "Survivor")
    if network.mutation is not None and network.mutation.partial:
        _case(suite, "mutation complete", "skipped", network.mutation.headline(), "Partial")


def _suite(root: ElementTree.Element, name: str, seconds: float, facts: Mapping[str, str]) -> ElementTree.Element:
    suite = ElementTree.SubElement(root, "testsuite", name=visible(name), time=f"{seconds:.3f}")
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in facts.items():
        if value:
            ElementTree.SubElement(properties, "property", name=visible(key), value=visible(value))
    return suite


def _case(suite: ElementTree.Element, name: str, outcome: str, text: str, kind: str) -> None:
    where = {"name": visible(name), "classname": suite.attrib["name"], "time": "0.000"}
    case = ElementTree.SubElement(suite, "testcase", where)
    if outcome:
        first = visible(text).partition("\n")[0]
        ElementTree.SubElement(case, outcome, message=first, type=kind).text = visible(text)


def _count(of: ElementTree.Element, to: ElementTree.Element) -> None:
    """Set the totals that readers of JUnit expect; `testsuites` has no attribute for skipped ones."""
    to.set("tests", str(len(list(of.iter("testcase")))))
    to.set("failures", str(len(list(of.iter("failure")))))
    to.set("errors", "0")
    if to.tag == "testsuite":
        to.set("skipped", str(len(list(of.iter("skipped")))))


def as_markdown(run: Run) -> str:
    """The run as GitHub's Markdown: verdict, table of networks or functions, then each that is not a pass."""
    symbol = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "expected": "➖"}
    parts = [f"## {symbol[run.verdict]} {_plain(run.headline())}", _plain(run.title)]
    if run.partial:
        parts.append(f"**PARTIAL**: the run stopped early; {run.unit}s that it had not reached are not listed.")
    lines = [
        f"| {symbol[n.standing]} {WORDS[n.standing]}{' (partial)' if n.report.partial else ''} | {_plain(n.name)}"
        f" | {_plain(n.report.dtype)} | {len(n.report.rows)} | {_worst(n)} | {_score(n)} |"
        for n in run.by_verdict
    ]
    head = f"| verdict | {run.unit} | precision | comparisons | worst, of its tolerance | mutants killed |"
    table = [head, "| --- | --- | --- | ---: | --- | --- |", *lines[:LISTED]]
    parts += ["\n".join(table)] if lines else []
    parts += [f"... and {len(lines) - LISTED} more {run.unit}s."] if len(lines) > LISTED else []
    for network in run.unproven[:SHOWN]:
        parts += [f"### {symbol[network.verdict]} {_plain(network.name)}", _fenced(network.reason())]
        more = len(network.report.failures) - 1
        if more > 0:
            parts.append(f"{counted(more, 'later failure')} in this {run.unit}; the first is where to look.")
    if len(run.unproven) > SHOWN:
        parts.append(f"... and {counted(len(run.unproven) - SHOWN, f'more {run.unit}')} that are not proven.")
    parts += _expected(run) + _survivors(run) + _published(run) + _notes(run)
    versions = [f"{name} {version}" for name, version in run.versions.items()]
    parts.append(_plain(", ".join([f"seed {run.seed}", *versions, f"{run.seconds:.0f} s"])))
    parts += ["Run it again:", _fenced(run.command)] if run.command else []
    return "\n\n".join(parts) + "\n"


def _notes(run: Run) -> list[str]:
    """The facts that qualify the verdicts: kinks, approximations, what could not be looked at."""
    found = [f"- {_plain(n.name)}: {_plain(note)}" for n in run.by_verdict for note in n.report.notes]
    more = [f"- ... and {counted(len(found) - LISTED, 'more note')}"] if len(found) > LISTED else []
    return ["### Notes", "\n".join(found[:LISTED] + more)] if found else []


def _survivors(run: Run) -> list[str]:
    found = [(n.name, m) for n in run.by_verdict if n.mutation for m in n.mutation.survivors]
    if not found:
        return []
    lines = [
        f"| {_plain(name)} | {_plain(m.source)} | {_plain(m.primitive)} | {_plain(m.what)} | {_plain(m.code)} |"
        for name, m in found
    ]
    head = [f"| {run.unit} | line | operation | broken how | code |", "| --- | --- | --- | --- | --- |"]
    more = [f"... and {len(lines) - LISTED} more."] if len(lines) > LISTED else []
    lead = f"### Mutants that survived: {len(found)}"
    return [lead, "The check passes the gradient with this line broken.", "\n".join([*head, *lines[:LISTED]]), *more]


def _expected(run: Run) -> list[str]:
    if not run.expected:
        return []
    lines = [f"- {_plain(network.name)}: {_plain(network.expected)}" for network in run.expected]
    more = [f"... and {len(lines) - LISTED} more."] if len(lines) > LISTED else []
    return [f"### Expected to fail: {len(lines)}", "\n".join(lines[:LISTED]), *more]


def _published(run: Run) -> list[str]:
    if not run.published:
        return []
    lead = "### Published figures"
    missed = [f"- {_plain(figure_in_words(figure))}" for figure in run.off_figures[:LISTED]]
    return [lead, _plain(f"{run.agreement()}."), *(["\n".join(missed)] if missed else [])]


def _worst(network: NetworkResult) -> str:
    return "nothing compared" if network.worst is None else f"{network.worst.used:.2g}: {_plain(network.worst.name())}"


def _score(network: NetworkResult) -> str:
    return "" if network.mutation is None else f"{network.mutation.killed} of {network.mutation.judged}"


def _plain(text: str) -> str:
    """Escape text so that Markdown shows it literally, on one line, in a table cell, a heading or a list."""
    one_line = " ".join(visible(text).split())
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", escaped)


def _fenced(text: str) -> str:
    """The text as a block of code; the fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{fence}text\n{visible(text)}\n{fence}"


def github_annotations(run: Run) -> Iterator[str]:
    """Lines for a workflow's standard output: an error or a warning for each network that is not a pass.

    GitHub shows ten of each in a step, so the headline comes first, then the networks that fail.
    """
    level = {"pass": "notice", "inconclusive": "warning", "fail": "error"}
    yield _command(level[run.verdict], {"title": run.title}, run.headline())
    for network in run.unproven:
        yield _command(level[network.verdict], {"title": network.name}, network.reason())
    for figure in run.off_figures:
        yield _command("error", {"title": figure.name}, figure_in_words(figure))
    for network in run.by_verdict:
        for mutant in network.mutation.survivors if network.mutation else ():
            place = _SOURCE.fullmatch(mutant.source)
            at = place.groupdict() if place else {}
            yield _command("warning", {**at, "title": network.name}, f"the check passes this broken: {mutant}")


def _command(name: str, properties: Mapping[str, str], message: str) -> str:
    given = ",".join(
        f"{key}={_data(value).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties.items()
    )
    return f"::{name} {given}::{_data(message)}"


def _data(text: str) -> str:
    """Escape text for GitHub's runner, since a newline would end the command and start another."""
    return visible(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def write_step_summary(run: Run, environment: Mapping[str, str] = os.environ) -> bool:
    """Append the Markdown to the file that GITHUB_STEP_SUMMARY names; return whether there was one.

    Raises:
        BadInput: the file cannot be written.
    """
    path = environment.get("GITHUB_STEP_SUMMARY", "")
    if path:
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(as_markdown(run))
        except OSError as error:
            raise BadInput(f"cannot append to GITHUB_STEP_SUMMARY, {path}: {error.strerror or error}") from error
    return bool(path)


def write_reports(
    run: Run,
    *,
    json: str | Path | None = None,
    junit: str | Path | None = None,
    markdown: str | Path | None = None,
    html: str | Path | None = None,
) -> tuple[Path, ...]:
    """Write the run to the named files, each as a whole or not at all.

    Every path is checked and every text is made before the first file is written.

    Returns:
        The files written.

    Raises:
        BadInput: a path that cannot be written or is named twice, or a page without jinja2 installed.
    """
    makers: list[tuple[str | Path | None, Callable[[Run], str]]] = [
        (json, as_json),
        (junit, as_junit),
        (markdown, as_markdown),
        (html, as_html),
    ]
    wanted = [(Path(path), make) for path, make in makers if path is not None]
    for path, _ in wanted:
        require_writable(path)
    paths = [path.resolve() for path, _ in wanted]
    if len(set(paths)) < len(paths):
        raise BadInput("two reports would be written to one file; give each a name of its own")
    texts = [(path, make(run).encode("utf-8")) for path, make in wanted]
    for path, text in texts:
        _write(path, text)
    return tuple(path for path, _ in texts)


def _write(path: Path, text: bytes) -> None:
    write_atomically(path, lambda file: file.write(text))
