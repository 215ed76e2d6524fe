"""One run of checks as data: many named reports, with pictures, mutation scores and published figures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from reference.mutation.report import MutationScore
from reference.report import Report, Row, Verdict

Standing = Verdict | Literal["expected"]
WORDS: Mapping[Standing, str] = {
    "fail": "DIFFERS",
    "inconclusive": "INCONCLUSIVE",
    "expected": "EXPECTED TO FAIL",
    "pass": "PROVEN",
}
_ORDER: tuple[Standing, ...] = tuple(WORDS)


@runtime_checkable
class Curve(Protocol):
    """The error of a finite difference against its step: a V where the gradient is right."""

    @property
    def steps(self) -> Any:
        """The steps h, a vector of positive numbers."""

    @property
    def errors(self) -> Any:
        """The absolute error at each step, of the same length."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The data for the pictures of one network.

    Attributes:
        scatter: (by hand, witness), two arrays of one shape: every entry of the gradient.
        scatter_labels: the names of the two.
        delta_norms: (name, norm of delta) of every layer, from input to output.
        difference_curve: the finite difference's error against its step.
    """

    scatter: tuple[np.ndarray, np.ndarray] | None = None
    scatter_labels: tuple[str, str] = ("by hand", "jax.grad")
    delta_norms: tuple[tuple[str, float], ...] = ()
    difference_curve: Curve | None = None

    def __post_init__(self) -> None:
        if self.scatter is not None and self.scatter[0].shape != self.scatter[1].shape:
            shapes = " and ".join(str(list(side.shape)) for side in self.scatter)
            raise ValueError(f"the two sides of a scatter must have one shape, entry beside entry; they have {shapes}")
        curve = self.difference_curve
        if curve is not None and len(curve.steps) != len(curve.errors):
            raise ValueError(f"a curve needs one error a step; it has {len(curve.steps)} and {len(curve.errors)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of the scatter, only its size."""
        curve = self.difference_curve
        return {
            "scatter_entries": 0 if self.scatter is None else int(self.scatter[0].size),
            "delta_norms": [{"name": name, "norm": float(norm)} for name, norm in self.delta_norms],
            "difference_curve": None
            if curve is None
            else {"steps": [float(h) for h in curve.steps], "errors": [float(e) for e in curve.errors]},
        }


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """One network or function: its report, and further results.

    Attributes:
        name: its name, unique in the run.
        report: every row.
        seconds: how long the check took.
        dataset: the data set of the examples, or "".
        pictures: the data for its pictures.
        mutation: the mutation score of the check, or None if that was not asked for.
        expected: why it was expected not to pass, such as the reason of a test's mark xfail, or "" where it was not.
            Its verdict remains, but does not count in the run's.
    """

    name: str
    report: Report
    seconds: float = 0.0
    dataset: str = ""
    pictures: Pictures | None = None
    mutation: MutationScore | None = None
    expected: str = ""

    @property
    def verdict(self) -> Verdict:
        """The report's verdict; a surviving mutant, or an interrupted mutation test, makes a pass inconclusive.

        A check that also passes a broken gradient has not shown the right one to be right.
        """
        if self.report.verdict == "pass" and self.mutation is not None:
            return "inconclusive" if self.mutation.survivors or self.mutation.partial else "pass"
        return self.report.verdict

    @property
    def standing(self) -> Standing:
        """How it counts in the run: by its verdict, or as "expected" where it was expected not to pass and did not."""
        return "expected" if self.expected and self.verdict != "pass" else self.verdict

    @property
    def worst(self) -> Row | None:
        """The row with the largest error in units of its tolerance; None if nothing was compared."""
        return self.report.worst if self.report.rows else None

    def reason(self) -> str:
        """Why it is not a pass, and how to run it again; for a pass, the line that says so."""
        if self.report.verdict != "pass" or self.verdict == "pass":
            return self.report.summary()
        assert self.mutation is not None
        if self.mutation.survivors:
            first = self.mutation.survivors[0]
            count = counted(len(self.mutation.survivors), "broken gradient")
            again = f"\n  to see this again: {self.report.reproduce}" if self.report.reproduce else ""
            return f"INCONCLUSIVE: the check lets {count} pass; first:\n  {first}{again}"
        return f"INCONCLUSIVE: mutation was {self.mutation.headline()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "expected": self.expected,
            "dataset": self.dataset,
            "seconds": self.seconds,
            "report": self.report.as_dict(),
            "mutation": None if self.mutation is None else self.mutation.as_dict(),
            "pictures": None if self.pictures is None else self.pictures.as_dict(),
        }


