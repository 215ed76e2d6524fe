"""The pytest plugin, run as a user runs it: pytest on a project of its own, in other processes where that matters."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers import as_a_user

PROJECT = """
import jax, jax.numpy as jnp, numpy as np, pytest

X = np.random.default_rng(0).normal(size=3)

def cube(x, y):
    return x**3 * y

def with_rule(backward):
    f = jax.custom_vjp(cube)
    f.defvjp(lambda x, y: (cube(x, y), (x, y)), backward)
    return f

right = with_rule(lambda saved, g: (3 * saved[0]**2 * saved[1] * g, saved[0]**3 * g))
wrong = with_rule(lambda saved, g: (2 * saved[0]**2 * saved[1] * g, saved[0]**3 * g))
"""
FAILING = """
def test_right(assert_vjp_correct):
    assert assert_vjp_correct(right, X, X[::-1], transforms=["eager"]).passed

def test_wrong(assert_vjp_correct):
    assert_vjp_correct(wrong, X, X[::-1], transforms=["eager"])

def test_raises(assert_gradients_match):
    assert_gradients_match(jnp.sum, lambda x: undefined, X)

def test_noisy(assert_gradients_match):
    waves = [lambda x: jnp.sum(jnp.sin(1e4 * x)), lambda x: 1e4 * jnp.cos(1e4 * x)]
    assert_gradients_match(*waves, X, dtype="bfloat16", transforms="eager")
"""
MARKED = """
@pytest.mark.gradient(dtypes=["float32", "float64"], transforms=["eager", "jit"])
def test_each(assert_gradients_match, gradient_case):
    seen = []

    def by_hand(x):
        seen.append((str(x.dtype), "jit" if isinstance(x, jax.core.Tracer) else "eager"))
        wrong = isinstance(x, jax.core.Tracer) and x.dtype == jnp.float32
        return jnp.cos(x) * (2 if wrong else 1)

    try:
        report = assert_gradients_match(lambda x: jnp.sum(jnp.sin(x)), by_hand, X)
    finally:
        assert (gradient_case.dtype, gradient_case.transform) in seen
        assert {dtype for dtype, _ in seen} == {gradient_case.dtype}
    assert report.dtype == gradient_case.dtype
