"""The result of mutation testing: every mutant with its verdict, the score, and its plain text."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reference.report import plain_table
from reference.reports import fragment

SURVIVED = "SURVIVED: wrong, and the check passes"
REFUTED = "NOT EQUIVALENT: accepted as right, but the check fails"
UNCHANGED = "unchanged: right on these arguments; others (lambda or b not 0, N > 1, both sides of a kink) may tell"
HEADER = ("source", "equation", "broken", "line or claim")
SHOWN = 5  # survivors in a summary, and in a notebook
MutantVerdict = Literal["killed", "survived", "error", "unchanged", "equivalent"]


@dataclass(frozen=True)
class Mutant:
    """A gradient with one equation broken, and the verdict on it.

    Attributes:
        where: the equation, by its number in the jaxpr and in each jaxpr it lies in: `12 scan > 3 mul`.
        primitive: of that equation.
        what: the fault in words.
        source: file:line (function) that the equation comes from.
        code: the text of that line.
        verdict: "killed" if the check failed; "error" if it raised anything but an AssertionError (or the mutant's
            loop did not end); "survived" if the check passed; "unchanged" if the mutant returns the right values on
            these arguments; "equivalent" if it survived and an argument says that it is not wrong.
        by: first line of the failure.
        argument: why the mutant is claimed to be equivalent, or "".
    """

    where: str
    primitive: str
    what: str
    source: str
    code: str
    verdict: MutantVerdict
    by: str = ""
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.primitive}: {self.what}: {self.code}"

    def cells(self) -> tuple[str, ...]:
        """The mutant as one line of a table; `HEADER` names the columns."""
        return self.source, self.primitive, self.what, self.argument or self.code


@dataclass(frozen=True)
class MutationScore:
    """How many of a gradient's mutants a check detects.

    Attributes:
        mutants: those that were judged, in the order of the computation.
        planned: how many were to be judged; fewer than there are faults if `limit` drew a sample.
        possible: how many faults the gradient can have.
        seed: of the sample and of the elements that were zeroed.
        notes: facts that qualify the score.
        partial: whether the run was interrupted.
    """

    mutants: tuple[Mutant, ...]
    planned: int
    possible: int
    seed: int = 0
    notes: tuple[str, ...] = ()
    partial: bool = False

    @property
    def counts(self) -> dict[MutantVerdict, int]:
        """How many mutants have each verdict."""
        found = Counter(mutant.verdict for mutant in self.mutants)
        verdicts: tuple[MutantVerdict, ...] = ("killed", "error", "survived", "equivalent", "unchanged")
        return {verdict: found[verdict] for verdict in verdicts}

    @property
    def killed(self) -> int:
        """How many the check detected, by failing or by raising an error."""
        return self.counts["killed"] + self.counts["error"]

    @property
    def judged(self) -> int:
        """How many count: those that are wrong on these arguments, detected or not."""
        return self.killed + self.counts["survived"]

    @property
    def score(self) -> float:
        """The share of `judged` that the check detected; nan if none counts."""
        return self.killed / self.judged if self.judged else float("nan")

    @property
    def survivors(self) -> tuple[Mutant, ...]:
        """The wrong gradients that the check passes."""
        return self.having("survived")

    @property
    def refuted(self) -> tuple[Mutant, ...]:
        """Mutants that `accept` calls equivalent but the check killed, so that the argument is wrong."""
        return tuple(mutant for mutant in self.mutants if mutant.argument and mutant.verdict in ("killed", "error"))

    def having(self, verdict: MutantVerdict) -> tuple[Mutant, ...]:
        """The mutants with that verdict."""
        return tuple(mutant for mutant in self.mutants if mutant.verdict == verdict)

    def headline(self) -> str:
        """The score in one line."""
        counts = self.counts
        percent = f" ({100 * self.score:.1f} %)" if self.judged else ""
        text = f"{self.killed} of {self.judged} mutants killed{percent}"
        aside = [f"{counts[v]} {v}" for v in ("survived", "equivalent", "unchanged") if counts[v]]
        if counts["error"]:
            aside.append(f"{counts['error']} of the killed by an error")
        text += f"; {', '.join(aside)}" if aside else ""
        if self.planned < self.possible:
            text += f"; a sample of {self.planned} of {self.possible}, seed {self.seed}"
        return f"INTERRUPTED after {len(self.mutants)} of {self.planned}: {text}" if self.partial else text

    def summary(self) -> str:
        """The score, and the first survivors, which the check does not detect."""
        lines = [f"  survived: {mutant}" for mutant in self.survivors[:SHOWN]]
        more = len(self.survivors) - len(lines)
        return "\n".join([self.headline(), *lines, *([f"  and {more} more in .survivors"] if more else [])])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.headline()}>"

    def __str__(self) -> str:
        parts = []
        if self.survivors:
            parts.append(_table(SURVIVED, self.survivors))
        if self.refuted:
            parts.append(_table(REFUTED, self.refuted))
        if self.having("equivalent"):
            parts.append(_grouped("equivalent: not wrong", self.having("equivalent")))
        if self.having("unchanged"):
            parts.append(_grouped(UNCHANGED, self.having("unchanged")))
        return "\n\n".join([*parts, "\n".join([*self.notes, self.headline()])])

    def _repr_html_(self) -> str:
        """The score, and below it the first survivors and the claims that are refuted, for a notebook."""
        parts = []
        for title, mutants in ((SURVIVED, self.survivors), (REFUTED, self.refuted)):
            lines = [mutant.cells() for mutant in mutants[:SHOWN]]
            parts.append(fragment.table(f"{title}: {len(lines)} of {len(mutants)}", HEADER, lines))
        open_ = self.survivors or self.partial or not self.judged
        verdict = "fail" if self.refuted else "inconclusive" if open_ else "pass"
        return fragment.framed(verdict, self.headline(), *parts, *map(fragment.paragraph, self.notes))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "score": self.score if self.judged else None,
            "killed": self.killed,
            "judged": self.judged,
            "counts": dict(self.counts),
            "planned": self.planned,
            "possible": self.possible,
            "seed": self.seed,
            "notes": list(self.notes),
            "partial": self.partial,
            "mutants": [asdict(mutant) for mutant in self.mutants],
        }


def _table(title: str, mutants: tuple[Mutant, ...]) -> str:
    return f"{title}\n{plain_table(HEADER, [mutant.cells() for mutant in mutants])}"


def _grouped(title: str, mutants: tuple[Mutant, ...]) -> str:
    """One line for all mutants of one source line, or of one claim about it."""
    counted = Counter((mutant.source, mutant.argument or mutant.code) for mutant in mutants)
    lines = [(source, str(count), text) for (source, text), count in counted.items()]
    return f"{title}\n{plain_table(('source', 'mutants', 'line or claim'), lines)}"
