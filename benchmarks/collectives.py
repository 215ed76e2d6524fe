"""Collectives of a compiled program, counted in its HLO: how many run, and how many bytes their results have.

One in the body of a loop counts once for every turn.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z\-]+)\(")
_ARRAY = re.compile(r"([a-z]+)(\d+)?\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
_TURNS = re.compile(r"known_trip_count[^\d]*(\d+)")


@dataclass(frozen=True)
class Cost:
    """What a program moves and takes on one device.

    Attributes:
        counts: collectives by kind.
        moved: bytes of their results.
        temporary: bytes of temporary memory.
    """

    counts: dict[str, int]
    moved: int
    temporary: int

    @property
    def number(self) -> int:
        """Collectives of all kinds."""
        return sum(self.counts.values())


def cost(program: Any) -> Cost:
    """Of a program as `jax.jit(f).lower(...).compile()` gives it."""
    bodies, entry = _computations(program.as_text())
    counts: Counter[str] = Counter()
    moved = _count(entry, 1, bodies, counts)
    return Cost({kind: counts[kind] for kind in KINDS}, moved, program.memory_analysis().temp_size_in_bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the first."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            entry = name if head[1] else entry
            found[name] = []
        elif name:
            found[name].append(line)
    return found, entry


def _count(name: str, times: int, bodies: dict[str, list[str]], counts: Counter[str]) -> int:
    """Add up the collectives of a computation and of those that it calls; return the bytes of their results."""
    moved = 0
    for line in bodies[name]:
        operation = _OPERATION.match(line)
        if not operation:
            continue
        kind = operation[2].removesuffix("-start")
        if kind in KINDS:
            counts[kind] += times
            moved += times * sum(map(_bytes, _ARRAY.findall(operation[1])))
            continue
        turns = int(_TURNS.search(line)[1]) if kind == "while" and _TURNS.search(line) else 1  # type: ignore[index]
        for group in _CALLED.findall(line):
            for called in group.replace("%", "").split(","):
                moved += _count(called.strip(), times * turns, bodies, counts)
    return moved


def _bytes(array: tuple[str, str, str]) -> int:
    kind, bits, shape = array
    width = 1 if kind == "pred" else int(bits) / 8
    return int(width * math.prod(int(size) for size in shape.split(",") if size))