@dataclass(frozen=True)
class Published:
    """One number from a publication, with ours.

    Attributes:
        name: of the worked example.
        figure: the name of the number.
        printed: the number as printed.
        ours: the number by hand.
        passed: whether ours is within the tolerance of the printed digits.
    """

    name: str
    figure: str
    printed: str
    ours: float
    passed: bool

    @property
    def exact(self) -> bool:
        """Whether ours, rounded to as many places, is the printed number to its last digit."""
        printed = Decimal(self.printed)
        places = max(0, -int(printed.as_tuple().exponent))
        return Decimal(f"{self.ours:.{places}f}") == printed


@dataclass(frozen=True, eq=False)
class Run:
    """All results of one command.

    Attributes:
        title: the subject of the check, in a few words.
        networks: the results in the order of the run; `unit` says what each is.
        published: figures of worked examples, with ours.
        command: the command that repeats the run.
        seed: the seed of all random numbers.
        versions: of this library, jax, Python and so on, by name.
        partial: whether the run stopped early, by an interrupt or at a failure, so that networks may be missing.
        seconds: how long the run took.
        unit: the kind of each of `networks`: a network, a function, a gradient check.
    """

    title: str
    networks: tuple[NetworkResult, ...]
    published: tuple[Published, ...] = ()
    command: str = ""
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    seconds: float = 0.0
    unit: str = "network"

    def __post_init__(self) -> None:
        names = [network.name for network in self.networks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.unit}s of one run need names of their own; more than one is called {twice[0]!r}")

    @property
    def verdict(self) -> Verdict:
        """Fail if anything differs; inconclusive if anything is undecided or missing, or nothing was done.

        What was expected to fail, and did, has no part in it.
        """
        verdicts = {network.verdict for network in self.counting}
        verdicts |= {"pass" if figure.passed else "fail" for figure in self.published}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} and not self.partial else "inconclusive"

    @property
    def by_verdict(self) -> tuple[NetworkResult, ...]:
        """Those that fail, the undecided ones, those expected to fail, the others, each in the order of the run."""
        return tuple(sorted(self.networks, key=lambda network: _ORDER.index(network.standing)))

    @property
    def counting(self) -> tuple[NetworkResult, ...]:
        """The networks that make the verdict: all but those that were expected to fail, and did."""
        return tuple(network for network in self.networks if network.standing != "expected")

    @property
    def expected(self) -> tuple[NetworkResult, ...]:
        """The networks that were expected to fail, and did."""
        return tuple(network for network in self.networks if network.standing == "expected")

    @property
    def unproven(self) -> tuple[NetworkResult, ...]:
        """The networks that are not a pass, those that fail first, without those that were expected to fail."""
        return tuple(network for network in self.by_verdict if network.standing in ("fail", "inconclusive"))

    @property
    def off_figures(self) -> tuple[Published, ...]:
        """The published figures that ours miss."""
        return tuple(figure for figure in self.published if not figure.passed)

    @property
    def comparisons(self) -> int:
        """How many rows and figures make the verdict."""
        return sum(len(network.report.rows) for network in self.counting) + len(self.published)

    def agreement(self) -> str:
        """How many of the published figures agree, and how many of these to their last digit, in words."""
        passed = len(self.published) - len(self.off_figures)
        exact = sum(figure.passed and figure.exact for figure in self.published)
        return (
            f"{passed} of {counted(len(self.published), 'number')} that others printed agree within the tolerance of"
            f" their printed digits, {exact} of them to the last digit"
        )

    def headline(self) -> str:
        """The verdict in one sentence."""
        of = counted(len(self.counting), self.unit)
        beside = f" besides {len(self.expected)} expected to fail" if self.expected else ""
        end = f"{beside}; the run stopped early, so {self.unit}s may be missing" if self.partial else beside
        done = f"{counted(self.comparisons, 'comparison')} on {of}{end}"
        if self.verdict == "pass":
            return f"ALL PROVEN: {done}"
        if not self.comparisons:
            return f"INCONCLUSIVE: nothing was compared{end}"
        standings = [network.standing for network in self.networks]
        wrong, undecided = standings.count("fail"), standings.count("inconclusive")
        parts = [f"{wrong} of {of} {'differs' if wrong == 1 else 'differ'}"] if wrong else []
        if self.off_figures:
            parts.append(f"{len(self.off_figures)} of {counted(len(self.published), 'published figure')} missed")
        if undecided:
            parts.append(f"{undecided} of {of} undecided")
        lead = "NOT PROVEN" if self.verdict == "fail" else "INCONCLUSIVE"
        return f"{lead}: {', '.join([*parts, done])}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "passed": self.verdict == "pass",
            "partial": self.partial,
            "expected": len(self.expected),
            "command": self.command,
            "seed": self.seed,
            "seconds": self.seconds,
            "unit": self.unit,
            "versions": dict(self.versions),
            "networks": [network.as_dict() for network in self.networks],
            "published": [asdict(figure) for figure in self.published],
        }


def counted(n: int, noun: str) -> str:
    """A number and its noun: 1 network, 2 networks."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
