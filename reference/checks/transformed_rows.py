"""The rows that hold a derivative rule against the reference as JAX transforms it: compiled, batched, in turns."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.ahead import Program, compiling
from reference.checks.linear_rows import Trial, Truth, Vector, against, arrays
from reference.compare import compare_leaf
from reference.report import Row
from reference.xla import quick

Batch = tuple[str, Any, Any, list[int]]
"""(name, in_axes of what is differentiated, its values, the numbers of the vectors in the batch)."""
Transformed = Callable[[Truth, list[str]], Iterator[Row]]
"""(the reference, notes to add to) -> rows."""


def in_turns(trial: Trial, truth: Truth, notes: list[str], batched: bool) -> Iterator[Row]:
    """Rows on two pullbacks made first and applied afterwards: what one keeps must not be the other's.

    They are held against pullbacks that are applied at once. These other rows hold against the reference; unless
    `batched`, the one at the second point is held against it here. Where the function refuses that point, a line is
    added to `notes`.
    """
    rule, vectors = trial.rule, [arrays(trial.vectors[0]), arrays(trial.vectors[-2])]

    def pull(point: Vector) -> Callable[[Vector], Any]:
        return jax.vjp(lambda m: rule.floats(rule.f, m, arrays(trial.data)), arrays(point))[1]

    points = [trial.moving, truth.near]
    try:
        at_once = [pull(point)(vector)[0] for point, vector in zip(points, vectors, strict=True)]
    except Exception as error:  # such as a covariance that is not symmetric there
        notes.append(f"no two pullbacks in turns: called at a second point, it raised {faults.one_line(error)}")
        return
    if not batched and all(np.isfinite(leaf).all() for leaf in (*truth.beside[0], *truth.beside[1])):
        told: Any = {"kind": "contract", "witness": trial.witness}
        yield from against(trial.names, at_once[1], truth.beside, "at a second point: ", **told)
    pulls = [pull(point) for point in points]
    results = [later(vector)[0] for later, vector in zip(pulls, vectors, strict=True)]
    bars = [[2 * allowed for allowed in wanted[1]] for wanted in (truth.results[0], truth.beside)]
    wanted = [(list(map(np.asarray, one)), its) for one, its in zip(at_once, bars, strict=True)]
    yield from _pairs(
        trial, results, wanted, "two pullbacks in turns: ", "at point", "its own pullback, applied at once"
    )


def compiled(trial: Trial) -> Program:
    """The rule's own program, which starts to be compiled."""
    return compiling(lambda *args: trial.apply(trial.rule.f, *args), trial.moving, trial.data, trial.vectors)


def jitted(trial: Trial, program: Program) -> Transformed:
    """Rows on the rule's own program."""

    def rows(truth: Truth, notes: list[str]) -> Iterator[Row]:
        try:
            _, results = program(trial.moving, trial.data, trial.vectors)
        except Exception as error:  # an error under a transformation is the finding
            yield faults.contract("under jit", f"raised {faults.one_line(error)}")
            return
        yield from trial.results(results, truth, "under jit: ")

    return rows


def vmapped(trial: Trial, groups: Sequence[Sequence[int]], own: Program | None) -> Transformed:
    """Start to compile the rule under vmap; what is returned gives rows on it.

    The batches are two points, one alone, vectors alone, and each argument alone with the rest shared. They are one
    program, or one each where the rule is large.

    Args:
        trial: what is tested.
        groups: the numbers of the differentiated leaves, by argument.
        own: the rule's own program, if it is compiled.
    """
    like = _batches(trial, trial.moving, groups)
    each = own is not None and own.large
    programs, before = list[tuple[slice, Program]](), own
    for part in [slice(k, k + 1) for k in range(len(like))] if each else [slice(None)]:
        before = _together(trial, like[part], before if each else None)
        programs.append((part, before))

    def rows(truth: Truth, notes: list[str]) -> Iterator[Row]:
        batches = _batches(trial, truth.near, groups)
        for batch, results in chain.from_iterable(_run(trial, batches[part], run) for part, run in programs):
            prefix, _, _, numbers = batch
            first = prefix == "under vmap: "
            if isinstance(results, Exception):
                if refused := _refused(trial, batch):
                    notes.append(f"{prefix}left out, since JAX cannot batch the plain function either: {refused}")
                else:
                    yield faults.contract(prefix.partition(":")[0], f"raised {faults.one_line(results)}")
                if first:
                    return  # the others will raise the same
                continue
            wanted = [truth.results[0], truth.beside] if first else [truth.results[k] for k in numbers]
            each = [[leaf[k] for leaf in results] for k in range(len(numbers))]
            yield from _pairs(trial, each, wanted, prefix, "at point" if first else f"for {trial.word}")

    return rows


