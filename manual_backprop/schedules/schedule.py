"""A schedule: a table of stages and ticks, its figures, its check, and its forms as text and picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from manual_backprop.graph.picture import Theme
from manual_backprop.schedules import picture
from manual_backprop.types import came

KINDS = {"F": "forward", "B": "transport", "W": "contraction"}
IDLE = "."


@dataclass(frozen=True, order=True)
class Operation:
    """The work of a stage in one tick.

    Attributes:
        kind: "F" (forward), "B" (transport) or "W" (contraction).
        microbatch: of which microbatch, from 0.

    Raises:
        ValueError: another kind, or a microbatch that is no int >= 0.
    """

    kind: str
    microbatch: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an operation is one of {', '.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.microbatch, int) or self.microbatch < 0:
            raise ValueError(f"the microbatch of an operation must be an int >= 0, got {self.microbatch!r}")

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}"


@dataclass(frozen=True, repr=False)
class Schedule:
    """A table with a row for every stage and a cell for every tick: an `Operation`, or None where the stage is idle.

    `str` of it is the table as text, and `from_text` reads that. In a notebook it draws itself.

    Attributes:
        rows: the first stage's first.

    Raises:
        TypeError: cells that are neither operations nor None.
        ValueError: no rows, no operation, or rows of different lengths.
    """

    rows: tuple[tuple[Operation | None, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        for cell in (cell for row in self.rows for cell in row):
            if not (cell is None or isinstance(cell, Operation)):
                raise TypeError(f"a cell of a schedule is an Operation or None, got {came(cell)}")
        if len({len(row) for row in self.rows}) > 1:
            ticks = [len(row) for row in self.rows]
            raise ValueError(f"the rows of a schedule have as many ticks each, got {ticks}; fill them up with None")
        if not any(cell for row in self.rows for cell in row):
            raise ValueError("a schedule needs at least one stage and one operation, got none")

    @classmethod
    def from_text(cls, text: str) -> "Schedule":
        """The schedule that this text shows: a line for every stage, cells such as F0, B12 or . between blanks.

        Raises:
            ValueError: a cell that is none; says which.
        """

        def cell(word: str) -> Operation | None:
            if word == IDLE:
                return None
            if not word[1:].isdecimal():
                raise ValueError(f"a cell of a schedule is F, B or W and a number, or {IDLE} for idle, got {word!r}")
            return Operation(word[0], int(word[1:]))

        return cls(tuple(tuple(map(cell, line.split())) for line in text.strip().splitlines()))

    def __str__(self) -> str:
        words = [[IDLE if cell is None else str(cell) for cell in row] for row in self.rows]
        width = max(len(word) for row in words for word in row)
        return "\n".join(" ".join(word.ljust(width) for word in row).rstrip() for row in words)

    def __repr__(self) -> str:
        return f"Schedule of {self.stages} stages, {self.microbatches} microbatches, {self.ticks} ticks:\n{self}"

    @property
    def stages(self) -> int:
        """How many stages."""
        return len(self.rows)

    @property
    def ticks(self) -> int:
        """How many ticks, from the first operation of any stage to the last."""
        return len(self.rows[0])

    @cached_property
    def microbatches(self) -> int:
        """How many microbatches."""
        return 1 + max(operation.microbatch for _, _, operation in self.operations())

    @property
    def work(self) -> int:
        """The ticks that every stage works: three for each microbatch."""
        return 3 * self.microbatches

    @property
    def idle(self) -> tuple[int, ...]:
        """The ticks that each stage waits."""
        return tuple(row.count(None) for row in self.rows)

    @property
    def idle_share(self) -> float:
        """The part of all cells in which a stage waits: the bubble."""
        return sum(self.idle) / (self.stages * self.ticks)

    @property
    def live(self) -> tuple[int, ...]:
        """The most microbatches that each stage holds at a time, from its F to its W: what its memory depends on."""
        of_stage = []
        for stage in range(self.stages):
            spans = [(self.tick("F", stage, m), self.tick("W", stage, m)) for m in range(self.microbatches)]
            of_stage.append(max(sum(first <= t <= last for first, last in spans) for t in range(self.ticks)))
        return tuple(of_stage)

    def operations(self) -> Iterator[tuple[int, int, Operation]]:
        """Iterate over (stage, tick, operation), stage by stage."""
        for stage, row in enumerate(self.rows):
            for tick, operation in enumerate(row):
                if operation is not None:
                    yield stage, tick, operation

    def tick(self, kind: str, stage: int, microbatch: int) -> int:
        """The tick at which a stage does this operation.

        Raises:
            ValueError: it does not.
        """
        found = self._ticks.get((kind, stage, microbatch))
        if found is None:
            raise ValueError(
                f"{kind}{microbatch} ({KINDS[kind]}) is missing in the row of stage {stage};"
                " every stage does F, B and W of every microbatch once"
            )
        return found

    def check(self) -> "Schedule":
        """Return the schedule if every operation is there once, and none before what it needs.

        F needs the F of the stage below, and B its own F and the B of the stage above. What comes from another stage
        is sent at the end of the tick that makes it, so it can be used from the next tick on. W needs its own B.

        Raises:
            ValueError: names the operation, its stage and its tick, and what it needs.
        """
        for stage, tick, operation in self.operations():
            first = self._ticks[operation.kind, stage, operation.microbatch]
            if first != tick:
                raise ValueError(
                    f"{operation} ({KINDS[operation.kind]}) stands twice in the row of stage {stage}, at ticks {first}"
                    f" and {tick}; every stage does it once"
                )
        for stage in range(self.stages):
            for microbatch in range(self.microbatches):
                for kind in KINDS:
                    self._require_order(kind, stage, microbatch)
        return self

    def _require_order(self, kind: str, stage: int, microbatch: int) -> None:
        tick = self.tick(kind, stage, microbatch)
        for needed, of_stage in needs(kind, stage, self.stages):
            before = self.tick(needed, of_stage, microbatch)
            if before >= tick:
                raise ValueError(
                    f"{kind}{microbatch} ({KINDS[kind]}) of stage {stage} stands at tick {tick}, too early: it needs"
                    f" {needed}{microbatch} of stage {of_stage}, which stands at tick {before}; move it to tick"
                    f" {before + 1} or later"
                )

    @cached_property
    def _ticks(self) -> dict[tuple[str, int, int], int]:
        """The first tick of each (kind, stage, microbatch)."""
        found: dict[tuple[str, int, int], int] = {}
        for stage, tick, operation in self.operations():
            found.setdefault((operation.kind, stage, operation.microbatch), tick)
        return found

    def svg(self, *, theme: Theme = "light") -> str:
        """The picture as SVG, the same bytes every time; needs matplotlib.

        Raises:
            ImportError: matplotlib is not installed; says how to get it.
            ValueError: an unknown theme.
        """
        return picture.svg(self._words, theme)

    def png(self, *, theme: Theme = "light", dpi: int = 144) -> bytes:
        """The picture as PNG, the same bytes every time; needs matplotlib.

        Raises:
            ImportError, ValueError: as `svg`; a dpi that is not above 0 and at most 2400.
        """
        return picture.png(self._words, theme, dpi)

    @property
    def _words(self) -> list[list[str]]:
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def _repr_svg_(self) -> str | None:
        try:
            return self.svg()
        except ImportError:  # the notebook then shows the text
            return None


def needs(kind: str, stage: int, stages: int) -> Iterator[tuple[str, int]]:
    """Iterate over what an operation on a microbatch waits for, as pairs (kind, stage)."""
    if kind == "F" and stage > 0:
        yield "F", stage - 1
    if kind == "B":
        yield "F", stage
        if stage < stages - 1:
            yield "B", stage + 1
    if kind == "W":
        yield "B", stage
