"""The evaluator: with a rule that adds nothing it is JAX's own evaluation, and a rule sees all that there is to see."""

import math
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from reference.jaxprs import CALLS, bind, evaluate, inside, source, through

X = np.linspace(0.1, 0.9, 4)


@jax.custom_jvp
def cubed(x):
    return x * x * x


cubed.defjvp(lambda primals, tangents: (cubed(*primals), 3 * primals[0] ** 2 * tangents[0]))


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda _, d: (d / 2,))


@jax.custom_batching.custom_vmap
def doubled(x):
    return x + x


doubled.def_vmap(lambda size, batched, x: (x + x, True))


def running(x, **given):
    """A carry and three kinds of rows, over numbers and a table of them."""
    rows = x, jnp.outer(x, x)
    return jax.lax.scan(lambda c, r: (c * r[0] + jnp.sin(r[1]).sum(), (c, c - r[0], r[1][0])), x[0], rows, **given)


def until_small(x):
    return jax.lax.while_loop(lambda s: s[1].max() > 0.2, lambda s: (s[0] + 1, s[1] * x[0] ** 0.3), (0, x))


def branch(k, x):
    return jax.lax.switch(k, [jnp.sin, lambda v: v * x[1], lambda v: jax.lax.cond(v[0] > 0, jnp.exp, jnp.cos, v)], x)


PROGRAMS = {
    "equations": lambda x: (jnp.tanh(x) @ x, x, 3.0, jnp.sort(x * np.arange(4.0)[::-1])),
    "scan": running,
    "scan in reverse": partial(running, reverse=True),
    "scan of nothing": lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0],
    "scan of no turns": lambda x: jax.lax.scan(lambda c, r: (jnp.sin(c), c * r), x, x[:0]),
    "scan in a scan": lambda x: jax.lax.scan(lambda c, r: (running(c * r)[1][1], running(x)[0]), x, x),
    "while": until_small,
    "cond": lambda x: jax.lax.cond(x[0] > 0.5, jnp.exp, lambda v: v * x[1], x),
    "switch": lambda x: [branch(jnp.asarray(10 * x[0] + k, int), x) for k in (-5, 0, 1, 9)],
    "custom_jvp": cubed,
    "custom_vjp": halved,
    "custom_vmap": doubled,
    "composite": jax.lax.composite(lambda x: jnp.sin(x) * 2, name="tests.composite"),
    "remat": lambda x: jax.grad(lambda v: jax.checkpoint(lambda u: jnp.sin(jnp.sin(u)))(v).sum())(x),
    "jit in a jit": jax.jit(lambda x: jax.jit(lambda v: jax.jit(jnp.sin)(v) * v)(x) + x),
    "gradient": lambda x: jax.grad(lambda v: (running(halved(v))[1][1] * cubed(v)).sum())(x),
    "all of it": jax.jit(lambda x: running(until_small(cubed(branch(1, x)))[1], reverse=True)),
}
NO_BATCH = ("composite", "while", "all of it")


def sound(seen=None, unrolled=0.0):
    """The rule that adds nothing but notes of what it sees."""

    def rule(equation, inputs):
        if seen is not None:
            seen.append(equation.primitive.name)
        return through(equation, inputs, lambda k, given, turn: evaluate(inside(equation)[k], given, rule), unrolled)

    return rule


@cache
def traced(name):
    """(one of PROGRAMS as a jaxpr, what JAX computes with it for X and for X the other way round)."""
    closed = jax.make_jaxpr(PROGRAMS[name])(X)
    by_jax = jax.jit(jaxpr_as_fun(closed))
    return closed, [by_jax(X), by_jax(X[::-1])]


