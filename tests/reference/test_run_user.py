"""A user's own function by name: found, checked, and refused in words where it cannot be."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference.cli.files import BadInput
from reference.cli.user import run

MODULE = """
import jax, jax.numpy as jnp, numpy as np

def cube(x, y):
    return x**3 * y

class rules:
    right = jax.custom_vjp(cube)
    wrong = jax.custom_vjp(cube)

rules.right.defvjp(lambda x, y: (cube(x, y), (x, y)), lambda s, g: (3 * s[0]**2 * s[1] * g, s[0]**3 * g))
rules.wrong.defvjp(lambda x, y: (cube(x, y), (x, y)), lambda s, g: (3 * s[0]**2 * s[1] * g, s[0] * g))
tangent = jax.jit(jax.custom_jvp(jnp.sin))
tangent.__wrapped__.defjvps(lambda t, out, x: jnp.cos(x) * t)
example = (np.array([1.0, 2.0]), np.array([3.0, -1.0]))
one = (np.array([1.0, 2.0]),)
not_a_tuple = [1.0]
def make(): return example
def fails(): raise OSError("no data")
def loss(x, y): return jnp.sum(cube(x, y))
def gradient(x, y): return x**3
class plain:
    def cube(x, y): return x * x * x * y

import manual_backprop as mb
from reference.catalogue.networks import draw_params
class Twice(mb.losses.SquaredError):
    def derivative(self, o, y): return 2 * (o - y)
net = mb.Dense(2, 1)
objective = mb.Objective(net, Twice())
step = (draw_params(net, 1.0, np.random.default_rng(0)), np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([[3.0], [1.0]]))
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "usermodule.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import numpy\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("usermodule", "broken", "needy", "leaves"):
        sys.modules.pop(name, None)


def test_a_rule_by_its_dotted_name(user: Path) -> None:
    assert run("usermodule:rules.right", "usermodule:make").passed
    report = run("usermodule:rules.wrong", "usermodule:example", dtype="float32")
    assert (report.failures[0].path, report.dtype) == ("y", "float32")
    assert run("usermodule:rules.wrong", "usermodule:example", argnums=0).passed  # the wrong one is not asked for


def test_a_pushforward_inside_jit_and_a_gradient(user: Path) -> None:
    assert run("usermodule:tangent", "usermodule:one").subject.startswith("the jvp rule")
    assert run("usermodule:loss", "usermodule:example", gradient="usermodule:gradient", argnums=1).passed
    assert run("usermodule:loss", "usermodule:example", gradient="usermodule:gradient").failures[0].path == "x"
    assert run("usermodule:rules.right", "usermodule:example", raw="usermodule:plain.cube").passed


def test_an_approximation_and_a_thorough_check_are_passed_on(user: Path) -> None:
    report = run("usermodule:rules.right", "usermodule:example", approximation=1e-3, thorough=True)
    assert report.passed and "approximation=0.001, thorough=True" in report.reproduce
    assert any(row.path.startswith("differentiated again: ") for row in report.rows)
    with pytest.raises(BadInput, match="a number from 0 up to 1"):
        run("usermodule:rules.right", "usermodule:example", approximation=2.0)


def test_an_objective_is_checked_equation_by_equation(user: Path) -> None:
    report = run("usermodule:objective", "usermodule:step", dtype="float32")
    assert (report.failures[0].equation, report.dtype) == ("(B1)", "float32")  # 2 (o - y) for o - y
    assert all(row.passed for row in report.rows if row.path.startswith(("trace", "loss", "penalty")))


def refusal(target: str, args: str, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        run(target, args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("args", "options", "says"),
    [
        ("example", {}, "of an Objective must be (params, x, y), got a tuple of 2"),
        ("step", {"argnums": 0}, "is an Objective, checked in all of its arguments: no --raw, no --argnums"),
        ("step", {"raw": "usermodule:loss"}, "is an Objective"),
        ("step", {"witnesses": "all"}, "--witnesses differentiate a plain function"),
        ("step", {"gradient": "usermodule:gradient", "raw": "usermodule:loss"}, "TARGET itself is plain"),
    ],
)
def test_what_does_not_go_with_an_objective(user: Path, args: str, options: dict[str, Any], says: str) -> None:
    assert says in refusal("usermodule:objective", f"usermodule:{args}", **options)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("usermodule", "expected module:name"),
        ("usermodule:", "expected module:name"),
        ("user module:f()", "expected module:name"),
        ("usermodul:loss", "there is no module 'usermodul' in {folder}"),
        ("usermodule.sub:loss", "usermodule.sub"),
        ("usermodule:rules.wright", "usermodule.rules has no name 'wright'; did you mean right?"),
        ("usermodule:example", "the target usermodule:example is not callable: it is tuple"),
        ("usermodule:net", "it is Dense; of a network, check an objective: mb.Objective(net, loss)"),
        ("usermodule:loss", "name the gradient that you wrote for it, --gradient usermodule:its_gradient"),
        ("broken:f", "importing broken raised ZeroDivisionError: division by zero at {folder}/broken.py:2"),
        ("needy:f", "importing needy raised ModuleNotFoundError: No module named 'not_installed"),
        ("leaves:f", "importing leaves raised SystemExit: 3"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused_in_words(user: Path, target: str, says: str) -> None:
    assert says.format(folder=user) in refusal(target, "usermodule:example")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("usermodule:not_a_tuple", "must be a tuple, or a function that returns one, got list"),
        ("usermodule:fails", "raised OSError: no data at {folder}/usermodule.py"),
        ("usermodule:loss", "raised TypeError"),
        ("usermodule:one", "missing 1 required positional argument"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_in_words(user: Path, args: str, says: str) -> None:
    assert says.format(folder=user) in refusal("usermodule:rules.right", args)
