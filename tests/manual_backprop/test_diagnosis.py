"""Diagnosis of signals against NumPy, and what it is for: vanishing, saturation, dead units."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, batch, generic, targets

import manual_backprop as mb


def diagnosed(net: Any, params: Any, x: Any, y: Any) -> tuple[mb.Step, Any]:
    """(the step with squared error, its diagnosis), from one program."""

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> tuple[mb.Step, Any]:
        step = mb.backprop(mb.Objective(net, mb.squared_error), params, x, y)
        return step, mb.diagnose(net, step.trace, step.deltas)

    return run(params, x, y)


def test_every_number_by_numpy():
    net = mb.mlp((3, 5, 2), "relu")
    step, found = diagnosed(net, generic(net), batch(3, 8), targets(mb.squared_error, 2, 8))
    for layer in (0, 1):
        for name, values in (("z", step.trace[layer].z), ("a", step.trace[layer].a), ("delta", step.deltas[layer])):
            values, signal = np.asarray(values), getattr(found[layer], name)
            norm = np.sqrt(np.mean(np.linalg.norm(values, axis=1) ** 2))
            expected = (norm, values.mean(), values.std(), np.mean(values == 0))
            assert_close((signal.norm, signal.mean, signal.deviation, signal.zeros), expected)
    off = np.asarray(step.trace[0].z) <= 0
    assert_close((found[0].saturated, found[0].dead), (off.mean(), off.all(0).mean()))
    assert 0 < found[0].saturated < 1


def test_dead_and_saturated_units_are_counted():
    net = mb.mlp((2, 4, 1), "relu")
    params = (mb.Affine(np.ones((4, 2)), np.asarray([-100.0, -100.0, 0.0, 5.0])), generic(net)[1])
    x = np.abs(batch(2, 6))
    assert float(diagnosed(net, params, x, np.zeros((6, 1)))[1][0].dead) == 0.5
    tanh = mb.mlp((2, 4, 1), "tanh")

    @jax.jit
    def without_error(params: Any, x: Any) -> tuple[Any, Any]:
        trace, deltas = mb.forward(tanh, params, x)[1], (jnp.zeros((6, 4)), jnp.zeros((6, 1)))
        return mb.diagnose(tanh, trace, deltas), mb.diagnose(tanh, trace, deltas, threshold=1e-300)

    found, strict = without_error(params, x)
    assert 0.5 <= float(found[0].saturated) <= 1 and float(found[0].delta.zeros) == 1
    assert float(strict[0].dead) == 0


def test_vanishing_shows_by_depth():
    """Sigmoid's delta shrinks by a factor a layer, ReLU's with He initialisation keeps its size."""
    ratios = {}
    for name in ("sigmoid", "relu"):
        net = mb.Serial((mb.Repeat(mb.Dense(32, 32, name), 11), mb.Dense(32, 3)))
        params = jax.jit(lambda key, net=net: net.init(key, "float64"))(jax.random.key(0))
        norms = diagnosed(net, params, batch(32, 16), np.ones((16, 3)))[1][0].delta.norm
        ratios[name] = norms[0] / norms[-1]
    assert ratios["sigmoid"] < 1e-5 and 0.02 < ratios["relu"] < 50


def test_the_table_has_a_line_for_every_use_of_a_layer():
    net = mb.Serial((mb.Dense(3, 4, "tanh"), mb.Repeat(mb.Tied(mb.Dense(4, 4, "relu"), 2), 3), mb.Dense(4, 2)))
    text = mb.diagnosis.table(diagnosed(net, generic(net), batch(3), np.zeros((7, 2)))[1])
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert names == ["[0]", *(f"[1][{i}][{j}]" for i in range(3) for j in range(2)), "[2]"]
    assert "|delta|" in text.splitlines()[0]


def test_bad_input():
    net = mb.mlp((2, 1))
    trace = jax.jit(lambda *given: mb.forward(net, *given)[1])(generic(net), batch(2))
    with pytest.raises(ValueError, match="threshold must be > 0"):
        mb.diagnose(net, trace, (jnp.zeros((7, 1)),), threshold=0.0)
    with pytest.raises(ValueError, match="deltas has structure"):
        mb.diagnose(net, trace, jnp.zeros((7, 1)))
    found = jax.jit(lambda t: mb.diagnose(net, t, (jnp.zeros((7, 1)),)))(trace)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(mb.diagnosis.table)(found)
    with pytest.raises(TypeError, match="table prints what diagnose returns"):
        mb.diagnosis.table(trace)
