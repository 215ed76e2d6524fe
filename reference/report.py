"""The result of a check: rows, a verdict, and their plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reference.reports import fragment

Verdict = Literal["pass", "fail", "inconclusive"]
MARKS: Mapping[Verdict, str] = {"pass": "ok", "fail": "DIFFERS", "inconclusive": "undecided"}
HEADER = ("quantity", "equation", "kind", "shape", "of tolerance", "would see", "where", "by hand", "witness", "")
WOULD_SEE = "would see: the smallest relative fault that would have been seen"
SHOWN = 8  # rows in a notebook


class GradientMismatch(AssertionError):  # noqa: N818
    """A hand-written gradient that is not the derivative of its function."""


class InconclusiveCheck(AssertionError):  # noqa: N818
    """A check in which rounding alone could hide a factor of two, so it shows neither right nor wrong."""


@dataclass(frozen=True)
class Row:
    """One comparison of one leaf.

    Attributes:
        path: the leaf's place on a `Step`, such as `gradients[1].W`, `deltas[0]` or `trace[2].z`; for a user's own
            function, the argument by its name, `params['W']`, or `args[0]['W']` where the function tells none.
        shape: of the leaf.
        error: the absolute difference at the entry that uses the largest share of its tolerance; inf where
            one side alone is not a number.
        scale: the largest magnitude in the reference's leaf.
        tolerance: the largest error that passes at that entry.
        used: error / tolerance there, the error in units of the tolerance; above 1 it fails.
        power: the smallest relative fault of the leaf that would have failed; the row cannot see a smaller one.
        where: index of that entry. Where its first number is no axis of the leaf, `leading` says what it counts.
        manual: the value by hand there.
        reference: the witness's there.
        verdict: "pass", "fail", or "inconclusive" where even a factor of two would not have shown.
        kind: "equation" (recomputed from the values that entered it), "end to end" (from the inputs alone),
            "witness" (another way to differentiate), or "contract" (a promise of a transformation or a rule).
        equation: its tag in EQUATIONS, "(B4)", or "".
        layer: 1 for the first layer, 0 where the row belongs to none.
        witness: the method that computed `reference`.
        pattern: on failure, the pattern of the ratios manual / reference.
        cause: on failure, the probable cause, or "".
        judged: on failure, what the function's own values say, or "".
        reason: why a row is inconclusive, and what would decide, or "".
        blind: how many entries are so small beside their tolerance that their own doubling would not show.
        by: for an error term, the layers whose transports, W^T delta, it is computed from.
        leading: "for cotangent", "for tangent" or "at point" where several of these are stacked in front of the
            leaf's own axes, else "".
    """

    path: str
    shape: tuple[int, ...]
    error: float
    scale: float
    tolerance: float
    used: float
    power: float
    where: tuple[int, ...]
    manual: float
    reference: float
    verdict: Verdict
    kind: Literal["equation", "end to end", "witness", "contract"] = "end to end"
    equation: str = ""
    layer: int = 0
    witness: str = "jax.grad"
    pattern: str = ""
    cause: str = ""
    judged: str = ""
    reason: str = ""
    blind: int = 0
    leading: str = ""
    by: str = ""

    @property
    def passed(self) -> bool:
        """Whether the row shows that the leaf is right."""
        return self.verdict == "pass"

    @property
    def relative(self) -> float:
        """The error relative to the largest entry of the leaf."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else float("inf"))

    def name(self) -> str:
        """The path, with its equation and layer."""
        place = f" of layer {self.layer}" if self.layer else ""
        return f"{self.path}: {self.equation}{place}" if self.equation else self.path

    def entry(self) -> tuple[str, str]:
        """The worst entry's index in its leaf, "4, 3", and its place in the stack, "for cotangent 1", or ""."""
        if not (self.leading and self.where):
            return ", ".join(map(str, self.where)), ""
        return ", ".join(map(str, self.where[1:])), f"{self.leading} {self.where[0]}"

    def cells(self) -> tuple[str, ...]:
        """The row as one line of a table; `HEADER` names the columns."""
        return (
            self.path,
            f"{self.equation} layer {self.layer}" if self.layer else self.equation,
            self.witness if self.kind == "witness" else self.kind,
            "x".join(map(str, self.shape)) or "scalar",
            f"{self.used:.2g}",
            f"{self.power:.1g}",
            " ".join(part.replace(", ", ",") for part in self.entry() if part),
            f"{self.manual:.6g}",
            f"{self.reference:.6g}",
            MARKS[self.verdict],
        )

    def explain(self) -> str:
        """The failure in words."""
        at, first = self.entry()
        at = (f"[{at}]" if at else "") + (f" {first}" if first else "")
        place = f" of layer {self.layer}" if self.layer else ""
        sent = f", sent by the transport of layer {self.by}" if self.by else ""
        lead = f"{self.equation}{place}{sent}: " if self.equation else ""
        if self.kind == "contract" and self.cause and not self.error < float("inf"):  # a promise, not a number
            return f"{self.path}{at}: {self.cause}"
        detail = f"error {self.error:.3g}, {self.used:.3g} times the tolerance of {self.tolerance:.3g}"
        if self.pattern:
            detail += f"; {self.pattern}"
        text = f"{lead}{self.path}{at} is {self.manual:.9g} by hand, {self.reference:.9g} by {self.witness} ({detail})"
        text += f"\n  probable cause: {self.cause}" if self.cause else ""
        return f"{text}\n  {self.judged}" if self.judged else text


