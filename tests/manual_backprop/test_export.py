"""Our backward as a custom_vjp: every cotangent, under JAX's transformations, and held to the contract of rules."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, generic, problem

import manual_backprop as mb
import reference
from manual_backprop.losses import TABLE as LOSSES
from reference import autodiff, model


def by_grad(objective: Any) -> Any:
    """J of the reference, for jax.grad."""

    def J(params: Any, x: Any, y: Any, lam: Any = None, weights: Any = None) -> Any:
        return model.value(objective, params, x, y, lam=lam, weights=weights)

    return J


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_float_gets_its_cotangent(loss):
    """params, x, y where it is a float, lam and weights: none is None, none is zero by neglect."""
    objective, params, x, y = problem("one layer" if loss is not mb.binary_cross_entropy else "width 1", loss)
    lam, weights = jnp.asarray(0.3), jnp.linspace(0.1, 0.7, x.shape[0])
    if loss is mb.softmax_cross_entropy:
        y = np.exp(np.sin(np.arange(4.0 * len(y)).reshape(len(y), 4)))
        y /= y.sum(axis=1, keepdims=True)
    args = (params, x, y, lam, weights)
    ways = mb.as_custom_vjp(objective), by_grad(objective)
    assert_close(*jax.jit(lambda *args: [jax.grad(J, argnums=(0, 1, 2, 3, 4))(*args) for J in ways])(*args))


@pytest.mark.parametrize("name", ["kept", "leaf"])
def test_jit_of_grad_and_the_gradient_by_hand(name):
    objective, params, x, y = problem(name)
    J = mb.as_custom_vjp(objective)

    @jax.jit
    def everything(*args: Any) -> Any:
        scaled = jax.grad(lambda p: jnp.sin(3 * J(p, *args[1:])))(args[0])
        by_hand = mb.value_and_grad(objective)(*args)
        return jax.value_and_grad(J)(*args), by_hand, scaled, (J(*args), objective(*args))

    (value, gradient), by_hand, scaled, values = everything(params, x, y)
    assert_close((value, gradient), by_hand, 1e-14)
    assert_close(scaled, jax.tree.map(lambda g: 3 * np.cos(3 * value) * g, gradient))
    assert_close(*values, 1e-15)


def test_vmap_of_grad_gives_every_example():
    objective, params, x, y = problem("mlp", lam=None)
    J = mb.as_custom_vjp(objective)

    def both(*args: Any) -> Any:
        each = jax.vmap(jax.grad(lambda p, x, y: J(p, x[None], y[None])), (None, 0, 0))(*args)
        return each, autodiff.per_example_gradients(objective, *args)

    assert_close(*jax.jit(both)(params, x, y))


def test_hessian_is_forward_over_our_backward():
    objective, params, x, y = problem("mlp", mb.softmax_cross_entropy)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    J = mb.as_custom_vjp(objective)
    ways = J, by_grad(objective)
    assert_close(*jax.jit(lambda p: [jax.hessian(lambda p, f=f: f(unravel(p), x, y))(p) for f in ways])(flat))


def test_plain_forward_mode_is_refused_by_jax():
    objective, params, x, y = problem("leaf")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: mb.as_custom_vjp(objective)(p, x, y), (params,), (params,))


@pytest.mark.parametrize("name", ["nested", "mlp"])
def test_a_network_by_itself(name):
    """Its cotangents are those of jax.vjp, whatever cotangent comes in."""
    objective, params, x, _ = problem(name)
    net = mb.as_custom_vjp(objective.net)
    cotangent = np.cos(np.arange(28.0).reshape(7, 4))

    def outputs(params: Any, x: Any) -> Any:
        return model.outputs(objective.net, params, x)

    def both(params: Any, x: Any, cotangent: Any) -> Any:
        return [jax.vjp(f, params, x)[1](cotangent) for f in (net, outputs)]

    assert_close(*jax.jit(both)(params, x, cotangent))


def test_it_passes_our_own_check_of_rules():
    objective, params, x, y = problem("leaf")
    J = mb.as_custom_vjp(objective)
    reference.check_vjp(J, params, x, y, raw=objective).raise_if_failed()  # as the README has it


def test_the_check_of_rules_sees_a_broken_export(monkeypatch):
    objective, params, x, y = problem("leaf")
    monkeypatch.setattr(type(objective.loss), "target_derivative", lambda self, o, y: o - y)  # the sign
    report = reference.check_vjp(mb.as_custom_vjp(objective), params, x, y, raw=by_grad(objective))
    with pytest.raises(reference.GradientMismatch):
        report.raise_if_failed()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cotangents_keep_the_dtype(dtype):
    objective, params, x, y = problem("mlp")
    params, x, y = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), (params, x, y))
    J = mb.as_custom_vjp(objective)

    @jax.jit
    def both(lam: Any, *args: Any) -> Any:
        return jax.grad(J, argnums=(0, 1, 2, 3))(*args, lam), mb.value_and_grad(objective)(*args)[1]

    gradient, expected = both(np.float32(0.1), params, x, y)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient[:3])} == {jnp.dtype(dtype)}
    assert_close(gradient[0], expected, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", ["one layer", "nested"])
def test_under_another_rule_the_cotangents_are_the_rules(name):
    objective, params, x, y = problem(name)
    rule = mb.rules.FeedbackAlignment(generic(objective.net, seed=5))

    @jax.jit
    def everything(p: Any, r: Any) -> Any:
        by_hand = mb.value_and_grad(objective)(p, x, y, rule=r)[1]
        outside = jax.grad(lambda p: mb.as_custom_vjp(objective, r)(p, x, y))(p)  # r is traced outside of it
        return jax.grad(mb.as_custom_vjp(objective, rule))(p, x, y), by_hand, outside

    ours, by_hand, outside = everything(params, rule)
    assert_close(ours, by_hand)
    assert_close(outside, ours)


def test_a_loss_without_target_derivative_says_so():
    class Cubic(mb.Loss):
        def value(self, o: Any, y: Any) -> Any:
            return jnp.sum(jnp.abs(o - y) ** 3, axis=1)

        def derivative(self, o: Any, y: Any) -> Any:
            return 3 * jnp.abs(o - y) * (o - y)

    objective, params, x, y = problem("mlp", Cubic())
    with pytest.raises(NotImplementedError, match="target_derivative"):
        jax.eval_shape(jax.grad(mb.as_custom_vjp(objective)), params, x, y)


def test_bad_input_is_refused_at_the_call(without_hook):
    objective, params, x, y = problem("mlp")
    with pytest.raises(TypeError, match="takes an Objective or a network, got str"):
        mb.as_custom_vjp("net")
    with pytest.raises(ValueError, match="y is"):
        mb.as_custom_vjp(objective)(params, x, y[:3])
    with pytest.raises(ValueError, match="params has structure"):
        mb.as_custom_vjp(objective.net)(params[:2], x)


@pytest.mark.evidence
def test_shard_map_on_two_devices():
    """Replicated parameters: their cotangent is summed over the shards, as jax.grad's is."""
    code = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, PartitionSpec as P
