"""What a check found: rows, a verdict, and their plain text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


class GradientMismatch(AssertionError):  # noqa: N818
    """A hand-written gradient that is not the derivative of its function."""


@dataclass(frozen=True)
class Row:
    """One leaf compared.

    Attributes:
        path: what it is, as one reaches it on a `Step`: `gradients[1].W`, `deltas[0]`, `trace[2].z`.
        shape: of the leaf.
        error: the largest absolute difference in it; inf where one side alone is not a number.
        scale: the largest magnitude in the reference's leaf.
        tolerance: the largest error that passes.
        where: index of the largest error.
        manual: the value by hand there.
        reference: the reference's there.
        passed: the verdict.
        pattern: on failure, what the ratios manual / reference look like.
        cause: on failure, the probable cause, or "".
    """

    path: str
    shape: tuple[int, ...]
    error: float
    scale: float
    tolerance: float
    where: tuple[int, ...]
    manual: float
    reference: float
    passed: bool
    pattern: str = ""
    cause: str = ""

    @property
    def relative(self) -> float:
        """The error relative to the largest entry of the leaf."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else float("inf"))

    @property
    def used(self) -> float:
        """The share of the tolerance that the error uses up: above 1 it fails."""
        return self.error / self.tolerance if self.tolerance else (0.0 if self.error == 0 else float("inf"))

    def explain(self) -> str:
        """The failure in words."""
        at = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        text = (
            f"{self.path}{at} is {self.manual:.9g} by hand, {self.reference:.9g} by jax.grad"
            f" (error {self.error:.3g}, tolerance {self.tolerance:.3g}; {self.pattern})"
        )
        return f"{text}\n  probable cause: {self.cause}" if self.cause else text


@dataclass(frozen=True)
class Report:
    """Every row of one check, in the order of computation.

    Attributes:
        rows: one for each leaf.
        dtype: the precision under test.
        n_examples: N.
        network: its text.
        lam: the regulariser's lambda, 0 without one.
    """

    rows: tuple[Row, ...]
    dtype: str
    n_examples: int
    network: str
    lam: float

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed; the first is where to look."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def worst(self) -> Row:
        """The row that uses the largest share of its tolerance."""
        return max(self.rows, key=lambda row: row.used)

    def raise_if_failed(self) -> None:
        """Raise GradientMismatch, with the first failing row in its text, unless everything passed."""
        if not self.passed:
            raise GradientMismatch(self.verdict())

    def verdict(self) -> str:
        """The result in one line, or the first failure in a few."""
        if self.passed:
            worst = self.worst
            return (
                f"PROVEN: {len(self.rows)} quantities equal jax.grad's in {self.dtype}; worst relative error"
                f" {worst.relative:.2g} in {worst.path}"
            )
        return (
            f"DIFFERS: {len(self.failures)} of {len(self.rows)} quantities in {self.dtype}; first in the order"
            f" of computation:\n  {self.failures[0].explain()}"
        )

    def __str__(self) -> str:
        header = ("quantity", "shape", "rel. error", "where", "by hand", "by jax.grad", "tolerance", "")
        lines = [
            (
                row.path,
                "x".join(map(str, row.shape)) or "scalar",
                f"{row.relative:.2g}",
                ",".join(map(str, row.where)),
                f"{row.manual:.6g}",
                f"{row.reference:.6g}",
                f"{row.tolerance:.2g}",
                "ok" if row.passed else "DIFFERS",
            )
            for row in self.rows
        ]
        title = f"{self.network}, N = {self.n_examples}, lam = {self.lam:g}, {self.dtype}"
        return "\n".join([title, "", plain_table(header, lines), "", self.verdict()])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        return head | {
            "passed": self.passed,
            "rows": [asdict(row) | {"relative": row.relative} for row in self.rows],
        }


def plain_table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Columns aligned by spaces, for a file or a pipe."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    return "\n".join([text(header), text(tuple("-" * width for width in widths)), *map(text, lines)])
