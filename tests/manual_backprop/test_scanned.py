"""Chains under a scan: an array that several layers keep is stacked, and moved between devices, once."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import array, generic
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType

import manual_backprop as mb
from benchmarks import sharding
from manual_backprop.sweep import forward_sweep

BLOCK = mb.Residual(mb.Serial((mb.Parallel((mb.Dense(4, 4),) * 3), mb.Attention(2), mb.Dense(4, 4))))
X = array(np.random.default_rng(0).normal(size=(2, 3, 4)))


def operations(name: str, program: Any) -> list[Any]:
    """The operations of that name in a program, with those that stand inside others."""
    found = []
    for op in program.eqns:
        found += [op] if op.primitive.name == name else []
        for inside in jax.tree.leaves(list(op.params.values())):
            if isinstance(inside, ClosedJaxpr | Jaxpr):
                found += operations(name, getattr(inside, "jaxpr", inside))
    return found


@pytest.mark.parametrize(
    ("chain", "count"),
    [
        (mb.Repeat(BLOCK, 2, recompute=False), 2),
        (mb.Repeat(BLOCK, 5, recompute=False, segments=3), 7),
        (mb.Tied(BLOCK, 2), 2),
    ],
    ids=["repeat", "segments", "tied"],
)
def test_an_array_that_several_layers_keep_is_stacked_once(chain, count):
    """What enters the block is kept by three projections; the way back takes it once, too."""
    by_hand = mb.value_and_grad(mb.Objective(chain, mb.squared_error))
    found = operations("scan", jax.make_jaxpr(by_hand)(generic(chain), X, X).jaxpr)
    assert len(found) == count
    for op in found:
        stacked = op.params["jaxpr"].jaxpr.outvars[op.params["num_carry"] :]
        taken = op.invars[op.params["num_consts"] + op.params["num_carry"] :]
        assert len(set(stacked)) == len(stacked)
        assert len(set(taken)) == len(taken)


def test_a_trace_holds_it_at_each_of_its_places():
    """A trace has an array for every place that shows one, and no two arrays with the same values."""
    chain = mb.Repeat(BLOCK, 2)
    _, trace = forward_sweep(chain, generic(chain), X)
    leaves = jax.tree.leaves(trace)
    held = {id(leaf): leaf for leaf in leaves}
    assert len(held) == len({leaf.tobytes() for leaf in map(np.asarray, leaves)}) < len(leaves)


def test_a_stage_of_a_pipeline_holds_it_once():
    """What F keeps for B, and B for W: each is a loop of one turn, which gives no array twice."""
    chain = mb.Repeat(BLOCK, 2, recompute=False)
    mesh = jax.make_mesh((2,), ("stage",), axis_types=(AxisType.Auto,))
    by_stages = mb.pipeline(mb.Objective(chain, mb.squared_error), mesh, microbatches=2)
    loops = operations("while", jax.make_jaxpr(by_stages)(generic(chain), X, X).jaxpr)
    given = [loop.params["body_jaxpr"].jaxpr.outvars for loop in loops]
    assert max(map(len, given)) > 8
    assert all(len({*map(id, arrays)}) == len(arrays) for arrays in given)


@pytest.mark.evidence
@pytest.mark.parametrize("layout", mb.sharding.LAYOUTS)
def test_a_language_model_moves_no_more_between_devices_than_jax_grad_and_keeps_less(layout):
    """To 1/500: XLA reduces the largest logit and the sum of exponentials once more for the value of the loss."""
    ours, of_jax = sharding.measured(mb.gpt(256, 64, 2, 4, 64, hidden=256, recompute=False), layout, AxisType.Auto)
    assert 0 < ours.moved < 1.002 * of_jax.moved
    assert ours.temporary < 0.75 * of_jax.temporary