@dataclass(frozen=True)
class Report:
    """Every row of one check, in the order of computation; look first at the first that fails.

    Attributes:
        rows: one for each comparison.
        dtype: the precision under test.
        subject: the network or function, as text.
        n_examples: N, 0 where there are no examples.
        lam: the regulariser's lambda, 0 without one.
        notes: facts that qualify the verdict, such as projected leaves or a kink that was hit.
        reproduce: a command or call that repeats this check, or "".
        partial: whether the check was interrupted.
    """

    rows: tuple[Row, ...]
    dtype: str
    subject: str
    n_examples: int = 0
    lam: float = 0.0
    notes: tuple[str, ...] = ()
    reproduce: str = ""
    partial: bool = field(default=False, kw_only=True)

    @property
    def verdict(self) -> Verdict:
        """Fail if any row fails; else inconclusive if any is, or nothing was compared; else pass."""
        verdicts = {row.verdict for row in self.rows}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} and not self.partial else "inconclusive"

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return self.verdict == "pass"

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed; look at the first one first."""
        return tuple(row for row in self.rows if row.verdict == "fail")

    @property
    def inconclusive(self) -> tuple[Row, ...]:
        """The rows that rounding leaves undecided."""
        return tuple(row for row in self.rows if row.verdict == "inconclusive")

    @property
    def worst(self) -> Row:
        """The row with the largest error in units of its tolerance."""
        return max(self.rows, key=lambda row: row.used)

    def raise_if_failed(self) -> None:
        """Raise an error unless every row passed.

        Raises:
            GradientMismatch: a row failed; the text names the first.
            InconclusiveCheck: none failed, but rounding could hide a fault, or the check was interrupted.
        """
        if self.verdict == "fail":
            raise GradientMismatch(self.summary())
        if self.verdict == "inconclusive":
            raise InconclusiveCheck(self.summary())

    def summary(self) -> str:
        """The result in one line; unless it is a pass, a few lines with the first row that is not."""
        again = f"\n  to see this again: {self.reproduce}" if self.reproduce else ""
        if self.failures:
            return (
                f"DIFFERS: {len(self.failures)} of {len(self.rows)} comparisons in {self.dtype}; first in the order"
                f" of computation:\n  {self.failures[0].explain()}{again}"
            )
        if self.inconclusive:
            row = self.inconclusive[0]
            count = f"{len(self.inconclusive)} of {len(self.rows)} comparisons"
            if row.reason:
                head = f"INCONCLUSIVE: {count} in {self.dtype} decide nothing; first in the order of computation:"
                return f"{head}\n  {row.name()}: {row.reason}{again}"
            return (
                f"INCONCLUSIVE: in {self.dtype} rounding could hide a fault in {count}; first in the order of"
                f" computation:\n  {row.name()}: a fault below"
                f" {row.power:.2g} of its value would not show ({row.kind}); check it in a wider precision{again}"
            )
        if self.partial or not self.rows:
            return f"INCONCLUSIVE: interrupted after {len(self.rows)} comparisons{again}"
        worst = self.worst
        told = f"; {len(self.notes)} note{'s' * (len(self.notes) > 1)}, in the report" if self.notes else ""
        return (
            f"PROVEN: {len(self.rows)} comparisons in {self.dtype}, the worst {worst.used:.2g} of its tolerance"
            f" ({worst.name()}){told}"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary()}>"

    def __str__(self) -> str:
        rows = plain_table(HEADER, [row.cells() for row in self.rows])
        return "\n".join([self._title(), "", rows, "", WOULD_SEE, *self.notes, self.summary()])

    def _repr_html_(self) -> str:
        """The summary, and below it the rows that are not proven, or the worst of those that are, for a notebook."""
        unproven = [row for row in self.rows if not row.passed]
        rows = (unproven or sorted(self.rows, key=lambda row: -row.used))[:SHOWN]
        caption = f"{len(rows)} of {len(self.rows)} comparisons, those with the largest share of their tolerance"
        if unproven:
            caption = f"{len(rows)} of {len(unproven)} comparisons that are not proven, in the order of computation"
        table = fragment.table(caption, HEADER, [row.cells() for row in rows], [row.verdict for row in rows])
        below = [fragment.paragraph(line) for line in (self._title(), WOULD_SEE if rows else "", *self.notes)]
        return fragment.framed(self.verdict, self.summary(), table, *below)

    def _title(self) -> str:
        batch = f", N = {self.n_examples}, lam = {self.lam:g}" if self.n_examples else ""
        return f"{self.subject}{batch}, {self.dtype}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        return head | {
            "verdict": self.verdict,
            "passed": self.passed,
            "rows": [asdict(row) | {"relative": row.relative} for row in self.rows],
        }


def plain_table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Columns aligned by spaces, for a file or a pipe."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    return "\n".join([text(header), text(tuple("-" * width for width in widths)), *map(text, lines)])
