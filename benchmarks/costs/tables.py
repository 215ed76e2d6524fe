"""The table of the rows, worst first, the medians of every network, and what the bounds are missed by."""

from collections.abc import Sequence

from benchmarks.costs.measuring import Row, median
from benchmarks.networks import NETS
from reference.report import plain_table

TIME = 1.03  # of jax.grad's, as measured
MEMORY = 1.00  # of jax.grad's, rounded to two digits
APART = 0.1  # results that differ by more are of different quantities; 64 layers of selu magnify rounding to 0.03
MIB = 2**20

RATIOS = ("time", "+-", "memory")
COSTS = ("by hand MiB", "jax.grad MiB", "jax.grad ms")
HEADER = ("activation", "net", "batch", *RATIOS, *COSTS)


def line(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    case, run = row.case, row.run
    time, error, ms = (f"{run.time:.3f}", f"{run.error:.3f}", f"{1e3 * run.seconds:.3g}") if run else ("-", "-", "-")
    mib = (f"{bytes_ / MIB:.3f}" for bytes_ in (row.by_hand, row.plain))
    return case.name, case.net, str(case.batch), time, error, f"{row.memory:.3f}", *mib, ms


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """By time, and by memory where nothing was timed."""
    return sorted(rows, key=lambda row: (row.run.time if row.run else 0, row.memory), reverse=True)


def table(rows: Sequence[Row]) -> str:
    """All rows, worst first."""
    return plain_table(HEADER, [line(row) for row in worst_first(rows)])


def medians(rows: Sequence[Row]) -> str:
    """The median over activations, of each network at each N; without the exact variants."""
    lines = []
    for net, batch in {(row.case.net, row.case.batch): None for row in rows}:
        here = [row for row in rows if row.case.held and (row.case.net, row.case.batch) == (net, batch)]
        times = [row.run.time for row in here if row.run]
        time = f"{median(times):.3f}" if times else "-"
        lines.append((net, str(batch), time, f"{median(row.memory for row in here):.3f}"))
    return plain_table(("net", "batch", "time", "memory"), lines)


def where(row: Row) -> str:
    """The activation, network and N of a row in words."""
    return f"{row.case.name}, {row.case.net}, batch {row.case.batch}"


def worst_memory(rows: Sequence[Row]) -> str:
    """The row of the largest memory ratio but for exact variants, and its difference."""
    row = max((row for row in rows if row.case.held), key=lambda row: row.memory)
    return f"worst memory: {row.memory:.3f}, {where(row)} ({difference(row)})"


def difference(row: Row) -> str:
    """How much more memory it takes by hand, in MiB and in arrays of float32 outputs, (N, d_L)."""
    more = row.by_hand - row.plain
    return f"{more / MIB:+.3f} MiB, {more / (4 * row.case.batch * NETS[row.case.net][-1]):+.2f} arrays of outputs"


def misses(rows: Sequence[Row]) -> list[str]:
    """What --check fails for, one line each; a number that is nan fails too."""
    found = []
    for row in worst_first(rows):
        if not row.case.held:
            continue
        if row.run and not row.run.time <= TIME:
            found.append(f"{where(row)}: time {row.run.time:.3f} +- {row.run.error:.3f} > {TIME:g}")
        if not round(row.memory, 2) <= MEMORY:
            found.append(f"{where(row)}: memory {row.memory:.3f} > {MEMORY:g} ({difference(row)})")
        if row.run and not row.run.apart <= APART:
            found.append(f"{where(row)}: results differ by {row.run.apart:.1g} > {APART:g}")
    return found
