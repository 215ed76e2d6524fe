"""Check one case, and say in one line how it went."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import reference
from benchmarks.elsewhere.cases import WAYS, Case


@dataclass(frozen=True)
class Outcome:
    """How one case went.

    Attributes:
        verdict: "pass", "fail", "inconclusive", "not checked" where the function itself refuses, or "crash".
        reason: "" for a pass.
        seconds: it took.
    """

    verdict: str
    reason: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judged(case: Case, dtype: str = "float32", ways: tuple[str, ...] = WAYS) -> Outcome:
    """Check the case in this precision, in those of the ways that it can do."""
    started = time.perf_counter()
    verdict, reason = _verdict(case, dtype, tuple(way for way in case.ways if way in ways))
    return Outcome(verdict, reason, round(time.perf_counter() - started, 2))


def _verdict(case: Case, dtype: str, ways: tuple[str, ...]) -> tuple[str, str]:
    if dtype not in case.dtypes:
        return "not checked", f"it takes {', '.join(case.dtypes)}"
    check = reference.check_vjp if case.mode == "vjp" else reference.check_jvp
    options = case.options | (case.in_double if dtype == "float64" else {})
    try:
        report = check(case.function, *case.point(), raw=case.plain, dtype=dtype, transforms=ways, **options)
    except reference.CallFailed as error:
        return "not checked", _line(error)
    except Exception as error:  # a crash of the harness is a finding, and must not end the run
        return "crash", f"{type(error).__name__}: {_line(error)}"
    if report.verdict == "pass":
        return "pass", ""
    row = next((row for row in report.rows if row.verdict == report.verdict), None)
    if row is None:
        return report.verdict, "nothing was compared"
    if report.verdict == "inconclusive":
        return report.verdict, f"{row.name()}: {row.reason or f'a fault below {row.power:.2g} of it would not show'}"
    return report.verdict, _line(row.explain())


def _line(text: object, width: int = 300) -> str:
    return " ".join(str(text).split())[:width]
