"""Diagnosis of signals against NumPy, and what it is for: vanishing, saturation, dead units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, batch, generic, targets

import manual_backprop as mb


def test_every_number_by_numpy():
    net = mb.mlp((3, 5, 2), "relu")
    params, x, y = generic(net), batch(3, 8), targets(mb.squared_error, 2, 8)
    step = mb.backprop(mb.Objective(net, mb.squared_error), params, x, y)
    found = jax.jit(lambda t, d: mb.diagnose(net, t, d))(step.trace, step.deltas)
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
    params = (mb.Affine(jnp.ones((4, 2)), jnp.asarray([-100.0, -100.0, 0.0, 5.0])), generic(net)[1])
    x = jnp.abs(batch(2, 6))
    step = mb.backprop(mb.Objective(net, mb.squared_error), params, x, jnp.zeros((6, 1)))
    assert float(mb.diagnose(net, step.trace, step.deltas)[0].dead) == 0.5
    tanh = mb.mlp((2, 4, 1), "tanh")
    trace = mb.forward(tanh, params, x)[1]
    found = mb.diagnose(tanh, trace, (jnp.zeros((6, 4)), jnp.zeros((6, 1))))
    assert 0.5 <= float(found[0].saturated) <= 1 and float(found[0].delta.zeros) == 1
    assert float(mb.diagnose(tanh, trace, (jnp.zeros((6, 4)), jnp.zeros((6, 1))), threshold=1e-300)[0].dead) == 0


def test_vanishing_shows_by_depth():
    """Sigmoid's delta shrinks by a factor a layer, ReLU's with He initialisation keeps its size."""
    ratios = {}
    for name in ("sigmoid", "relu"):
        net = mb.mlp((32,) * 12 + (3,), name)
        params = net.init(jax.random.key(0), "float64")
        step = mb.backprop(mb.Objective(net, mb.squared_error), params, batch(32, 16), jnp.ones((16, 3)))
        norms = [float(layer.delta.norm) for layer in mb.diagnose(net, step.trace, step.deltas)]
        ratios[name] = norms[0] / norms[-2]
    assert ratios["sigmoid"] < 1e-5 and 0.02 < ratios["relu"] < 50


def test_the_table_has_a_line_for_every_use_of_a_layer():
    net = mb.Serial((mb.Dense(3, 4, "tanh"), mb.Repeat(mb.Tied(mb.Dense(4, 4, "relu"), 2), 3), mb.Dense(4, 2)))
    params = generic(net)
    step = mb.backprop(mb.Objective(net, mb.squared_error), params, batch(3), jnp.zeros((7, 2)))
    text = mb.diagnosis.table(mb.diagnose(net, step.trace, step.deltas))
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert names == ["[0]", *(f"[1][{i}][{j}]" for i in range(3) for j in range(2)), "[2]"]
    assert "|delta|" in text.splitlines()[0]


def test_bad_input():
    net = mb.mlp((2, 1))
    trace = mb.forward(net, generic(net), batch(2))[1]
    with pytest.raises(ValueError, match="threshold must be > 0"):
        mb.diagnose(net, trace, (jnp.zeros((7, 1)),), threshold=0.0)
    with pytest.raises(ValueError, match="deltas has structure"):
        mb.diagnose(net, trace, jnp.zeros((7, 1)))
    found = mb.diagnose(net, trace, (jnp.zeros((7, 1)),))
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(mb.diagnosis.table)(found)
    with pytest.raises(TypeError, match="table prints what diagnose returns"):
        mb.diagnosis.table(trace)
