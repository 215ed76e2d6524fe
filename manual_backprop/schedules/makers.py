"""The three schedules that have names. Each is an order of operations for every stage, done as early as possible."""

from collections.abc import Callable, Iterator
from math import inf

from manual_backprop.schedules.schedule import Operation, Schedule, needs

Order = Iterator[tuple[str, int]]


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forward, then all backward (Huang et al., arXiv:1811.06965): every stage holds all microbatches.

    The B and W of a microbatch stand together, and the stage below waits for both, as with a backward that is not
    split. That is 3 (microbatches + stages - 1) ticks.

    Raises:
        ValueError: stages or microbatches below 1.
    """

    def order(stage: int) -> Order:
        yield from (("F", m) for m in range(microbatches))
        yield from ((kind, m) for m in range(microbatches) for kind in "BW")

    return _as_early_as_possible(stages, microbatches, order, split=False)


def one_forward_one_backward(stages: int, microbatches: int) -> Schedule:
    """1F1B: one backward after each forward (Narayanan et al., arXiv:1806.03377), in as many ticks as `gpipe`.

    Stage s holds `stages` - s microbatches at most.

    Raises:
        ValueError: stages or microbatches below 1.
    """

    def order(stage: int) -> Order:
        ahead = min(stages - stage, microbatches)
        yield from (("F", m) for m in range(ahead))
        for m in range(microbatches):
            yield from (("B", m), ("W", m))
            if ahead + m < microbatches:
                yield "F", ahead + m

    return _as_early_as_possible(stages, microbatches, order, split=False)


def zero_bubble(stages: int, microbatches: int) -> Schedule:
    """ZB-H1: error terms go down at once, contraction fills the gaps (Qi et al., arXiv:2401.10241).

    It is 1F1B in which stage s contracts s microbatches late. With at least as many microbatches as stages it takes
    3 microbatches + stages - 1 ticks, the least for which the last stage starts when the first microbatch reaches it.
    Every stage holds `stages` microbatches at most.

    Raises:
        ValueError: stages or microbatches below 1.
    """

    def order(stage: int) -> Order:
        ahead = min(stages - stage, microbatches)
        yield from (("F", m) for m in range(ahead))
        for m in range(microbatches):
            yield "B", m
            if m >= stage:
                yield "W", m - stage
            if ahead + m < microbatches:
                yield "F", ahead + m
        yield from (("W", m) for m in range(max(0, microbatches - stage), microbatches))

    return _as_early_as_possible(stages, microbatches, order, split=True)


NAMED: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "zero_bubble": zero_bubble,
}
"""The schedules by the names that `mb.pipeline` takes."""


def _as_early_as_possible(stages: int, microbatches: int, order: Callable[[int], Order], *, split: bool) -> Schedule:
    """Every stage does its operations in this order, each as soon as what it needs is done.

    Without `split`, an error term leaves a stage with its W.
    """
    for name, number in (("stages", stages), ("microbatches", microbatches)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} of a schedule must be an int >= 1, got {number!r}")
    left = [list(order(stage))[::-1] for stage in range(stages)]
    rows: list[list[Operation | None]] = [[] for _ in range(stages)]
    done: dict[tuple[str, int, int], int] = {}

    def ready(stage: int, tick: int) -> bool:
        kind, m = left[stage][-1]
        due = ((k if split or s == stage or k == "F" else "W", s) for k, s in needs(kind, stage, stages))
        return all(done.get((k, s, m), inf) < tick for k, s in due)

    while any(left):
        tick = len(rows[0])
        for stage, row in enumerate(rows):
            if left[stage] and ready(stage, tick):
                kind, m = left[stage].pop()
                done[kind, stage, m] = tick
                row.append(Operation(kind, m))
            else:
                row.append(None)
    return Schedule(tuple(map(tuple, rows)))
