"""Monte Carlo arithmetic: a function evaluated with every operation's rounding replaced by a random one.

A jaxpr is interpreted in float64 and after every operation each float result x becomes

    x + xi (u |x| + min(|x|, eta))          xi uniform in [-1, 1]

u is the unit roundoff of the precision under test and eta the size of its smallest results: below it they are
flushed or lose digits. A sum of n terms errs relative to its terms, not to what is left of them: u_sum sqrt(n)
times the sum of magnitudes joins the bracket. Results beyond the largest number of the precision become inf. The
spread of a few samples is how far two right answers may lie apart (D. S. Parker, Monte Carlo Arithmetic, 1997).

A computed value that several operations use is rounded anew for each of them: another right program may compute it
twice, and errors that would cancel in one program do not in the other.

Samples run side by side under one vmap with a named axis, so that a comparison sees the spread of what it
compares: one that rounding could turn (a kink, a branch) is turned more often than rounding would, and with
few samples its effect is not missed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

SAMPLES_AXIS = "monte_carlo_samples"
WIDENED = 4.0  # how many times further a comparison's operands spread than rounding spreads them
TABLE = 1 << 14  # noise is drawn once and read at another offset by every operation
TRANSCENDENTAL = 4.0  # libraries give these to a few ulps, not to half of one

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
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Format:
    """A precision, as numbers that may be traced: one compiled program serves all of them.

    Attributes:
        u: unit roundoff of a result.
        u_sum: unit roundoff at which sums accumulate: float32's or finer, as XLA and jnp.sum do.
        eta: the size of the smallest results.
        largest: the largest finite number.
    """

    u: Any
    u_sum: Any
    eta: Any
    largest: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """One sample's noise: a table that every operation reads at its own offset, and how far comparisons are widened."""

    table: Any
    widened: Any
    format: Format


def noises(format: Format, samples: int, seed: int) -> Noise:
    """`samples` of noise in front of which stands one of none at all: the function itself."""
    rng = np.random.default_rng(seed)
    table = rng.uniform(-1, 1, (samples + 1, TABLE))
    table[0] = 0.0
    table = np.concatenate([table, table], axis=1)  # so that no reading wraps around
    widened = np.full(samples + 1, WIDENED)
    widened[0] = 1.0
    formats = jax.tree.map(lambda number: np.full(samples + 1, number), format)
    formats.largest[0] = np.inf
    return Noise(table, widened, formats)


def perturbed(closed: core.ClosedJaxpr) -> Callable[..., list[Array]]:
    """A function (noise, *flat arguments) -> flat results of `closed` in float64 under one sample of noise.

    It may be jitted, and is to be vmapped over the noise with `axis_name=SAMPLES_AXIS`.
    """

    def run(noise: Noise, *arguments: Any) -> list[Array]:
        return _Interpreter(noise).run(closed, arguments)

    return run


