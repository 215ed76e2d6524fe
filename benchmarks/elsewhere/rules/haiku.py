"""Haiku: layers, by their parameters and their input."""

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case, Draw, drawn, itself

KEY = jax.random.key(0)


def _layer(make: object, *given: Draw) -> Case:
    model = hk.without_apply_rng(hk.transform(lambda *x: make()(*x)))
    return itself(model.apply, model.init(KEY, *[jnp.ones(x.shape) for x in given]), *given)


def _core(make: object, *carried: Draw) -> Case:
    """A cell of a recurrent network."""

    def step(x: jax.Array, *state: jax.Array) -> object:
        held = hk.LSTMState(*state) if len(state) > 1 else state[0]
        return make()(x, held)

    model = hk.without_apply_rng(hk.transform(step))
    given = (drawn(4), *carried)
    return itself(model.apply, model.init(KEY, *[jnp.ones(x.shape) for x in given]), *given)


CASES: dict[str, Case] = {
    "haiku.Linear": _layer(lambda: hk.Linear(3), drawn(2, 4)),
    "haiku.Conv2D": _layer(lambda: hk.Conv2D(3, 3), drawn(1, 5, 5, 2)),
    "haiku.Conv2DTranspose": _layer(lambda: hk.Conv2DTranspose(3, 3, 2), drawn(1, 3, 3, 2)),
    "haiku.DepthwiseConv2D": _layer(lambda: hk.DepthwiseConv2D(2, 3), drawn(1, 5, 5, 2)),
    "haiku.LayerNorm": _layer(lambda: hk.LayerNorm(-1, True, True), drawn(2, 5)),
    "haiku.RMSNorm": _layer(lambda: hk.RMSNorm(-1), drawn(2, 5)),
    "haiku.GroupNorm": _layer(lambda: hk.GroupNorm(2), drawn(2, 3, 4)),
    "haiku.MultiHeadAttention": _layer(
        lambda: hk.MultiHeadAttention(2, 3, w_init=hk.initializers.VarianceScaling(), with_bias=False),
        *[drawn(3, 4)] * 3,
    ),
    "haiku.GRU": _core(lambda: hk.GRU(3), drawn(3)),
    "haiku.LSTM": _core(lambda: hk.LSTM(3), drawn(3), drawn(3)),
    "haiku.VanillaRNN": _core(lambda: hk.VanillaRNN(3), drawn(3)),
    "haiku.avg_pool": itself(lambda x: hk.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"), drawn(1, 4, 4, 2)),
}
