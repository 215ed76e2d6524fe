"""The reference where JAX cannot differentiate the plain function: the slopes of its values.

A rule is often written because JAX has none: around a callback into other code, or around a primitive without a
derivative. Then the function is only called. The slopes of its values, at points on a ladder of steps, are held against
the rule entry by entry; their tolerance is their own error and the rounding of the rule's program. What a rule promises
besides (its transpose, single outputs) is held against that program in float64.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from reference.checks.arbiter import MOST
from reference.checks.disputes import Disputes, Found
from reference.checks.linear_rows import Trial, Truth, Vector


def by_values(trial: Trial) -> Trial:
    """The trial with the rule in the place of the plain function, which is asked for values alone."""
    return replace(trial, rule=replace(trial.rule, raw=trial.rule.f), valued=trial.rule.raw)


def with_slopes(trial: Trial, truth: Truth) -> tuple[Truth, list[str]]:
    """(the truth with slopes in the place of the rule's own numbers, notes).

    Raises:
        NoSay: the plain function cannot be evaluated in float64.
    """
    asked, notes = Disputes(trial, truth, []), list[str]()
    results = [(list(values), list(allowed)) for values, allowed in truth.results]
    for i, name in enumerate(trial.names):
        own, bars, said = borne_out(name, *truth.leaf(i), partial(asked.slopes, i), trial.seed)
        notes += said
        for k, (values, allowed) in enumerate(results):
            values[i], allowed[i] = own[k], bars[k]
    return replace(truth, results=results, beside=_beside(trial, truth)), notes


def _beside(trial: Trial, truth: Truth) -> tuple[Vector, Vector]:
    """The slopes at the second point, if there is one."""
    if not truth.near:
        return truth.beside
    given = trial.rule.given.moved(truth.near)
    there = replace(trial, rule=replace(trial.rule, given=given), vectors=trial.vectors[-2:-1])
    return with_slopes(there, replace(truth, results=[truth.beside], near=[]))[0].results[0]


def borne_out(
    name: str, own: np.ndarray, bars: np.ndarray, found: Found, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(slopes, tolerances, notes) of one leaf, from a derivative by hand and its rounding; vectors are the first axis.

    At a kink the slope that is next to the derivative by hand is taken. Where the values show no slope, the number by
    hand stays, and a note counts these.
    """
    shape, values, allowed = own.shape, *(np.array(side, np.float64).reshape(len(own), -1) for side in (own, bars))
    size, seen = values.shape[1], 0
    entries = np.arange(size) if size <= MOST else np.random.default_rng([seed, 2]).choice(size, MOST, replace=False)
    for batch, sides in found(entries):
        low, high = np.minimum(sides.left, sides.right), np.maximum(sides.left, sides.right)
        known = np.isfinite(low) & np.isfinite(high)
        values[:, batch] = np.where(known, np.clip(values[:, batch], low, high), values[:, batch])
        allowed[:, batch] += np.where(known, sides.error, 0.0)
        seen += int(known.all(axis=0).sum())
    told = f"{name}: the function's values show the slope of {seen} of {size} entries; the rest is unseen"
    return values.reshape(shape), allowed.reshape(shape), [told] if seen < size else []
