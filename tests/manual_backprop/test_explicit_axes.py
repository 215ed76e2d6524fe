"""Under explicit axes, as `jax.make_mesh` makes them, every layout gives one device's numbers."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, batch, every_time, generic
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import manual_backprop as mb

N = 8
EQUAL = 1e-13  # of a leaf's largest entry, float64: sums in another order
P = PartitionSpec


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


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


def by_sweep(name: str, params: Any, x: Any, y: Any) -> Any:
    return mb.value_and_grad(problem(name)[0])(params, x, y)


def exported(name: str, params: Any, x: Any, y: Any) -> Any:
    """By jax.grad of the exported objective, which does the sweep and hands its gradient on."""
    return jax.value_and_grad(mb.as_custom_vjp(problem(name)[0]))(params, x, y)


def readings(name: str, params: Any, x: Any, y: Any) -> dict[str, Any]:
    objective = problem(name)[0]
    step = mb.backprop(objective, params, x, y)
    at = objective.net, step.trace, step.deltas
    found = {
        "step": step,
        "clipped, by norms": mb.clipped_gradients(*at, 0.5),
        "gram": mb.gram(*at),
    }
    if name == "dense":
        found |= {
            "factors": mb.kronecker_factors(*at),
            "second moment": mb.second_moment(*at),
            "Hessian": mb.hessian_vector_product(objective, params, x, y, params),
        }
    return found


READ = {"dense": [exported], "gpt": []}
"""Networks that are read, each with other ways to its gradient."""


@cache
def on_one_device(of: Any, name: str) -> Any:
    return jax.jit(of, static_argnums=0)(name, *problem(name)[1:])


def step_on_one_device(name: str) -> tuple[Any, Any]:
    """Value and gradient by the sweep that readings are made of."""
    step = on_one_device(readings, name)["step"]
    return step.value, step.gradients


def placed(name: str, layout: str) -> tuple[Any, Any, Any]:
    objective, params, x, y = problem(name)
    devices = mesh()
    specs = mb.sharding.specs(objective.net, params, layout, devices)
    place = mb.sharding.place if name == "dense" else from_host
    return place(params, devices, specs), *place((x, y), devices, mb.sharding.batch_spec(layout))


def from_host(tree: Any, devices: jax.sharding.Mesh, specs: Any) -> Any:
    """As `place` lays them, which cuts what lies on a device already."""

    def of_leaf(leaf: Any, spec: PartitionSpec) -> Any:
        whole = P(*spec, *(None,) * (leaf.ndim - len(spec)))
        return jax.device_put(np.asarray(leaf), NamedSharding(devices, whole))

    return jax.tree.map(of_leaf, tree, jax.tree.broadcast(specs, tree, is_leaf=lambda node: isinstance(node, P)))


def assert_lie_alike(*trees: Any) -> None:
    first, *others = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in trees)
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("name", "layout", "way"),
    [
        ("dense", "data", by_sweep),
        ("dense", "fsdp", exported),
        ("dense", "tensor", by_sweep),
        pytest.param("tied", "tensor", exported, marks=pytest.mark.evidence),
    ],
    ids=["dense-data", "dense-fsdp", "dense-tensor", "tied-tensor"],
)
def test_gradients_are_those_of_one_device_and_lie_as_their_parameters(name, layout, way):
    arguments = placed(name, layout)
    expected = step_on_one_device(name) if name in READ else on_one_device(by_sweep, name)
    found = jax.jit(way, static_argnums=0)(name, *arguments)
    assert_close(found, expected, EQUAL)
    assert_lie_alike(arguments[0], found[1])


@pytest.mark.parametrize("name", every_time(READ, "gpt"))
def test_readings_are_those_of_one_device(name):
    """Under the fourth layout, "2d", with the step's gradients, and those of the other ways."""
    arguments, expected = placed(name, "2d"), on_one_device(readings, name)
    ways = READ[name]

    @jax.jit
    def everything(*arguments: Any) -> Any:
        return readings(name, *arguments), [way(name, *arguments) for way in ways]

    found, others = everything(*arguments)
    assert_close(found, expected, EQUAL)
    for value_and_gradient in others:
        assert_close(value_and_gradient, step_on_one_device(name), EQUAL)
    assert_lie_alike(arguments[0], found["step"].gradients, *(gradient for _, gradient in others))


@pytest.mark.parametrize(
    ("of_rows", "of_weights", "of_result"),
    [
        (P("data", None), P("model", None), P("data", "model")),
        (P("data", None), P("data", None), P("data", None)),  # a mesh axis stands once: the rows keep their devices
        (P(("data", "model"), None), P("model", None), P(("data", "model"), None)),
        (P("data", None), P(("data", "model"), None), P("data", "model")),
    ],
)
def test_a_product_lies_as_its_operands(of_rows, of_weights, of_result):
    a, W = mb.sharding.place((batch(4, N), batch(4, 2 * N)), mesh(), (of_rows, of_weights))
    found = jax.jit(lambda a, W: mb.explicit.dot(a, W, ((1,), (1,))))(a, W)
    assert found.sharding.spec == of_result
    assert_close(found, batch(4, N) @ batch(4, 2 * N).T, EQUAL)


def test_outside_jit_with_the_mesh_set():
    net = mb.mlp((8, 8, 4))
    objective = mb.Objective(net, mb.squared_error)
    given = generic(net), batch(8, N), batch(4, N, seed=5)
    params = mb.sharding.place(given[0], mesh(), mb.sharding.specs(net, given[0], "2d", mesh()))
    rows = mb.sharding.place(given[1:], mesh(), mb.sharding.batch_spec("2d"))
    with jax.set_mesh(mesh()):
        found = mb.value_and_grad(objective)(params, *rows)
    assert_close(found, jax.jit(mb.value_and_grad(objective))(*given), EQUAL)


def test_a_reading_of_another_shape_than_its_parameter_lies_as_it_did():
    """One gradient for each example is split by examples, however the parameter is split."""
    lies = {"own": P("model", None), "each": P("data", None, None)}
    own, each = mb.sharding.place((np.ones((2, 3)), np.ones((4, 2, 3))), mesh(), tuple(lies.values()))
    assert jax.eval_shape(mb.explicit.like, own, each).sharding.spec == lies["each"]
