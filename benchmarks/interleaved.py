"""Ratios of running times, robust on a busy machine: contestants take turns in random order, round by round."""

import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

LEAST_ROUNDS = 9


def turns(
    contestants: dict[str, Callable[[], Any]], *, rounds: int, seconds: float = 0.05, at_most: float = math.inf
) -> dict[str, list[float]]:
    """Seconds that one call of each contestant took, round by round.

    Each turn repeats its call for about `seconds`, so that a short call is not dominated by the clock. No round begins
    after `at_most` seconds, but for the first LEAST_ROUNDS.
    """
    repeats = {}
    for name, call in contestants.items():
        jax.block_until_ready(call())
        started = time.perf_counter()
        jax.block_until_ready(call())
        repeats[name] = max(1, int(seconds / (time.perf_counter() - started)))
    draw, times, begun = random.Random(0), {name: [] for name in contestants}, time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - begun > at_most:
            break
        for name in draw.sample(list(contestants), len(contestants)):
            started = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(contestants[name]())
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def ratios(
    contestants: dict[str, Callable[[], Any]], baseline: str, *, rounds: int, seconds: float = 0.05
) -> dict[str, float]:
    """The median over rounds of each contestant's time relative to the baseline's in the same round (`turns`)."""
    times = turns(contestants, rounds=rounds, seconds=seconds)
    return {
        name: statistics.median(a / b for a, b in zip(times[name], times[baseline], strict=True))
        for name in contestants
    }
