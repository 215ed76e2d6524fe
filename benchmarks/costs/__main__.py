"""Time and temporary memory of compiled value_and_grad, by activation and size, relative to jax.value_and_grad.

    python -m benchmarks.costs [--check] [--memory] [--cores 1|2] [--lam 1e-4] [--weighted] [--product hvp|gnvp]
                               [--exact] [--only NAME ...] [--nets PART ...] [--batches N ...] [--rounds 61]

The other side is jax.jit(jax.value_and_grad(J)) with J as a user of jax.grad would write it, softmax cross-entropy of
a chain of dense layers with jax.nn's activations, in float32. --product compares Hessian-vector products with jvp of
grad, or Gauss-Newton products with jvp and vjp of the same functions.

Time is the median over rounds of the ratio of the two in one round (benchmarks.interleaved), and +- its standard error;
large networks, whose calls take long, get as many rounds as fit into --seconds. Memory is XLA's count of temporary
buffers, and needs no run; differences of a few KiB are printed as they are.

--check exits with 1 where a time is above 1.03, where a memory ratio rounded to two digits is above 1.00 (so that a
difference below half a percent does not count, and any larger one does, be it one array of outputs), or where the
two results differ by more than a tenth. The exact variants of --exact are held to nothing.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import jax

from benchmarks.costs.cases import BATCHES, QUANTITIES, Setting, cases
from benchmarks.costs.measuring import Effort, measured
from benchmarks.costs.tables import line, medians, misses, table, worst_memory
from benchmarks.networks import NETS
from manual_backprop.activations import TABLE


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    effort = Effort()
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    options.add_argument("--memory", action="store_true", help="memory alone; nothing runs")
    options.add_argument("--cores", type=int, metavar="N", help="pin the process to N of its cores")
    options.add_argument("--lam", type=float, default=0.0, help="of the regulariser; 0, the default, is none")
    options.add_argument("--weighted", action="store_true", help="J = sum_n w_n l_n in place of the mean")
    options.add_argument("--product", choices=[name for name in QUANTITIES if name != "grad"])
    options.add_argument("--exact", action="store_true", help="the exact variants too, where an activation has one")
    options.add_argument("--only", nargs="+", choices=TABLE, metavar="NAME", help=f"of {', '.join(TABLE)}")
    options.add_argument("--nets", nargs="+", metavar="PART", help=f"those with a PART in the name: {', '.join(NETS)}")
    options.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    options.add_argument("--rounds", type=int, default=effort.rounds, help="at most, for each row")
    options.add_argument("--seconds", type=float, default=effort.at_most, help="after which no round begins")
    return options


def pin(cores: int) -> None:
    """Pin this process, and the threads that it starts from now on, to the first of the cores it may use.

    JAX starts its threads, one a core, when it is first used.

    Raises:
        ValueError: a system without affinities, or fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--cores needs a system that pins processes")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= cores <= len(allowed):
        raise ValueError(f"--cores must be 1 to {len(allowed)}, got {cores}")
    os.sched_setaffinity(0, allowed[:cores])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows as they come, then the tables; 1 if --check and a bound is missed."""
    options = parser()
    given = options.parse_args(argv)
    nets = [net for net in NETS if given.nets is None or any(part in net for part in given.nets)]
    if not nets:
        options.error(f"--nets {' '.join(given.nets)} is in no name; there are {', '.join(NETS)}")
    if given.cores is not None:
        try:
            pin(given.cores)
        except ValueError as error:
            options.error(str(error))

    setting = Setting(given.product or "grad", given.lam, given.weighted)
    effort = None if given.memory else Effort(given.rounds, at_most=given.seconds)
    rows = []
    for row in measured(cases(given.only or TABLE, nets, given.batches, given.exact), setting, effort):
        rows.append(row)
        print("  ".join(line(row)), file=sys.stderr, flush=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {cores} core(s): {setting}\n")
    print(f"{table(rows)}\n\n{worst_memory(rows)}\n\n{medians(rows)}\n")
    missed = misses(rows)
    for miss in missed:
        print(f"MISSED: {miss}")
    print(f"{len(missed)} bounds missed in {sum(row.case.held for row in rows)} rows")
    return int(given.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
