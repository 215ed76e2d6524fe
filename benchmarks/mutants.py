"""Which checker sees which wrong gradient: one table.

    python -m benchmarks.mutants [--json FILE]

Every equation of every gradient in `benchmarks.subjects` is broken in every way that `reference.mutation_score`
knows, and each wrong gradient goes to each checker, called as its documentation shows with its default
tolerances: `jax.test_util.check_grads` of a `jax.custom_vjp` with the wrong gradient behind it, and
`chex.assert_numerical_grads` likewise. Ours compares every entry with `jax.vjp` at its measured tolerance, for
several output derivatives, as `reference.check_gradient` and `check_vjp` do.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from benchmarks.subjects import SUBJECTS, Subject
from reference.compare import compare_trees
from reference.mutation.report import Mutant, MutationScore
from reference.mutation.score import mutation_score
from reference.report import plain_table
from reference.tolerance.rounding import measure

COTANGENTS = 3
Check = Callable[[Callable[..., Any]], Any]


def cotangents(subject: Subject) -> list[np.ndarray]:
    """Derivatives of a loss by the output, drawn from a normal distribution so that none is uniform."""
    shape = jax.eval_shape(subject.function, *subject.args).shape
    return [np.random.default_rng(100 + i).normal(size=shape) for i in range(COTANGENTS)]


def ours(subject: Subject, args: tuple[jax.Array, ...]) -> Check:
    """Our check: every entry of every gradient, for each of the cotangents."""
    given = cotangents(subject)

    def pulled(*args: jax.Array) -> list[tuple[jax.Array, ...]]:
        pull = jax.vjp(subject.function, *args)[1]
        return [pull(jnp.asarray(d_output)) for d_output in given]

    witness = measure(pulled, *args, dtype="float64")

    def check(pullback: Callable[..., Any]) -> bool:
        found = [pullback(*args, jnp.asarray(d_output)) for d_output in given]
        rows = compare_trees("gradients", found, witness.value, witness.tolerance)
        return all(row.verdict == "pass" for row in rows)

    return check


def as_custom_vjp(subject: Subject, pullback: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The function as a jax.custom_vjp with that pullback."""
    function = jax.custom_vjp(jax.jit(subject.function))
    function.defvjp(lambda *args: (subject.function(*args), args), lambda args, d: tuple(pullback(*args, d)))
    return function


def by_jax(subject: Subject, args: tuple[jax.Array, ...]) -> Check:
    """`jax.test_util.check_grads` with its default tolerances."""

    def check(pullback: Callable[..., Any]) -> None:
        jax.test_util.check_grads(as_custom_vjp(subject, pullback), args, order=1, modes=["rev"])

    return check


def by_chex(subject: Subject, args: tuple[jax.Array, ...]) -> Check:
    """`chex.assert_numerical_grads` with its default tolerance."""

    def check(pullback: Callable[..., Any]) -> None:
        chex.assert_numerical_grads(as_custom_vjp(subject, pullback), args, order=1, modes=["rev"])

    return check


CHECKERS: dict[str, tuple[Callable[..., Check], str]] = {
    "ours": (ours, "float64"),
    "jax check_grads float32": (by_jax, "float32"),
    "jax check_grads float64": (by_jax, "float64"),
    "chex float32": (by_chex, "float32"),
    "chex float64": (by_chex, "float64"),
}


def judged(subject: Subject, make: Callable[..., Check], dtype: str) -> MutationScore:
    """Judge all mutants of a subject with one checker, everything in `dtype`."""
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):  # a wrong gradient may be nan
        args = tuple(jnp.asarray(arg, dtype) for arg in subject.args)
        d_output = jnp.asarray(cotangents(subject)[0], dtype)
        return mutation_score(subject.pullback, make(subject, args), *args, d_output, accept=subject.equivalent)


def _key(mutant: Mutant) -> tuple[str, str]:
    return mutant.where, mutant.what


def seen(score: MutationScore, wrong: set[tuple[str, str]]) -> int:
    """How many of the wrong gradients a checker failed."""
    keys = {_key(mutant) for mutant in score.mutants}
    if not wrong <= keys:
        raise ValueError(f"{len(wrong - keys)} mutants do not exist in this precision: the equations differ")
    return sum(_key(mutant) in wrong for mutant in score.mutants if mutant.verdict in ("killed", "error"))


def table(everything: Mapping[str, Mapping[str, MutationScore]]) -> str:
    """The share of wrong gradients that each checker detected, by subject and in all."""
    lines = []
    totals = {"all": Counter[str](), "all but those wrong by 1e-6": Counter[str]()}
    for name, scores in everything.items():
        wrong = {_key(m): m for m in scores["ours"].mutants if m.verdict in ("killed", "error", "survived")}
        large = {key for key, mutant in wrong.items() if not mutant.what.startswith("times 1 + ")}
        here = _counted(scores, set(wrong))
        totals["all"] += here
        totals["all but those wrong by 1e-6"] += _counted(scores, large)
        lines.append((name, str(len(scores["ours"].mutants)), *_cells(here)))
    lines += [(name, "", *_cells(counts)) for name, counts in totals.items()]
    return plain_table(("gradient", "mutants", "wrong", *CHECKERS), lines)


def _counted(scores: Mapping[str, MutationScore], wrong: set[tuple[str, str]]) -> Counter[str]:
    return Counter({"wrong": len(wrong)} | {name: seen(score, wrong) for name, score in scores.items()})


def _cells(counts: Counter[str]) -> tuple[str, ...]:
    wrong = counts["wrong"]
    return str(wrong), *(f"{counts[name]}/{wrong} {100 * counts[name] / wrong:.1f} %" for name in CHECKERS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description="which checker sees what")
    parser.add_argument("--json", metavar="FILE", help="also write every mutant with every verdict")
    arguments = parser.parse_args()
    began = time.perf_counter()
    everything = {
        subject.name: {name: judged(subject, *checker) for name, checker in CHECKERS.items()} for subject in SUBJECTS
    }
    print(table(everything))
    print(f"\nwrong: without those that are equivalent or right on these arguments. {_versions()}")
    for name, scores in everything.items():
        print(f"\n{name}, ours\n\n{scores['ours']}")
    print(f"\n{time.perf_counter() - began:.0f} s")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {s: {c: score.as_dict() for c, score in each.items()} for s, each in everything.items()}, file, indent=1
            )


def _versions() -> str:
    return f"jax {jax.__version__}, chex {chex.__version__}, {jax.default_backend()}"


if __name__ == "__main__":
    main()
