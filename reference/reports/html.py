"""A run as one self-contained HTML page: no network, no script needed to read it, no font of its own."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from reference.cli.files import BadInput
from reference.mutation.report import Mutant, MutationScore
from reference.report import MARKS, WOULD_SEE, Verdict
from reference.reports import heat_maps, plots
from reference.reports.fragment import SYMBOLS
from reference.reports.run import WORDS, NetworkResult, Pictures, Run
from reference.reports.words import figure_in_words, visible

_LEADS: dict[Verdict, str] = {"pass": "ALL PROVEN", "fail": "NOT PROVEN", "inconclusive": "INCONCLUSIVE"}
# Opens the section that a link points into, and all sections for printing; newer browsers do both without it.
_SCRIPT = """
const all = () => document.querySelectorAll("details");
addEventListener("beforeprint", () => all().forEach(d => { d.dataset.was = d.open; d.open = true; }));
addEventListener("afterprint", () => all().forEach(d => { d.open = d.dataset.was === "true"; }));
const reveal = () => {
  const id = decodeURIComponent(location.hash.slice(1)), found = id && document.getElementById(id);
  for (let e = found; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (found) found.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
"""


@dataclass(frozen=True)
class SourceLine:
    """The mutants of one line of the source, counted by verdict."""

    source: str
    primitives: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Section:
    """One network on the page."""

    ident: str
    result: NetworkResult
    reason: str
    maps: list[heat_maps.HeatMap]
    charts: list[tuple[str, str, str]]
    verdicts: tuple[str, ...]
    source_lines: list[SourceLine]


def require_engine() -> None:
    """Refuse to begin a run whose page could not be written.

    Raises:
        BadInput: jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"the HTML page needs {error.name}, which is not installed; in the clone of the repository, run"
            ' python -m pip install -e ".[cli]"'
        ) from error


def as_html(run: Run) -> str:
    """The page: the verdict, a table of the networks, and each network with its pictures and all its rows.

    The same run gives the same bytes. Networks that fail come first and are unfolded, unless that was expected.

    Raises:
        BadInput: jinja2 is not installed.
    """
    require_engine()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["short"] = heat_maps.short
    environment.filters["svg"] = lambda drawn: Markup(visible(drawn))
    template = files("reference.reports").joinpath("templates", "report.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        run=run,
        lead=_LEADS[run.verdict],
        mutated=any(network.mutation is not None for network in run.networks),
        rest=run.headline().partition(": ")[2],
        sections=[_section(f"n{i}", network) for i, network in enumerate(run.by_verdict, 1)],
        would_see=WOULD_SEE.partition(": ")[2],
        missed=[figure_in_words(figure) for figure in run.off_figures],
        symbols=SYMBOLS,
        words=WORDS,
        marks=MARKS,
        colours=heat_maps.colours(),
        legend=_legend(),
        script=Markup(_SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )


def _section(ident: str, network: NetworkResult) -> Section:
    verdicts, lines = _source_lines(network.mutation)
    return Section(
        ident,
        network,
        network.reason(),
        heat_maps.heat_maps(network.report.rows),
        _charts(ident, network.pictures),
        verdicts,
        lines,
    )


def _charts(ident: str, pictures: Pictures | None) -> list[tuple[str, str, str]]:
    """(title, SVG, how to read it) of each picture that there is data for."""
    if pictures is None:
        return []
    charts = []
    if pictures.scatter is not None and pictures.scatter[0].size:
        drawn = plots.scatter(f"{ident}-s", *pictures.scatter, pictures.scatter_labels)
        title = "Every entry: {} against {}".format(*pictures.scatter_labels)
        charts.append((title, drawn, "A right gradient lies on the diagonal; × is visibly off it."))
    if pictures.delta_norms:
        drawn = plots.delta_norms(f"{ident}-d", pictures.delta_norms)
        charts.append(
            ("Norm of delta by depth", drawn, "Shrinking or growing by decades: gradients vanish or explode.")
        )
    curve = pictures.difference_curve
    if curve is not None and len(curve.steps):
        drawn = plots.difference_curve(f"{ident}-c", [float(h) for h in curve.steps], [float(e) for e in curve.errors])
        note = "A V where the gradient is right: rounding on the left, curvature on the right. Flat where it is wrong."
        charts.append(("Finite difference: error against step", drawn, note))
    return charts


def _source_lines(mutation: MutationScore | None) -> tuple[tuple[str, ...], list[SourceLine]]:
    """The verdicts that occur, and the count of each at every line of the source."""
    if mutation is None:
        return (), []
    verdicts = tuple(verdict for verdict, count in mutation.counts.items() if count)
    by_line: dict[str, list[Mutant]] = {}
    for mutant in mutation.mutants:
        by_line.setdefault(mutant.source, []).append(mutant)
    lines = []
    for source, mutants in by_line.items():
        counts = Counter(mutant.verdict for mutant in mutants)
        primitives = ", ".join(dict.fromkeys(mutant.primitive for mutant in mutants))
        lines.append(SourceLine(source, primitives, tuple(counts[verdict] for verdict in verdicts)))
    return verdicts, lines


def _legend() -> Sequence[tuple[int, str]]:
    """(colour, text) of a few squares of the scale, including the tolerance itself."""
    return [(heat_maps.Cell(10.0**k, "pass", "").colour, f"1e{k}" if k else "1") for k in range(-4, 2)]
