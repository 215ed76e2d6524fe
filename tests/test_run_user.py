"""A user's own function by name: found, checked, and refused in words where it cannot be."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference.files import BadInput
from reference.run_user import run

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
    assert (report.failures[0].path, report.dtype) == ("args[1]", "float32")
    assert run("usermodule:rules.wrong", "usermodule:example", argnums=0).passed  # the wrong one is not asked for


def test_a_pushforward_inside_jit_and_a_gradient(user: Path) -> None:
    assert run("usermodule:tangent", "usermodule:one").subject.startswith("the jvp rule")
    assert run("usermodule:loss", "usermodule:example", gradient="usermodule:gradient", argnums=1).passed
    assert run("usermodule:loss", "usermodule:example", gradient="usermodule:gradient").failures[0].path == "args[0]"
    assert run("usermodule:rules.right", "usermodule:example", raw="usermodule:plain.cube").passed


@pytest.mark.parametrize(
    ("target", "args", "says"),
    [
        ("usermodule", "usermodule:example", "expected module:name"),
        ("usermodule:", "usermodule:example", "expected module:name"),
        ("user module:f()", "usermodule:example", "expected module:name"),
        ("usermodul:loss", "usermodule:example", "there is no module 'usermodul' in {folder}"),
        ("usermodule.sub:loss", "usermodule:example", "usermodule.sub"),
        ("usermodule:rules.wright", "usermodule:example", "usermodule.rules has no name 'wright'; did you mean right?"),
        ("usermodule:example", "usermodule:example", "the target usermodule:example is not callable: it is tuple"),
        (
            "usermodule:rules.right",
            "usermodule:not_a_tuple",
            "must be a tuple, or a function that returns one, got list",
        ),
        ("usermodule:rules.right", "usermodule:fails", "raised OSError: no data at {folder}/usermodule.py"),
        ("usermodule:rules.right", "usermodule:loss", "raised TypeError"),
        ("usermodule:loss", "usermodule:example", "loss is not a jax.custom_vjp: use check_gradient"),
        (
            "broken:f",
            "usermodule:example",
            "importing broken raised ZeroDivisionError: division by zero at {folder}/broken.py:2",
        ),
        ("needy:f", "usermodule:example", "importing needy raised ModuleNotFoundError: No module named 'not_installed"),
        ("leaves:f", "usermodule:example", "importing leaves raised SystemExit: 3"),
        ("usermodule:rules.right", "usermodule:one", "missing 1 required positional argument"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(user: Path, target: str, args: str, says: Any) -> None:
    with pytest.raises(BadInput) as caught:
        run(target, args)
    assert says.format(folder=user) in str(caught.value)
