"""A schedule as arrays of numbers, for a scan over its ticks: what each stage does, and where it keeps what."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from manual_backprop.schedules import Schedule
from manual_backprop.types import Leaf

CODES = {"F": 1, "B": 2, "W": 3}
"""The numbers of the operations; 0 is idle."""
NOTHING = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Now:
    """The work of a stage in one tick. Every leaf is a number, or an array (ticks, stages) of these in a timetable.

    Attributes:
        code: 0 to wait, otherwise from CODES.
        microbatch: of which microbatch.
        below: the place of the block input that F takes.
        kept: the place of what F keeps for B.
        above: the place of the error term that B takes; at the last stage, of the output that F made.
        pairs: the place of the pairs (a, delta) that B keeps for W.
        from_below: the place for what arrives from the stage below at the end of the tick, or NOTHING.
        from_above: the place for what arrives from the stage above; at the last stage, for its own output.
    """

    code: Leaf
    microbatch: Leaf
    below: Leaf
    kept: Leaf
    above: Leaf
    pairs: Leaf
    from_below: Leaf
    from_above: Leaf


@dataclass(frozen=True)
class Timetable:
    """A schedule as numbers.

    Attributes:
        now: (ticks, stages) in every leaf.
        microbatches: how many.
        below, kept, above, pairs: how many places a stage has of each kind: the most that any stage needs.
    """

    now: Now
    microbatches: int
    below: int
    kept: int
    above: int
    pairs: int


def timetable(schedule: Schedule) -> Timetable:
    """The timetable of a schedule that `Schedule.check` has passed.

    A place is taken again as soon as it is free, so there are as many as a stage holds at a time and not one for every
    microbatch.
    """
    shape, last = (schedule.ticks, schedule.stages), schedule.stages - 1
    now = {name: np.zeros(shape, np.int32) for name in Now.__dataclass_fields__}
    now["from_below"][:] = now["from_above"][:] = NOTHING
    most = dict.fromkeys(("below", "kept", "above", "pairs"), 1)
    for stage, tick, operation in schedule.operations():
        now["code"][tick, stage] = CODES[operation.kind]
        now["microbatch"][tick, stage] = operation.microbatch

    def at(kind: str, stage: int) -> list[int]:
        return [schedule.tick(kind, stage, m) for m in range(schedule.microbatches)]

    for stage in range(schedule.stages):
        forward, transport, contraction = (at(kind, stage) for kind in "FBW")
        made_above = forward if stage == last else at("B", stage + 1)
        spans = {"kept": (forward, transport), "above": (made_above, transport), "pairs": (transport, contraction)}
        if stage > 0:
            spans["below"] = at("F", stage - 1), forward
        for name, (first, until) in spans.items():
            places = _places(zip(first, until, strict=True))
            most[name] = max(most[name], 1 + max(places))
            now[name][until, stage] = places
            written = f"from_{name}" if name in ("below", "above") else name
            now[written][first, stage] = places
    return Timetable(Now(**now), schedule.microbatches, **most)


def _places(spans: Iterable[tuple[int, int]]) -> list[int]:
    """A place for each span of ticks, so that no two share one at a time; a place is free at the tick of its end."""
    spans = list(spans)
    places, free_from = [0] * len(spans), list[int]()
    for index in sorted(range(len(spans)), key=lambda i: spans[i]):
        first, until = spans[index]
        free = next((place for place, tick in enumerate(free_from) if tick <= first), len(free_from))
        free_from[free : free + 1] = [until]
        places[index] = free
    return places
