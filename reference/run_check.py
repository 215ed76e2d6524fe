"""`manual-backprop check`: prove the catalogue and the published examples, and print what is proven."""

import json
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax

from reference import catalogue, golden
from reference.checking import check
from reference.files import BadInput, require_writable, write_atomically
from reference.report import Report
from reference.terminal import print_table, progress

SCHEMA = "manual-backprop/check/1"
SHOWN_FAILURES = 10
# A catalogue compiles two programs a network and runs each once, so code that compiles fast beats fast code.
_FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def run(arguments: Namespace) -> int:
    """The exit status: 0 all proven, 1 something differs.

    Raises:
        BadInput: a report that cannot be written, or a pattern that matches nothing.
    """
    report_path = None if arguments.json is None else Path(arguments.json)
    if report_path is not None:
        require_writable(report_path)
    cases = [c for c in catalogue.cases(arguments.seed, arguments.quick) if _matches(c.name, arguments.only)]
    with jax.enable_x64(True):
        examples = [e for e in golden.examples() if _matches(e.name, arguments.only)]
    if not cases and not examples:
        raise BadInput(f"no network is called like {arguments.only!r}; `manual-backprop check --list` names them")
    names = [case.name for case in cases] + [example.name for example in examples]
    if arguments.list:
        print("\n".join(names))
        return 0

    with jax.enable_x64(True):
        figures = {example.name: golden.figures(example) for example in examples}
    reports: dict[str, Report] = {}
    with progress("networks proven", len(cases) + len(examples)) as advance:
        for name, report in _prove(cases, examples):
            reports[name] = report
            advance("" if report.passed else f"{name} DIFFERS")
    ordered = {name: reports[name] for name in names}
    passed = all(report.passed for report in ordered.values()) and all(
        figure.passed for group in figures.values() for figure in group
    )
    _print(ordered, figures, {case.name: case.dataset for case in cases}, passed)
    if report_path is not None:
        document = _document(arguments, ordered, figures, passed)
        text = json.dumps(_finite(document), indent=1, allow_nan=False)
        write_atomically(report_path, lambda file: file.write(text.encode()))
        print(f"report written to {report_path}")
    return 0 if passed else 1


def _matches(name: str, pattern: str | None) -> bool:
    """A shell pattern, or a plain part of the name."""
    return pattern is None or fnmatch(name, pattern) or pattern in name


def _prove(cases: list[catalogue.Case], examples: list[golden.Example]) -> Iterator[tuple[str, Report]]:
    """Reports as they come: compilation runs outside Python's lock, so a few networks go side by side."""
    options = compile_options()

    def of_case(case: catalogue.Case) -> tuple[str, Report]:
        return case.name, check(
            case.objective,
            case.params,
            case.x,
            case.y,
            lam=case.lam,
            dtype=case.dtype,
            compiler_options=options,
        )

    def of_example(example: golden.Example) -> tuple[str, Report]:
        return example.name, check(example.objective, example.params, example.x, example.y, compiler_options=options)

    pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
    try:
        jobs = [pool.submit(of_case, case) for case in cases] + [pool.submit(of_example, e) for e in examples]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def compile_options() -> dict[str, Any] | None:
    """Options for quick compilation, where this backend and this version of XLA know them; else None."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_FAST_TO_COMPILE)(0.0)
    except Exception:  # an unknown option: the type of the error differs between versions
        return None
    return _FAST_TO_COMPILE


def _print(
    reports: dict[str, Report],
    figures: dict[str, list[golden.Figure]],
    datasets: dict[str, str],
    passed: bool,
) -> None:
    rows = []
    for dtype in catalogue.FEATURES["dtype"]:
        group = {n: r for n, r in reports.items() if n in datasets and r.dtype == dtype}
        if group:
            name, report = max(group.items(), key=lambda item: item[1].worst.used)
            worst = report.worst
            rows.append(
                (
                    f"{dtype} on {', '.join(sorted({datasets[n] for n in group}))}",
                    str(len(group)),
                    str(sum(len(r.rows) for r in group.values())),
                    f"{worst.relative:.1e}",
                    f"{worst.used:.2g}",
                    f"{worst.path} of {name}",
                )
            )
    for name, printed in figures.items():
        report = reports[name]
        far = max(printed, key=lambda figure: figure.error / figure.tolerance)
        rows.append(
            (
                f"published: {name}",
                "1",
                f"{len(report.rows)} + {len(printed)} printed",
                f"{report.worst.relative:.1e}",
                f"{max(report.worst.used, far.error / far.tolerance):.2g}",
                f"{far.name}, printed {far.printed}",
            )
        )
    header = ("what", "networks", "checks", "worst rel. error", "of tolerance", "where")
    print_table("Hand-written gradients against jax.grad", header, rows)
    print()
    _print_failures(reports, figures)
    total = sum(len(r.rows) for r in reports.values()) + sum(map(len, figures.values()))
    counts = f"{total} checks on {len(reports)} network{'' if len(reports) == 1 else 's'}"
    print(f"{'ALL PROVEN' if passed else 'NOT PROVEN'}: {counts}")


def _print_failures(reports: dict[str, Report], figures: dict[str, list[golden.Figure]]) -> None:
    failed = [(name, report) for name, report in reports.items() if not report.passed]
    for name, report in failed[:SHOWN_FAILURES]:
        print(f"{name}\n  {report.verdict()}\n")
    if len(failed) > SHOWN_FAILURES:
        print(f"... and {len(failed) - SHOWN_FAILURES} more networks\n")
    for name, group in figures.items():
        for figure in group:
            if not figure.passed:
                print(f"{name}: {figure.name} was printed as {figure.printed}, ours is {figure.ours:.17g}\n")


def _document(
    arguments: Namespace, reports: dict[str, Report], figures: dict[str, list[golden.Figure]], passed: bool
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "passed": passed,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "only": arguments.only,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "networks": [{"name": name} | report.as_dict() for name, report in reports.items()],
        "published": [
            {"name": name, "figure": f.name, "printed": f.printed, "ours": f.ours, "passed": f.passed}
            for name, group in figures.items()
            for f in group
        ],
    }


def _finite(value: Any) -> Any:
    """JSON has no nan and no inf: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
