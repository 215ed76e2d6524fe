"""What layouts move between eight devices and keep in memory, beside jax.grad: `python -m benchmarks.sharding`.

Collectives and bytes are counted in the compiled program (`benchmarks.collectives`); nothing is run. A recomputing
`Repeat` stands beside jax.grad with `jax.checkpoint` on its block, which runs the block forward again, too.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import manual_backprop as mb
import reference
from benchmarks import collectives
from manual_backprop.node import Node, Wrapper
from reference import model

EIGHT = "--xla_force_host_platform_device_count=8"
SHAPES = {"data": (8, 1), "fsdp": (8, 1), "tensor": (4, 2), "2d": (4, 2)}


@dataclass(frozen=True)
class Checkpointed(Wrapper):
    """A block that jax.grad runs forward again on the way back."""

    block: Node

    def forward(self, step: Any, x: Any, owned: Any) -> Any:
        """As the block does."""
        return self.block.forward(step, x, owned)

    def backward(self, step: Any, d: Any, owned: Any, kept: Any) -> Any:
        """As the block does."""
        return self.block.backward(step, d, owned, kept)


@model.through.register
def _(node: Checkpointed, at: Any, x: Any, params: Any, *uses: Any) -> Any:
    return jax.checkpoint(lambda *each: model.through(node.block, at, *each))(x, params, *uses)


def chain(recompute: bool) -> mb.Repeat:
    """Eight residual blocks of two layers."""
    return mb.Repeat(mb.Residual(mb.Serial((mb.Dense(128, 512, "tanh"), mb.Dense(512, 128)))), 8, recompute)


def checkpointed(net: Node) -> Node:
    """The network with every block of a recomputing `Repeat` checkpointed, for jax.grad."""
    if isinstance(net, mb.Repeat) and net.recompute:
        return replace(net, block=Checkpointed(net.block))
    if isinstance(net, mb.Serial):
        return mb.Serial(tuple(map(checkpointed, net.nodes)))
    return net


NETS: dict[str, Callable[[], Node]] = {
    "MLP 128-512-512-128, N = 256": lambda: mb.mlp((128, 512, 512, 128)),
    "8 residual blocks of 128-512-128": lambda: chain(False),
    "the same, recomputed": lambda: chain(True),
    "GPT 4 x 64, T = 64, N = 16, V = 256": lambda: mb.gpt(256, 64, 4, 4, 64, hidden=256, recompute=False),
    "the same GPT, recomputed": lambda: mb.gpt(256, 64, 4, 4, 64, hidden=256),
}


def problem(net: Node) -> tuple[mb.Objective, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The objective, and the shapes of a batch."""
    if any(isinstance(layer, mb.Embedding) for layer in net.layers()):
        ids = jax.ShapeDtypeStruct((16, 64), jnp.int32)
        return mb.Objective(net, mb.softmax_cross_entropy), ids, ids
    rows = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    return mb.Objective(net, mb.squared_error), rows, rows


def measured(
    net: Node, layout: str, kind: AxisType = AxisType.Auto
) -> tuple[collectives.Cost, collectives.Cost | None]:
    """(ours, jax.grad's) for the layout; under explicit axes jax.grad of a plain forward is refused, so None."""
    objective, x, y = problem(net)
    mesh = jax.make_mesh(SHAPES[layout], ("data", "model"), axis_types=(kind,) * 2)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    specs = mb.sharding.specs(net, shapes, layout, mesh)

    def on_mesh(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    rows = mb.sharding.batch_spec(layout)
    arguments = jax.tree.map(on_mesh, shapes, specs), on_mesh(x, rows), on_mesh(y, rows)
    ours = collectives.cost(jax.jit(mb.value_and_grad(objective)).lower(*arguments).compile())
    if kind is AxisType.Explicit:
        return ours, None
    plain = reference.value_and_grad(replace(objective, net=checkpointed(net)))
    return ours, collectives.cost(jax.jit(plain).lower(*arguments).compile())


def row(name: str, cost: collectives.Cost) -> str:
    """One row of the table."""
    counts = " | ".join(str(cost.counts[kind]) for kind in collectives.KINDS)
    return f"| {name} | {counts} | {cost.moved / 2**20:.2f} | {cost.temporary / 2**20:.2f} |"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=int, nargs="*", default=range(len(NETS)), help="which networks, by number")
    given = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"  # read when the first device is asked for
    print(f"jax {jax.__version__}, {jax.device_count()} devices, float32; bytes and memory in MiB on one device")
    print(f"| | {' | '.join(collectives.KINDS)} | moved | temporary |")
    print(f"|---|{'---|' * (len(collectives.KINDS) + 2)}")
    for number in given.only:
        name, make = list(NETS.items())[number]
        for layout in mb.sharding.LAYOUTS:
            ours, theirs = measured(make(), layout)
            explicit, _ = measured(make(), layout, AxisType.Explicit)
            print(row(f"{name}, {layout}: ours", ours))
            print(row("jax.grad", theirs))
            print(row("ours, explicit axes", explicit), flush=True)


if __name__ == "__main__":
    main()
