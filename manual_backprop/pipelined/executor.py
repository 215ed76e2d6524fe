"""`pipeline`: value and gradient by a schedule, in `jax.shard_map` over the stages."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from manual_backprop import validate
from manual_backprop.objective import Objective
from manual_backprop.pipelined import arguments
from manual_backprop.pipelined.device import Device
from manual_backprop.pipelined.parts import parts
from manual_backprop.pipelined.reading import Reading
from manual_backprop.pipelined.timetable import timetable
from manual_backprop.precision import accumulator
from manual_backprop.schedules import Schedule
from manual_backprop.types import Coefficient, Examples, Targets, Tree, Weights


def pipeline(
    objective: Objective,
    mesh: Mesh,
    stages: str = "stage",
    *,
    microbatches: int | None = None,
    schedule: str | Schedule = "zero_bubble",
    data: str | None = None,
    readings: Mapping[str, Reading] | None = None,
) -> Callable[..., tuple[Any, ...]]:
    """`value_and_grad(objective)` by pipeline parallelism: the blocks of a `Repeat` on several devices.

    Every device of the axis `stages` holds as many of the blocks, with their parameters and gradients alone. A batch
    goes through them in microbatches, by a schedule that says in every tick which of three things a stage does with
    which of them: F, values up; B, error terms down, W^T delta; W, the gradient delta a^T from the pairs that B keeps.
    jax.grad has B and W as one, so it cannot send an error term on before the gradient is done.

    A stage keeps of a microbatch what the `Repeat` keeps by its own `recompute` and `segments`. Layers before the
    blocks run on the first stage, in F and again in B. Layers after them and the loss run on the last stage, in B.
    The parameters of both are on every device.

    Args:
        objective: of a network that is a `Repeat`, a `Serial` with exactly one among its nodes, or a `TiedReadout`
            around one of these, such as `gpt` gives. The blocks take one array.
        mesh: of devices, with the axes named here; along its other axes, every device does the same.
        stages: the axis of the stages. Their number divides the number of blocks.
        microbatches: how many; it divides the number of examples, or of each device's part of them. A `Schedule` has
            its own number.
        schedule: "gpipe", "1f1b", "zero_bubble" (see `schedules`), or a `Schedule` of your own.
        data: an axis of the mesh along which the batch is split as well, and the gradient summed; None splits no batch.
        readings: by name, functions of (a layer's `Factor` in one microbatch, the weights of its examples) whose sum
            over microbatches is asked for, such as `lambda factor, weights: factor.squared_sum(weights)`, the second
            moment. The weights are 1/N unless the caller gives others. Error terms are those of each example alone.

    Returns:
        A function (params, x, y, *, lam=None, weights=None, key=None) -> (J, gradient). With readings it returns a
        third result, the readings by name, each in the structure of the parameters. With a key, layers such as dropout
        draw for a microbatch what `value_and_grad` draws for these examples of the batch.

    Raises:
        ValueError: a network without blocks to split, a mesh without the axis, numbers that do not divide, an unknown
            schedule, or one that is not complete, not in order or of another number of stages or microbatches.
        TypeError: no objective, mesh or schedule.
    """
    net = Objective.required(objective).net
    of_net = parts(net)
    count = arguments.axis_size(mesh, "stages", stages)
    shards = 1 if data is None else arguments.axis_size(mesh, "data", data)
    if data == stages:
        raise ValueError(f"the axes stages and data must be two, got {stages!r} for both")
    made = arguments.schedule(schedule, count, microbatches)
    arguments.require_stages(of_net.chain, count)
    readings = arguments.readings(readings, of_net.shares, net)
    in_stages, whole, in_shards = PartitionSpec(stages), PartitionSpec(), PartitionSpec(data)
    by_part = whole, in_stages, whole
    takes = PartitionSpec(None, stages), by_part, in_shards, in_shards, in_shards, by_part
    table = timetable(made)
    device = Device(of_net, objective, readings, table, stages, () if data is None else (data,))
    on_devices = jax.shard_map(device, mesh=mesh, in_specs=takes, out_specs=(whole, by_part))

    @jax.jit
    def run(
        params: Tree, x: Examples, y: Array, lam: Coefficient | None, weights: Array, keys: Tree | None
    ) -> tuple[Any, ...]:
        of_parts = (None,) * 3 if keys is None else of_net.apart(keys)
        given = table.now, of_net.apart(params), x, y, weights, of_parts
        loss, found = on_devices(*(_laid_out(mesh, spec, tree) for spec, tree in zip(takes, given, strict=True)))
        gradient = of_net.join(*(of_part[0] for of_part in found))
        gradient = jax.tree.map(lambda own, leaf: leaf.astype(own.dtype), params, gradient)
        if objective.regularizer is not None:
            params = jax.tree.map(_beside, gradient, params)
            loss = loss + objective.regularizer.penalty(params, lam)
        gradient = objective.add_penalty_gradient(gradient, params, lam)
        return loss, gradient, {name: of_net.join(*(of_part[1][name] for of_part in found)) for name in readings}

    def value_and_gradient(
        params: Tree,
        x: Examples,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Any, ...]:
        keys = arguments.keys(net, key)
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        n, dtype = validate.count(x), validate.dtype_of(params, x)
        arguments.require_one_flow(of_net, x, dtype)
        arguments.require_microbatches(n, made.microbatches, shards, data)
        weights = jnp.full(n, 1 / n, accumulator(dtype)) if weights is None else weights
        found = run(params, x, y, lam, weights, keys)
        return found if readings else found[:2]

    return value_and_gradient


def _laid_out(mesh: Mesh, specs: Any, tree: Tree) -> Tree:
    """The arrays as `jax.shard_map` cuts them. Where the mesh leaves that to the compiler, nothing need be said."""
    if not _explicit(mesh):
        return tree
    if isinstance(specs, tuple) and not isinstance(specs, PartitionSpec):
        return tuple(_laid_out(mesh, spec, part) for spec, part in zip(specs, tree, strict=True))
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(mesh, specs)), tree)


def _explicit(mesh: Any) -> bool:
    return jax.sharding.AxisType.Explicit in mesh.axis_types


def _beside(gradient: Array, own: Array) -> Array:
    """A parameter where its gradient is."""
    sharding = jax.typeof(gradient).sharding
    return jax.sharding.reshard(own, sharding) if _explicit(sharding.mesh) else own
