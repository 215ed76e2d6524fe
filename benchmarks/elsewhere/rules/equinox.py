"""Equinox: layers, loops and filtered rules."""

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case, drawn, formula, itself

KEY = jax.random.key(0)


def _layer(layer: object, *given: object, call: object = None, **fields: object) -> Case:
    """By the parameters of a layer and its input."""
    held, rest = eqx.partition(layer, eqx.is_inexact_array)
    run = call or (lambda layer, *x: layer(*x))
    return itself(lambda held, *x: run(eqx.combine(held, rest), *x), held, *given, **fields)


def _loop(kind: str) -> object:
    """Six turns."""

    def function(x: jax.Array) -> jax.Array:
        turn = lambda carry: (carry[0] + 1, jnp.sin(carry[1]) + 0.3 * carry[1])  # noqa: E731
        options = {"kind": kind, "max_steps": 10}
        return eqxi.while_loop(lambda carry: carry[0] < 6, turn, (0, x), **options)[1]

    return function


def _six_turns(x: jax.Array) -> jax.Array:
    for _ in range(6):
        x = jnp.sin(x) + 0.3 * x
    return x


@eqx.filter_custom_vjp
def _ruled(x, factor):
    return factor * jnp.sin(x) if isinstance(factor, float) else jnp.sin(x)


@_ruled.def_fwd
def _forward(perturbed, x, factor):
    return _ruled(x, factor), x


@_ruled.def_bwd
def _backward(x, g, perturbed, _, factor):
    return factor * g * jnp.cos(x)


CASES: dict[str, Case] = {
    "equinox.filter_custom_vjp": formula(lambda x: _ruled(x, 2.0), lambda x: 2.0 * jnp.sin(x), drawn(6)),
    "equinox.internal.while_loop, checkpointed": formula(_loop("checkpointed"), _six_turns, drawn(6)),
    "equinox.internal.while_loop, bounded": formula(_loop("bounded"), _six_turns, drawn(6)),
    "equinox.internal.scan, checkpointed": formula(
        lambda x: eqxi.scan(lambda c, _: (jnp.sin(c) + 0.3 * c, None), x, None, length=6, kind="checkpointed")[0],
        _six_turns,
        drawn(6),
    ),
    "equinox.filter_checkpoint": formula(eqx.filter_checkpoint(_six_turns), _six_turns, drawn(6)),
    "equinox.nn.Linear": _layer(eqx.nn.Linear(4, 3, key=KEY), drawn(4)),
    "equinox.nn.MLP": _layer(eqx.nn.MLP(4, 3, 5, 2, activation=jax.nn.silu, key=KEY), drawn(4)),
    "equinox.nn.Conv2d": _layer(eqx.nn.Conv2d(2, 3, 3, key=KEY), drawn(2, 5, 5)),
    "equinox.nn.ConvTranspose2d": _layer(eqx.nn.ConvTranspose2d(2, 3, 3, stride=2, key=KEY), drawn(2, 3, 3)),
    "equinox.nn.GRUCell": _layer(eqx.nn.GRUCell(4, 3, key=KEY), drawn(4), drawn(3)),
    "equinox.nn.LSTMCell": _layer(
        eqx.nn.LSTMCell(4, 3, key=KEY), drawn(4), drawn(3), drawn(3), call=lambda cell, x, h, c: cell(x, (h, c))
    ),
    "equinox.nn.LayerNorm": _layer(eqx.nn.LayerNorm(5), drawn(5)),
    "equinox.nn.RMSNorm": _layer(eqx.nn.RMSNorm(5), drawn(5)),
    "equinox.nn.GroupNorm": _layer(eqx.nn.GroupNorm(2, 4), drawn(4, 3)),
    "equinox.nn.MultiheadAttention": _layer(eqx.nn.MultiheadAttention(2, 4, key=KEY), *[drawn(3, 4)] * 3),
    "equinox.nn.RotaryPositionalEmbedding": _layer(eqx.nn.RotaryPositionalEmbedding(4), drawn(3, 4)),
    "equinox.nn.WeightNorm": _layer(eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY)), drawn(4)),
    "equinox.nn.PReLU": _layer(eqx.nn.PReLU(), drawn(9)),
    "equinox.nn.AvgPool2d": _layer(eqx.nn.AvgPool2d(2, 2), drawn(2, 4, 4)),
    "equinox.nn.MaxPool2d": _layer(eqx.nn.MaxPool2d(2, 2), drawn(2, 4, 4)),
    "equinox.nn.AdaptiveAvgPool1d": _layer(eqx.nn.AdaptiveAvgPool1d(3), drawn(2, 7)),
}
