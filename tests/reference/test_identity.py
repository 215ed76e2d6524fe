"""A program is compiled once, and another program is never taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.tolerance import rounding
from reference.tolerance.identity import identity

X = np.linspace(0.1, 1, 6).reshape(2, 3)


def identified(function):
    return identity(jax.make_jaxpr(function)(X))


@jax.custom_jvp
def ruled(x):
    return jnp.sin(x)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), jnp.cos(primals[0]) * tangents[0]))


def scanned(factor, reverse=False):
    return lambda x: jax.lax.scan(lambda c, row: (c * factor + row.sum(), c), 0.0, x, reverse=reverse)[1]


PROGRAMS = {
    "sum": lambda x: x + 2.0,
    "another number": lambda x: x + 2.0000000000000004,
    "minus nothing": lambda x: x * -0.0,
    "nothing": lambda x: x * 0.0,
    "an array": lambda x: x * np.arange(3.0)[None],
    "another array": lambda x: x * np.arange(1.0, 4.0)[None],
    "another operation": lambda x: x - 2.0,
    "another order": lambda x: 2.0 - x,
    "sum of axis 0": lambda x: x.sum(0),
    "sum of axis 1": lambda x: x.sum(1),
    "rounded": lambda x: x.astype("float32"),
    "one use": lambda x: jnp.sin(x) * jnp.cos(x),
    "two uses": lambda x: jnp.sin(x) * jnp.sin(x),
    "scan": scanned(0.5),
    "scan with another number": scanned(0.25),
    "scan in reverse": scanned(0.5, True),
    "branches": lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "branches swapped": lambda x: jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x),
    "jit": lambda x: jax.jit(lambda v: v + 2.0)(x),
    "custom rule": lambda x: ruled(x),
    "gradient": lambda x: jax.grad(lambda v: (ruled(v) ** 2).sum())(x),
    "both results": lambda x: (x + 1, x + 2),
    "results swapped": lambda x: (lambda a, b: (b, a))(x + 1, x + 2),
    "key": lambda x: x + jax.random.normal(jax.random.key(0), (1, 3)),
    "another key": lambda x: x + jax.random.normal(jax.random.key(1), (1, 3)),
}


def test_the_same_program_traced_again_is_the_same_and_no_other_is():
    found = {name: identified(program) for name, program in PROGRAMS.items()}
    for name, program in PROGRAMS.items():
        assert identified(lambda x, program=program: program(x)) == found[name], name
        assert [other for other, one in found.items() if one == found[name]] == [name]


def test_other_shapes_and_types_are_another_program():
    of = [identity(jax.make_jaxpr(jnp.sin)(x)) for x in (X, X[:1], X.astype("float32"), X[0])]
    assert len(set(of)) == 4


def test_an_object_that_cannot_be_compared_is_equal_to_itself_alone():
    key = jax.random.key(0)
    ours, theirs = (lambda x, key=key: x + jax.random.normal(key, (1, 3)) for key in (key, jax.random.key(0)))
    assert identified(ours) == identified(ours)
    assert identified(ours) != identified(theirs)


@pytest.mark.parametrize("options", [None, {"xla_backend_optimization_level": 1}])
def test_every_precision_and_seed_is_measured_by_one_compiled_program(options):
    before = rounding._compiled.cache_info()
    found = [
        rounding.measure(lambda x: jnp.sin(x) * 1.25, X, dtype=dtype, seed=seed, compiler_options=options)
        for dtype, seed in (("float64", 0), ("float32", 0), ("bfloat16", 0), ("float32", 1))
    ]
    after = rounding._compiled.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 3)
    sizes = [float(measured.tolerance.max()) for measured in found]
    assert sizes[0] < sizes[1] < sizes[2] and sizes[3] != sizes[1]