import manual_backprop as mb
assert jax.device_count() == 2
chains = mb.Repeat(mb.Dense(4, 4, "tanh"), 2), mb.Repeat(mb.Dense(4, 4, "tanh"), 5, segments=3)
net = mb.Serial((mb.Dense(3, 4, "tanh"), *chains, mb.Dense(4, 2)))
objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
x, y = jnp.sin(jnp.arange(24.0)).reshape(8, 3), jnp.cos(jnp.arange(16.0)).reshape(8, 2)
params = net.init(jax.random.key(0))
J, mesh = mb.as_custom_vjp(objective), Mesh(np.array(jax.devices()), ("data",))
def gradient(params, x, y, lam):
    return jax.grad(lambda *a: jax.lax.pmean(J(*a), "data"), argnums=(0, 1, 3))(params, x, y, lam)
where = {"in_specs": (P(), P("data"), P("data"), P()), "out_specs": (P(), P("data"), P())}
sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, **where))
ours, alone = (f(params, x, y, jnp.asarray(0.2)) for f in (sharded, jax.jit(jax.grad(J, argnums=(0, 1, 3)))))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), ours, alone)
"""
    two = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    flags = {**os.environ, "XLA_FLAGS": two, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=flags)
    assert done.returncode == 0, done.stderr
