"""Monte Carlo arithmetic: evaluate a function with the rounding of every operation replaced by a random one.

A jaxpr is interpreted in float64. After every operation each float result x becomes

    x + xi (u |x| + min(|x|, eta))          xi uniform in [-1, 1]; of a complex x both parts

u is the unit roundoff of the precision under test. eta is the size of its smallest results: smaller ones are flushed
or lose digits. The error of a sum of n terms is relative to its terms, not to its result, so u_sum sqrt(n) times the
sum of magnitudes is added in the bracket. What accumulates in the format itself, how far library functions err, and the
model of linear algebra stand in `reference.tolerance.libraries`. Results beyond the largest number of the precision
become inf. The spread of a few samples shows how far apart two right answers may be (D. S. Parker, Monte Carlo
Arithmetic, 1997). What a program computes in a type that is narrower than its arguments, as mixed precision does, is
rounded as that type rounds.

A computed value that several operations use is rounded anew for each of them. Another right program may compute it
twice, and errors that cancel in one program need not cancel in the other.

The samples run side by side (`reference.tolerance.side_by_side`), so that a comparison can widen the spread of its
operands. A comparison that rounding could turn (a kink, a branch) is then turned more often than by rounding, and even
a few samples show its effect.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from reference.jaxprs import CALLS, Values, inside, parted, solving
from reference.tolerance import libraries
from reference.tolerance.exactness import by_a_reciprocal, changes_nothing, is_exact
from reference.tolerance.formats import Format
from reference.tolerance.noise import Noise
from reference.tolerance.operations import level
from reference.tolerance.side_by_side import chosen, evaluate_all, is_float, is_narrow, sampled, stacked

SPARE_TURNS = 4

# fmt: off
_EXACT = frozenset({
    "abs", "argmax", "argmin", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp", "concatenate",
    "convert_element_type", "copy", "copy_p", "cummax", "cummin", "device_put", "dynamic_slice",
    "dynamic_update_slice", "eq", "expand_dims", "floor", "gather", "ge", "gt", "imag", "iota", "is_finite", "le",
    "lt", "max", "min", "ne", "neg", "nextafter", "optimization_barrier", "pad", "pvary", "real", "reduce_and",
    "reduce_max", "reduce_min", "reduce_or", "reduce_precision", "reshape", "rev", "round", "scatter", "scatter-max",
    "scatter-min", "scatter_max", "scatter_min", "select_and_gather_add", "select_n", "sign", "slice", "sort",
    "split", "squeeze", "stop_gradient", "top_k", "transpose",
    "maybe_set", "nonbatchable", "nondifferentiable_backward", "nontraceable", "select_if_vmap", "unvmap_max",
})
_SUMS = frozenset({
    "conv_general_dilated", "cumsum", "dot_general", "ragged_dot_general", "reduce_sum", "reduce_window_sum",
    "scatter-add",
})
# fmt: on
_CASTS = frozenset({"convert_element_type", "reduce_precision"})
_TURNS = frozenset({"ge", "gt", "le", "lt"})
Watch = Callable[[JaxprEqn, Values, Values], None]
"""Is shown every operation without jaxprs inside, with what enters and leaves it, sample by sample."""


def exact(closed: ClosedJaxpr, inputs: Sequence[Any]) -> Values:
    """The results of `closed` in float64 at many points: `perturbed` without noise, its samples taken for points."""
    return perturbed(closed, Noise(np.zeros((1, 1)), Format(0.0, 0.0, 0.0, 0.0, math.inf), widened=1.0), inputs)


def perturbed(closed: ClosedJaxpr, noise: Noise, inputs: Sequence[Any], watch: Watch | None = None) -> Values:
    """The results of `closed` in float64 for every sample of noise.

    Args:
        closed: any jaxpr; its floats are widened to double.
        noise: of `noises`.
        inputs: with samples on the first axis, or one row for a value that all samples share.
        watch: is shown every operation; it may raise to end the evaluation.

    Returns:
        Arrays with samples, or one row, on the first axis.
    """
    with np.errstate(all="ignore"):
        return _Run(noise, watch=watch).run(closed, inputs)


class _Run:
    """Evaluates jaxprs for all samples, and counts the roundings, since each reads other noise."""

    def __init__(self, noise: Noise, site: int = 0, watch: Watch | None = None) -> None:
        self.noise, self.site, self.watch = noise, site, watch

    def run(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> Values:
        shared = _shared(closed.jaxpr)

        def rule(equation: JaxprEqn, inputs: Values) -> Values:
            if equation.primitive.name not in _EXACT:
                pairs = zip(equation.invars, inputs, strict=True)
                inputs = [self._anew(atom, x) if isinstance(atom, Var) and atom in shared else x for atom, x in pairs]
            match equation.primitive.name:
                case "cond":
                    return self._cond(equation, *inputs)
                case "scan":
                    return self._scan(equation, inputs)
                case "while":
                    return self._while(equation, inputs)
                case "custom_linear_solve":
                    return self.run(*solving(equation, inputs))
                case name if name in CALLS:
                    return self.run(inside(equation)[0], inputs)
            outputs = self._operation(equation, inputs)
            if self.watch is not None:
                self.watch(equation, inputs, outputs)
            return outputs

        return evaluate_all(closed, arguments, rule)

    def _cond(self, equation: JaxprEqn, index: np.ndarray, *inputs: Any) -> Values:
        """The branch of every sample; one that no sample takes is not run."""
        branches = inside(equation)
        index = np.clip(index.astype(int), 0, len(branches) - 1)
        taken = np.unique(index)
        own = int(index[0])
        found = self._with(self.noise).run(branches[own], inputs)
        for k in taken[taken != own]:
            try:
                other = self._with(self.noise).run(branches[k], inputs)
            except Exception:  # it may be there to raise; then what the function itself gives stands
                if not self.noise.format.u:  # these are other points, and no samples of one
                    raise
                continue
            found = [chosen(index == k, a, b) for a, b in zip(other, found, strict=True)]
        return found

    def _scan(self, equation: JaxprEqn, inputs: Values) -> Values:
        length, reverse, body = equation.params["length"], equation.params["reverse"], inside(equation)[0]
        consts, carry, xs = parted(equation, inputs)
        rows: list[Values] = [[]] * length
        for t, i in enumerate(reversed(range(length)) if reverse else range(length)):
            outputs = self._turned(t).run(body, [*consts, *carry, *(x[:, i] for x in xs)])
            carry, rows[i] = outputs[: len(carry)], outputs[len(carry) :]
        if length == 0:  # no turns, so nothing to stack
            return sampled(equation, inputs)
        return [*carry, *map(stacked, zip(*rows, strict=True))]

    def _while(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Until no sample goes on; one that is done keeps what it has, and under vmap so do its examples.

        Noise may keep a sample from converging, so it takes at most about twice the turns of the function itself.
        """
        condition, body = inside(equation)
        for_condition, for_body, carry = parted(equation, inputs)
        turn, most, going = 0, math.inf, np.asarray(True)
        while True:
            # The condition is not widened, since with widening the loop might never end.
            asked = self._with(replace(self._turned(turn).noise, widened=1.0))
            going = going & asked.run(condition, [*for_condition, *carry])[0]
            if not going[0].any():
                most = min(most, 2 * turn + SPARE_TURNS)
            if not going.any() or turn >= most:
                return carry
            after = self._turned(turn).run(body, [*for_body, *carry])
            carry = [chosen(going, new, old) for new, old in zip(after, carry, strict=True)]
            turn += 1

    def _turned(self, turn: int) -> "_Run":
        """For one turn of a loop, with noise of its own."""
        return self._with(replace(self.noise, turn=self.noise.turn - turn * 104729 - 1))

    def _with(self, noise: Noise) -> "_Run":
        """Another run from here on."""
        return _Run(noise, self.site, self.watch)

    def _operation(self, equation: JaxprEqn, inputs: Values) -> Values:
        name, noise = equation.primitive.name, self.noise.of_results(equation)
        u = noise.format.u
        if name in _TURNS and self.noise.widened > 1 and is_float(inputs[0]) and not is_narrow(inputs):
            a, b = level(inputs)
            inputs = [_apart(a, b, self.noise.widened), np.zeros(1)]
        if name in libraries.STABLE and u and not is_narrow(inputs):
            inputs = [self._moved(equation, x) if is_float(x) else x for x in inputs]
        results = sampled(equation, inputs, points=not u)
        if u and by_a_reciprocal(equation, inputs):
            return [self._rounded(results[0], 2.0).astype(results[0].dtype)]
        if name in _CASTS and noise is not self.noise and is_float(inputs[0]) and not is_narrow(inputs):
            return [self._rounded(results[0], noise=noise)]
        if name in _EXACT or is_narrow(inputs) or not u or changes_nothing(name, inputs):
            return results
        terms, size = 0.0, None
        if name in _SUMS:
            near = _near(inputs)
            magnitudes = [np.abs(x[near]).astype(x.dtype) if is_float(x) else x[near] for x in inputs]
            terms, size = _terms(equation, inputs, results[0]), np.abs(sampled(equation, magnitudes)[0])
            operand: Any = equation.invars[0].aval
            if libraries.accumulates_narrowly(name, operand.dtype):
                terms *= (u / noise.format.u_sum) ** 2
        elif scale := libraries.scale(name, u):
            terms, size = 1.0, scale(inputs[0][_near(inputs)])
        factor = libraries.roundings(name, equation.params, u)
        if name in libraries.NARROW - _SUMS:
            factor = _terms(equation, inputs, results[0]) ** 0.5
        of_a_sum = (factor, terms, size)
        return [self._rounded(x, *of_a_sum, noise=noise) if is_float(x) else x for x in results]

    def _anew(self, atom: Var, x: Any) -> Any:
        """A value as another operation may have it, for which it is computed again."""
        return x if is_exact(x) else self._rounded(x, noise=self.noise.of(atom.aval))

    def _moved(self, equation: JaxprEqn, x: np.ndarray) -> np.ndarray:
        """The input, moved by as much as a backward stable algorithm may move it."""
        name, lengths = equation.primitive.name, equation.params.get("fft_lengths", ())
        size = np.asarray(libraries.norm(name, x[_near([x])], lengths))
        return self._rounded(x, 0.0, libraries.moved(lengths) ** 2, size)

    def _rounded(self, x: np.ndarray, *of_a_sum: Any, noise: Noise | None = None) -> np.ndarray:
        self.site += 1
        return (noise or self.noise).rounded(self.site, x, *of_a_sum)


