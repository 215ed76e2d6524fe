"""The cost of a row: temporary memory by XLA's own count, and time in turns with jax.grad."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.costs.cases import Case, Setting
from benchmarks.interleaved import turns
from benchmarks.readings.measuring import apart


@dataclass(frozen=True)
class Run:
    """The outcome of running both programs.

    Attributes:
        time: by hand relative to jax.grad, the median over rounds.
        error: the standard error of that median, from the middle half of the rounds.
        seconds: of one call by jax.grad, the median over rounds.
        apart: the largest difference of the two results, relative to the largest entry of a leaf.
    """

    time: float
    error: float
    seconds: float
    apart: float


@dataclass(frozen=True)
class Row:
    """A measured case: bytes of temporary memory by hand and by jax.grad, and the run unless memory alone was asked."""

    case: Case
    by_hand: int
    plain: int
    run: Run | None

    @property
    def memory(self) -> float:
        """Temporary memory by hand relative to jax.grad."""
        return self.by_hand / self.plain


@dataclass(frozen=True)
class Effort:
    """The effort of timing a row: `rounds`, turns of `seconds` each, and no round begun after `at_most` seconds."""

    rounds: int = 61
    seconds: float = 0.02
    at_most: float = 25.0


def compiled(case: Case, setting: Setting, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The two programs, compiled for shapes alone; `options` are the compiler's."""
    shapes = jax.eval_shape(lambda: case.arguments(setting))
    by_hand, plain = (
        jax.jit(program).lower(*shapes).compile(compiler_options=options) for program in case.programs(setting)
    )
    return by_hand, plain


def temporary(program: Any) -> int:
    """Bytes of temporary memory of a compiled program."""
    return program.memory_analysis().temp_size_in_bytes


def standard_error(values: list[float]) -> float:
    """The standard error of the median, were the middle half of the values that of a normal distribution."""
    lower, _, upper = statistics.quantiles(values, n=4)
    return math.sqrt(math.pi / 2) * (upper - lower) / 1.349 / math.sqrt(len(values))


def run(by_hand: Any, plain: Any, args: tuple[Any, ...], effort: Effort) -> Run:
    """Both programs, timed in turns."""
    difference = apart(by_hand(*args), plain(*args))
    times = turns(
        {"hand": lambda: by_hand(*args), "grad": lambda: plain(*args)},
        rounds=effort.rounds,
        seconds=effort.seconds,
        at_most=effort.at_most,
    )
    ratios = [a / b for a, b in zip(times["hand"], times["grad"], strict=True)]
    return Run(statistics.median(ratios), standard_error(ratios), statistics.median(times["grad"]), difference)


def measured(
    chosen: Iterable[Case], setting: Setting, effort: Effort | None, options: dict[str, Any] | None = None
) -> Iterator[Row]:
    """Every row; without an effort memory alone, for which nothing runs."""
    for case in chosen:
        programs = compiled(case, setting, options)
        timed = None if effort is None else run(*programs, case.arguments(setting), effort)
        yield Row(case, *map(temporary, programs), timed)


def median(values: Iterable[float]) -> float:
    """The median, as numpy has it: nan if any value is."""
    return float(np.median(list(values)))
