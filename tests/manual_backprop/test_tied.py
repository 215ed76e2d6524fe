"""One block used several times: its gradient is the sum over its uses, and the check knows it by name."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, batch, generic, targets

import manual_backprop as mb
import reference

TIED = mb.Serial((mb.Dense(3, 4, "tanh"), mb.Tied(mb.Dense(4, 4, "tanh"), 3), mb.Dense(4, 2)))
OBJECTIVE = mb.Objective(TIED, mb.squared_error, mb.Frobenius(0.1))
ARGS = (generic(TIED), batch(3), targets(mb.squared_error, 2))


def test_it_equals_layers_that_hold_the_same_numbers():
    """Unrolled: the same z and delta, and a gradient that is the sum of theirs (B4); one penalty, not three (B6)."""
    params, x, y = ARGS
    unrolled = mb.mlp((3, 4, 4, 4, 4, 2), "tanh")
    written = mb.Objective(unrolled, mb.squared_error)

    @jax.jit
    def everything(params, x, y):
        data = (params[0], *(params[1],) * 3, params[2]), x, y
        ours = mb.backprop(mb.Objective(TIED, mb.squared_error), params, x, y)
        return ours, mb.backprop(written, *data), mb.backprop(OBJECTIVE, params, x, y)

    ours, theirs, regularised = jax.tree.map(np.asarray, everything(params, x, y))
    assert_close(ours.trace[1].z, np.stack([layer.z for layer in theirs.trace[1:4]]))
    assert_close(ours.deltas[1], np.stack(theirs.deltas[1:4]))
    assert_close(ours.gradients[1], jax.tree.map(lambda *g: sum(g[1:], g[0]), *theirs.gradients[1:4]))
    assert_close((ours.gradients[0], ours.gradients[2]), (theirs.gradients[0], theirs.gradients[4]))
    assert_close(regularised.gradients[1].W, ours.gradients[1].W + 0.1 * np.asarray(params[1].W))


def test_the_check_names_a_use_that_is_left_out():
    """(B4) and (B3) of the tied layer, and nothing else."""

    def forgetful(objective, params, x, y, **given):
        step = mb.backprop(objective, params, x, y, **given)
        inner, saved = step.deltas[1], step.trace[1].saved
        two = mb.layers.OuterProduct(saved[:2], inner[:2]).tied().weighted_sum()
        penalised = replace(two, W=two.W + 0.1 * params[1].W)
        return replace(step, gradients=(step.gradients[0], penalised, step.gradients[2]))

    report = reference.check(OBJECTIVE, *ARGS, backprop=forgetful)
    failed = {(row.equation, row.layer) for row in report.rows if row.verdict == "fail" and row.kind == "equation"}
    assert failed == {("(B4)", 2), ("(B3)", 2)}
    assert "(B4) of layer 2" in report.summary()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_the_check_proves_it(dtype):
    net = mb.Serial((mb.Tied(mb.Residual(mb.Repeat(mb.Dense(3, 3, "softplus"), 2)), 2), mb.Dense(3, 2)))
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    params = generic(net, scale=0.5, dtype=dtype)
    x, y = batch(3, dtype=dtype), targets(mb.softmax_cross_entropy, 2)
    assert reference.check(objective, params, x, y).verdict != "fail"


def test_its_derivatives_are_jaxs():
    assert_close(
        *jax.jit(lambda *args: [f(OBJECTIVE)(*args) for f in (mb.value_and_grad, reference.value_and_grad)])(*ARGS)
    )


def test_bad_input(without_hook):
    with pytest.raises(ValueError, match="Tied n must be an int >= 1, got 0"):
        mb.Tied(mb.Dense(2, 2), 0)
    with pytest.raises(TypeError, match="Tied is made of layers and composites, got str"):
        mb.Tied("layer", 2)
    with pytest.raises(ValueError, match="Tied needs a block that keeps the shape"):
        mb.forward(mb.Tied(mb.Dense(2, 3), 2), mb.Affine(jnp.ones((3, 2)), jnp.ones(3)), jnp.ones((4, 2)))