"""


def run(pytester: pytest.Pytester, *arguments: str, processes: int = 0) -> pytest.RunResult:
    installed = any(point.name == "manual_backprop" for point in entry_points(group="pytest11"))
    ours = [] if installed else ["-p", "reference.pytest_plugin"]
    arguments = (*ours, "-p", "no:hypothesispytest", *arguments)  # which imports hypothesis anew at the end of a run
    if processes:
        return pytester.runpytest_subprocess("-n", str(processes), *arguments)
    with as_a_user():  # JAX is imported already; an interrupt ends that run and not this one
        return pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    # A run of pytest's own imports the plugin itself; another test may have imported it with types checked at run time.
    monkeypatch.delitem(sys.modules, "reference.pytest_plugin", raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    return pytester


def test_a_failure_says_which_entry_and_how_to_run_it_again(project: pytest.Pytester) -> None:
    project.makepyfile(test_users_rules=PROJECT + FAILING)
    result = run(project, "--gradient-report=out.json", "--gradient-report=out.xml", "--gradient-report=out.md")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "E   *GradientMismatch: DIFFERS: * comparisons in float64; first in the order of computation:",
            "E *x[[]*is * by hand, * by jax.vjp of the plain function*",
            "E *again: python -m pytest test_users_rules.py::test_wrong",
            "*CallFailed: grad_fun (*<lambda>) raised NameError: name 'undefined' is not defined at *users_rules.py:*",
            "E *InconclusiveCheck: INCONCLUSIVE: in bfloat16 rounding could hide a fault*",
            "4 gradient checks written to out.json",
        ]
    )
    result.stdout.no_fnmatch_line("*reference/*.py:*: *")  # tracebacks end in the user's own code
    told = json.loads((project.path / "out.json").read_text())
    verdicts = {network["name"]: network["verdict"] for network in told["networks"]}
    assert verdicts == {
        "test_users_rules.py::test_right": "pass",
        "test_users_rules.py::test_wrong": "fail",
        "test_users_rules.py::test_raises": "fail",
        "test_users_rules.py::test_noisy": "inconclusive",
    }
    assert told["verdict"] == "fail" and not told["partial"]
    (wrong,) = [network for network in told["networks"] if network["name"].endswith("wrong")]
    rows = {row["path"]: row for row in wrong["report"]["rows"]}
    assert rows["x"]["verdict"] == "fail" and rows["y"]["verdict"] == "pass"
    assert rows["x"]["manual"] / rows["x"]["reference"] == pytest.approx(2 / 3)
    assert ElementTree.fromstring((project.path / "out.xml").read_text()).findall(".//failure")
    page = (project.path / "out.md").read_text()
    assert page.startswith("## ❌ NOT PROVEN: 2 of 4 gradient checks differ, 1 of 4 gradient checks undecided, ")
    assert "| verdict | gradient check | precision |" in page and "test_users_rules.py::test_wrong" in page


def test_the_mark_runs_every_dtype_and_transform_and_processes_report_to_one_file(project: pytest.Pytester) -> None:
    project.makepyfile(test_marked=PROJECT + MARKED)
    result = run(project, "--gradient-report=out.json", "-p", "no:cacheprovider", processes=2)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*again: python -m pytest 'test_marked.py::test_each[[]float32-jit[]]'"])
    networks = json.loads((project.path / "out.json").read_text())["networks"]
    verdicts = {network["name"].partition("[")[2]: network["verdict"] for network in networks}
    assert verdicts == {
        "float32-eager]": "pass",
        "float32-jit]": "fail",
        "float64-eager]": "pass",
        "float64-jit]": "pass",
    }
    assert {network["report"]["dtype"] for network in networks} == {"float32", "float64"}


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("@pytest.mark.gradient\ndef test_a(): pass", "*is for tests that use assert_gradients_match*"),
        (
            "@pytest.mark.gradient(dtypes=['int8'])\ndef test_a(gradient_case): pass",
            "*dtypes of @pytest.mark.gradient*",
        ),
        (
            "@pytest.mark.gradient(transforms='pmap')\ndef test_a(gradient_case): pass",
            "*is a list of eager, jit, vmap, got*pmap*",
        ),
        ("@pytest.mark.gradient(transforms=[])\ndef test_a(gradient_case): pass", "*transforms of @pytest.mark.grad*"),
        (
            "@pytest.mark.gradient('jit')\ndef test_a(gradient_case): pass",
            "*takes dtypes=[[]...[]] and transforms*by name*",
        ),
    ],
)
def test_a_mark_that_cannot_be_obeyed_is_refused(project: pytest.Pytester, test: str, says: str) -> None:
    project.makepyfile("import pytest\n" + test)
    result = run(project)
    assert result.ret != 0
    result.stdout.fnmatch_lines([says])


STOPPING = """
import time

def test_first(assert_vjp_correct):
    assert_vjp_correct(right, X, X[::-1], transforms=["eager"])

def test_wrong(assert_vjp_correct):
    assert_vjp_correct(wrong, X, X[::-1], transforms=["eager"])
"""
LEFT_OUT = "".join(f"\ndef test_later_{i}(): time.sleep(0.3)\n" for i in range(12))


def report_of(project: pytest.Pytester) -> dict[str, Any]:
    return json.loads((project.path / "out.json").read_text())


@pytest.mark.parametrize("option", ["-x", pytest.param("--maxfail=1", marks=pytest.mark.evidence)])
@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.evidence)])
def test_a_run_that_stops_at_a_failure_is_partial(project: pytest.Pytester, option: str, processes: int) -> None:
    project.makepyfile(test_users_rules=PROJECT + STOPPING + LEFT_OUT)
    run(project, option, "--gradient-report=out.json", processes=processes)
    told = report_of(project)
    assert told["partial"] and told["verdict"] == "fail"
    assert {network["name"].partition("::")[2] for network in told["networks"]} == {"test_first", "test_wrong"}


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.evidence)])
def test_a_failure_of_the_last_test_leaves_nothing_out(project: pytest.Pytester, processes: int) -> None:
    skipped = "@pytest.mark.skip\ndef test_skipped(): pass\n\ndef test_other(): pass\n"
    project.makepyfile(test_users_rules=PROJECT + skipped + STOPPING)
    result = run(project, "-x", "-k", "not other", "--gradient-report=out.json", processes=processes)
    result.assert_outcomes(passed=1, failed=1, skipped=1, deselected=0 if processes else 1)
    assert not report_of(project)["partial"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("def test_later(): raise KeyboardInterrupt", id="key"),
        pytest.param(
            "def test_later(): pytest.exit('enough')\ndef test_last(): pass", id="exit", marks=pytest.mark.evidence
        ),
    ],
)
def test_a_run_that_is_interrupted_is_partial(project: pytest.Pytester, more: str) -> None:
    project.makepyfile(test_users_rules=PROJECT + STOPPING + more)
    left = "--deselect=test_users_rules.py::test_wrong"
    result = run(project, left, "--gradient-report=out.json", "--gradient-report=out.md")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    told = report_of(project)
    assert told["partial"] and told["verdict"] == "inconclusive" and len(told["networks"]) == 1
    assert "**PARTIAL**: the run stopped early" in (project.path / "out.md").read_text()


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.evidence)])
def test_a_file_that_cannot_be_collected_makes_a_run_partial(project: pytest.Pytester, processes: int) -> None:
    project.makepyfile(test_broken="import nowhere", test_users_rules="def test_a(): pass")
    run(project, "--continue-on-collection-errors", "--gradient-report=out.json", processes=processes)
    assert report_of(project)["partial"]


XFAIL = """
def test_right(assert_vjp_correct):
    assert_vjp_correct(right, X, X[::-1], transforms=["eager"])

