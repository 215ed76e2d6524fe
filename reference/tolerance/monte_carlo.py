"""Monte Carlo arithmetic: evaluate a function with the rounding of every operation replaced by a random one.

A jaxpr is interpreted in float64. After every operation each float result x becomes

    x + xi (u |x| + min(|x|, eta))          xi uniform in [-1, 1]

u is the unit roundoff of the precision under test. eta is the size of its smallest results: smaller ones are flushed
or lose digits. The error of a sum of n terms is relative to its terms, not to its result, so u_sum sqrt(n) times the
sum of magnitudes is added in the bracket. Results beyond the largest number of the precision become inf. The spread of
a few samples shows how far apart two right answers may be (D. S. Parker, Monte Carlo Arithmetic, 1997).

A computed value that several operations use is rounded anew for each of them. Another right program may compute it
twice, and errors that cancel in one program need not cancel in the other.

Samples run side by side under one vmap with a named axis, so that a comparison can widen the spread of its operands.
A comparison that rounding could turn (a kink, a branch) is then turned more often than by rounding, and even a few
samples show its effect.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from reference.jaxprs import Values, bind, evaluate, inside, through
from reference.tolerance.formats import Format

SAMPLES_AXIS = "monte_carlo_samples"
WIDENED = 4.0  # factor by which the spread of a comparison's operands is widened
TABLE = 1 << 14  # noise is drawn once, and every operation reads it at another offset
TRANSCENDENTAL = 4.0  # libraries compute these to a few ulps, not to half of one

# fmt: off
_EXACT = frozenset({
    "abs", "argmax", "argmin", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp", "concatenate",
    "convert_element_type", "copy", "copy_p", "device_put", "dynamic_slice", "dynamic_update_slice", "eq",
    "expand_dims", "floor", "gather", "ge", "gt", "imag", "iota", "is_finite", "le", "lt", "max", "min", "ne", "neg",
    "optimization_barrier", "pad", "pvary", "real", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
    "reduce_precision", "reshape", "rev", "round", "scatter", "select_and_gather_add", "select_n", "sign", "slice",
    "sort", "split", "squeeze", "stop_gradient", "top_k", "transpose",
})
_SUMS = frozenset({
    "conv_general_dilated", "cumsum", "dot_general", "ragged_dot_general", "reduce_sum", "reduce_window_sum",
    "scatter-add",
})
_LIBRARY = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log1p", "logistic", "pow", "rsqrt", "sin", "sinh", "sqrt", "tan",
    "tanh",
})
# fmt: on
_TURNS = frozenset({"ge", "gt", "le", "lt"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """One sample's noise: a table that every operation reads at its own offset, and the widening of comparisons."""

    table: Any
    widened: Any
    format: Format


NOISE_AXES = Noise(0, 0, Format(None, None, None, None, 0))
"""Where each number of `noises` has its samples, for `jax.vmap`: None for what is the same in all of them."""


def noises(format: Format, samples: int, seed: int) -> Noise:
    """`samples` samples of noise, and in front one without noise: the function itself."""
    rng = np.random.default_rng(seed)
    table = rng.uniform(-1, 1, (samples + 1, TABLE))
    table[0] = 0.0
    table = np.concatenate([table, table], axis=1)  # so that no read wraps around
    widened = np.full(samples + 1, WIDENED)
    widened[0] = 1.0
    largest = np.full(samples + 1, format.largest)
    largest[0] = np.inf
    return Noise(table, widened, replace(format, largest=largest))


def perturbed(closed: ClosedJaxpr) -> Callable[..., list[Array]]:
    """A function (noise, *flat arguments) -> flat results of `closed` in float64 under one sample of noise.

    It may be jitted, and must be vmapped over the noise, `in_axes` NOISE_AXES, with `axis_name=SAMPLES_AXIS`.
    """
    return lambda noise, *arguments: _Sample(noise).run(closed, arguments)


