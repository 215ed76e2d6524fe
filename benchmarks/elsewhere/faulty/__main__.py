"""Which judge sees a subtle fault in a derivative that others wrote: one table.

    python -m benchmarks.elsewhere.faulty                        40 rules, three faults in each
    python -m benchmarks.elsewhere.faulty --library jax optax    those of some libraries
    python -m benchmarks.elsewhere.faulty --seed 1               with other faults

The rules are in `chosen`, the faults in `kinds` and `of_equations`. Three are drawn by the seed, each of another kind
and each finite. Whether one changes the derivative by more than its rounding is judged in `truth`, without the harness;
what is equivalent is counted and shown to none. The function keeps its right values. Its derivative is replaced by the
wrong one, as a jax.custom_vjp or jax.custom_jvp, and for the false alarms by the right one.
"""

import argparse
import json
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.elsewhere.__main__ import found
from benchmarks.elsewhere.cases import Case
from benchmarks.elsewhere.faulty.chosen import CHOSEN
from benchmarks.elsewhere.faulty.judges import JUDGES, asked
from benchmarks.elsewhere.faulty.linear_map import Map, Subject, subject_of
from benchmarks.elsewhere.faulty.of_equations import drawn
from benchmarks.elsewhere.faulty.tables import Outcome, findings, tables
from benchmarks.elsewhere.faulty.truth import Truth

FAULTS = 3


def outcomes(
    library: str, name: str, case: Case, seed: int = 0, judges: tuple[str, ...] = tuple(JUDGES)
) -> list[Outcome]:
    """The right derivative of a case, and its faults, before each judge."""
    subject, args = subject_of(case)
    truth = Truth(subject, args)
    head = (library, name)
    made = [Outcome(*head, "right", "", 0.0, _all(subject.right, subject, args, judges))]
    for kind, fault in drawn(subject, args, (seed, zlib.crc32(name.encode()))):
        if len(made) > FAULTS:
            break
        excess = truth.excess(fault.derivative)
        if np.isnan(excess):
            continue  # anybody sees a nan
        verdicts = _all(fault.derivative, subject, args, judges) if excess > 1 else {}
        made.append(Outcome(*head, kind, fault.what, excess, verdicts))
    return made


def _all(derivative: Map, subject: Subject, args: tuple[Any, ...], judges: tuple[str, ...]) -> dict[str, Any]:
    return {judge: asked(judge, subject.with_derivative(derivative), args, subject) for judge in judges}


def _cases(libraries: list[str]) -> Iterator[tuple[str, str, Case]]:
    for library, name, case in found(libraries):
        if isinstance(case, str):
            print(f"{library:12} {case}", flush=True)
        elif name in CHOSEN[library]:
            yield library, name, case


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elsewhere.faulty", description=__doc__.splitlines()[0])
    parser.add_argument("--library", nargs="+", default=list(CHOSEN), choices=CHOSEN, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="draws the faults")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome")
    given = parser.parse_args()
    began, made = time.perf_counter(), []
    for library, name, case in _cases(given.library):
        here = outcomes(library, name, case, given.seed)
        made += here
        print(f"{library:12} {name:45} " + "; ".join(outcome.in_short() for outcome in here), flush=True)
    print("\n" + tables(made) + "\n\n" + findings(made))
    print(f"\nseed {given.seed}, {time.perf_counter() - began:.0f} s in all")
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in made], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
