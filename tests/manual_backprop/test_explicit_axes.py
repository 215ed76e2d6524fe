"""Under explicit axes, as `jax.make_mesh` makes them, every layout gives one device's numbers."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, batch, generic
from jax.sharding import AxisType, PartitionSpec

import manual_backprop as mb

N = 8
EQUAL = 1e-13  # of a leaf's largest entry, float64: sums in another order
P = PartitionSpec


def mesh(kind: AxisType = AxisType.Explicit) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def joined() -> mb.Serial:
    """Blocks of two layers and blocks of one, which end with their features split, and one block used twice."""
    pair = mb.Serial((mb.Dense(8, 16, "tanh"), mb.Dense(16, 8)))
    return mb.Serial((mb.Repeat(mb.Residual(pair), 3, segments=2), mb.Tied(mb.Dense(8, 8, "tanh"), 2), mb.Dense(8, 8)))


IDS = jax.device_put(np.random.default_rng(1).integers(0, 16, (N, 6)))
NETS: dict[str, tuple[Any, mb.Loss, Any, Any]] = {
    "dense": (joined(), mb.squared_error, batch(8, N), batch(8, N, seed=5)),
    "gpt": (mb.gpt(16, 8, 2, 2, 8), mb.softmax_cross_entropy, IDS, IDS[:, ::-1]),
    "tied": (
        mb.gpt(16, 8, 2, 2, 8, kv_heads=1, rope=10000.0, norm="layer", gated=False, bias=True, tied=True, block=4),
        mb.SoftmaxCrossEntropy(chunk=16),
        IDS,
        IDS[:, ::-1],
    ),
}


@cache
def problem(name: str) -> tuple[mb.Objective, Any, Any, Any]:
    net, loss, x, y = NETS[name]
    return mb.Objective(net, loss, mb.Frobenius(0.1)), generic(net, scale=0.5), x, y


def gradients(name: str, params: Any, x: Any, y: Any) -> Any:
    """By the sweep, and by jax.grad of the exported objective."""
    objective = problem(name)[0]
    return mb.value_and_grad(objective)(params, x, y), jax.value_and_grad(mb.as_custom_vjp(objective))(params, x, y)


def readings(name: str, params: Any, x: Any, y: Any) -> dict[str, Any]:
    objective = problem(name)[0]
    step = mb.backprop(objective, params, x, y)
    at = objective.net, step.trace, step.deltas
    found = {
        "step": step,
        "clipped, by norms": mb.clipped_gradients(*at, 0.5),
        "gram": mb.gram(*at),
        "factors": mb.kronecker_factors(*at, partial=True),
    }
    if name == "dense":
        found |= {
            "second moment": mb.second_moment(*at),
            "Hessian": mb.hessian_vector_product(objective, params, x, y, params),
        }
    return found


@cache
def on_one_device(of: Any, name: str) -> Any:
    return jax.jit(of, static_argnums=0)(name, *problem(name)[1:])


def placed(name: str, layout: str, kind: AxisType) -> tuple[Any, Any, Any]:
    objective, params, x, y = problem(name)
    devices = mesh(kind)
    specs = mb.sharding.specs(objective.net, params, layout, devices)
    return mb.sharding.place(params, devices, specs), *mb.sharding.place(
        (x, y), devices, mb.sharding.batch_spec(layout)
    )


@pytest.mark.parametrize(
    ("name", "layout"), [*(("dense", layout) for layout in mb.sharding.LAYOUTS), ("gpt", "2d"), ("tied", "tensor")]
)
def test_gradients_are_those_of_one_device_and_lie_as_their_parameters(name, layout):
    arguments = placed(name, layout, AxisType.Explicit)
    found = jax.jit(gradients, static_argnums=0)(name, *arguments)
    assert_close(found, on_one_device(gradients, name), EQUAL)
    where = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (arguments[0], *(each[1] for each in found))]
    assert where[0] == where[1] == where[2]


@pytest.mark.parametrize("name", ["dense", "gpt"])
def test_readings_are_those_of_one_device(name):
    found = jax.jit(readings, static_argnums=0)(name, *placed(name, "2d", AxisType.Explicit))
    assert_close(found, on_one_device(readings, name), EQUAL)