@pytest.mark.xfail(reason="known, #12", strict=STRICT, raises=AssertionError)
def test_expected(assert_vjp_correct):
    assert_vjp_correct(right, X, X, transforms=["eager"])
    assert_vjp_correct(wrong, X, X[::-1], transforms=["eager"])
"""
FORMATS = [f"--gradient-report=out.{kind}" for kind in ("json", "xml", "md", "html")]


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.evidence)])
def test_a_failure_that_xfail_expects_is_none_of_the_run(project: pytest.Pytester, processes: int) -> None:
    project.makepyfile(test_users_rules=PROJECT + XFAIL.replace("STRICT", "True"))
    run(project, *FORMATS, processes=processes).assert_outcomes(passed=1, xfailed=1)
    told = report_of(project)
    assert told["verdict"] == "pass" and told["passed"] and told["expected"] == 1
    found = [(network["verdict"], network["expected"]) for network in told["networks"]]
    assert found == [("pass", "known, #12"), ("fail", "known, #12"), ("pass", "")]
    root = ElementTree.fromstring((project.path / "out.xml").read_text())
    assert root.get("failures") == "0"
    skipped = [(case.get("type"), case.get("message")) for case in root.findall(".//skipped")]
    assert set(skipped) == {("pytest.xfail", "known, #12")}
    for kind in ("md", "html"):
        page = (project.path / f"out.{kind}").read_text()
        assert "ALL PROVEN" in page and "on 2 gradient checks besides 1 expected to fail" in page
        assert "EXPECTED TO FAIL" in page and "DIFFERS |" not in page


def expecting(name: str, mark: str, rule: str) -> str:
    return f"""
@pytest.mark.xfail{mark}
def test_{name}(assert_vjp_correct):
    assert_vjp_correct(right, X, X, transforms=["eager"])
    assert_vjp_correct({rule}, X, X[::-1], transforms=["eager"])
"""


XFAILS = {
    "lax": expecting("lax", "(reason='known, #12')", "right"),
    "strict": expecting("strict", "(reason='known, #12', strict=True)", "right"),
    "bare": expecting("bare", "", "wrong"),
    "of_another_error": expecting("of_another_error", "(reason='known, #12', raises=ZeroDivisionError)", "wrong"),
}


def test_an_xfail_is_what_pytest_says_it_is(project: pytest.Pytester) -> None:
    """One that passes, with strict a failure; one without a reason; and one that fails of what it does not expect."""
    project.makepyfile(test_users_rules=PROJECT + "".join(XFAILS.values()))
    run(project, *FORMATS).assert_outcomes(xpassed=1, xfailed=1, failed=2)
    told = report_of(project)
    assert told["verdict"] == "fail" and told["expected"] == 1
    found = {network["name"].partition("::test_")[2]: network for network in told["networks"]}
    assert {name: (network["verdict"], network["expected"]) for name, network in found.items()} == {
        "lax": ("pass", ""),
        "lax #2": ("pass", ""),
        "strict": ("pass", ""),
        "strict #2": ("fail", ""),
        "bare": ("pass", "marked xfail"),
        "bare #2": ("fail", "marked xfail"),
        "of_another_error": ("pass", ""),
        "of_another_error #2": ("fail", ""),
    }
    (row,) = [row for row in found["strict #2"]["report"]["rows"] if row["verdict"] == "fail"]
    assert row["cause"] == "nothing fails: [XPASS(strict)] known, #12"


def test_checks_in_subtests_are_listed_once(project: pytest.Pytester) -> None:
    if not hasattr(pytest, "Subtests"):
        pytest.skip("this pytest has no subtests")
    project.makepyfile(
        PROJECT + "def test_a(assert_vjp_correct, subtests):\n"
        "    for i in range(2):\n"
        "        with subtests.test(i=i): assert_vjp_correct(right, X, X, transforms='eager')\n"
    )
    assert run(project, "--gradient-report=out.json").ret == 0
    assert [network["name"].partition("::")[2] for network in report_of(project)["networks"]] == ["test_a", "test_a #2"]


INHERITED = """
pytestmark = pytest.mark.gradient(dtypes=["float32"], transforms=["eager", "jit"])

