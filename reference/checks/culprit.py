"""Find the operation that made the first nan or inf, by evaluating a function's jaxpr one equation at a time.

Either as the function stands, or with every operation rounded at random, which shows what rounding may push over the
edge of a precision or out of a domain.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import DTypeLike

from reference.compare import LEAVES, LOST
from reference.jaxprs import Values, evaluate, inside, through
from reference.report import Row
from reference.tolerance.formats import Format
from reference.tolerance.monte_carlo import Watch, perturbed
from reference.tolerance.noise import noises
from reference.tolerance.side_by_side import given, is_float

COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})


class _Found(Exception):  # noqa: N818
    """Stops the evaluation at the equation that is sought; its text names the equation."""

    def __init__(self, text: str, from_inf: bool) -> None:
        super().__init__(text)
        self.from_inf = from_inf


def first_nonfinite(function: Callable[..., Any], *args: Any) -> str:
    """In words, the first operation whose result is nan, or else inf, although its inputs are not.

    Args:
        function: traceable by JAX.
        args: pytrees of arrays.

    Returns:
        `log at file:line (function)`; if the nan came from an inf, also the operation that made the first inf. ""
        if no operation of the trace made one.
    """
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)
    return _in_words(*(_search(closed, leaves, bad) for bad in (_has_nan, _has_inf)))


def first_lost(function: Callable[..., Any], *args: Any, dtype: DTypeLike, samples: int, seed: int) -> str:
    """In words, what `first_nonfinite` looks for, where every operation is rounded at random as `dtype` rounds.

    With the samples and the seed of a tolerance, these are the samples that it was measured with.

    Args:
        function: as for `first_nonfinite`.
        args: pytrees of arrays.
        dtype: the precision under test.
        samples: of Monte Carlo arithmetic.
        seed: of its noise.

    Returns:
        As `first_nonfinite`: the first operation in the program's order that any of the samples loses.
    """
    rounded = _rounded(function, *args, dtype=dtype, samples=samples, seed=seed)

    def search(bad: Callable[[Any], bool]) -> _Found | None:
        def watch(equation: JaxprEqn, inputs: Values, outputs: Values) -> None:
            _stop_at(equation, [*filter(is_float, inputs)], [*filter(is_float, outputs)], bad)

        return rounded(watch)

    return _in_words(search(_has_nan), search(_has_inf))


def first_turned(function: Callable[..., Any], *args: Any, dtype: DTypeLike, samples: int, seed: int) -> str:
    """In words, the first comparison that comes out otherwise where every operation is rounded at random; or "".

    Args:
        function: as for `first_lost`.
        args: as for `first_lost`.
        dtype: as for `first_lost`.
        samples: as for `first_lost`.
        seed: as for `first_lost`.
    """

    def watch(equation: JaxprEqn, inputs: Values, outputs: Values) -> None:
        if equation.primitive.name in COMPARISONS and any((samples != samples[:1]).any() for samples in outputs):
            raise _Found(_name(equation), from_inf=False)

    return str(_rounded(function, *args, dtype=dtype, samples=samples, seed=seed)(watch) or "")


def _rounded(
    function: Callable[..., Any], *args: Any, dtype: DTypeLike, samples: int, seed: int
) -> Callable[[Watch], "_Found | None"]:
    """A function to evaluate with its operations rounded at random, until what watches it has found something."""
    closed, flat = jax.make_jaxpr(function)(*args), [given(leaf) for leaf in jax.tree.leaves(args)]
    noise = noises(Format.of(dtype), samples, seed, closed)

    def search(watch: Watch) -> _Found | None:
        try:
            with jax.enable_x64(True):
                perturbed(closed, noise, flat, watch)
        except _Found as found:
            return found
        return None

    return search


def naming_lost(
    rows: Sequence[Row], function: Callable[..., Any], *args: Any, dtype: DTypeLike, samples: int, seed: int
) -> list[Row]:
    """The rows. Where no tolerance of a row is known, its reason names the operation that `first_lost` finds, if any.

    If there is none, it names the comparison that `first_turned` finds, which may choose an inf that is written there.

    Args:
        rows: of one check, in one precision.
        function: whose results the rows hold, and whose tolerance was measured.
        args: where.
        dtype: as for `first_lost`.
        samples: as for `first_lost`.
        seed: as for `first_lost`.
    """
    if not any(LOST in row.reason for row in rows):
        return list(rows)
    told: Any = {"dtype": dtype, "samples": samples, "seed": seed}
    if found := first_lost(function, *args, **told):
        before, after = LOST, f"{found}, in their computation or its derivative,"
    elif found := first_turned(function, *args, **told):
        before, after = LOST + LEAVES, f"rounding decides {found}; check where it is clear, or in a wider precision"
    else:
        return list(rows)
    return [replace(row, reason=row.reason.replace(before, after)) for row in rows]


def _in_words(nan: "_Found | None", inf: "_Found | None") -> str:
    if nan and inf and nan.from_inf:
        return f"{nan} from an inf of {inf}"
    return str(nan or inf or "")


def _stop_at(equation: JaxprEqn, inputs: Values, outputs: Values, bad: Callable[[Any], bool]) -> None:
    if any(map(bad, outputs)) and not any(map(bad, inputs)):
        raise _Found(_name(equation), any(map(_has_inf, inputs)))


def _name(equation: JaxprEqn) -> str:
    where = source_info_util.summarize(equation.source_info)  # empty for a program that no file holds
    return equation.primitive.name + (where and f" at {where}")


def _search(closed: ClosedJaxpr, leaves: Sequence[Any], bad: Callable[[Any], bool]) -> "_Found | None":
    def rule(equation: JaxprEqn, inputs: Values) -> Values:
        bodies = inside(equation)
        outputs = through(equation, inputs, lambda k, given, turn: evaluate(bodies[k], given, rule), unrolled=math.inf)
        if not bodies:
            _stop_at(equation, inputs, outputs, bad)
        return outputs

    try:
        evaluate(closed, leaves, rule)
    except _Found as found:
        return found
    return None


def _has_nan(value: Any) -> bool:
    return _inexact(value) and bool(np.isnan(np.asarray(value, np.float64)).any())


def _has_inf(value: Any) -> bool:
    return _inexact(value) and bool(np.isinf(np.asarray(value, np.float64)).any())


def _inexact(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)
