"""Schedules of a pipeline, and their memory against jax.grad's through one: `python -m benchmarks.pipeline`.

Ticks are counted with F = B = W = 1. Memory is XLA's own count of temporary bytes on one device, for residual blocks on
four devices, all of them this processor. Nothing is timed.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

import manual_backprop as mb
from reference.report import plain_table

SIZES = ((4, 8), (4, 16), (4, 32), (8, 32))
STAGES, MICROBATCHES = 4, 32
BLOCKS, WIDTH, ROWS = 8, 256, 128
BY_GRAD = "jax.grad of a forward pipeline"
CHECKPOINTED = "the same, jax.checkpoint on the stage"


def ticks() -> Iterator[tuple[str, ...]]:
    """A row for every size: ticks, the idle part of all ticks and the most live microbatches, by schedule."""
    for stages, microbatches in SIZES:
        made = [make(stages, microbatches) for make in mb.schedules.NAMED.values()]
        cells = (f"{each.ticks} ({each.idle_share:.0%}, {max(each.live)})" for each in made)
        yield f"{stages} stages, {microbatches} microbatches", str(made[0].work), *cells


def blocks(width: int, n: int, *, recompute: bool = True) -> mb.Repeat:
    """Residual blocks of two layers."""
    return mb.Repeat(mb.Residual(mb.Serial((mb.Dense(width, width, "tanh"), mb.Dense(width, width)))), n, recompute)


def forward_pipeline(mesh: Mesh, microbatches: int, *, checkpointed: bool) -> Callable[..., jax.Array]:
    """The mean squared error of `blocks` as a user writes a pipeline with ppermute, for jax.grad to differentiate.

    All microbatches go up one after the other, so backward they come down one after the other: GPipe.
    """
    stages = mesh.shape["stage"]
    up = [(stage, stage + 1) for stage in range(stages - 1)]

    def block(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        first, second = own
        hidden = jnp.tanh(x @ first.W.T + jnp.broadcast_to(first.b, (len(x), *first.b.shape)))
        return x + hidden @ second.W.T + jnp.broadcast_to(second.b, x.shape), None

    def through(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(block, x, params)[0]

    stage = jax.checkpoint(through) if checkpointed else through

    def on_a_device(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        place = jax.lax.axis_index("stage")
        x, y = (leaf.reshape(microbatches, -1, leaf.shape[-1]) for leaf in (x, y))

        def tick(carry: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            arrived, loss = carry
            a = stage(params, jnp.where(place == 0, x[jnp.clip(now, 0, microbatches - 1)], arrived))
            left = now - stages + 1
            error = jnp.sum(jnp.square(a - y[jnp.clip(left, 0)])) / 2
            loss = loss + jnp.where((place == stages - 1) & (left >= 0), error, 0)
            return (jax.lax.ppermute(a, "stage", up), loss), None

        start = jax.lax.pcast((jnp.zeros_like(x[0]), jnp.zeros((), x.dtype)), "stage", to="varying")
        (_, loss), _ = jax.lax.scan(tick, start, jnp.arange(microbatches + stages - 1))
        return jax.lax.psum(loss, "stage")

    split, whole = PartitionSpec("stage"), PartitionSpec()
    run = jax.shard_map(on_a_device, mesh=mesh, in_specs=(split, whole, whole), out_specs=whole)
    return lambda params, x, y: run(params, x, y) / len(x)


def programs(
    mesh: Mesh, microbatches: int, width: int, n: int, *, recompute: bool = True
) -> dict[str, Callable[..., Any]]:
    """Value and gradient of the same blocks, by name: two by jax.grad and one by every schedule."""
    objective = mb.Objective(blocks(width, n, recompute=recompute), mb.squared_error)
    by_grad = {
        name: jax.value_and_grad(forward_pipeline(mesh, microbatches, checkpointed=checkpointed))
        for name, checkpointed in ((BY_GRAD, False), (CHECKPOINTED, True))
    }
    by_hand = {
        name: mb.pipeline(objective, mesh, microbatches=microbatches, schedule=name) for name in mb.schedules.NAMED
    }
    return by_grad | by_hand


def temporary(run: Callable[..., Any], *arguments: Any) -> int:
    """XLA's count of a compiled program's temporary bytes on one device."""
    return jax.jit(run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def memory(stages: int, microbatches: int) -> Iterator[tuple[str, ...]]:
    """A row for every program: its temporary memory, where blocks are run again on the way back and where not."""
    mesh = Mesh(jax.devices()[:stages], ("stage",))
    params = blocks(WIDTH, BLOCKS).init(jax.random.key(0), jnp.float32)
    x, y = jax.random.normal(jax.random.key(1), (2, ROWS * microbatches, WIDTH))
    again, kept = (programs(mesh, microbatches, WIDTH, BLOCKS, recompute=recompute) for recompute in (True, False))
    for name, run in again.items():
        cells = [f"{temporary(each, params, x, y) / 2**20:.1f}" for each in (run, kept[name])]
        yield name, *(cells if name in mb.schedules.NAMED else (cells[0], ""))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--microbatches", type=int, default=MICROBATCHES, help="of the second table, by default 32")
    given = parser.parse_args()
    print("ticks (the idle part of them, the most live microbatches)\n")
    print(plain_table(("", "work", *mb.schedules.NAMED), list(ticks())))
    of_what = f"{BLOCKS} residual blocks of width {WIDTH}, {ROWS} rows a microbatch"
    print(f"\njax {jax.__version__}, {STAGES} stages, {given.microbatches} microbatches, {of_what}\n")
    rows = list(memory(STAGES, given.microbatches))
    print(plain_table(("MiB of temporary memory on a device", "recompute=True", "recompute=False"), rows))


if __name__ == "__main__":
    devices = f"--xla_force_host_platform_device_count={STAGES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"  # read when the first device is asked for
    main()