def test_ordinary(): pass

def test_gradient(gradient_case):
    assert gradient_case.dtype == "float32"

@pytest.mark.gradient(dtypes=["float64"], transforms=["vmap"])
class TestInClass:
    def test_ordinary(self): pass

    def test_gradient(self, gradient_case):
        assert gradient_case.dtype == "float64"
"""


def test_a_mark_of_a_module_or_a_class_leaves_ordinary_tests_alone(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n" + INHERITED)
    result = run(project, "-v")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*::test_ordinary PASSED*", "*::TestInClass::test_gradient[[]float64-vmap[]] PASSED*"])
    project.makepyfile("import pytest\n" + INHERITED + "\n@pytest.mark.gradient\ndef test_direct(): pass\n")
    run(project).stdout.fnmatch_lines(["*::test_direct: @pytest.mark.gradient is for tests that use *"])


COUNTING = """
import reference.tolerance.rounding as rounding
from reference.tolerance import sharing
from reference.pytest_plugin import _shared

evaluate, evaluated = rounding.perturbed, []

def perturbed(*given):
    evaluated.append(sharing._memo.get())
    return evaluate(*given)

@pytest.fixture(autouse=True, scope="module")
def counted():
    rounding.perturbed = perturbed
    yield
    rounding.perturbed = evaluate

DRAWS = np.random.default_rng(1)

@pytest.mark.gradient(transforms=["eager", "jit"])
def test_same(assert_vjp_correct):
    assert_vjp_correct(right, X, X[::-1])
    assert_vjp_correct(right, X, X)

@pytest.mark.gradient(dtypes=["float64"], transforms=["eager", "jit"])
def test_other(assert_vjp_correct, request):
    assert len(evaluated) == 4 + (len(request.session.stash.get(_shared, ())))
    assert_vjp_correct(right, X, DRAWS.normal(size=3))

def test_end(request):
    assert len(evaluated) == 4 + 2 and _shared not in request.session.stash
    assert len({id(memo) for memo in evaluated}) == 2
"""


def test_the_runs_of_a_marked_test_share_what_they_measure_alike(project: pytest.Pytester) -> None:
    project.makepyfile(PROJECT + COUNTING)
    run(project).assert_outcomes(passed=4 + 2 + 1)


def test_a_name_in_the_mark_is_one_name_and_not_its_letters(project: pytest.Pytester) -> None:
    mark = "@pytest.mark.gradient(dtypes='float32', transforms='jit')\n"
    bare = "\n@pytest.mark.gradient\ndef test_all(gradient_case): pass"
    project.makepyfile("import pytest\n" + mark + "def test_a(gradient_case): print(gradient_case)" + bare)
    result = run(project, "-s")
    result.assert_outcomes(passed=1 + 6)  # and without names every dtype and transform
    result.stdout.fnmatch_lines(["*Case(dtype='float32', transform='jit')*"])


def test_an_option_that_the_mark_gives_is_refused_in_the_call(project: pytest.Pytester) -> None:
    project.makepyfile(
        PROJECT + "@pytest.mark.gradient(dtypes=['float32'], transforms=['jit'])\n"
        "def test_a(assert_vjp_correct): assert_vjp_correct(right, X, X, dtype='float64')\n"
    )
    run(project).stdout.fnmatch_lines(["*TypeError: dtype come from @pytest.mark.gradient here*"])


@pytest.mark.parametrize(
    ("name", "says"),
    [("out.txt", "*must end in .json, .xml, .md, .html*"), ("no/out.json", "*folder no does not exist*")],
)
def test_a_report_that_cannot_be_written_is_refused_before_any_test(
    project: pytest.Pytester, name: str, says: str
) -> None:
    project.makepyfile("def test_a(): raise SystemError('was run')")
    result = run(project, f"--gradient-report={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])
    result.stdout.no_fnmatch_line("*was run*")


def test_importing_the_plugin_does_not_import_jax() -> None:
    code = "import sys, reference.pytest_plugin; print('jax' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
