"""Evaluate programs one equation at a time, by a rule that computes each equation.

JAX traces a function to a jaxpr: a list of equations, each of which computes outputs from inputs by a primitive. To
evaluate a jaxpr is a loop over the list, as in Autodidax, the tutorial that builds JAX anew. Here the loop asks a rule
for the outputs of each equation. `reference.tolerance.monte_carlo` perturbs them, `reference.mutation.program` breaks
one of them, `reference.witnesses.kinks` records which branch each takes, and `reference.checks.culprit` looks for the
first nan. This rule adds nothing, and computes the same as JAX:

    def rule(equation, inputs):
        return through(equation, inputs, lambda k, given, turn: evaluate(inside(equation)[k], given, rule))

Calls, loops and branches are equations with jaxprs inside. `inside` lists these, and `through` computes the equation
with a `body` in their place. The body may evaluate them by the same rule or by another one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from reference import sharded

Values = list[Any]
Rule = Callable[[JaxprEqn, Values], Sequence[Any]]
"""(an equation, its inputs) -> its outputs."""
Body = Callable[[int, Values, Any], Values]
"""(number of one of an equation's jaxprs, its inputs, the turn of the loop) -> its outputs; see `through`."""

# fmt: off
CALLS = frozenset({
    "call", "checkpoint", "closed_call", "composite", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "jit",
    "remat2", "shard_map",
})
# fmt: on
"""Primitives that compute the one jaxpr among their parameters."""


def evaluate(
    closed: ClosedJaxpr, inputs: Sequence[Any], rule: Rule, lift: Callable[[Any, Any], Any] = lambda number, _: number
) -> Values:
    """The outputs of a jaxpr, with each of its equations computed by the rule.

    Args:
        closed: the jaxpr.
        inputs: a value for each of its inputs.
        rule: computes an equation.
        lift: (number that stands in the jaxpr, its type) -> value, where values are more than JAX's own arrays.

    Raises:
        ValueError: the number of inputs differs from the jaxpr's, or that of the rule's outputs from the equation's.
    """
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, _lifted(closed, lift), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    last = _last_uses(jaxpr)
    for number, equation in enumerate(jaxpr.eqns):
        outputs = rule(equation, _read(equation.invars, values, lift))
        values.update(zip(equation.outvars, outputs, strict=True))
        for variable in last.get(number, ()):
            del values[variable]
    return _read(jaxpr.outvars, values, lift)


def evaluate_with(closed: ClosedJaxpr, inputs: Values, others: sharded.Others) -> Values:
    """The outputs of a jaxpr as JAX computes them, but for some primitives that are computed otherwise."""

    def rule(equation: JaxprEqn, given: Values) -> Values:
        if other := others.get(equation.primitive.name):
            return [other(value, equation.params) for value in given]
        return through(equation, given, lambda k, inner, _: evaluate_with(inside(equation)[k], inner, others))

    return evaluate(closed, inputs, rule)


def _lifted(closed: ClosedJaxpr, lift: Callable[[Any, Any], Any]) -> Values:
    return [lift(const, variable.aval) for const, variable in zip(closed.consts, closed.jaxpr.constvars, strict=True)]


@lru_cache(maxsize=1024)  # a program that is broken in many places is evaluated as often
def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Any]]:
    """For an equation's number the variables that nobody reads after it, so that their memory can be freed."""
    read = {v: n for n, e in enumerate(jaxpr.eqns) for v in (*e.outvars, *e.invars) if not isinstance(v, Literal)}
    for variable in jaxpr.outvars:
        read.pop(variable, None) if not isinstance(variable, Literal) else None
    last: dict[int, list[Any]] = {}
    for variable, number in read.items():
        last.setdefault(number, []).append(variable)
    return last


def _read(atoms: Sequence[Any], values: dict[Any, Any], lift: Callable[[Any, Any], Any]) -> Values:
    return [lift(atom.val, atom.aval) if isinstance(atom, Literal) else values[atom] for atom in atoms]


def bind(equation: JaxprEqn, inputs: Sequence[Any], **changed: Any) -> Values:
    """The outputs of an equation as JAX computes it, with its own parameters except those `changed`."""
    primitive = equation.primitive
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params | changed))
    return list(outputs) if primitive.multiple_results else [outputs]


def inside(equation: JaxprEqn) -> list[ClosedJaxpr]:
    """The jaxprs in an equation: one in a call or a scan, condition and body in a while, the branches in a cond.

    That of a shard_map is its body on all shards, as a program of one device; see `reference.sharded`.
    """
    params = equation.params
    match equation.primitive.name:
        case "cond":
            found = list(params["branches"])
        case "scan":
            found = [params["jaxpr"]]
        case "while":
            found = [params["cond_jaxpr"], params["body_jaxpr"]]
        case "shard_map":
            found = [sharded.on_one_device(equation, evaluate_with)]
        case name:
            found = [each for each in params.values() if isinstance(each, ClosedJaxpr | Jaxpr)] if name in CALLS else []
    return [each if isinstance(each, ClosedJaxpr) else ClosedJaxpr(each, ()) for each in found]


def float_types(jaxpr: Jaxpr) -> set[Any]:
    """The types of the floats that a program computes, those of its loops and branches included."""
    types = (getattr(variable.aval, "dtype", None) for each in equations(jaxpr) for variable in each.outvars)
    return {dtype for dtype in types if dtype is not None and jnp.issubdtype(dtype, jnp.floating)}


