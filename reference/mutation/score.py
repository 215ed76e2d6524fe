"""Mutation testing of gradients: break every equation in turn, and see whether a check notices."""

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.mutation.program import Program, RunawayError, Site
from reference.mutation.report import Mutant, MutationScore
from reference.report import Report

Check = Callable[[Callable[..., Any]], Any]
Accept = Mapping[Any, str] | Callable[[Mutant], str | None]


def mutation_score(
    grad_fun: Callable[..., Any],
    check: Check,
    *args: Any,
    nudge: float = 1e-6,
    seed: int = 0,
    limit: int | None = None,
    accept: Accept | None = None,
) -> MutationScore:
    """Measure whether a check of a gradient can fail: the share of wrong gradients that it detects.

    `grad_fun(*args)` is traced to its equations, including those in jit, scan, while, cond, remat and custom rules.
    Each equation with a float output is broken in every way that suits it: sign flipped, times 1 + nudge, an
    element zeroed, an addend, factor or divisor dropped (a sum for a mean), a square operand or result not
    transposed, the identity for a function, one case of a choice always taken, the last term of a sum left out.
    Each such mutant goes to the check. A mutant that gives the right values on these arguments (0 and -0 are equal)
    is counted apart, and so is one that survives and that `accept` says is not wrong.
    A mutant has the equations of this one call: its shapes, its dtypes, the values read in Python, and the plain
    function in place of a custom derivative rule.

    Args:
        grad_fun: computes a gradient, or anything else, in JAX.
        check: called with a function like `grad_fun`; passes by returning None, True or a `Report` that
            passed, fails by returning False or a `Report` that did not, or by raising AssertionError. Any other
            exception counts as killed, with the verdict "error".
        *args: arguments like those that the check uses: pytrees of arrays, with floats among them. If they hold
            64-bit floats, x64 is on for the whole run.
        nudge: size of the relative error; 4 epsilons of an equation's precision if that is more.
        seed: of the sample, and of the elements that are zeroed besides the largest ones.
        limit: judge no more than this many mutants, drawn at random.
        accept: mutants that are equivalent, with the reason: {words: reason}. The string, or every string of a
            tuple, must occur in `str(mutant)`, which has source, function, primitive, fault and line of code. It may
            also be a function from a `Mutant` to the reason or None.

    Returns:
        The score. After an interrupt from the keyboard, the score of the mutants judged so far, marked partial.

    Raises:
        TypeError: `check` is not callable, or returns something else; `grad_fun` does not trace, or is a custom_vjp
            or custom_jvp, of which the plain function would be broken and not the rule.
        ValueError: no floats among the arguments or the equations, a check that fails on `grad_fun` itself, or
            one that calls the mutant with arguments of other shapes or dtypes.
    """
    for name, function in (("grad_fun", grad_fun), ("check", check)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__} {function!r}")
    if isinstance(grad_fun, jax.custom_vjp | jax.custom_jvp):
        raise TypeError(
            "grad_fun has a rule of its own, which calling it does not run; to break the rule pass its gradient,"
            " such as jax.grad(function) or lambda *args: jax.vjp(function, *args)[1](cotangent)"
        )
    if not 0 < nudge < 1:
        raise ValueError(f"nudge is a relative error, between 0 and 1; got {nudge}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    with jax.enable_x64(True) if _has_doubles(args) else nullcontext():
        program = _traced(grad_fun, args)
        sites = program.sites(nudge, seed)
        if not sites:
            raise ValueError("the gradient has no equation with a float output: there is nothing to break")
        result, turns = program.counting(args)
        right = jax.device_get(result)  # copied before a check can delete it
        _require_passing(check, program.run())
        chosen = _sample(sites, limit, seed)
        judge = _Judge(program, check, args, right, turns, accept)
        mutants, partial = _until_interrupted(judge(site) for site in chosen)
    notes = (f"broken as a whole, not inside: {', '.join(program.unopened)}",) if program.unopened else ()
    return MutationScore(tuple(mutants), len(chosen), len(sites), seed, notes, partial)


def _has_doubles(args: Any) -> bool:
    return any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(args))


