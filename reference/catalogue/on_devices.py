"""The catalogue's networks on several devices: each in one layout, with axes of one kind."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

import manual_backprop as mb
from manual_backprop.node import Node

AXES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


@dataclass(frozen=True)
class Way:
    """How a network lies on the devices.

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
        """The layout; "data" for a network whose widths the devices do not divide."""
        try:
            mb.sharding.specs(net, params, self.layout, self.mesh())
        except ValueError:
            return "data"
        return self.layout


def ways(devices: int) -> tuple[Way, ...]:
    """Every layout with axes of either kind; network i of the catalogue takes way i, counted round."""
    return tuple(Way(layout, axes, devices) for axes in AXES for layout in mb.sharding.LAYOUTS)


def in_a_process_with(devices: int, words: Sequence[str]) -> int:
    """Run the command again in a process of its own that has so many virtual devices; return its exit status.

    XLA reads the number when JAX starts, so it cannot be changed in this one.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import sys; from reference.cli import main; sys.exit(main())", *words]
    return subprocess.run(command, env=environment, check=False).returncode