def float_bits(jaxpr: Jaxpr) -> int:
    """The bits of the narrowest float that a program computes or rounds to; 64 if there is none."""
    reduced = [each.params for each in equations(jaxpr) if each.primitive.name == "reduce_precision"]
    bits = [1 + params["exponent_bits"] + params["mantissa_bits"] for params in reduced]
    return min([*bits, *(8 * dtype.itemsize for dtype in float_types(jaxpr))], default=64)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation of a program, those of its loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in inside(equation):
            yield from equations(part.jaxpr)


def parted(equation: JaxprEqn, inputs: Values) -> tuple[Values, Values, Values]:
    """The inputs of a loop in three parts.

    Returns:
        Of a scan, its constants, what it carries, and what it runs over. Of a while, the constants of its condition,
        those of its body, and what it carries.
    """
    first, second = _counts(equation)
    return inputs[:first], inputs[first : first + second], inputs[first + second :]


def solving(equation: JaxprEqn, inputs: Values) -> tuple[ClosedJaxpr, Values]:
    """Of a `custom_linear_solve`, the jaxpr that solves, which JAX never differentiates, and its inputs."""
    starts = [0, *accumulate(equation.params["const_lengths"])]
    at = type(equation.params["jaxprs"])._fields.index("solve")
    return equation.params["jaxprs"].solve, [*inputs[starts[at] : starts[at + 1]], *inputs[starts[-1] :]]


def _counts(equation: JaxprEqn) -> tuple[int, int]:
    params = equation.params
    if equation.primitive.name == "while":
        return params["cond_nconsts"], params["body_nconsts"]
    if "ft_in" not in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def through(equation: JaxprEqn, inputs: Values, body: Body, unrolled: int | float = 0) -> Values:
    """The outputs of an equation, with `body` in the place of the jaxprs inside it.

    Args:
        equation: any; JAX computes an equation without jaxprs inside.
        inputs: a value for each of its inputs.
        body: called with the number of a jaxpr in `inside(equation)`, that jaxpr's inputs, and how many turns its
            loop has taken, or None outside of loops. If it returns more than the outputs of a scan's jaxpr, the rest
            is stacked, turn by turn, behind the outputs of the scan.
        unrolled: the longest scan that is run in Python, turn by turn, if its inputs are known and not traced. Above
            0, a while also runs in Python, and a cond runs only the branch that is taken. With 0 JAX traces them all.
    """
    match equation.primitive.name:
        case "cond":
            return _cond(inputs, len(equation.params["branches"]), body, unrolled > 0 and _known(inputs[:1]))
        case "scan":
            return _scan(equation, inputs, body, 0 < unrolled >= equation.params["length"] and _known(inputs))
        case "while":
            return _while(equation, inputs, body, unrolled > 0 and _known(inputs))
        case name:
            return body(0, inputs, None) if name in CALLS else bind(equation, inputs)


def _known(values: Values) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _cond(inputs: Values, count: int, body: Body, known: bool) -> Values:
    index, *given = inputs
    if known:
        return body(int(index), given, None)
    return list(jax.lax.switch(index, [lambda *given, k=k: body(k, [*given], None) for k in range(count)], *given))


def _scan(equation: JaxprEqn, inputs: Values, body: Body, known: bool) -> Values:
    length, reverse = equation.params["length"], equation.params["reverse"]
    consts, carry, xs = parted(equation, inputs)

    def turn(state: tuple[Any, Values], x: Values) -> tuple[tuple[Any, Values], Values]:
        t, before = state
        outputs = body(0, [*consts, *before, *x], t)
        return (t + 1, outputs[: len(carry)]), outputs[len(carry) :]

    if not known:
        (_, last), rows = jax.lax.scan(turn, (jnp.zeros((), jnp.int32), carry), xs, length, reverse)
        return [*last, *rows]
    if length == 0:  # no turns, so nothing to stack
        return bind(equation, inputs)
    state, rows = (0, carry), [[]] * length
    for i in reversed(range(length)) if reverse else range(length):
        state, rows[i] = turn(state, [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in xs])
    return [*state[1], *map(jnp.stack, zip(*rows, strict=True))]


def _while(equation: JaxprEqn, inputs: Values, body: Body, known: bool) -> Values:
    for_cond, for_body, carry = parted(equation, inputs)

    def again(state: tuple[Any, Values]) -> Any:
        return body(0, [*for_cond, *state[1]], state[0])[0]

    def turn(state: tuple[Any, Values]) -> tuple[Any, Values]:
        return state[0] + 1, body(1, [*for_body, *state[1]], state[0])

    if not known:
        return jax.lax.while_loop(again, turn, (jnp.zeros((), jnp.int32), carry))[1]
    state = (0, carry)
    while again(state):
        state = turn(state)
    return state[1]


def source(equation: JaxprEqn) -> tuple[str, int, str] | None:
    """The file, line and function that an equation was traced from; None for an equation of JAX's own."""
    found = re.match(r"(.*?):(\d+)(?::\d+)? \((.*)\)$", source_info_util.summarize(equation.source_info))
    return None if found is None else (found[1], int(found[2]), found[3])
