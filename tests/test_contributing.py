"""CONTRIBUTING.md's layer, composite and rule, run as they stand there."""

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, batch, check, generic, quick_flags

import manual_backprop as mb
from reference import autodiff

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
LAYER, METHODS, COMPOSITE, RULE = BLOCKS


def loaded(name: str, folder: Path, source: str) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "XLA_FLAGS": quick_flags()},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layer_is_short():
    lines = [line for line in LAYER.splitlines() if line.strip()]
    assert len(lines) <= 55


def test_its_methods_are_proven_and_it_stands_in_the_catalogue(tmp_path):
    """The very text: saved as ring.py, checked method by method, listed and proven by the command."""
    (tmp_path / "ring.py").write_text(LAYER, encoding="utf-8")
    done = run(tmp_path, "-c", METHODS)
    assert done.returncode == 0, done.stderr
    main = "import sys; from reference.cli import main; sys.exit(main(sys.argv[1:]))"
    names = run(tmp_path, "-c", main, "check", "--quick", "--import", "ring", "--only", "ring", "--list")
    assert names.returncode == 0, names.stderr
    assert "ring" in names.stdout
    first = next(name for name in names.stdout.splitlines() if "float64" in name)
    proven = run(tmp_path, "-c", main, "check", "--quick", "--import", "ring", "--only", first)
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert "ALL PROVEN" in proven.stdout


@pytest.fixture(scope="module")
def damped(tmp_path_factory) -> Any:
    return loaded("damped", tmp_path_factory.mktemp("composite"), COMPOSITE).Damped


def test_the_composite_is_proven_in_every_sweep(damped):
    net = mb.Serial(
        (mb.Dense(4, 4, "tanh"), damped(mb.Serial((mb.Dense(4, 3, "gelu"), mb.Dense(3, 4)))), mb.Dense(4, 2))
    )
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(4), batch(2, seed=3)
    report = check(objective, params, x, y)
    report.raise_if_failed()
    assert {row.layer for row in report.rows if row.kind == "equation"} == {0, 1, 2, 3, 4}
    v = jax.tree.map(jnp.cos, params)
    ours = mb.hessian_vector_product(objective, params, x, y, v)
    assert_close(ours, autodiff.hessian_vector_product(objective, params, x, y, v), 1e-12)
    assert net.out_shape((4,)) == (2,)


def test_the_rule_changes_what_travels_and_nothing_else(tmp_path):
    rule = loaded("clipped", tmp_path, RULE).ClippedTransport(0.01)
    net = mb.mlp((4, 5, 5, 3))
    objective = mb.Objective(net, mb.squared_error)
    params, x, y = generic(net), batch(4), batch(3, seed=3)
    step, plain = (mb.backprop(objective, params, x, y, **given) for given in ({"rule": rule}, {}))
    assert_close(step.deltas[-1], plain.deltas[-1])
    slope = 1 - step.trace[1].a ** 2
    assert_close(step.deltas[1], slope * jnp.clip(plain.deltas[2] @ params[2].W, -0.01, 0.01))
    assert float(jnp.abs(step.d_x).max()) == 0.01