def _traced(grad_fun: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    leaves = jax.tree_util.tree_leaves_with_path(args)
    for path, leaf in leaves:
        if not isinstance(leaf, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
            raise TypeError(
                f"args{jax.tree_util.keystr(path)} is {type(leaf).__name__}, not an array; bind it to grad_fun with"
                " functools.partial or a lambda"
            )
    if not any(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for _, leaf in leaves):
        raise ValueError(f"a gradient needs floats to differentiate by, but there are none among {len(leaves)} args")
    try:
        return Program(grad_fun, *args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "grad_fun cannot be traced by JAX, so that its equations cannot be broken; it must be written with"
            f" jax.numpy, without values read in Python: {_first_line(error)}"
        ) from error


def _require_passing(check: Check, right: Callable[..., Any]) -> None:
    try:
        failure = _failure(check(right))
    except Exception as error:
        if isinstance(error, TypeError) and "a check returns" in str(error):
            raise
        raise ValueError(
            f"the check must pass on the gradient as it is, before it is broken, but raised {_first_line(error)}"
        ) from error
    if failure is not None:
        raise ValueError(f"the check must pass on the gradient as it is, before it is broken, but {failure}")


def _failure(returned: Any) -> str | None:
    """The failure in words that a check's return value stands for; None if the check passed."""
    if returned is None:
        return None
    if isinstance(returned, Report):
        return None if returned.passed else returned.summary().splitlines()[-1].strip()
    if isinstance(returned, bool | np.bool_) or (np.shape(returned) == () and np.asarray(returned).dtype == bool):
        return None if bool(returned) else "returned False"
    raise TypeError(f"a check returns None, True, False or a Report, or raises; got {type(returned).__name__}")


def _sample(sites: list[Site], limit: int | None, seed: int) -> list[Site]:
    if limit is None or limit >= len(sites):
        return sites
    return [sites[i] for i in sorted(random.Random(seed).sample(range(len(sites)), limit))]


def _until_interrupted(mutants: Iterable[Mutant]) -> tuple[list[Mutant], bool]:
    judged: list[Mutant] = []
    try:
        for mutant in mutants:
            judged.append(mutant)
    except KeyboardInterrupt:
        return judged, True
    return judged, False


class _Judge:
    """Judges one site after the other: whether the check detects the fault there."""

    def __init__(
        self, program: Program, check: Check, args: tuple[Any, ...], right: Any, turns: int, accept: Accept | None
    ) -> None:
        self.program, self.check, self.args = program, check, args
        self.right, self.turns, self.accept = right, turns, accept

    def __call__(self, site: Site) -> Mutant:
        bare = Mutant(site.where, site.primitive, site.fault.what, site.source, site.code, "survived")
        mutant = replace(bare, argument=_argument(self.accept, bare))
        try:
            wrong = self.program.limited(site, self.turns)(*self.args)
        except (RunawayError, FloatingPointError) as error:
            return replace(mutant, verdict="error", by=_first_line(error))
        if _same(jax.device_get(wrong), self.right):
            return replace(mutant, verdict="unchanged")
        try:
            failure = _failure(self.check(_remembering(self.program.run(site), self.args, wrong)))
        except AssertionError as error:
            failure = _first_line(error)
        except Exception as error:
            return replace(mutant, verdict="error", by=_first_line(error))
        if failure is not None:
            return replace(mutant, verdict="killed", by=failure)
        return replace(mutant, verdict="equivalent" if mutant.argument else "survived")


def _remembering(function: Callable[..., Any], args: tuple[Any, ...], result: Any) -> Callable[..., Any]:
    """The function with its result cached for the same array objects; JAX arrays cannot change in place."""
    known = jax.tree.leaves(args)

    def remembered(*given: Any) -> Any:
        leaves = jax.tree.leaves(given)
        same = len(leaves) == len(known) and all(a is b for a, b in zip(leaves, known, strict=True))
        if same and all(isinstance(leaf, jax.Array) for leaf in leaves):
            return result
        return function(*given)

    return remembered


def _argument(accept: Accept | None, mutant: Mutant) -> str:
    if accept is None:
        return ""
    if callable(accept):
        return accept(mutant) or ""
    text = str(mutant)
    for words, why in accept.items():
        if all(word in text for word in ((words,) if isinstance(words, str) else words)):
            return why
    return ""


def _same(one: Any, other: Any) -> bool:
    """Whether all values are equal, counting nan as equal to nan."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.all((a == b) | ((a != a) & (b != b))) for a, b in pairs)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