def ours(name, unrolled):
    closed = traced(name)[0]  # here, since what is first traced within a trace would keep its tracers
    return lambda x: evaluate(closed, [x], sound(unrolled=unrolled))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("unrolled", [3, math.inf])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_rule_that_adds_nothing_evaluates_what_jax_does(name, unrolled):
    assert_same(ours(name, unrolled)(X), traced(name)[1][0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_and_so_where_jax_traces_every_loop_and_branch(name):
    assert_same(jax.jit(ours(name, 0))(X), traced(name)[1][0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_and_so_for_a_batch_whose_values_are_not_known(name):
    wrap = jax.jit if name in NO_BATCH else lambda function: jax.jit(jax.vmap(function))
    at = X if name in NO_BATCH else np.stack([X, X[::-1]])
    one, other = traced(name)[1]
    expected = one if name in NO_BATCH else [np.stack(pair) for pair in zip(one, other, strict=True)]
    assert_same(wrap(ours(name, math.inf))(at), expected)


@pytest.mark.parametrize(
    "name", ["jit", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "composite"]
)
def test_the_name_of_every_call_is_the_one_that_jax_gives_it(name):
    programs = [PROGRAMS[key] for key in ("custom_jvp", "custom_vjp", "custom_vmap", "composite", "jit in a jit")]
    programs.append(jax.checkpoint(jnp.sin))
    found = [equation for program in programs for equation in jax.make_jaxpr(program)(X).jaxpr.eqns]
    (equation,) = (equation for equation in found if equation.primitive.name == name)
    assert name in CALLS and len(inside(equation)) == 1


def test_a_rule_sees_every_equation_inside_and_out_in_order():
    def program(x):
        return jnp.cos(jax.jit(lambda v: cubed(jnp.sin(v)))(x)) + jax.lax.cond(x > 0, jnp.exp, jnp.log, x)

    closed = jax.make_jaxpr(program)(0.5)
    known, traced = [], []
    evaluate(closed, [0.5], sound(known, unrolled=1))
    evaluate(closed, [0.5], sound(traced))
    start = ["jit", "sin", "custom_jvp_call", "mul", "mul", "cos", "gt", "convert_element_type", "cond"]
    assert known == [*start, "exp", "add"]
    assert traced == [*start, "log", "exp", "add"]  # branch 0 is that of False
    with pytest.raises(ValueError, match="zip"):
        evaluate(closed, [0.5], lambda equation, inputs: [])


def test_what_a_rule_returns_takes_the_place_of_the_outputs():
    def program(x):
        y = x + 1
        return y, y * 3

    def rule(equation, inputs):
        return [10.0] if equation.primitive.name == "add" else bind(equation, inputs)

    assert evaluate(jax.make_jaxpr(program)(2.0), [2.0], rule) == [10.0, 30.0]


def turns(function, unrolled, *args):
    """(outputs of its only loop, what its body was told) with the turn returned beyond the outputs."""
    (equation,) = jax.make_jaxpr(function)(*args).jaxpr.eqns
    told = []

    def body(k, given, turn):
        told.append((k, turn))
        return [*jaxpr_as_fun(inside(equation)[k])(*given), turn]

    return through(equation, [*map(jnp.asarray, args)], body, unrolled), told


@pytest.mark.parametrize(("unrolled", "traced"), [(0, True), (2, True), (3, False), (math.inf, False)])
def test_a_body_is_told_the_turn_and_its_further_outputs_are_stacked(unrolled, traced):
    xs = jnp.asarray([2.0, 3.0, 5.0])
    for reverse, rows, order in ((False, [1, 2, 6], [0, 1, 2]), (True, [15, 5, 1], [2, 1, 0])):

        def product(c, xs, reverse=reverse):
            return jax.lax.scan(lambda c, x: (c * x, c), c, xs, reverse=reverse)

        (carry, *stacked), told = turns(product, unrolled, 1.0, xs)
        assert carry == 30
        np.testing.assert_array_equal(stacked, [rows, order])
        assert traced or told == [(0, 0), (0, 1), (0, 2)]
        assert not traced or all(isinstance(turn, jax.core.Tracer) for _, turn in told)


def test_the_turns_of_a_while_loop_are_counted_for_its_condition_and_its_body():
    def doubling(x):
        return jax.lax.while_loop(lambda c: c < 5, lambda c: c * 2, x)

    (equation,) = jax.make_jaxpr(doubling)(1.5).jaxpr.eqns

    def body(k, given, turn):
        told.append((k, turn))
        return jaxpr_as_fun(inside(equation)[k])(*given)

    told: list = []
    assert through(equation, [1.5], body, unrolled=1) == [6.0]
    assert told == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert through(equation, [jnp.asarray(1.5)], body) == [6.0]


def test_turns_counted_in_a_traced_while_loop():
    (equation,) = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda c: c < 9, lambda c: c * 2, x))(1.5).jaxpr.eqns

    def body(k, given, turn):
        return [given[0] < 9] if k == 0 else [given[0] + 2.0 ** turn.astype(float)]

    assert through(equation, [jnp.asarray(1.5)], body) == [1.5 + 1 + 2 + 4 + 8]


def test_a_branch_beyond_the_last_is_the_last():
    closed = jax.make_jaxpr(branch)(0, X)
    for k, as_if in ((-3, 0), (7, 2)):
        for unrolled in (0, 1):
            (found,) = evaluate(closed, [k, X], sound(unrolled=unrolled))
            np.testing.assert_allclose(found, branch(as_if, X), rtol=1e-15)


def test_parameters_can_be_changed():
    (equation,) = jax.make_jaxpr(lambda x: x.astype("float32"))(X).jaxpr.eqns
    assert bind(equation, [X])[0].dtype == "float32"
    assert bind(equation, [X], new_dtype=np.dtype("float16"))[0].dtype == "float16"


def test_the_source_of_an_equation_is_its_file_line_and_function():
    def program(x):
        return jnp.sin(x)  # this line here

    (equation,) = jax.make_jaxpr(program)(X).jaxpr.eqns
    file, line, function = source(equation)
    assert Path(file) == Path(__file__) and function.endswith("program")
    assert "# this line here" in Path(__file__).read_text().splitlines()[line - 1]
