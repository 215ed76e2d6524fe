"""The language models that `manual-backprop check` proves, on a text that ships with Python.

Each choice has two values, and each precision one network. A network and its opposite in every choice meet, over the
four precisions, every pair of values: a run proves the first four, and one with an odd seed the opposite four. Those in
float64 are of the kinds of Llama and GPT-2.
"""

from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

import manual_backprop as mb
from reference.catalogue import data
from reference.catalogue.networks import DTYPES, Case, draw_params

EXAMPLES, LENGTH, VOCAB = 4, 5, 20
D, HEADS, HIDDEN = 12, 2, 12

CHOICES: tuple[dict[str, dict[str, Any]], ...] = (
    {"rms norm": {"norm": "rms"}, "layer norm": {"norm": "layer"}},
    {"1 block": {"layers": 1}, "2 blocks in segments": {"layers": 2, "segments": 2}},
    {"rope and grouped queries": {"rope": 100.0, "kv_heads": 1}, "learned positions": {"rope": None}},
    {"swiglu": {}, "gelu with bias": {"gated": False, "activation": "gelu_tanh", "bias": True}},
    {"own readout": {"tied": False}, "tied readout": {"tied": True}},
    {"lam none": {"lam": None}, "lam 0.01, nothing recomputed": {"lam": 0.01, "recompute": False}},
    {
        "attention in blocks, ignored labels in chunks": {"block": 3, "ignored": data.OTHERS, "chunk": 9},
        "smoothed labels": {"label_smoothing": 0.1, "z_loss": 0.05},
    },
)
"""The two values of each choice by name: arguments of `gpt` and of the loss, and lambda."""
OF_LOSS = {field.name for field in fields(mb.SoftmaxCrossEntropy)}


@dataclass(frozen=True)
class Plan:
    """One language model that is yet to be built.

    Attributes:
        chosen: the name of a value of every choice, in their order.
        dtype: the precision to prove it in.
        seed: draws parameters and passages.
    """

    chosen: tuple[str, ...]
    dtype: str
    seed: int

    @property
    def name(self) -> str:
        """The name for --only and in reports."""
        return ", ".join(("gpt", *self.chosen, self.dtype))

    def drawn(self, seed: int) -> Case:
        """The network with the parameters and passages of a seed, its own or another."""
        given = {k: v for values, name in zip(CHOICES, self.chosen, strict=True) for k, v in values[name].items()}
        loss = mb.SoftmaxCrossEntropy(**{k: given.pop(k) for k in OF_LOSS & given.keys()})
        lam = given.pop("lam")
        net = mb.gpt(VOCAB, D, HEADS, length=LENGTH + 1, hidden=HIDDEN, **given)  # a position that no passage has
        rng = np.random.default_rng(seed)
        with jax.enable_x64(True):
            params = draw_params(net, 1.0, rng)
        x, y = passages(rng)
        regularizer = None if lam is None else mb.Frobenius(lam)
        return Case(mb.Objective(net, loss, regularizer), params, x, y, None, self.dtype, data.TEXT)


def plans(seed: int, each_once: bool) -> list[Plan]:
    """A network for each precision, or with `each_once` the first alone."""
    every = [Plan(chosen, dtype, seed + i) for i, (chosen, dtype) in enumerate(settings(seed))]
    return every[:1] if each_once else every


def settings(seed: int) -> list[tuple[tuple[str, ...], str]]:
    """(the name of a value of every choice, precision) of each network.

    Choice c, from 1, takes its second value in precision p, from 0, if bit p of 2 c is 1; for odd seeds if it is 0.
    """
    return [
        (tuple(list(values)[(2 * c >> p ^ seed) & 1] for c, values in enumerate(CHOICES, 1)), dtype)
        for p, dtype in enumerate(DTYPES)
    ]


def passages(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The ids of some passages of the text, and at every position the id that follows."""
    ids = data.ids(VOCAB)
    first = rng.integers(0, len(ids) - LENGTH, EXAMPLES)
    both = ids[first[:, None] + np.arange(LENGTH + 1)]
    return both[:, :-1], both[:, 1:]