def _batches(trial: Trial, near: Vector, groups: Sequence[Sequence[int]]) -> list[Batch]:
    n, last = len(trial.moving), len(trial.vectors) - 2
    both = [0, last]
    twice = _stacked([trial.moving, trial.moving])
    batches: list[Batch] = [
        ("under vmap: ", 0, _stacked([trial.moving, near]), both),
        ("under vmap, a batch of one: ", 0, _stacked([trial.moving]), [0]),
        (f"under vmap over {trial.word}s alone: ", None, arrays(trial.moving), both),
    ]
    for group in groups if len(groups) > 1 else ():
        axes = [0 if i in group else None for i in range(n)]
        values = [twice[i] if i in group else jnp.asarray(trial.moving[i]) for i in range(n)]
        path = trial.rule.given.moving_paths[group[0]]
        batches.append((f"under vmap over {path[: path.index(']') + 1]} alone: ", axes, values, both))
    return batches


def _together(trial: Trial, batches: list[Batch], after: Program | None) -> Program:
    def together(given: list[tuple[Any, Any, Any]]) -> list[Any]:
        return [_one(trial, batch, trial.rule.f)(*each) for batch, each in zip(batches, given, strict=True)]

    return compiling(together, _inputs(trial, batches), options=quick(), after=after)


def _refused(trial: Trial, batch: Batch) -> str:
    """The error of the plain function under the same vmap, or ""."""
    (given,) = _inputs(trial, [batch])
    try:
        _one(trial, batch, trial.rule.raw)(*given)
    except Exception as error:
        return faults.one_line(error)
    return ""


def _one(trial: Trial, batch: Batch, function: Callable[..., Any]) -> Callable[[Any, Any, Any], Any]:
    def at(moving: Vector, data: Vector, vector: Vector) -> Any:
        return trial.apply(function, moving, data, [vector])[1][0]

    return jax.vmap(at, in_axes=(batch[1], None, 0))


def _inputs(trial: Trial, batches: list[Batch]) -> list[tuple[Any, Any, Any]]:
    stacks = [_stacked([trial.vectors[k] for k in numbers]) for *_, numbers in batches]
    return [(values, arrays(trial.data), stack) for (_, _, values, _), stack in zip(batches, stacks, strict=True)]


def _run(trial: Trial, batches: list[Batch], together: Program) -> Iterator[tuple[Batch, Any]]:
    """Every batch with its results, by the program of all; or, where that raises, one by one as it stands."""
    try:
        yield from zip(batches, together(_inputs(trial, batches)), strict=True)
        return
    except Exception:  # which one raises, and whether it does so uncompiled, is found out below
        pass
    for batch, given in zip(batches, _inputs(trial, batches), strict=True):
        try:
            found = _one(trial, batch, trial.rule.f)(*given)
        except Exception as error:  # an error under a transformation is the finding
            found = error
        yield batch, found


def _pairs(
    trial: Trial,
    results: list[Vector],
    wanted: list[tuple[Vector, Vector]],
    prefix: str,
    leading: str,
    witness: str = "",
) -> Iterator[Row]:
    """A row for every leaf of several results, stacked in front."""
    told: Any = {"kind": "contract", "witness": witness or trial.witness}
    if len(results) == 1:
        yield from against(trial.names, results[0], wanted[0], prefix, **told)
        return
    for i, name in enumerate(trial.names):
        ours = np.stack([np.asarray(one[i], np.float64) for one in results])
        theirs, allowed = (np.stack([side[k][i] for side in wanted]) for k in (0, 1))
        yield compare_leaf(prefix + name, ours, theirs, allowed, leading=leading, **told)


def _stacked(points: Sequence[Vector]) -> Vector:
    return [_stack(column) for column in zip(*points, strict=True)]


def _stack(leaves: Sequence[Any]) -> Any:
    """By NumPy, which compiles nothing, unless a weak type is to be kept."""
    if any(getattr(leaf, "weak_type", False) for leaf in leaves):
        return jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    return jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves]))
