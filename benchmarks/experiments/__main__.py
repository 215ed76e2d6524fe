"""Published claims measured on scikit-learn's digits, each with its control; exit status 1 if one does not hold.

    python -m benchmarks.experiments [--only PATTERN] [--list] [--json FILE]

Needs the extra "cli" for the data. A claim holds if its measurement and its control both do.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.experiments import CLAIMS, Claim, Finding
from reference.cli.files import BadInput
from reference.report import plain_table

HEADER = ("claim", "source", "measured", "control", "seeds", "verdict")


def chosen(pattern: str) -> list[Claim]:
    """Claims whose name or text contains or matches the pattern, ignoring case.

    Raises:
        BadInput: there are none.
    """
    found = [c for c in CLAIMS.values() if _matches(f"{c.name} {c.text}", pattern)]
    if not found:
        raise BadInput(f"no claim is called like {pattern!r}; `python -m benchmarks.experiments --list` names them")
    return found


def _matches(text: str, pattern: str) -> bool:
    if pattern.lower() in text.lower():
        return True
    try:
        return re.search(pattern, text, re.IGNORECASE) is not None
    except re.error:
        return False


def line(claim: Claim, finding: Finding) -> tuple[str, ...]:
    """A row of the table."""
    seeds = ",".join(map(str, finding.seeds))
    return claim.text, claim.source, str(finding.measured), str(finding.control), seeds, finding.verdict


def as_dict(claim: Claim, finding: Finding, seconds: float) -> dict[str, object]:
    """Plain values, for JSON."""
    head = {"name": claim.name, "claim": claim.text, "source": claim.source}
    return head | asdict(finding) | {"verdict": finding.verdict, "seconds": round(seconds, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="claims whose name or text contains or matches it"
    )
    parser.add_argument("--list", action="store_true", help="name the claims and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except (BadInput, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    claims = chosen(given.only)
    if given.list:
        print(plain_table(("name", "claim", "source"), [(c.name, c.text, c.source) for c in claims]))
        return 0
    if given.json:
        given.json.touch()  # fail now, not after minutes, if the path cannot be written
    lines, plain, notes = [], [], []
    for i, claim in enumerate(claims, 1):
        started = time.time()
        finding = claim()
        print(f"{i} of {len(claims)} {claim.name}: {finding.verdict}", file=sys.stderr, flush=True)
        lines.append(line(claim, finding))
        plain.append(as_dict(claim, finding, time.time() - started))
        if finding.note:
            notes.append(f"{claim.name}: {finding.note}")
    print("\n".join([plain_table(HEADER, lines), "", *notes]))
    if given.json:
        given.json.write_text(json.dumps(plain, indent=1))
    failed = [str(p["name"]) for p in plain if p["verdict"] != "holds"]
    print(
        f"\n{len(plain) - len(failed)} of {len(plain)} claims hold" + (f"; not: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
