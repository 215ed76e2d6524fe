"""CONTRIBUTING.md's layer, composite and rule, run as they stand there."""

import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, batch, generic

import manual_backprop as mb
import reference
from reference import autodiff

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
NETWORK, LAYER, METHODS, MEAN, COMPOSITE, RULE, DROPPED = BLOCKS


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
        env={"PYTHONPATH": str(ROOT), "PATH": "", "XLA_FLAGS": os.environ["XLA_FLAGS"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layer_is_short():
    lines = [line for line in LAYER.splitlines() if line.strip()]
    assert len(lines) <= 55


COMMAND = """
import contextlib, io
from reference.cli import main
given = ["check", "--quick", "--import", "ring", "--only"]
with contextlib.redirect_stdout(io.StringIO()) as listed:
    assert main([*given, "ring", "--list"]) == 0
assert main([*given, next(name for name in listed.getvalue().splitlines() if "float64" in name)]) == 0
"""


@pytest.mark.evidence
def test_its_methods_are_proven_and_it_stands_in_the_catalogue(tmp_path):
    """The very text: saved as ring.py, checked method by method, listed and proven by the command."""
    (tmp_path / "ring.py").write_text(LAYER, encoding="utf-8")
    done = run(tmp_path, "-c", METHODS + COMMAND)
    assert done.returncode == 0, done.stderr
    assert ", ring" in done.stdout or "of ring" in done.stdout
    assert "ALL PROVEN" in done.stdout


def assert_same_product(objective, params, x, y):
    """With the Hessian, along a direction that is not special."""

    @jax.jit
    def both(v):
        return [f.hessian_vector_product(objective, params, x, y, v) for f in (mb, autodiff)]

    assert_close(*both(jax.tree.map(np.cos, params)), 1e-12)


@pytest.fixture(scope="module")
def damped(tmp_path_factory) -> Any:
    return loaded("damped", tmp_path_factory.mktemp("composite"), COMPOSITE).Damped


def test_the_composite_is_proven_in_every_sweep(damped):
    net = mb.Serial(
        (mb.Dense(4, 4, "tanh"), damped(mb.Serial((mb.Dense(4, 3, "gelu"), mb.Dense(3, 4)))), mb.Dense(4, 2))
    )
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(4), batch(2, seed=3)
    report = reference.check(objective, params, x, y)
    report.raise_if_failed()
    assert {row.layer for row in report.rows if row.kind == "equation"} == {0, 1, 2, 3, 4}
    assert_same_product(objective, params, x, y)
    assert net.out_shape((4,)) == (2,)


@pytest.mark.evidence
def test_the_network_and_the_composite_of_branches(tmp_path):
    assert "PROVEN" in run(tmp_path, "-c", NETWORK).stdout
    mean = loaded("mean", tmp_path, MEAN).Mean
    branches = (mb.Serial((mb.Dense(4, 3, "gelu"), mb.Dense(3, 4))), mb.Repeat(mb.Dense(4, 4, "tanh"), 2))
    net = mb.Serial((mb.Dense(4, 4, "tanh"), mean(branches), mb.Dense(4, 2)))
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(4), batch(2, seed=3)
    reference.check(objective, params, x, y).raise_if_failed()
    assert_same_product(objective, params, x, y)
    assert str(mean(branches)) == f"Mean({branches[0]}, {branches[1]})"
    with pytest.raises(ValueError, match="what is added must have one shape, got \\[1, 4\\] and \\[1, 1\\]"):
        mean((mb.Dense(4, 4), mb.Dense(4, 1))).out_shape((4,))


def prove(rule: Any, *given: Any) -> None:
    """As the page says: of what is read, and of what trains."""
    reference.check(
        *given,
        backprop=partial(mb.backprop, rule=rule),
        value_and_grad=lambda objective: partial(mb.value_and_grad(objective), rule=rule),
    ).raise_if_failed()


def test_a_rule_with_keys_draws_anew_for_every_layer_block_and_use(tmp_path):
    """At p = 1 it is backpropagation; below, right on average, which masks shared by blocks or uses would not be."""
    dropped = loaded("dropped", tmp_path, DROPPED).DroppedTransport
    net = mb.Serial((mb.Repeat(mb.Dense(3, 3), 2), mb.Tied(mb.Dense(3, 3), 2), mb.Dense(3, 2)))
    objective = mb.Objective(net, mb.squared_error)
    params, x, y = generic(net), batch(3), batch(2, seed=3)
    prove(dropped(jax.random.key(0), 1.0), objective, params, x, y)

    def d_x(key: jax.Array) -> jax.Array:
        return mb.backprop(objective, params, x, y, rule=dropped(key)).d_x

    @jax.jit
    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mb.backprop(objective, params, x, y).d_x, jax.vmap(d_x)(jax.random.split(key, 4000))

    plain, draws = map(np.asarray, both(jax.random.key(1)))
    error = draws.std(axis=0) / 4000**0.5
    assert np.abs((draws.mean(axis=0) - plain) / error).max() < 5
    with pytest.raises(ValueError, match="Lost.carried must give one entry for every layer"):
        mb.backprop(objective, params, x, y, rule=Lost())


class Lost(mb.rules.Rule):
    def carried(self, net: Any, params: Any, trace: Any, d_output: Any) -> Any:
        return params[:2]


def test_the_rules_change_what_travels_and_nothing_else(tmp_path):
    rules = loaded("rules", tmp_path, RULE)
    tried = (rules.ClippedTransport(0.01), rules.SignDelta(), rules.ScaledWeights(np.asarray(0.5)))
    net = mb.mlp((4, 5, 5, 3))
    objective = mb.Objective(net, mb.squared_error)
    params, x, y = generic(net), batch(4), batch(3, seed=3)

    @jax.jit
    def steps(*given: Any) -> list[mb.Step]:
        return [mb.backprop(objective, params, x, y, rule=rule) for rule in given]

    plain, clipped, signs, scaled = jax.device_get(steps(mb.rules.backprop, *tried))
    slope, sent = 1 - plain.trace[1].a ** 2, plain.deltas[2] @ np.asarray(params[2].W)
    assert_close([clipped.deltas[-1], scaled.deltas[-1]], 2 * [plain.deltas[-1]])
    assert_close(clipped.deltas[1], slope * np.clip(sent, -0.01, 0.01))
    assert np.abs(clipped.d_x).max() == 0.01
    assert_close(signs.deltas[-1], np.sign(plain.deltas[-1]))
    assert_close(scaled.deltas[1], slope * sent / 2)
