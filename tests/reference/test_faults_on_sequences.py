"""A fault in a part of a language model is named by its equation and its layer, or by the gradient that it spoils."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import generic

import manual_backprop as mb
import reference
from manual_backprop import readout
from manual_backprop.layers import Positions, attention, embedding, layer_norm, normalization, rms_norm
from manual_backprop.layers import scaled_dot_product as sdp
from manual_backprop.layers.positional_embedding import Shifts
from manual_backprop.losses import softmax
from manual_backprop.network.tied_readout import OfBoth, Readout
from reference.checks.step import Judge, prepare
from reference.report import Report

VOCAB, D, LENGTH = 6, 4, 5
IDS = np.asarray([[0, 1, 1, 3, 2], [4, 2, 0, 4, 4]])
LABELS = np.asarray([[1, 1, 3, 5, 0], [2, 0, 5, 4, 1]])  # a 5 counts nothing
ATTENTION = mb.Attention(4, 2, rope=10.0)
Q_K_V = mb.Parallel((mb.Dense(D, 8), mb.Dense(D, 4, bias=False), mb.Dense(D, 4)))
BRANCH = mb.Serial((mb.RMSNorm(D), Q_K_V, ATTENTION, mb.Dense(8, D)))
BODY = mb.Serial((mb.PositionalEmbedding(LENGTH + 1, D), mb.Residual(BRANCH), mb.LayerNorm(D)))
NET = mb.TiedReadout(mb.Embedding(VOCAB, D), BODY)
EMBEDDING, POSITIONS, RMS_NORM, Q, K, V, ATTENDING, _, LAYER_NORM, READOUT = range(1, 11)  # the layers' numbers
BELOW_LAYER_NORM = LAYER_NORM - 1
LOSS = mb.SoftmaxCrossEntropy(ignored=5, label_smoothing=0.1, z_loss=0.05, chunk=4)
OBJECTIVE = mb.Objective(NET, LOSS, mb.Frobenius(0.1))


@cache
def judge() -> Judge:
    """The reference's side, once for all faults."""
    return prepare(OBJECTIVE, generic(NET), IDS, LABELS)


def report(lean: bool) -> Report:
    """By hand, operation by operation: each is compiled once for all faults, and none of these is kept in a program."""
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, judge().inputs)
        step = jax.device_get(mb.backprop(OBJECTIVE, *inputs))
        return judge().report(step, jax.device_get(mb.value_and_grad(OBJECTIVE)(*inputs)) if lean else None)


def test_without_a_fault_it_is_proven() -> None:
    report(lean=True).raise_if_failed()


def test_attention_with_a_mask_is_proven() -> None:
    """Booleans enter an equation as they are."""
    rng = np.random.default_rng(0)
    q, k, v, y = (rng.normal(size=(2, 3, width)) for width in (4, 2, 2, 4))
    x = (q, k, v, np.asarray([[False, True, True], [True, False, True]]))
    reference.check(mb.Objective(mb.Attention(2, 1), mb.squared_error), (), x, y).raise_if_failed()


Right = Callable[..., Any]
Wrong = Callable[[Right], Right]


def then(change: Callable[..., Any]) -> Wrong:
    """The right function with its result changed."""
    return lambda right: lambda *given, **named: change(right(*given, **named))


def of_norm(has_mean: bool, wrong: Callable[..., Any]) -> Wrong:
    """A fault in the Jacobian of one norm, which both compute by one function."""

    def chosen(right: Right) -> Right:
        return lambda saved, *given: (wrong if (saved.mean is not None) == has_mean else _as_it_is)(
            right, saved, *given
        )

    return chosen


def _as_it_is(right: Right, *given: Any) -> Any:
    return right(*given)


def eps_outside(right: Right) -> Right:
    return lambda rows, eps: 1 / (jnp.sqrt(jnp.mean(rows**2, axis=-1, keepdims=True)) + eps)


def overwritten(right: Right) -> Right:
    return lambda ids, delta, rows: jnp.zeros((rows, delta.shape[-1])).at[ids].set(delta)


def last_chunk_dropped(right: Right) -> Right:
    def wrong(loss: Any, x: Any, y: Any, *weights: Any) -> Any:
        *chunks, last = right(loss, x, y, *weights)
        return (*chunks, last.at[-1].set(0) if weights else last)

    return wrong


