"""Gradient checks in a pytest suite: two fixtures, a mark, and a report of all checks.

    def test_norm(assert_vjp_correct):
        assert_vjp_correct(norm, x, scale)

    @pytest.mark.gradient(dtypes=["float32", "float64"], transforms=["eager", "jit", "vmap"])
    def test_loss(assert_gradients_match):
        assert_gradients_match(loss, loss_gradient, params, x)

JAX is imported when a fixture is first used, so a suite that uses none does not wait for it.
"""

import shlex
import sys
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from reference.report import Report
    from reference.reports.run import NetworkResult

MARK = (
    "gradient(dtypes=[...], transforms=[...]): run once for every dtype and transform; the gradient fixtures use them"
)
DTYPES = ("float64", "float32", "float16", "bfloat16")
TRANSFORMS = ("eager", "jit", "vmap")
SUFFIXES = {".json": "json", ".xml": "junit", ".md": "markdown", ".html": "html"}
_FIXTURES = ("gradient_case", "assert_gradients_match", "assert_vjp_correct")
_XPASS_STRICT = "[XPASS(strict)]"
_shared = pytest.StashKey[dict[Any, Any]]()  # measurements that the runs of one marked test share
_done = pytest.StashKey[list[dict[str, Any]]]()


@dataclass(frozen=True)
class Case:
    """One dtype and transform of a marked test.

    Attributes:
        dtype: float arguments are rounded to it.
        transform: "eager", "jit" or "vmap".
    """

    dtype: str
    transform: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--gradient-report`."""
    parser.getgroup("gradients").addoption(
        "--gradient-report",
        action="append",
        default=[],
        metavar="FILE",
        help="write every gradient comparison to FILE: .json, .xml (JUnit), .md or .html; may be given more than once",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and refuse, before any test runs, a report that cannot be written."""
    config.addinivalue_line("markers", MARK)
    paths = [Path(name) for name in config.getoption("gradient_report")]
    for path in paths:
        _require_usable(path)
    if paths and not hasattr(config, "workerinput"):  # a worker of pytest-xdist has one; it only sends
        config.pluginmanager.register(_Collector(config, paths), "gradient-report")


def _require_usable(path: Path) -> None:
    from reference.cli.files import BadInput, require_writable

    if path.suffix not in SUFFIXES:
        raise pytest.UsageError(f"--gradient-report={path}: the name must end in {', '.join(SUFFIXES)}")
    try:
        require_writable(path)
    except BadInput as error:
        raise pytest.UsageError(f"--gradient-report: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for every dtype and transform of the mark.

    A mark of a class or a module is for those of its tests that use a gradient fixture.
    """
    mark = metafunc.definition.get_closest_marker("gradient")
    if mark is None:
        return
    where = metafunc.definition.nodeid
    if not set(_FIXTURES) & set(metafunc.fixturenames):
        if mark not in metafunc.definition.own_markers:
            return
        raise pytest.UsageError(f"{where}: @pytest.mark.gradient is for tests that use {' or '.join(_FIXTURES[1:])}")
    if mark.args or not set(mark.kwargs) <= {"dtypes", "transforms"}:
        raise pytest.UsageError(f"{where}: @pytest.mark.gradient takes dtypes=[...] and transforms=[...], by name")
    dtypes = _known(mark.kwargs.get("dtypes", DTYPES[:2]), DTYPES, "dtypes", where)
    transforms = _known(mark.kwargs.get("transforms", TRANSFORMS), TRANSFORMS, "transforms", where)
    cases = [Case(dtype, transform) for dtype in dtypes for transform in transforms]
    ids = [f"{case.dtype}-{case.transform}" for case in cases]
    metafunc.parametrize("gradient_case", cases, ids=ids, indirect=True)


def _known(given: Any, known: tuple[str, ...], what: str, where: str) -> list[str]:
    given = [given] if isinstance(given, str) else given  # "jit" is one name, not three letters
    names = [str(name) for name in given] if isinstance(given, list | tuple) else []
    if not names or not set(names) <= set(known):
        raise pytest.UsageError(
            f"{where}: {what} of @pytest.mark.gradient is a list of {', '.join(known)}, got {given!r}"
        )
    return names


@pytest.fixture
def gradient_case(request: pytest.FixtureRequest) -> Case | None:
    """The dtype and transform of this run of a test marked `gradient`; None without the mark."""
    return getattr(request, "param", None)


@pytest.fixture
def assert_gradients_match(request: pytest.FixtureRequest, gradient_case: Case | None) -> Callable[..., "Report"]:
    """`assert_gradients_match(fun, grad_fun, *args, **options)`, as `reference.check_gradient`.

    Raises `GradientMismatch` where a row fails and `InconclusiveCheck` where rounding could hide a fault.
    """

    def assert_match(fun: Any, grad_fun: Any, *args: Any, **options: Any) -> "Report":
        __tracebackhide__ = True
        from reference.checks.gradient import check_gradient

        return _judged(request, gradient_case, lambda **case: check_gradient(fun, grad_fun, *args, **case), options)

    return assert_match


@pytest.fixture
def assert_vjp_correct(request: pytest.FixtureRequest, gradient_case: Case | None) -> Callable[..., "Report"]:
    """`assert_vjp_correct(f, *args, **options)`, as `reference.check_vjp`.

    Raises `GradientMismatch` where a row fails and `InconclusiveCheck` where rounding could hide a fault.
    """

    def assert_correct(f: Any, *args: Any, **options: Any) -> "Report":
        __tracebackhide__ = True
        from reference.checks.rule import check_vjp

        return _judged(request, gradient_case, lambda **case: check_vjp(f, *args, **case), options)

    return assert_correct


def _judged(
    request: pytest.FixtureRequest, case: Case | None, check: Callable[..., "Report"], options: dict[str, Any]
) -> "Report":
    __tracebackhide__ = True
    from reference.checks.faults import CallFailed
    from reference.report import GradientMismatch, InconclusiveCheck
    from reference.tolerance.sharing import shared

    if case is not None:
        taken = sorted({"dtype", "transforms"} & set(options))
        if taken:
            raise TypeError(f"{' and '.join(taken)} come from @pytest.mark.gradient here: leave them out of the call")
        options = options | {"dtype": case.dtype, "transforms": (case.transform,)}
    again = f"python -m pytest {shlex.quote(request.node.nodeid)}"
    started = time.monotonic()
    try:
        with nullcontext() if case is None else shared(request.session.stash.setdefault(_shared, {})):
            report = replace(check(**options), reproduce=again)
    except Exception as error:
        _record(request, _raised(error, case, again), started)
        if isinstance(error, CallFailed):  # show the user's own error, which is its cause
            raise error.with_traceback(None)  # noqa: B904 - it keeps the cause that it has
        raise
    _record(request, report, started)
    if report.verdict == "fail":
        raise GradientMismatch(report.summary())
    if report.verdict == "inconclusive":
        raise InconclusiveCheck(report.summary())
    return report


def _raised(error: Exception, case: Case | None, again: str) -> "Report":
    """A failing report for a check that raised, so that the report shows it too."""
    from reference.checks.faults import contract
    from reference.report import Report

    row = contract("the check itself", f"it raised {type(error).__name__}: {error}")
    return Report((row,), case.dtype if case else "", "not checked", reproduce=again)


def _record(request: pytest.FixtureRequest, report: "Report", started: float) -> None:
    done = request.node.stash.setdefault(_done, [])
    nodeid = request.node.nodeid
    name = f"{nodeid} #{len(done) + 1}" if done else nodeid
    done.append({"name": name, "seconds": time.monotonic() - started, "report": asdict(report)})


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drop what the runs of one test share after the last of them."""
    last = nextitem is None or _function(nextitem) != _function(item)
    if last and _shared in item.session.stash:
        del item.session.stash[_shared]


def _function(item: pytest.Item) -> tuple[Any, str]:
    """A test without its parameters."""
    return item.parent, getattr(item, "originalname", item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Send what was checked along with the test's report, also from another process."""
    report: Any = yield
    if call.when == "call" and _done in item.stash:
        report.gradient_reports = item.stash[_done]
    return report


class _Collector:
    """Collects all checks in the process that the user started, and writes the files at the end."""

    def __init__(self, config: pytest.Config, paths: list[Path]) -> None:
        self.config, self.paths = config, paths
        self.checks: dict[str, dict[str, Any]] = {}
        self.due: set[str] | None = None  # the tests that were collected, by id, once they are known
        self.ran: set[str] = set()
        self.uncollected = False
        self.started = time.monotonic()
        self.told: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notice a file whose tests are not known."""
        self.uncollected |= report.failed

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep which tests there are."""
        self.due = {item.nodeid for item in session.items}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Keep which tests there are; pytest-xdist collects them in its workers alone."""
        self.due = {*(self.due or ()), *ids}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the checks of a test, and whether it ran: in a setup that fails or skips it has had its run."""
        if report.when == "call" or not report.passed:
            self.ran.add(report.nodeid)
        checks = getattr(report, "gradient_reports", [])
        if report.skipped and hasattr(report, "wasxfail"):
            checks = [check | {"expected": report.wasxfail or "marked xfail"} for check in checks]
        elif report.failed and str(report.longrepr).startswith(_XPASS_STRICT):  # it is no exception, only this text
            checks = [*checks[:-1], *(check | {"unexpected": report.longrepr} for check in checks[-1:])]
        self.checks |= {check["name"]: check for check in checks}  # reports of subtests tell what their test's does

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write every file; one that cannot be written ends the run with an error, not with a traceback."""
        from reference.cli.files import BadInput
        from reference.reports.formats import write_reports

        # Not by the exit status: after -x it is a failure, and with pytest-xdist an interrupt even if all tests ran.
        run = self._run(partial=self.uncollected or self.due is None or not self.due <= self.ran)
        for path in self.paths:
            try:
                write_reports(run, **{SUFFIXES[path.suffix]: path})
                self.told.append(f"{len(self.checks)} gradient checks written to {path}")
            except BadInput as error:
                self.told.append(f"--gradient-report: {error}")
                session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where the files are."""
        for line in self.told:
            terminalreporter.write_line(line)

    def _run(self, partial: bool) -> Any:
        from reference.reports.run import Run

        checks = [self.checks[name] for name in sorted(self.checks)]  # workers finish in any order
        return Run(
            title="gradients checked by pytest",
            networks=tuple(map(_result, checks)),
            command=shlex.join(["python", "-m", "pytest", *map(str, self.config.invocation_params.args)]),
            versions={"python": sys.version.split()[0], **{name: version(name) for name in ("jax", "pytest")}},
            partial=partial,
            seconds=time.monotonic() - self.started,
            unit="gradient check",
        )


def _result(check: dict[str, Any]) -> "NetworkResult":
    """A check as `_record` kept it, with pytest's judgement of its test."""
    from reference.report import Report, Row
    from reference.reports.run import NetworkResult

    kept = dict(check["report"])
    rows = [Row(**row | {key: tuple(row[key]) for key in ("shape", "where")}) for row in kept.pop("rows")]
    if "unexpected" in check:
        from reference.checks.faults import contract

        rows.append(contract("the test's mark xfail", f"nothing fails: {check['unexpected']}"))
    report = Report(tuple(rows), **kept | {"notes": tuple(kept["notes"])})
    return NetworkResult(check["name"], report, check["seconds"], expected=check.get("expected", ""))
