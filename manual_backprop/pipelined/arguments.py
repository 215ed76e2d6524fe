"""Checks of what `pipeline` is given; each error says what was expected, what came, and what to do."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from manual_backprop import validate
from manual_backprop.drawing import layer_keys
from manual_backprop.network import Repeat
from manual_backprop.node import Node
from manual_backprop.pipelined.parts import Parts
from manual_backprop.pipelined.reading import Reading
from manual_backprop.schedules import NAMED, Schedule
from manual_backprop.types import Examples, Part, Tree, came


def axis_size(mesh: Any, role: str, name: Any) -> int:
    """The number of devices along an axis of a mesh.

    Raises:
        TypeError: no mesh.
        ValueError: a mesh without that axis.
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f'mesh must be a mesh of devices, such as jax.make_mesh((4,), ("stage",)), got {came(mesh)}')
    if name not in mesh.axis_names:
        raise ValueError(
            f"the mesh has the axes {', '.join(map(repr, mesh.axis_names))}, but {role}={name!r} is none of them;"
            f" name one of them, or make the mesh with it, as jax.make_mesh does"
        )
    return int(mesh.shape[name])


def schedule(value: Any, stages: int, microbatches: int | None) -> Schedule:
    """The schedule of that name, or the given one, checked.

    Raises:
        TypeError: neither a name nor a `Schedule`.
        ValueError: an unknown name, no number of microbatches, or a schedule of other numbers, or out of order.
    """
    if isinstance(value, Schedule):
        came_with = value.stages, value.microbatches
        wanted = stages, value.microbatches if microbatches is None else microbatches
        if came_with != wanted:
            raise ValueError(
                f"the schedule has {came_with[0]} stages and {came_with[1]} microbatches, but the mesh has {wanted[0]}"
                f" stages and microbatches is {wanted[1]}; make a schedule of these"
            )
        return value.check()
    if not isinstance(value, str):
        raise TypeError(f"schedule must be one of {', '.join(NAMED)}, or a Schedule, got {came(value)}")
    if value not in NAMED:
        raise ValueError(f"schedule must be one of {', '.join(NAMED)}, or a Schedule, got {value!r}")
    if not isinstance(microbatches, int) or isinstance(microbatches, bool) or microbatches < 1:
        raise ValueError(f"microbatches must be an int >= 1, got {came(microbatches)}; take a multiple of the stages")
    return NAMED[value](stages, microbatches)


def require_stages(chain: Repeat, stages: int) -> None:
    """Refuse a number of stages that does not divide the blocks.

    Raises:
        ValueError: says both numbers.
    """
    if chain.n % stages:
        raise ValueError(
            f"every stage holds as many blocks, but {stages} stages do not divide the {chain.n} blocks of {chain};"
            " use a mesh with a number of stages that does"
        )


def readings(given: Mapping[str, Reading] | None, shares: bool, net: Node) -> dict[str, Reading]:
    """The readings by name.

    Raises:
        TypeError: no mapping of names to functions.
        ValueError: readings of a network whose first and last stage share parameters.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(callable(reading) for reading in given.values()):
        raise TypeError(
            "readings must map names to functions of (factor, weights), such as"
            f' {{"second_moment": lambda factor, weights: factor.squared_sum(weights)}}, got {came(given)}'
        )
    if given and shares:
        raise ValueError(
            f"readings need every layer's whole factor on one device, but the first and the last stage of {net} share a"
            " table; leave readings out, or use an untied readout"
        )
    return dict(given)


def keys(net: Node, key: Any) -> Tree | None:
    """A key for every layer that draws at random, as `layer_keys` gives them.

    Raises:
        NotImplementedError: a layer that does not say what it draws for a part of a batch.
        TypeError: no key.
    """
    found = layer_keys(net, key)
    if found is not None:
        for layer in filter(lambda layer: layer.draws, net.layers()):
            layer.drawing_for(Part(0, 1), jax.random.key(0))
    return found


def require_microbatches(examples: int, microbatches: int, shards: int, data: str | None) -> None:
    """Refuse a batch that cannot be cut into equal microbatches.

    Raises:
        ValueError: says the numbers.
    """
    if examples % shards:
        raise ValueError(f"{shards} devices along {data!r} do not divide the batch of {examples} examples")
    if examples // shards % microbatches:
        of = "the batch" if shards == 1 else f"each device's part, along {data!r}, of the batch"
        raise ValueError(
            f"{microbatches} microbatches do not divide {of}, {examples // shards} examples; use a batch of a multiple"
            f" of {shards * microbatches} examples, or other microbatches"
        )


def require_one_flow(of_net: Parts, x: Examples, dtype: Any) -> None:
    """Refuse blocks that take several arrays.

    Raises:
        ValueError: says what they take.
    """
    entered = validate.described(x, dtype)
    if of_net.before is not None:
        entered = of_net.before.output(entered)
    if isinstance(entered, tuple):
        raise ValueError(
            f"the blocks of a pipeline take one array, but {len(entered)} enter those of {of_net.chain}; stages"
            " exchange one"
        )


def require_sums(found: tuple[Tree, ...], of_more: tuple[Tree, ...]) -> None:
    """Refuse readings that cannot be summed over microbatches, by what is found of a microbatch and of a larger one.

    Raises:
        TypeError: no floats.
        ValueError: shapes that depend on the number of examples.
    """
    for (_, readings), (_, others) in zip(found, of_more, strict=True):
        for name, reading in readings.items():
            for leaf, other in zip(jax.tree.leaves(reading), jax.tree.leaves(others[name]), strict=True):
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise TypeError(
                        f"reading {name!r} must return floats, to be summed over microbatches, got {leaf.dtype}"
                    )
                if leaf.shape != other.shape:
                    raise ValueError(
                        f"reading {name!r} returns {list(leaf.shape)} for one microbatch and {list(other.shape)} for"
                        " one twice as large; a reading must be a sum over examples, as factor.squared_sum(weights) is"
                    )