def _shared(jaxpr: core.Jaxpr) -> set[Any]:
    """Computed float variables that more than one operation uses: each is to see a rounding of its own.

    One answer may take f' from the a that is stored and another from z: their errors cancel in one, not in both.
    """
    uses = Counter(
        atom
        for equation in jaxpr.eqns
        if equation.primitive.name not in _EXACT
        for atom in equation.invars
        if not isinstance(atom, core.Literal)
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


class _Interpreter:
    """Evaluates jaxprs under one sample of noise; counts the operations, each of which reads other noise."""

    def __init__(self, noise: Noise, site: int = 0) -> None:
        self.noise, self.site = noise, site

    def run(self, closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        return self._run(closed.jaxpr, closed.consts, arguments)

    def _run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = {}
        shared = _shared(jaxpr)

        def read(atom: Any) -> Any:
            return _wide(atom.val) if isinstance(atom, core.Literal) else values[atom]

        def used(atom: Any) -> Any:
            value = read(atom)
            return value if isinstance(atom, core.Literal) or atom not in shared else self._rounded(value, 1.0)

        for variables, given in ((jaxpr.constvars, consts), (jaxpr.invars, arguments)):
            values.update((v, _wide(value)) for v, value in zip(variables, given, strict=True))
        for equation in jaxpr.eqns:
            take = read if equation.primitive.name in _EXACT else used
            results = self._equation(equation, [take(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self._scan(params, inputs)
        if name == "while":
            return self._while(params, inputs)
        if name == "cond":
            branches = [self._branch(closed) for closed in params["branches"]]
            return jax.lax.switch(inputs[0], branches, *inputs[1:])
        inner = next(
            (params[key] for key in _INNER if isinstance(params.get(key), core.ClosedJaxpr | core.Jaxpr)), None
        )
        if inner is not None:  # jit, remat, custom_jvp, custom_vjp, closed_call: what is inside counts
            return self._run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        return self._operation(equation.primitive, params, inputs)

    def _operation(self, primitive: Any, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        name = primitive.name
        if name in _TURNS and _is_float(inputs[0]):
            inputs = [_apart(inputs[0], inputs[1], self.noise.widened), jnp.zeros_like(inputs[0])]
        params = _in_double(name, params)
        out = primitive.bind(*inputs, **params)
        results = list(out) if primitive.multiple_results else [out]
        results = [_wide(result) for result in results]
        if name in _EXACT:
            return results
        spread = None
        if name in _SUMS:
            magnitudes = [jnp.abs(value) if _is_float(value) else value for value in inputs]
            size = jnp.abs(primitive.bind(*magnitudes, **params))
            root = _terms(name, params, inputs, results[0]) ** 0.5
            spread = root * self.noise.format.u_sum * size + jnp.minimum(size, root * self.noise.format.eta)
        factor = TRANSCENDENTAL if name in _LIBRARY else 1.0
        return [self._rounded(result, factor, spread) if _is_float(result) else result for result in results]

    def _rounded(self, x: Array, factor: float, spread: Array | None = None) -> Array:
        """One rounding, read at an offset of its own; see the module."""
        self.site += 1
        table, offset = self.noise.table, self.site * 7919 % TABLE
        if x.size > TABLE:
            table = jnp.tile(table, -(-x.size // TABLE))
        xi = jax.lax.slice(table, (offset,), (offset + x.size,))
        format = self.noise.format
        return _round(x, xi, format.u * factor, format.eta, format.largest, spread)

    def _turned(self, step: Array) -> "_Interpreter":
        """The interpreter of one step of a loop, whose noise is that of no other step."""
        table = jnp.roll(self.noise.table, step * 104729 + 1)
        return _Interpreter(replace(self.noise, table=table), self.site)

    def _branch(self, closed: core.ClosedJaxpr) -> Callable[..., list[Any]]:
        return lambda *arguments: self.run(closed, arguments)

    def _scan(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
        consts, carry, xs = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]

        def body(state: tuple[Array, list[Any]], x: list[Any]) -> tuple[tuple[Array, list[Any]], list[Any]]:
            step, carry = state
            out = self._turned(step).run(params["jaxpr"], [*consts, *carry, *x])
            return (step + 1, out[:n_carry]), out[n_carry:]

        start = (jnp.zeros((), jnp.int32), carry)
        (_, carry), ys = jax.lax.scan(body, start, xs, length=params["length"], reverse=params["reverse"])
        return [*carry, *ys]

    def _while(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts, carry = (
            inputs[:n_cond],
            inputs[n_cond : n_cond + n_body],
            inputs[n_cond + n_body :],
        )

        def again(state: tuple[Array, list[Any]]) -> Array:
            # How often a loop runs is decided as the function itself decides: widened, it might never end.
            quiet = replace(self.noise, widened=jnp.ones_like(self.noise.widened))
            return _Interpreter(quiet, self.site).run(params["cond_jaxpr"], [*cond_consts, *state[1]])[0]

        def body(state: tuple[Array, list[Any]]) -> tuple[Array, list[Any]]:
            return state[0] + 1, self._turned(state[0]).run(params["body_jaxpr"], [*body_consts, *state[1]])

        return jax.lax.while_loop(again, body, (jnp.zeros((), jnp.int32), carry))[1]


@jax.jit
def _round(x: Array, xi: Array, u: Any, eta: Any, largest: Any, spread: Array | None) -> Array:
    """X with one rounding's noise; inf beyond the largest number."""
    size = jnp.abs(x)
    reach = u * size + jax.lax.min(size, jnp.full_like(size, 1.0) * eta)
    if spread is not None:
        reach = reach + spread
    noisy = x + xi.reshape(x.shape) * reach
    return jnp.where(size <= largest, noisy, x * jnp.inf)


@jax.jit
def _apart(a: Array, b: Array, widened: Array) -> Array:
    """A - b, spread further than it is among the samples."""
    difference = a - b
    mean = jax.lax.pmean(difference, SAMPLES_AXIS)
    further = mean + widened * (difference - mean)
    return jnp.where(jnp.isfinite(further), further, jnp.where(a == b, 0.0, difference))


def _in_double(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an operation with every float type in it widened."""
    out = dict(params)
    for key in ("new_dtype", "dtype", "preferred_element_type"):
        dtype = out.get(key)
        if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
            out[key] = _widest(dtype)
    if name == "reduce_precision":  # asks for fewer bits than the samples have; their noise stands for it
        out |= {"exponent_bits": 11, "mantissa_bits": 52}
    return out


def _terms(name: str, params: dict[str, Any], inputs: list[Any], result: Array) -> int:
    """How many terms each entry of a sum has."""
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