class _Sample:
    """Evaluates jaxprs under one sample of noise, and counts the roundings, since each reads other noise."""

    def __init__(self, noise: Noise, site: int = 0) -> None:
        self.noise, self.site = noise, site

    def run(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> Values:
        shared = _shared(closed.jaxpr)

        def rule(equation: JaxprEqn, inputs: Values) -> Values:
            inputs = [_wide(value) for value in inputs]
            if equation.primitive.name not in _EXACT:
                anew = [isinstance(atom, Var) and atom in shared for atom in equation.invars]
                inputs = [self._rounded(x, 1.0) if other else x for x, other in zip(inputs, anew, strict=True)]
            if inside(equation):
                return through(equation, inputs, partial(self._within, equation))
            return self._operation(equation, inputs)

        return [_wide(result) for result in evaluate(closed, arguments, rule)]

    def _within(self, equation: JaxprEqn, k: int, values: Values, turn: Any) -> Values:
        """Evaluate one of the jaxprs in an equation; each turn of a loop has noise of its own."""
        sample = self
        if turn is not None:
            # A loop's condition is not widened, since with widening the loop might never end.
            decides = equation.primitive.name == "while" and k == 0
            sample = _Sample(_unwidened(self.noise) if decides else _turned(self.noise, turn), self.site)
        return sample.run(inside(equation)[k], values)

    def _operation(self, equation: JaxprEqn, inputs: Values) -> Values:
        name = equation.primitive.name
        if name in _TURNS and _is_float(inputs[0]):
            inputs = [_apart(inputs[0], inputs[1], self.noise.widened), jnp.zeros_like(inputs[0])]
        in_double = _in_double(equation)
        results = [_wide(result) for result in bind(equation, inputs, **in_double)]
        if name in _EXACT:
            return results
        spread = None
        if name in _SUMS:
            magnitudes = [jnp.abs(value) if _is_float(value) else value for value in inputs]
            size = jnp.abs(bind(equation, magnitudes, **in_double)[0])
            root = _terms(equation, inputs, results[0]) ** 0.5
            spread = root * self.noise.format.u_sum * size + jnp.minimum(size, root * self.noise.format.eta)
        factor = TRANSCENDENTAL if name in _LIBRARY else 1.0
        return [self._rounded(result, factor, spread) if _is_float(result) else result for result in results]

    def _rounded(self, x: Array, factor: float, spread: Array | None = None) -> Array:
        """Round once, with noise from an offset of its own; see the module."""
        self.site += 1
        table, offset = self.noise.table, self.site * 7919 % TABLE
        if x.size > TABLE:
            table = jnp.tile(table, -(-x.size // TABLE))
        xi = jax.lax.slice(table, (offset,), (offset + x.size,))
        format = self.noise.format
        u = format.u if factor == 1 else format.u * factor
        return _round(x, xi, u, format.eta, format.largest, spread)


def _turned(noise: Noise, turn: Array) -> Noise:
    return replace(noise, table=jnp.roll(noise.table, turn * 104729 + 1))


def _unwidened(noise: Noise) -> Noise:
    return replace(noise, widened=jnp.ones_like(noise.widened))


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
    return {v for v, n in uses.items() if n > 1 and v not in given and _is_float_type(v.aval)}


def _is_float_type(aval: Any) -> bool:
    return jnp.issubdtype(getattr(aval, "dtype", np.dtype(bool)), jnp.floating)


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact) and not _is_key(value)


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(getattr(value, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def _widest(dtype: Any) -> Any:
    return jnp.dtype(jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64)


def _wide(value: Any) -> Any:
    if _is_key(value) or getattr(value, "dtype", None) == jax.dtypes.float0 or not _is_float(value):
        return value
    return jnp.asarray(value, _widest(jnp.result_type(value)))


@jax.jit
def _round(x: Array, xi: Array, u: Any, eta: Any, largest: Any, spread: Array | None) -> Array:
    """Add one rounding's noise to x; inf beyond the largest number."""
    size = jnp.abs(x)
    reach = u * size + jnp.minimum(size, eta)
    if spread is not None:
        reach = reach + spread
    noisy = x + xi.reshape(x.shape) * reach
    return jax.lax.select(size <= largest, noisy, x * jnp.inf)


@jax.jit
def _apart(a: Array, b: Array, widened: Array) -> Array:
    """The difference a - b, with its spread among the samples widened."""
    difference = a - b
    mean = jax.lax.pmean(difference, SAMPLES_AXIS)
    further = mean + widened * (difference - mean)
    return jnp.where(jnp.isfinite(further), further, jnp.where(a == b, 0.0, difference))


def _in_double(equation: JaxprEqn) -> dict[str, Any]:
    """The parameters of an operation that hold a float type, widened to double."""
    if equation.primitive.name == "reduce_precision":  # would cut the samples' bits; keep their noise
        return {"exponent_bits": 11, "mantissa_bits": 52}
    keys = ("new_dtype", "dtype", "preferred_element_type")
    types = {key: dtype for key in keys if (dtype := equation.params.get(key)) is not None}
    return {key: _widest(dtype) for key, dtype in types.items() if jnp.issubdtype(dtype, jnp.inexact)}


def _terms(equation: JaxprEqn, inputs: Values, result: Array) -> int:
    """The number of terms in each entry of a sum."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return max(1, int(np.prod([inputs[0].shape[axis] for axis in contracted], dtype=int)))
    if name == "reduce_sum":
        return max(1, inputs[0].size // max(1, result.size))
    if name == "cumsum":
        return inputs[0].shape[params["axis"]]
    if name == "conv_general_dilated":
        return max(1, inputs[1].size // max(1, inputs[1].shape[params["dimension_numbers"].rhs_spec[0]]))
    return max(2, *(value.size for value in inputs))
