"""Forward propagation of derivatives: equal to jax.jvp, and, a parameter at a time, to the backward sweep."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import NETWORKS, assert_close, batch, generic, problem, sizes

import manual_backprop as mb
from manual_backprop.textbook import forward_mode
from reference import model

# Chains of every width, every composite, a single layer, and a scan that keeps its values.
NAMES = ["per layer", "width 1", "nested", "leaf", "kept"]
SMALL = {
    "chain": mb.mlp((3, 2, 2), "tanh"),
    "composites": mb.Serial(
        (
            mb.Repeat(mb.Residual(mb.Dense(3, 3, "gelu")), 2),
            mb.Tied(mb.Dense(3, 3, "tanh"), 2),
            mb.Dense(3, 2),
        )
    ),
}


@cache
def swept(name: str) -> dict[str, Any]:
    """Tangents by hand and by jax.jvp, and what the backward sweep pairs with them, from one program."""
    net = NETWORKS[name]
    d_in, d_out = sizes(net)

    @jax.jit
    def run(params: Any, x: Any, dparams: Any, dx: Any, cotangent: Any) -> dict[str, Any]:
        def output(params: Any, x: Any) -> Any:
            return model.outputs(net, params, x)

        trace = mb.forward(net, params, x)[1]
        d_x, deltas = mb.backward(net, params, trace, cotangent)
        pulled = mb.gradients(net, trace, deltas, weights=jnp.ones(len(x)))
        ours = mb.pushforward(net, params, x, dparams, dx)
        return {
            "ours": ours,
            "theirs": jax.jvp(output, (params, x), (dparams, dx)),
            "before": jnp.vdot(cotangent, ours[1]),
            "after": sum(jax.tree.leaves(jax.tree.map(jnp.vdot, (pulled, d_x), (dparams, dx)))),
        }

    return run(generic(net), batch(d_in), generic(net, seed=7), batch(d_in, seed=8), batch(d_out, seed=9))


@pytest.mark.parametrize("name", NAMES)
def test_pushforward_equals_jax_jvp_of_the_reference(name):
    """The differential of (F1) and (F2), through every composite."""
    found = swept(name)
    assert_close(found["ours"], found["theirs"], 1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_pushforward_and_backward_are_transposes(name):
    """<pushforward v, d> = <v, (backward d)>: no autodiff on either side."""
    found = swept(name)
    assert_close(found["before"], found["after"], 1e-13)


@pytest.mark.parametrize(("name", "lams"), [("chain", (None, 0.1)), ("composites", (0.1,))], ids=SMALL)
def test_the_whole_gradient_by_forward_propagation_equals_the_sweep(name, lams):
    net = SMALL[name]
    penalties = [None if lam is None else mb.Frobenius(lam) for lam in lams]
    objectives = [mb.Objective(net, mb.squared_error, penalty) for penalty in penalties]

    @jax.jit
    def run(*given: Any) -> Any:
        by_forward = [forward_mode.gradient_by_forward_propagation(objective, *given) for objective in objectives]
        return by_forward, [mb.value_and_grad(objective)(*given)[1] for objective in objectives]

    assert_close(*run(generic(net), batch(3), batch(2, seed=2)))


def test_a_directional_derivative_costs_one_pass_and_equals_jvp():
    objective, params, x, y = problem("nested")

    @jax.jit
    def run(p: Any, v: Any) -> tuple[Any, Any]:
        _, along = jax.jvp(lambda p: model.value(objective, p, x, y), (p,), (v,))
        return forward_mode.directional_derivative(objective, p, x, y, v), along

    assert_close(*run(params, generic(objective.net, seed=11)), 1e-12)


def test_tangents_of_another_structure_or_shape_are_refused(without_hook):
    net = NETWORKS["mlp"]
    params, x = generic(net), batch(6)
    with pytest.raises(ValueError, match="dparams has structure"):
        mb.pushforward(net, params, x, params[:2], x)
    with pytest.raises(ValueError, match=r"dx is \[3, 6\], expected \[7, 6\] as in x"):
        mb.pushforward(net, params, x, params, x[:3])
    with pytest.raises(TypeError, match=r"dparams\[0\].W is float32, expected float64"):
        mb.pushforward(net, params, x, generic(net, dtype="float32"), x)
