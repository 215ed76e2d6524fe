"""Settle entries on which a derivative by hand and JAX's differ: what the function's values bear out is no fault."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import jax.numpy as jnp
import numpy as np

from reference.checks.arbiter import MOST, Arbiter, NoSay, Sides
from reference.checks.linear_rows import Trial, Truth, Vector
from reference.report import Row

Found = Callable[[np.ndarray], Iterator[tuple[np.ndarray, Sides]]]
"""Flat numbers of entries -> (some of them, slopes for every vector and each of these), batch by batch."""
Judged = list[tuple[float, str, bool]]
"""A number by hand, what the function's values say of it, and whether they stand for JAX's derivative."""
SHOWN = 3  # entries that a note names
UNKNOWN = 8.0  # roundings that pass where JAX's derivative is not the value to round


@dataclass(frozen=True)
class Settled:
    """A reference with its disputes settled.

    Attributes:
        values: the reference, with what was borne out in place of JAX's.
        allowed: the tolerances.
        notes: on what was borne out.
        judged: what the function's values say about the entries that were not.
    """

    values: np.ndarray
    allowed: np.ndarray
    notes: list[str] = field(default_factory=list)
    judged: Judged = field(default_factory=list)


def disputed(ours: np.ndarray, theirs: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Where a number by hand is not what JAX says, or neither is one."""
    with np.errstate(invalid="ignore"):
        agree = (np.abs(ours - theirs) <= allowed) | (ours == theirs)
    return np.asarray(~agree & (np.isfinite(ours) | ~np.isfinite(theirs)))


def settled(
    name: str,
    ours: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    found: Found,
    kinks: Callable[[], str],
    rounds: Callable[[], np.ndarray],
) -> Settled:
    """Ask the function's values about every disputed entry of one leaf.

    Args:
        name: of the leaf.
        ours: by hand; the vectors are the first axis.
        truth: (values, tolerances) by JAX, likewise.
        found: gives the slopes.
        kinks: names the operations whose kink the point lies on.
        rounds: gives the rounding of the program by hand, in the shape of `ours`; asked for where JAX is wrong.
    """
    shape, (theirs, allowed) = ours.shape, truth
    flat_ours, values, bars = (np.array(each, np.float64).reshape(len(ours), -1) for each in (ours, theirs, allowed))
    where = disputed(flat_ours, values, bars)
    with np.errstate(invalid="ignore", divide="ignore"):
        used = np.where(where, np.nan_to_num(np.abs(flat_ours - values) / bars, nan=np.inf, posinf=np.inf), 0.0)
    entries = np.argsort(-used.max(axis=0), kind="stable")[: np.count_nonzero(where.any(axis=0))]
    lines, judged, borne_out = [], Judged(), set[int]()
    if len(entries) > MOST:
        return Settled(theirs, allowed)
    kinks = cache(kinks)
    unit = UNKNOWN * float(jnp.finfo(ours.dtype).eps)
    for batch, sides in found(entries):
        rounding = unit * np.abs(flat_ours[:, batch])  # the tolerances are those of JAX's values, not of these
        if (wrong := where[:, batch] & sides.far_from(values[:, batch])).any():
            own = _of_program(rounds, flat_ours.shape)[:, batch]
            rounding = np.where(wrong, np.maximum(rounding, own), rounding)
        right, told = sides.rule_on(flat_ours[:, batch], values[:, batch], bars[:, batch] + rounding)
        for k, j in np.argwhere(where[:, batch]):
            at, text = batch[j], str(told[k, j])
            if not right[k, j]:
                unknown = not np.isfinite(values[k, at])
                judged.append((float(flat_ours[k, at]), text + _named(text, kinks), unknown))
                if unknown:  # JAX has no answer, so the nearer side stands for it
                    values[k, at], bars[k, at] = sides.nearest(flat_ours[k, at], (k, j))
                continue
            if len(borne_out | {at}) <= SHOWN and at not in borne_out:
                index = ", ".join(map(str, np.unravel_index(at, shape[1:])))
                place = f"{name}[{index}]" if index else name
                rule, jax_says = flat_ours[k, at], values[k, at]
                lines.append(f"{place}: {text}{_named(text, kinks)}; by hand {rule:.6g}, by JAX {jax_says:.6g}: right")
            borne_out.add(at)
            size = np.nanmax(np.abs([flat_ours[k, at], sides.left[k, j], sides.right[k, j]]))
            values[k, at] = flat_ours[k, at]
            bars[k, at] = max(bars[k, at] if np.isfinite(bars[k, at]) else 0.0, unit * size, rounding[k, j])
        if not right[where[:, batch]].any() and np.isfinite(values[:, entries]).all():
            break  # nothing of this is borne out, and the first are the worst
    if len(borne_out) > SHOWN:
        lines.append(f"{name}: {len(borne_out) - SHOWN} more entries like these")
    return Settled(values.reshape(shape), bars.reshape(shape), lines, judged)


