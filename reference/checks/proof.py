"""Every row on one rule at one point, with what JAX and the function's values disagree about settled first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from reference.checks import faults
from reference.checks.blind import probed
from reference.checks.by_values import by_values, with_slopes
from reference.checks.disputes import Disputes, Judged, explained
from reference.checks.linear_rows import Called, Trial, Truth, Vector
from reference.checks.mistakes import named
from reference.checks.rule_parts import by_argument
from reference.checks.transformed_rows import Transformed, compiled, in_turns, jitted, vmapped
from reference.report import Row

Told = tuple[list[Row], list[str]]  # rows and notes


@dataclass(frozen=True)
class Begun:
    """A rule that has been called, and is being compiled while the reference is worked out.

    Attributes:
        called: its results, or what it raised.
        transforms: any of "eager", "jit" and "vmap", as asked for.
        transformed: rows on it under jit and under vmap, once the reference is known.
    """

    called: Called | Exception
    transforms: Sequence[str]
    transformed: tuple[Transformed, ...] = ()


def begin(trial: Trial, transforms: Sequence[str]) -> Begun:
    """Call the rule as it stands, before anything traces it; then start to compile it, as `transforms` asks."""
    try:
        called = trial.called()
    except Exception as error:  # the error is the finding
        return Begun(error, transforms)
    own = compiled(trial) if "jit" in transforms else None
    alone = [jitted(trial, own)] if own else []
    batched = [vmapped(trial, by_argument(trial.rule.given), own)] if "vmap" in transforms else []
    return Begun(called, transforms, (*alone, *batched))


def truth_of(trial: Trial) -> tuple[Trial, Truth, list[str]]:
    """(the trial, its reference, notes); by the function's values where JAX cannot differentiate it.

    Raises:
        reference.CallFailed: JAX cannot differentiate the plain function, and nobody wrote a rule for it.
    """
    word = "pulled back" if trial.word == "cotangent" else "pushed forward"
    role = f"the plain function of {faults.name_of(trial.rule.f)}, {word} through in float64,"
    hint = "if JAX cannot differentiate it, give raw=, a plain function of the same value that it can"
    try:
        args = trial.rule.given.build(trial.moving, trial.data)
        truth = faults.call(lambda *_: trial.truth(), args, role, hint)
        return trial, truth, [*truth.notes]
    except faults.CallFailed as error:
        valued, why = by_values(trial), faults.one_line(error.__cause__ or error)
        try:
            truth, notes = with_slopes(valued, valued.truth())
        except Exception:  # there is no rule either, or it raises: the first error is the finding
            raise error from error.__cause__
    said = f"JAX cannot differentiate the plain function ({why}): the rule is held against the slopes of its values"
    return valued, truth, [said, *notes]


def proven(
    trial: Trial,
    truth: Truth,
    begun: Begun,
    parts: Callable[[Truth], Iterator[Row]],
    beyond: Callable[[], Told],
) -> tuple[Told, Told]:
    """(rows, notes) on a rule, and (rows, notes) on it beyond the point, where nothing failed at it.

    Args:
        trial: what is tested.
        truth: of the trial.
        begun: the same rule.
        parts: rows on one argument or output at a time.
        beyond: looks further, while the rule is compiled.

    Raises:
        ValueError: the reference is not finite where the rule is not either.
    """
    called, eager = begun.called, "eager" in begun.transforms
    if isinstance(called, Exception):  # the error is the finding
        _require_finite(trial, truth)
        what = "vjp" if trial.word == "cotangent" else "jvp"
        return ([faults.contract(what, f"raised {faults.one_line(called)}")], []), ([], [])
    notes, judged = list[str](), dict[str, Judged]()
    first: list[Row] = []
    known = all(np.isfinite(leaf).all() for values, _ in truth.results for leaf in values)
    if known:
        first = list(trial.rows(called, truth, eager))
    if trial.valued is None and (not known or _failed(first)):
        truth, notes, judged = Disputes(trial, truth, called.results).settle()
        _require_finite(trial, truth)
        first = named(trial, truth, called.results, list(trial.rows(called, truth, eager)))
    rows = [*first]
    if trial.word == "cotangent":
        batched = "vmap" in begun.transforms
        rows += guarded(lambda: in_turns(trial, truth, notes, batched), "two pullbacks in turns")
    rows += guarded(lambda: parts(truth), "one at a time")
    further = ([], []) if _failed(rows) else beyond()
    for transformed in begun.transformed:
        rows += transformed(truth, notes)
    more, said = probed(trial, truth, rows)
    rows, small = _without_undecided_promises([explained(row, judged) for row in rows + more], trial.names)
    notes = [*notes, *said, *small]
    return (trial.hinted(rows), notes), ([], []) if _failed(rows) else further


def _failed(rows: Iterable[Row]) -> bool:
    return any(row.verdict == "fail" for row in rows)


def _without_undecided_promises(rows: list[Row], names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows but for promises on a leaf that is decided that are too small to decide anything; notes on these."""
    decided = {row.path for row in rows if row.path in names and row.verdict == "pass"}

    def small(row: Row) -> bool:
        leaf = row.path.rpartition(": ")[2]
        return row.kind == "contract" and row.verdict == "inconclusive" and not row.reason and leaf in decided

    notes = [f"{row.path}: too small beside rounding to decide anything" for row in rows if small(row)]
    return [row for row in rows if not small(row)], notes


def guarded(rows: Callable[[], Iterator[Row]], path: str) -> list[Row]:
    """The rows; if computing them raises, one more row with the error as the finding."""
    made: list[Row] = []
    try:
        for row in rows():
            made.append(row)
    except Exception as error:
        made.append(faults.contract(path, f"raised {faults.one_line(error)}"))
    return made


def _require_finite(trial: Trial, truth: Truth) -> None:
    with jax.enable_x64(True):

        def again(moving: Vector, vector: Vector) -> Vector:
            return trial.apply(trial.rule.raw, moving, trial.data, [vector])[1][0]

        for values, _ in truth.results:
            faults.require_finite(values, trial.names, "the reference", again, trial.moving, trial.vectors[0])