FAULTS: dict[str, tuple[Any, str, Wrong, str, int, tuple[int, ...]]] = {
    "attention: scale missing": (mb.Attention, "_scale", then(jnp.ones_like), "(F1)", ATTENDING, ()),
    "attention: scale missing on the way back": (
        *(mb.Attention, "_left", then(lambda left: (left[0] * 2**0.5, *left[1:]))),
        *("(B2)", Q, (ATTENDING,)),
    ),
    "attention: the next position is seen": (
        *(sdp, "_scores", lambda right: lambda plan, first, *rest: right(plan, first + 1, *rest)),
        *("(F1)", ATTENDING, ()),
    ),
    "attention: the first key is seen by its own query alone": (
        *(sdp, "_scores", then(lambda scores: scores.at[..., 1:, 0].set(-jnp.inf))),
        *("(F1)", ATTENDING, ()),
    ),
    "attention: dS = P * dP": (
        *(attention, "attend_transposed", lambda right: lambda *given: right(*given[:-1], jnp.zeros_like(given[-1]))),
        *("(B2)", K, (ATTENDING,)),
    ),
    "attention: turned on instead of back": (
        *(attention, "rotated", lambda right: lambda heads, base, back=False: right(heads, base)),
        *("(B2)", K, (ATTENDING,)),
    ),
    "attention: one query of each group alone": (
        *(sdp, "_rows_into", lambda right: lambda P, rows: right(P[:, :, :1], rows[:, :, :1])),
        *("(B2)", V, (ATTENDING,)),
    ),
    "attention: dk and dv swapped": (
        *(attention, "attend_transposed", then(lambda d: (d[0], d[2], d[1]))),
        *("(B2)", V, (ATTENDING,)),
    ),
    "RMSNorm: the mean of xhat * v missing": (
        *(normalization, "_through", of_norm(False, lambda right, saved, xhat, v: right(saved, 0 * xhat, v))),
        *("(B2)", POSITIONS, (RMS_NORM, LAYER_NORM)),
    ),
    "RMSNorm: eps outside the root": (rms_norm, "inverse_root", eps_outside, "(F1)", RMS_NORM, ()),
    "RMSNorm: the gain's gradient is delta's": (
        *(mb.RMSNorm, "scaled_factor", lambda right: lambda self, xhat, *rest: right(self, jnp.ones_like(xhat), *rest)),
        *("(B3)", RMS_NORM, ()),
    ),
    "LayerNorm: the mean of v missing": (
        *(
            normalization,
            "_through",
            of_norm(True, lambda right, saved, *given: right(replace(saved, mean=None), *given)),
        ),
        *("(B2)", BELOW_LAYER_NORM, (LAYER_NORM,)),
    ),
    "LayerNorm: eps missing": (
        layer_norm,
        "inverse_root",
        lambda right: lambda rows, eps: right(rows, 0.0),
        "(F1)",
        LAYER_NORM,
        (),
    ),
    "LayerNorm: half the bias's gradient": (
        *(layer_norm.ScaledAndShifted, "weighted_sum", then(lambda g: replace(g, bias=g.bias / 2))),
        *("(B3)", LAYER_NORM, ()),
    ),
    "embedding: a row drawn again is overwritten": (embedding, "_scattered", overwritten, "(B4)", EMBEDDING, ()),
    "positions: one further": (
        mb.PositionalEmbedding,
        "_rows",
        then(lambda rows: jnp.roll(rows, 1, axis=1)),
        "(F1)",
        POSITIONS,
        (),
    ),
    "positions: the gradient one further": (
        *(Shifts, "_positions", then(lambda g: Positions(jnp.roll(g.P, 1, axis=0)))),
        *("(B4)", POSITIONS, ()),
    ),
    "tied readout: the readout's use missing": (
        *(OfBoth, "weighted_sum", lambda right: lambda self, weights=None: self.embedding.weighted_sum(weights)),
        *("(B4)", EMBEDDING, ()),
    ),
    "tied readout: the embedding's use missing": (
        *(OfBoth, "weighted_sum", lambda right: lambda self, weights=None: self.readout.weighted_sum(weights)),
        *("(B4)", EMBEDDING, ()),
    ),
    "tied readout: a factor in W^T delta": (
        Readout,
        "transport",
        then(lambda d: 1.01 * d),
        "(B2)",
        LAYER_NORM,
        (READOUT,),
    ),
    "loss: smoothing missing in the derivative": (
        *(softmax, "_less_at", lambda right: lambda rows, y, amount: right(rows, y, 1.0)),
        *("(B1)", READOUT, ()),
    ),
    "loss: half the derivative of the z-loss": (
        *(type(LOSS), "derivative", lambda right: lambda self, *given: right(replace(self, z_loss=0.025), *given)),
        *("(B1)", READOUT, ()),
    ),
    "loss: what is ignored counts": (type(LOSS), "counted", lambda right: lambda self, terms, y: terms, "(J1)", 0, ()),
}
"""Where it is planted, the function and the fault; and the equation, the layer, and whose transports sent the term."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_equation_and_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, function, wrong, equation, layer, by = FAULTS[name]
    monkeypatch.setattr(owner, function, wrong(getattr(owner, function)))
    found = report(lean=False)
    assert found.verdict == "fail"
    first = found.failures[0]
    assert (first.kind, first.equation, first.layer) == ("equation", equation, layer), found.summary()
    assert first.by == " and ".join(map(str, by)) or not by
    line = found.summary().splitlines()[1]
    assert f"{equation} of layer {layer}" in line if layer else line.strip().startswith(equation)


IN_CHUNKS: dict[str, tuple[Any, str, Wrong, str]] = {
    "the last chunk dropped": (readout, "_chunks", last_chunk_dropped, "gradients[0].W"),
    "1/N twice": (
        *(
            readout,
            "row_gradients",
            lambda right: lambda *given, **how: right(*given[:-1], given[-1] / len(IDS), **how),
        ),
        "gradients[0].W",
    ),
    "a factor in W^T delta": (
        *(readout, "losses_and_gradients", then(lambda every: (every[0], 1.01 * every[1], every[2]))),
        "gradients[0].W",
    ),
    "the last example's loss missing": (
        *(readout, "losses_and_gradients", then(lambda every: (every[0].at[-1].set(0), *every[1:]))),
        "value",
    ),
}


@pytest.mark.parametrize("name", IN_CHUNKS)
def test_a_fault_in_chunks_is_named_by_what_it_spoils(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There no trace is kept, and no equation is seen: the readout's own W, which is tied, or all below it."""
    owner, function, wrong, path = IN_CHUNKS[name]
    monkeypatch.setattr(owner, function, wrong(getattr(owner, function)))
    found = report(lean=True)
    assert found.verdict == "fail"
    assert found.failures[0].path == f"value_and_grad.{path}", found.summary()
