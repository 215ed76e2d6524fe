"""Point the harness at code that nobody here wrote.

    python -m benchmarks.elsewhere                                  all, in float32
    python -m benchmarks.elsewhere --dtype bfloat16 float16         in other precisions
    python -m benchmarks.elsewhere --library jax optax              of some libraries
    python -m benchmarks.elsewhere sort svd                         some by name

A function is checked against itself, JAX against JAX: with float64, whose answer is the better one; a custom rule
against the plain function that it holds; some functions against a formula that stands here. So a failure is a false
alarm of the harness, or a fault of the library. What cannot be checked is named with its reason.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.elsewhere import functions, rules
from benchmarks.elsewhere.cases import ALL, WAYS, Case
from benchmarks.elsewhere.judging import judged
from benchmarks.elsewhere.known import ABSENT, KNOWN

VERDICTS = ("pass", "fail", "crash", "inconclusive", "not checked")


def found(libraries: list[str]) -> Iterator[tuple[str, str, Case | str]]:
    """(library, name, case), or (library, "", why it has none) where it does not import."""
    for library in libraries:
        try:
            table = functions.CASES if library == "jax" else rules.cases(library)
        except (ImportError, AttributeError) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == library
            yield library, "", "not installed" if missing else f"does not import: {error}"
            continue
        yield from ((library, name, case) for name, case in table.items())


def arguments() -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elsewhere", description=__doc__.splitlines()[0])
    every = ["jax", *rules.names()]
    parser.add_argument("names", nargs="*", metavar="name", help="some cases; all without any")
    parser.add_argument("--library", nargs="+", default=every, choices=every, metavar="NAME", help=", ".join(every))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=ALL)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="fewer than all three are faster")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome")
    return parser.parse_args()


def _known(name: str, dtype: str) -> str:
    told = KNOWN.get(f"{name} in {dtype}", KNOWN.get(name))
    return "known: " + "; ".join(told) if told else ""


def main() -> int:
    """Print the table; 1 where something failed or crashed that is not known."""
    given = arguments()
    table = list(found(given.library))
    unknown = set(given.names) - {name for _, name, _ in table}
    if unknown:
        print("no such case: " + ", ".join(sorted(unknown)), file=sys.stderr)
        return 2
    outcomes, bad = [], False
    for dtype in given.dtype:
        counts: Counter[str] = Counter()
        for library, name, case in table:
            if isinstance(case, str):
                print(f"{library:18} {case}", flush=True)
            elif not given.names or name in given.names:
                outcome = judged(case, dtype, tuple(given.ways))
                counts[outcome.verdict] += 1
                known = _known(name, dtype) if outcome.verdict in ("fail", "crash") else ""
                bad |= outcome.verdict in ("fail", "crash") and not known
                head = f"{library:18} {name:36} {outcome.verdict:12} {outcome.seconds:5.1f} s"
                print(f"{head}  {known or outcome.reason}".rstrip(), flush=True)
                its = {"library": library, "name": name, "kind": case.kind, "dtype": dtype}
                outcomes.append(its | outcome.as_dict())
        print(f"\n{dtype}: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS) + "\n", flush=True)
        if given.json:
            given.json.write_text(json.dumps(outcomes, indent=1) + "\n")
    if not given.names and "jax" in given.library and len(given.library) > 1:
        print("No cases: " + "".join(f"\n  {name:24} {reason}" for name, reason in ABSENT.items()))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
