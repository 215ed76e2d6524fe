"""A program of several devices, read as one of a single device. A mesh without devices is enough to trace it."""

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import in_its_own_process
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from reference import jaxprs

MESH = AbstractMesh((2, 3), ("a", "b"), (AxisType.Auto, AxisType.Auto))  # the default has become Explicit
X = np.arange(48.0).reshape(4, 12) % 7 - 3
"""Rows and columns that divide by 2, 3 and 6."""


def computed(body: Callable[..., Any], takes: Any, gives: Any, *inputs: Any, checked: bool = True) -> list[np.ndarray]:
    mapped = jax.shard_map(body, mesh=MESH, in_specs=takes, out_specs=gives, check_vma=checked)
    (equation,) = jax.make_jaxpr(mapped)(*inputs).eqns
    assert equation.primitive.name == "shard_map"
    (program,) = jaxprs.inside(equation)
    assert "psum" not in str(program) and "pvary" not in str(program)
    return jax.device_get(jax.jit(jaxpr_as_fun(program))(*inputs))


SUMS: dict[str, tuple[Any, Any, Any, Callable[[np.ndarray], np.ndarray]]] = {
    "rows along a": (lambda x: jax.lax.psum(x, "a"), P("a"), P(), lambda x: x[:2] + x[2:]),
    "both axes": (lambda x: jax.lax.psum(x.sum(), ("a", "b")), P("a", "b"), P(), lambda x: x.sum()),
    "one dimension along both": (lambda x: x * 2, P(None, ("a", "b")), P(None, ("a", "b")), lambda x: 2 * x),
    "along both, the other way round": (lambda x: x * 2, P(None, ("b", "a")), P(None, ("b", "a")), lambda x: 2 * x),
    "one stays": (
        lambda x: jax.lax.psum(x, "b"),
        P("a", "b"),
        P("a"),
        lambda x: x.reshape(4, 3, 4).sum(1),
    ),
    "largest": (lambda x: jax.lax.pmax(x, "b"), P(None, "b"), P(), lambda x: x.reshape(4, 3, 4).max(1)),
    "mean": (lambda x: jax.lax.pmean(x, "a"), P("a"), P(), lambda x: (x[:2] + x[2:]) / 2),
    "number of a shard": (
        lambda x: x * jax.lax.axis_index("b").astype(x.dtype),
        P(None, "b"),
        P(None, "b"),
        lambda x: x * np.repeat(np.arange(3), 4),
    ),
    "on to the next": (
        lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 0)]),
        P(None, "b"),
        P(None, "b"),
        lambda x: np.roll(x, 4, axis=1),
    ),
    "in a loop": (
        lambda x: jax.lax.fori_loop(0, 2, lambda _, s: s + jax.lax.pmean(x, "a").sum(), jnp.zeros(())),
        P("a"),
        P(),
        lambda x: np.float64(x.sum()),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_it_computes_what_the_shards_do_together(name: str) -> None:
    body, takes, gives, expected = SUMS[name]
    (found,) = computed(body, (takes,), gives, X)
    np.testing.assert_array_equal(found, expected(X))


def test_gathered_scattered_and_exchanged() -> None:
    (gathered,) = computed(lambda x: jax.lax.all_gather(x, "a", tiled=True), (P("a"),), P(), X, checked=False)
    np.testing.assert_array_equal(gathered, X)
    (scattered,) = computed(lambda x: jax.lax.psum_scatter(x, "a", tiled=True), (P(None),), P("a"), X)
    np.testing.assert_array_equal(scattered, 2 * X)
    (exchanged,) = computed(lambda x: jax.lax.all_to_all(x, "a", 1, 0, tiled=True), (P("a"),), P(None, "a"), X)
    np.testing.assert_array_equal(exchanged, X)


def test_of_unequal_shards_said_to_be_equal_the_first_is_taken() -> None:
    (found,) = computed(lambda x: x, (P("a"),), P(), X, checked=False)
    np.testing.assert_array_equal(found, X[:2])


def test_a_derivative_is_that_of_the_whole() -> None:
    def on_a_shard(w: Any, x: Any) -> Any:
        return jax.lax.psum(jnp.sum(jnp.tanh(x @ w)), "a")

    mapped = jax.shard_map(on_a_shard, mesh=MESH, in_specs=(P(), P("a")), out_specs=P())
    w = np.linspace(-1, 1, 24).reshape(12, 2)
    closed = jax.make_jaxpr(jax.grad(mapped))(w, X)
    (found,) = jax.jit(lambda *inputs: jaxprs.evaluate_with(closed, [*inputs], {}))(w, X)
    np.testing.assert_allclose(found, X.T @ (1 - np.tanh(X @ w) ** 2), rtol=1e-13, atol=1e-13)


@pytest.mark.evidence
def test_a_rule_on_two_devices_is_proven_and_a_forgotten_sum_is_found() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from reference import check_vjp

mesh = Mesh(np.array(jax.devices()), ("data",))
on_shards = lambda body, takes, gives: jax.shard_map(body, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)

def loss(w, x):
    return on_shards(lambda w, x: jax.lax.psum(jnp.sum(jnp.tanh(x @ w)), "data"), (P(), P("data")), P())(w, x)

def rule(meets):
    def backward(kept, g):
        def on_a_shard(w, x, g):
            delta = g * (1 - jnp.tanh(x @ w) ** 2)
            return meets(x.T @ delta), delta @ w.T
        return on_shards(on_a_shard, (P(), P("data"), P()), (P(), P("data")))(*kept, g)
    by_hand = jax.custom_vjp(loss)
    by_hand.defvjp(lambda w, x: (loss(w, x), (w, x)), backward)
    return by_hand

w, x = jnp.linspace(-1, 1, 6).reshape(3, 2), jnp.sin(jnp.arange(12.0)).reshape(4, 3)
print([check_vjp(rule(meets), w, x).verdict for meets in (lambda dW: jax.lax.psum(dW, "data"), lambda dW: dW)])
"""
    two = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    with mock.patch.dict(os.environ, XLA_FLAGS=two, JAX_PLATFORMS="cpu"):
        done = in_its_own_process(code)
    assert done.stdout == "['pass', 'fail']\n", done.stderr
