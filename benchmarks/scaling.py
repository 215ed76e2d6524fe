"""What layouts and schedules cost on 8, 64 and 512 devices, by formula: `python -m benchmarks.scaling`.

The network is `DEPTH` residual blocks of d-4d-d, its batch N rows for every device along "data". Bytes are of results
of collectives, in a step; the formulas are held against the compiled programs on 2, 4 and 8 virtual devices, and the
table says by how much they are off. Ticks are exact (`mb.schedules`).
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

import manual_backprop as mb
from benchmarks import collectives

EIGHT = "--xla_force_host_platform_device_count=8"
DEPTH, WIDTH, ROWS = 8, 128, 32
FLOAT = 4  # bytes
CHECKED, ON_PAPER = (2, 4, 8), (8, 64, 512)
OFF_BY = 0.01  # J, and the sums of the loss


def net() -> mb.Repeat:
    """The blocks, kept and not run again."""
    block = mb.Serial((mb.Dense(WIDTH, 4 * WIDTH, "tanh"), mb.Dense(4 * WIDTH, WIDTH)))
    return mb.Repeat(mb.Residual(block), DEPTH, recompute=False)


def parameters() -> int:
    """How many there are."""
    return DEPTH * (2 * WIDTH * 4 * WIDTH + 5 * WIDTH)


def of_data(devices: int) -> float:
    """Every gradient is summed once."""
    return FLOAT * parameters()


def of_fsdp(devices: int) -> float:
    """Every parameter is gathered on the way up and on the way down, and its gradient is summed."""
    return 3 * FLOAT * parameters()


def of_tensor(devices: int) -> float:
    """Every block sums its rows once up and once down."""
    return 2 * DEPTH * FLOAT * ROWS * WIDTH


FORMULAS: dict[str, Callable[[int], float]] = {"data": of_data, "fsdp": of_fsdp, "tensor": of_tensor}
AXES = {"data": AxisType.Auto, "fsdp": AxisType.Explicit, "tensor": AxisType.Auto}


def counted(layout: str, devices: int) -> collectives.Cost:
    """What the compiled program moves."""
    own = jax.devices()[:devices]
    shape = (1, devices) if layout == "tensor" else (devices, 1)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AXES[layout],) * 2, devices=own)
    chain = net()
    shapes = jax.eval_shape(lambda: chain.init(jax.random.key(0), jnp.float32))
    rows = ROWS if layout == "tensor" else ROWS * devices
    batch = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32)

    def on_mesh(leaf: Any, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(on_mesh, shapes, mb.sharding.specs(chain, shapes, layout, mesh))
    x = on_mesh(batch, mb.sharding.batch_spec(layout))
    objective = mb.Objective(chain, mb.squared_error)
    return collectives.cost(jax.jit(mb.value_and_grad(objective)).lower(params, x, x).compile())


def sent(bytes_of_results: float, layout: str, devices: int) -> float:
    """What a device sends in rings: 2 (n - 1)/n of a sum, (n - 1)/n of what is gathered."""
    share = (devices - 1) / devices
    if layout == "fsdp":
        return share * (2 / 3 + 2 / 3) * bytes_of_results  # two gathers and one sum
    return 2 * share * bytes_of_results


def main() -> None:
    """Print both tables in Markdown; exit with 1 where a formula is off."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"
    print(f"{DEPTH} residual blocks {WIDTH}-{4 * WIDTH}-{WIDTH}, {ROWS} rows for each device along data; MiB a step")
    results = " | ".join(f"counted on {n} / formula" for n in CHECKED)
    print(f"| layout, axes | {results} | {' | '.join(f'a device sends, of {n}' for n in ON_PAPER)} |")
    print(f"|---|{'---|' * (len(CHECKED) + len(ON_PAPER))}")
    right = True
    for layout, formula in FORMULAS.items():
        ratios = [counted(layout, n).moved / formula(n) for n in CHECKED]
        right &= all(abs(ratio - 1) <= OFF_BY for ratio in ratios)
        on_paper = [sent(formula(n), layout, n) / 2**20 for n in ON_PAPER]
        cells = [f"{ratio:.4f}" for ratio in ratios] + [f"{mib:.2f}" for mib in on_paper]
        print(f"| {layout}, {AXES[layout].name.lower()} | {' | '.join(cells)} |", flush=True)
    print("\n| stages, microbatches | gpipe, 1f1b: 3 (M + p - 1) | zero_bubble: 3 M + p - 1 |\n|---|---|---|")
    for stages in ON_PAPER:
        microbatches = 4 * stages
        idle = [f"{ticks} ticks, {1 - 3 * microbatches / ticks:.1%} idle" for ticks in ticks_of(stages, microbatches)]
        print(f"| {stages}, {microbatches} | {' | '.join(idle)} |")
    for stages in CHECKED:
        made = [mb.schedules.NAMED[name](stages, 4 * stages).ticks for name in ("1f1b", "zero_bubble")]
        right &= made == list(ticks_of(stages, 4 * stages))
    print(f"\nthe formulas are {'right' if right else 'OFF'} on {', '.join(map(str, CHECKED))} devices")
    if not right:
        raise SystemExit(1)


def ticks_of(stages: int, microbatches: int) -> tuple[int, int]:
    """By formula, with F, B and W of one tick each."""
    return 3 * (microbatches + stages - 1), 3 * microbatches + stages - 1


if __name__ == "__main__":
    main()
