"""The cost of a reading of one sweep, beside one plain gradient and beside how it is done without the sweep.

    python -m benchmarks.readings [--quick] [--only NAME] [--check] [--json FILE]

784-512-512-10, tanh, softmax cross-entropy, no regulariser, float32; every reading is one compiled function of
(params, x, y, more) that returns what it is asked for and nothing else. Times are medians over rounds of the ratio to
one compiled jax.grad of the same batch in the same round (benchmarks.interleaved), so that other jobs on the machine
cancel; memory is XLA's count of temporary buffers and flops are XLA's count. A peer is the usual way by automatic
differentiation: vmap(grad) for what concerns each example, jvp of grad for the Hessian. By probes is a way that fewer
know: a zero added to every z, whose gradient is delta, brings jax.grad to the same contractions.

Other jobs still make single numbers wander by a tenth; the two rounds of vmap(grad) at batch 512, which take
seconds, tell its order of magnitude.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.readings.expectations import BATCHES, EXPECTATIONS
from benchmarks.readings.measuring import Measured, measured, problem
from benchmarks.readings.rows import readings
from reference.report import plain_table

MIB = 2**20
APART = 1e-3  # a peer whose float32 numbers differ by more, relative to the largest of a leaf, times something else
HEADER = ("reading", "batch", "time", "peer", "temp MiB", "peer", "flops", "peer", "apart", "the peer's way")


def line(row: Measured) -> tuple[str, ...]:
    """A row of the table."""
    hand, peer = row.hand, row.peer
    return (
        row.name,
        str(row.batch),
        f"{hand.time:.2f}",
        f"{peer.time:.3g}" if peer.time >= 10 else f"{peer.time:.2f}",
        f"{hand.temp / MIB:.2f}",
        f"{peer.temp / MIB:.2f}",
        f"{hand.flops:.2f}",
        f"{peer.flops:.2f}",
        f"{row.apart:.0e}",
        row.way,
    )


def main() -> int:
    """Print the table and the verdicts; 1 if --check and an expectation is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="batch 128 alone, fewer rounds, less certain")
    parser.add_argument("--only", default="", metavar="NAME", help="rows whose name contains NAME")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an expectation is missed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = [reading.name for reading in readings(problem(1)[0])]
    if not any(arguments.only in name for name in names):
        parser.error(f"--only {arguments.only!r} is in no row's name; there are {', '.join(names)}")

    rows = []
    for row in measured((128,) if arguments.quick else BATCHES, arguments.only, 7 if arguments.quick else 15):
        rows.append(row)
        print("  ".join(line(row)), file=sys.stderr, flush=True)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores.")
    print("Time and flops in plain gradients of the same batch; time is the median of interleaved ratios.\n")
    print(plain_table(HEADER, [line(row) for row in rows]) + "\n")

    verdicts = [expectation.verdict(rows) for expectation in EXPECTATIONS]
    strangers = [row.name for row in rows if not row.apart <= APART]
    alike = f"numbers by hand and by peer differ by <= {APART:g}: {np.max([row.apart for row in rows]):.1g}"
    verdicts.append(("MISSED" if strangers else "ok", alike + "".join(f", {name}" for name in strangers)))
    for verdict, text in verdicts:
        print(f"{verdict}: {text}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "verdicts": verdicts}, default=vars, indent=1))
    return int(arguments.check and any(verdict == "MISSED" for verdict, _ in verdicts))


if __name__ == "__main__":
    sys.exit(main())
