"""Where parameters and batches lie on several devices: specs by a layout's name, and arrays placed by them.

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = mb.sharding.specs(net, params, "2d", mesh)
    params = mb.sharding.place(params, mesh, specs)
    x, y = mb.sharding.place((x, y), mesh, mb.sharding.batch_spec("2d"))

Specs are a plain tree of `jax.sharding.PartitionSpec` that mirrors the parameters: look at it, and put another spec in
where you know better. None of them changes a result. The layouts:

    "data"    parameters on every device, the batch split over "data"
    "fsdp"    as "data", and every parameter split over "data" too (Zhao et al., arXiv:2304.11277)
    "tensor"  parameters split over "model" as each family of layers says, for dense layers by columns and rows in
              turn (Shoeybi et al., arXiv:1909.08053); the batch on every device
    "2d"      "tensor" over "model" and "fsdp" over "data"
"""

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from manual_backprop import validate
from manual_backprop.layers.base import Layer
from manual_backprop.network import Parallel, Serial, TiedReadout
from manual_backprop.network.scanned import Chain, Repeat
from manual_backprop.node import Branches, Node, Wrapper
from manual_backprop.types import Tree, came

LAYOUTS = ("data", "fsdp", "tensor", "2d")
Split = Any
"""Whether the features of a signal are split over the model's axis; a tuple where it has several parts."""


def specs(
    net: Node, params: Tree, layout: str, mesh: Mesh | AbstractMesh, *, data: str = "data", model: str = "model"
) -> Tree:
    """A `PartitionSpec` for every parameter, in the structure of `params`.

    "fsdp" splits each parameter along its largest axis that the devices divide, never along the blocks of a `Repeat`.
    "tensor" asks the layers in turn, each with whether what enters it is split already; see `Layer.tensor_specs`. A
    parameter that the devices do not divide, or whose family says nothing, is whole on every device.

    Args:
        net: a layer or composite.
        params: its parameters, or their shapes as from `jax.eval_shape`.
        layout: one of `LAYOUTS`.
        mesh: the devices, or their axes alone; the layout's axes are among its axes.
        data: the name of the axis for examples, and for parameters in "fsdp" and "2d".
        model: the name of the axis for features, in "tensor" and "2d".

    Raises:
        ValueError: an unknown layout, a mesh without an axis that the layout needs, parameters of another network,
            or a layout that would split nothing.
        TypeError: no network, or no mesh.
    """
    validate.network(net)
    _require_mesh(mesh, Mesh | AbstractMesh)
    expected = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    validate.same_structure("params", params, "the network's", expected)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    over = {"data": (data,), "fsdp": (data,), "tensor": (model,), "2d": (data, model)}[layout]
    for name in over:
        if name not in mesh.shape:
            raise ValueError(f'layout "{layout}" needs a mesh with an axis {name!r}, got axes {tuple(mesh.shape)}')
    rows = _Axis(data, mesh.shape[data]) if layout in ("fsdp", "2d") else None
    features = _Axis(model, mesh.shape[model]) if layout in ("tensor", "2d") else None
    _, found = _laid(net, False, params, _Way(rows, features))
    if layout != "data" and not any(spec != PartitionSpec() for spec in jax.tree.leaves(found, is_leaf=_is_spec)):
        raise ValueError(
            f'layout "{layout}" splits no parameter of {net}: no width is a multiple of the devices,'
            f" {', '.join(f'{name}={mesh.shape[name]}' for name in over)}"
        )
    return found