def _of_program(rounds: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The rounding of the program by hand, and 0 where it is not known."""
    try:
        return np.nan_to_num(np.asarray(rounds(), np.float64).reshape(shape), nan=0.0, posinf=0.0)
    except Exception:  # it is code that cannot be run with noise, so a few roundings must do
        return np.zeros(shape)


def _named(text: str, kinks: Callable[[], str]) -> str:
    names = kinks() if text.startswith("a kink") else ""
    return f" ({names})" if names else ""


@dataclass(frozen=True, eq=False)
class Disputes:
    """The disputes of one trial.

    Attributes:
        trial: what is tested.
        truth: the reference.
        results: by hand, for every vector.
    """

    trial: Trial
    truth: Truth
    results: Sequence[Vector]

    @cached_property
    def _arbiter(self) -> Arbiter:
        trial = self.trial
        rule, plain = trial.rule, trial.valued or trial.rule.raw
        function = lambda moving, data: rule.floats(plain, list(moving), list(data))  # noqa: E731
        return Arbiter.of(function, trial.moving, trial.data)

    @cached_property
    def _kinks(self) -> str:
        return self._arbiter.kinks()

    @cached_property
    def _rounding(self) -> Truth:
        """The values of the rule's own program, with the tolerances that are due to its rounding."""
        trial = self.trial

        def by_rule(moving: Vector, data: Vector, vectors: list[Vector]) -> tuple[Vector, list[Vector]]:
            return trial.apply(trial.rule.f, moving, data, vectors)

        return trial.truth_from(trial.measured(by_rule, trial.moving, trial.data, trial.vectors))

    def settle(self) -> tuple[Truth, list[str], dict[str, Judged]]:
        """(the truth with what was borne out, notes, by name of a leaf what the values say against it)."""
        truth, notes, judged = self.truth, list[str](), dict[str, Judged]()
        results = [(list(values), list(allowed)) for values, allowed in truth.results]
        for i, name in enumerate(self.trial.names):
            ours = np.stack([np.asarray(one[i]) for one in self.results])
            wanted = truth.leaf(i)
            if ours.shape != wanted[0].shape or not disputed(ours.astype(np.float64), *wanted).any():
                continue
            try:
                rounds = lambda i=i: self._rounding.leaf(i)[1]  # noqa: E731
                found = settled(name, ours, wanted, partial(self.slopes, i), lambda: self._kinks, rounds)
            except NoSay:
                continue
            for k, (values, allowed) in enumerate(results):
                values[i], allowed[i] = found.values[k], found.allowed[k]
            notes += found.notes
            judged |= {name: found.judged} if found.judged else {}
        if (
            notes
            and self.trial.word == "cotangent"
            and np.ndim(np.concatenate([v.ravel() for v in self.trial.vectors[0]]))
        ):
            notes.append("these slopes are of the outputs weighted by the first cotangent that shows them")
        beside = self._beside() if truth.near and notes else truth.beside  # a zero is on its kink there as well
        return replace(truth, results=results, beside=beside), notes, judged

    def _beside(self) -> tuple[Vector, Vector]:
        """The result at the second point, settled."""
        rule, vector = self.trial.rule, self.trial.vectors[-2]
        trial = replace(self.trial, rule=replace(rule, given=rule.given.moved(self.truth.near)), vectors=[vector])
        truth = replace(self.truth, results=[self.truth.beside], near=[])
        return Disputes(trial, truth, trial.by_rule([vector])[1]).settle()[0].results[0]

    def slopes(self, i: int, entries: np.ndarray) -> Iterator[tuple[np.ndarray, Sides]]:
        """(entries, slopes for every vector), batch by batch, of some entries of one leaf.

        Raises:
            NoSay: the function cannot be evaluated in float64.
        """
        if self.trial.word == "cotangent":
            yield from self._arbiter.by_entries(i, entries, self.trial.vectors)
            return
        each = [self._arbiter.along(vector)[i] for vector in self.trial.vectors]
        flat = [np.stack([getattr(one, side).ravel()[entries] for one in each]) for side in ("left", "right", "error")]
        yield entries, Sides(*flat)


def explained(row: Row, judged: dict[str, Judged]) -> Row:
    """A failing row with what the function's values say of the number that it shows."""
    if row.verdict != "fail":
        return row
    said = judged.get(row.path.rpartition(": ")[2], [])
    found = next(((text, stands) for number, text, stands in said if _alike(number, row.manual)), None)
    if found is None:
        return row
    text, stands = found
    factor = text.startswith("a kink") and row.cause.startswith("a constant factor")  # of JAX's choice there: no cause
    row = replace(row, judged=text, cause="" if factor else row.cause)
    return (
        replace(row, witness="the function's values, since JAX's derivative is not finite", cause="") if stands else row
    )


def _alike(a: float, b: float) -> bool:
    """Whether two numbers by hand may be one, computed as it stands and compiled."""
    return bool(np.isclose(a, b, rtol=1e-3, atol=0, equal_nan=True))
