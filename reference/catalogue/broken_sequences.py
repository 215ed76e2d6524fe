"""Small objectives on sequences for mutation testing, one for each part of a language model.

A whole one would take minutes and break the same formulas. Each part is met where its faults can show: a key that is
not there, a query that sees none, several spans of rows, ids drawn twice, labels that are ignored, a last chunk that is
not full.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import manual_backprop as mb

SMALL = mb.Frobenius(0.1)
VOCAB, D, LENGTH = 5, 3, 3
IGNORED = 4
SPANS = 64  # positions, the fewest that attention takes in two spans

Made = tuple[str, mb.Objective, Any, np.ndarray, bool]
Row = Callable[[str], mb.Activation]

_SHIFT = "the same number taken from all scores of a row changes none of its weights"
_SCALE = "weights are quotients: the same factor in every exponential of a row cancels"
_LARGEST, _TAKEN = "jnp.max(s", "largest == -jnp.inf"
_OF_BLOCKS: dict[tuple[str, ...], str] = {(_LARGEST, "reduce_max: "): _SHIFT, (_LARGEST, "broadcast_in_dim: "): _SHIFT}
EQUIVALENT: dict[str, dict[tuple[str, ...], str]] = {
    "attention": {
        **_OF_BLOCKS,
        **{(_TAKEN, f"select_n: {what}"): _SHIFT for what in ("sign", "times", "largest", "element", "case 1")},
        (_TAKEN, "subtrahend dropped"): _SHIFT,
        (_TAKEN, "exp: times"): _SCALE,
    },
    "attention in blocks": _OF_BLOCKS,
}
"""More equivalent mutants of some objectives. In blocks the log of a row's sum is kept, and must fit what was taken."""


def objectives(row: Row, rng: np.random.Generator) -> Iterator[Made]:
    """(name, objective, x, y, whether the lean sweep is broken) of each; `row` is that of `mutating`."""
    yield from _attention(rng)
    for name, norm in (("rms norm", mb.RMSNorm), ("layer norm", mb.LayerNorm)):
        net = mb.Serial((norm(4, activation=row("tanh")), mb.Dense(4, 3, row("identity"))))
        yield name, mb.Objective(net, mb.squared_error, SMALL), rng.normal(size=(5, 4)), rng.normal(size=(5, 3)), False
    yield from _readouts(row, rng)


def _attention(rng: np.random.Generator) -> Iterator[Made]:
    """Stored and in spans, causal, with grouped queries; and in blocks, where all see the same keys.

    In blocks a row that sees one key would hide faults of its query: its weight is 1 whatever they are, to rounding.
    """
    present = np.arange(SPANS)[None] > np.asarray([[0], [-1]])
    yield "attention", *_of_attention(mb.Attention(2, 1, rope=10.0), present, rng)
    present = np.asarray([[True, True, False], [True, True, True], [False, False, False]])
    yield "attention in blocks", *_of_attention(mb.Attention(2, 1, causal=False, block=2), present, rng)


def _of_attention(layer: mb.Attention, present: np.ndarray, rng: np.random.Generator) -> Any:
    q, k, v, y = (rng.normal(size=(*present.shape, 2 * heads)) for heads in (2, 1, 1, 2))
    return mb.Objective(layer, mb.squared_error), (q, k, v, present), y, False


def _readouts(row: Row, rng: np.random.Generator) -> Iterator[Made]:
    """The loss's options, and the readouts that make the logits at once and in chunks."""
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.05}
    ids, labels = np.asarray([[0, 1, 1], [3, 1, 2]]), np.asarray([[1, IGNORED, 2], [1, 0, 3]])
    tied = mb.TiedReadout(mb.Embedding(VOCAB, D, row("tanh")), mb.PositionalEmbedding(LENGTH + 1, D))
    every = mb.SoftmaxCrossEntropy(ignored=IGNORED, **options)
    yield "tied readout", mb.Objective(tied, every, SMALL), ids, labels, False
    chunked = mb.SoftmaxCrossEntropy(ignored=IGNORED, chunk=4)
    tied = mb.TiedReadout(mb.Embedding(VOCAB, D), mb.PositionalEmbedding(LENGTH, D))
    yield "tied readout in chunks", mb.Objective(tied, chunked, SMALL), ids, labels, True
    entering, targets = rng.normal(size=(2, LENGTH, D)), rng.uniform(size=(3, 3))
    yield "readout in chunks", mb.Objective(mb.Dense(D, VOCAB), chunked, SMALL), entering, labels, True
    smoothed = mb.Objective(mb.Dense(4, 3, row("identity")), mb.SoftmaxCrossEntropy(**options))
    yield "smoothed distributions", smoothed, rng.normal(size=(3, 4)), targets, False