def batch_spec(layout: str, *, data: str = "data") -> PartitionSpec:
    """The spec of x, y and weights: examples split over the data's axis, but for "tensor", which has none.

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return PartitionSpec() if layout == "tensor" else PartitionSpec(data)


def place(tree: Tree, mesh: Mesh, specs: Tree) -> Tree:
    """A copy of the tree on the mesh's devices, by specs.

    It shares no memory with what was given. `jax.device_put` to every device does, so that a step that is donated its
    result would delete the original, too.

    Args:
        tree: arrays.
        mesh: the devices.
        specs: one spec for every array, or one for a whole part of the tree.

    Raises:
        ValueError: a spec that names an axis which the mesh has not, has more axes than its array, or splits an axis
            into parts of unequal size; says which leaf.
        TypeError: no mesh, or anything but a spec among the specs.
    """
    _require_mesh(mesh)
    for spec in jax.tree.leaves(specs, is_leaf=_is_spec):
        if not _is_spec(spec):
            raise TypeError(f"specs must hold jax.sharding.PartitionSpec, got {came(spec)}")
    each = jax.tree.broadcast(specs, tree, is_leaf=_is_spec)

    def of_leaf(path: Any, leaf: Any, spec: PartitionSpec) -> Any:
        _require_fit(jax.tree_util.keystr(path) or "the array", leaf, spec, mesh)
        if AxisType.Explicit in mesh.axis_types:  # the types of results name every axis, and a step compares them
            spec = PartitionSpec(*spec, *(None,) * (leaf.ndim - len(spec)))
        return jax.device_put(jnp.array(leaf, copy=True), NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(of_leaf, tree, each)


def init_optimizer(optimizer: optax.GradientTransformation, params: Tree) -> Any:
    """The optimizer's state for parameters that are placed: all of it on their devices, moments as their parameters.

    Of `optimizer.init`, a count of steps lies on one device, but after a step on all: the step would be compiled twice.
    """
    state = optimizer.init(params)
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(params) if isinstance(leaf.sharding, NamedSharding)]
    if not meshes:
        return state
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def of_leaf(leaf: Any) -> Any:
        return (
            leaf if isinstance(leaf.sharding, NamedSharding) else jax.device_put(jnp.array(leaf, copy=True), everywhere)
        )

    return jax.tree.map(of_leaf, state)


def _require_mesh(mesh: Any, kind: Any = Mesh) -> None:
    if not isinstance(mesh, kind):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, as from jax.make_mesh, got {came(mesh)}")


def _require_fit(where: str, leaf: Any, spec: PartitionSpec, mesh: Mesh) -> None:
    """Refuse a spec that does not fit its array on this mesh."""
    held = tuple(spec)
    if len(held) > leaf.ndim:
        raise ValueError(f"{where}: {spec} has {len(held)} axes but the array is {list(leaf.shape)}")
    for size, axes in zip(leaf.shape, held, strict=False):
        parts = 1
        for name in () if axes is None else axes if isinstance(axes, tuple) else (axes,):
            if name not in mesh.shape:
                raise ValueError(f"{where}: {spec} names the axis {name!r}, but the mesh has {tuple(mesh.shape)}")
            parts *= mesh.shape[name]
        if size % parts:
            raise ValueError(f"{where}: {spec} splits an axis of {size} into {parts} parts, which do not divide it")


def _is_spec(node: object) -> bool:
    return isinstance(node, PartitionSpec)


# ---- the way through a network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One axis of a mesh, by name, and the number of its parts."""

    name: str
    parts: int


@dataclass(frozen=True)
class _Way:
    """The mesh axes that parameters are split over, on the way through a network.

    Attributes:
        data: over which every parameter is split, or None.
        model: over which features are split, or None.
        front: how many axes of blocks stand in front of every parameter.
    """

    data: _Axis | None
    model: _Axis | None
    front: int = 0


@singledispatch
def _laid(node: Node, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    """(whether what leaves a node is split, the specs of its parameters); by default tensor parallelism splits none."""
    return False, jax.tree.map(lambda leaf: _over_data(leaf, PartitionSpec(), way), params)


@_laid.register
def _(node: Layer, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[way.front :], leaf.dtype), params)
    left, found = False, None
    if way.model is not None:
        left, found = node.tensor_specs(own, way.model.name, way.model.parts, entered)
    if found is None:
        found = jax.tree.map(lambda leaf: PartitionSpec(), own)
    return left, jax.tree.map(lambda leaf, spec: _over_data(leaf, spec, way), params, found)


@_laid.register
def _(node: Branches, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    return False, tuple(_laid(child, False, own, way)[1] for child, own in zip(node.nodes, params, strict=True))


@_laid.register
def _(node: Serial, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    found = []
    for child, own in zip(node.nodes, params, strict=True):
        entered, of_child = _laid(child, entered, own, way)
        found.append(of_child)
    return entered, tuple(found)


@_laid.register
def _(node: Parallel, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    left, found = zip(*(_laid(c, entered, own, way) for c, own in zip(node.nodes, params, strict=True)), strict=True)
    return left, found


@_laid.register
def _(node: Wrapper, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    return False, _laid(node.block, False, params, way)[1]


@_laid.register
def _(node: Chain, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    inside = replace(way, front=way.front + 1) if isinstance(node, Repeat) else way
    return False, _laid(node.block, False, params, inside)[1]


@_laid.register
def _(node: TiedReadout, entered: Split, params: Tree, way: _Way) -> tuple[Split, Tree]:
    table, of_body = params
    _, of_table = _laid(node.embedding, False, table, way)
    return False, (of_table, _laid(node.body, False, of_body, way)[1])


def _over_data(leaf: Any, spec: PartitionSpec, way: _Way) -> PartitionSpec:
    """The spec with axes of blocks in front, and with the largest axis that is left split over the data's devices."""
    held = [None] * way.front + [*spec] + [None] * (leaf.ndim - way.front - len(spec))
    if way.data is not None:
        free = [i for i in range(way.front, leaf.ndim) if held[i] is None and leaf.shape[i] % way.data.parts == 0]
        if free:
            held[max(free, key=lambda i: leaf.shape[i])] = way.data.name
    while held and held[-1] is None:
        held.pop()
    return PartitionSpec(*held)
