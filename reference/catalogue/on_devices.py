"""The catalogue's networks on several devices: each in one layout with axes of one kind, and blocks in a pipeline."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

import manual_backprop as mb
from manual_backprop.node import Node
from manual_backprop.pipelined.parts import parts
from reference.xla import THREADS

ValueAndGrad = Callable[[mb.Objective], Callable[..., tuple[Any, Any]]]
MICROBATCHES = 2
AXES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


@runtime_checkable
class Way(Protocol):
    """How a network is run on devices."""

    @property
    def name(self) -> str:
        """The name for --only and in tables."""

    def mesh(self) -> Mesh:
        """The devices."""

    def layout_of(self, net: Node, params: Any) -> Any:
        """The layout of its inputs."""

    def value_and_grad(self) -> ValueAndGrad:
        """The gradient under test."""


@dataclass(frozen=True)
class Laid:
    """A network laid out on the devices.

    Attributes:
        layout: one of `manual_backprop.sharding.LAYOUTS`.
        axes: "automatic" or "explicit".
        devices: how many.
    """

    layout: str
    axes: str
    devices: int

    @property
    def name(self) -> str:
        """The name for --only and in tables."""
        return f"{self.layout}, {self.axes} axes"

    def mesh(self) -> Mesh:
        """The devices, half of them along "data" and two along "model"."""
        return jax.make_mesh((self.devices // 2, 2), ("data", "model"), axis_types=(AXES[self.axes],) * 2)

    def layout_of(self, net: Node, params: Any) -> str:
        """The layout."""
        return self.layout

    def splits(self, net: Node) -> bool:
        """Whether the devices divide a width of the network that the layout splits; "data" splits none."""
        params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
        try:
            mb.sharding.specs(net, params, self.layout, self.mesh())
        except ValueError:
            return False
        return True

    def value_and_grad(self) -> ValueAndGrad:
        """That of one device, which XLA splits."""
        return mb.value_and_grad


@dataclass(frozen=True)
class Piped:
    """A network whose blocks are split into stages, and its batch along "data".

    Attributes:
        schedule: a name of `manual_backprop.schedules`.
        stages: how many.
        shards: how many parts of the batch.
    """

    schedule: str
    stages: int
    shards: int

    @property
    def name(self) -> str:
        """The name for --only and in tables."""
        return f"pipeline, {self.schedule}"

    def mesh(self) -> Mesh:
        """As many devices as it needs."""
        devices = jax.devices()[: self.shards * self.stages]
        return jax.make_mesh((self.shards, self.stages), ("data", "stage"), devices=devices)

    def layout_of(self, net: Node, params: Any) -> Any:
        """Parameters on every device: the pipeline takes each stage's part itself."""
        return jax.tree.map(lambda leaf: PartitionSpec(), params)

    def value_and_grad(self) -> ValueAndGrad:
        """The pipeline's."""
        return partial(mb.pipeline, mesh=self.mesh(), microbatches=MICROBATCHES, schedule=self.schedule, data="data")


def layouts(nets: Sequence[Node], devices: int) -> list[Laid]:
    """For each network a layout that splits it, with axes of either kind: the one that was taken least so far."""
    ways = [Laid(layout, axes, devices) for axes in AXES for layout in mb.sharding.LAYOUTS]
    taken = dict.fromkeys(ways, 0)
    found = []
    for net in nets:
        found.append(min((way for way in ways if way.splits(net)), key=taken.__getitem__))
        taken[found[-1]] += 1
    return found


def pipelines(nets: Sequence[Node], devices: int) -> list[Piped | None]:
    """For each network the next schedule, with as many stages as share its blocks evenly; None where two do not."""
    schedules = cycle(mb.schedules.NAMED)
    return [_piped(net, devices, schedules) for net in nets]


def _piped(net: Node, devices: int, schedules: Iterator[str]) -> Piped | None:
    try:
        blocks = parts(net).chain.n
    except ValueError:
        return None
    stages = next((n for n in (4, 2) if n <= devices and blocks % n == 0), None)
    return None if stages is None else Piped(next(schedules), stages, min(2, devices // stages))


def in_a_process_with(devices: int, words: Sequence[str]) -> int:
    """Run the command again in a process of its own that has so many virtual devices; return its exit status.

    XLA reads the number when JAX starts, so it cannot be changed in this one.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": THREADS}
    command = [sys.executable, "-c", "import sys; from reference.cli import main; sys.exit(main())", *words]
    return subprocess.run(command, env=environment, check=False).returncode
