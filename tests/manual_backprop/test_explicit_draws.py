"""Under explicit axes what draws at random, sorts or decomposes a matrix gives one device's numbers, too."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, batch, generic
from jax.sharding import AxisType

import manual_backprop as mb
from manual_backprop import rules

N, D = 8, 8
KEY = jax.random.key(3)
EQUAL = 1e-13  # of a leaf's largest entry, float64: sums in another order
NET = mb.Serial((mb.Dense(D, D, "tanh"), mb.Dropout(0.3), mb.Dense(D, D)))
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)
PARAMS, X = generic(NET), batch(D, N)
LABELS = jnp.arange(N) % D
RULES = {
    "direct feedback": rules.DirectFeedbackAlignment(rules.direct_feedback(NET, KEY)),
    "feedback": rules.FeedbackAlignment(generic(NET, seed=5)),
    "the largest": rules.OnDelta(mb.edits.TopK(2)),
    "noise": rules.OnDelta(mb.edits.Noise(0.1), key=KEY),
}


def found(params: Any, x: Any, y: Any) -> dict[str, Any]:
    step = mb.backprop(OBJECTIVE, params, x, y)
    factors = mb.kronecker_factors(NET, step.trace, step.deltas)
    return {
        "dropout": mb.value_and_grad(OBJECTIVE)(params, x, y, key=KEY),
        "natural gradient": mb.kfac_direction(factors, step.gradients, 0.1),
        "Fisher": mb.fisher_diagonal(OBJECTIVE, params, x, y),
        "Fisher, sampled": mb.fisher_diagonal(OBJECTIVE, params, x, y, labels="sampled", key=KEY),
        **{name: mb.backprop(OBJECTIVE, params, x, y, rule=rule).gradients for name, rule in RULES.items()},
    }


@pytest.mark.evidence
def test_they_are_those_of_one_device():
    """With rows split over one axis of the mesh and features over the other, where the mesh is set for all arrays."""
    devices = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    params = mb.sharding.place(PARAMS, devices, mb.sharding.specs(NET, PARAMS, "2d", devices))
    rows = mb.sharding.place((X, LABELS), devices, mb.sharding.batch_spec("2d"))
    with jax.set_mesh(devices):  # a draw that says nothing is then whole, and does not go with rows that are split
        on_all = jax.jit(found)(params, *rows)
    assert_close(on_all, jax.jit(found)(PARAMS, X, LABELS), EQUAL)