def _near(inputs: Values) -> slice:
    """The samples whose magnitudes stand for all: the first; but all, if that is not finite.

    It may have left a loop in which the others go on, and what it then gives is read by nobody.
    """
    known = all(np.isfinite(value[:1]).all() for value in inputs if is_float(value))
    return slice(0, 1) if known else slice(None)


def _shared(jaxpr: Jaxpr) -> set[Any]:
    """Computed float variables that more than one operation uses; each use gets a rounding of its own.

    One program may compute f' from the stored a and another from z: errors may cancel in one but not in the other.
    """
    uses = Counter(
        atom
        for equation in jaxpr.eqns
        if equation.primitive.name not in _EXACT
        for atom in equation.invars
        if not isinstance(atom, Literal)
    )
    given = {*jaxpr.invars, *jaxpr.constvars}
    return {v for v, n in uses.items() if n > 1 and v not in given and is_float(v.aval)}


def _apart(a: np.ndarray, b: np.ndarray, widened: float) -> np.ndarray:
    """The difference a - b, with its spread among the samples widened."""
    difference = a - b
    mean = difference.mean(axis=0, keepdims=True)
    further = mean + widened * (difference - mean)
    further[:1] = difference[:1]  # the function itself stays as it is
    return np.where(np.isfinite(further), further, np.where(a == b, 0.0, difference))


def _terms(equation: JaxprEqn, inputs: Values, result: np.ndarray) -> int:
    """The number of terms in each entry of a sum."""
    name, params = equation.primitive.name, equation.params
    shapes = [value.shape[1:] for value in inputs]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return max(1, _size(shapes[0][axis] for axis in contracted))
    if name == "reduce_sum":
        return max(1, _size(shapes[0]) // max(1, _size(result.shape[1:])))
    if name in ("cumsum", "cumprod", "cumlogsumexp"):
        return shapes[0][params["axis"]]
    if name == "conv_general_dilated":
        return max(1, _size(shapes[1]) // max(1, shapes[1][params["dimension_numbers"].rhs_spec[0]]))
    return max(2, *map(_size, shapes))


def _size(shape: Iterable[int]) -> int:
    return math.prod(shape)
