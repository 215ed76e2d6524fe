"""Small objectives on sequences for mutation testing, one for each part of a language model.

A whole one would take minutes and break the same formulas. Each part is met where its faults can show: a key that is
not there, a query that sees none, several spans of rows, ids drawn twice, labels that are ignored, a last chunk that is
not full, blocks that are run forward again and must draw again what they drew.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

import manual_backprop as mb
from manual_backprop.node import Node
from reference.catalogue.subject import Subject, drawn, in_sixteenths

SMALL = mb.Frobenius(0.1)
VOCAB, D, LENGTH = 5, 3, 3
IGNORED = 4
SPANS = 64  # positions, the fewest that attention takes in two spans
LEAN = "value_and_grad"

Named = tuple[str, Subject]
Row = Callable[[str], mb.Activation]

_SHIFT = "the same number taken from all scores of a row changes none of its weights"
_SCALE = "weights are quotients: the same factor in every exponential of a row cancels"
_CONSTANT = "the Hessian of softmax maps a change by the same number in all outputs of a position to 0"
_LARGEST, _TAKEN, _AT_REST = "jnp.max(s", "largest == -jnp.inf", "at_rest = d"
_OF_BLOCKS: dict[tuple[str, ...], str] = {(_LARGEST, "reduce_max: "): _SHIFT, (_LARGEST, "broadcast_in_dim: "): _SHIFT}
_OF_ROWS: dict[tuple[str, ...], str] = {
    **_OF_BLOCKS,
    **{(_TAKEN, f"select_n: {what}"): _SHIFT for what in ("sign", "times", "largest", "element", "case 1")},
    (_TAKEN, "subtrahend dropped"): _SHIFT,
    (_TAKEN, "exp: times"): _SCALE,
}
EQUIVALENT: dict[str, dict[tuple[str, ...], str]] = {
    "attention": _OF_ROWS,
    "attention in blocks": _OF_BLOCKS,
    "causal attention in blocks": _OF_BLOCKS,
    "causal attention in blocks, lean": _OF_BLOCKS,
    "recomputed attention": _OF_ROWS,
    "curvature of attention": _OF_ROWS,
    "curvature of attention in blocks": _OF_BLOCKS,
    "curvature of a tied readout": {
        **{(_AT_REST, f"{of}: "): _CONSTANT for of in ("reduce_max", "broadcast_in_dim", "select_n", "reduce_sum")},
        (_AT_REST, "subtrahend dropped"): _CONSTANT,
    },
}
"""More equivalent mutants of some objectives. In blocks the log of a row's sum is kept, and must fit what was taken."""


def subjects(row: Row, rng: np.random.Generator) -> Iterator[Named]:
    """(name, subject) of each; `row` is that of `mutating`."""
    yield from _attention(rng)
    for name, norm in (("rms norm", mb.RMSNorm), ("layer norm", mb.LayerNorm)):
        net = mb.Serial((norm(4, activation=row("tanh")), mb.Dense(4, 3, row("identity"))))
        x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
        yield name, drawn(mb.Objective(net, mb.squared_error, SMALL), x, y, rng)
    yield from _readouts(row, rng)
    yield from _causal_in_blocks(rng)
    yield from _run_again(rng)


def _attention(rng: np.random.Generator) -> Iterator[Named]:
    """Stored and in spans, causal, with grouped queries; and in blocks, where all see the same keys."""
    present = np.arange(SPANS)[None] > np.asarray([[0], [-1]])
    yield "attention", _of_attention(mb.Attention(2, 1, rope=10.0), present, rng)
    present = np.asarray([[True, True, False], [True, True, True], [False, False, False]])
    yield "attention in blocks", _of_attention(mb.Attention(2, 1, causal=False, block=2), present, rng)


def _of_attention(layer: mb.Attention, present: np.ndarray, rng: np.random.Generator) -> Subject:
    q, k, v, y = (rng.normal(size=(*present.shape, 2 * heads)) for heads in (2, 1, 1, 2))
    return drawn(mb.Objective(layer, mb.squared_error), (q, k, v, present), y, rng)


def _readouts(row: Row, rng: np.random.Generator) -> Iterator[Named]:
    """The loss's options, and the readouts that make the logits at once and in chunks."""
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.05}
    ids, labels = words()
    every = mb.SoftmaxCrossEntropy(ignored=IGNORED, **options)
    yield "tied readout", drawn(mb.Objective(tied_readout(row), every, SMALL), ids, labels, rng)
    chunked = mb.SoftmaxCrossEntropy(ignored=IGNORED, chunk=4)
    tied = mb.TiedReadout(mb.Embedding(VOCAB, D), mb.PositionalEmbedding(LENGTH, D))
    yield "tied readout in chunks", drawn(mb.Objective(tied, chunked, SMALL), ids, labels, rng, function=LEAN)
    entering, targets = rng.normal(size=(2, LENGTH, D)), rng.uniform(size=(3, 3))
    readout = mb.Objective(mb.Dense(D, VOCAB), chunked, SMALL)
    yield "readout in chunks", drawn(readout, entering, labels, rng, function=LEAN)
    smoothed = mb.Objective(mb.Dense(4, 3, row("identity")), mb.SoftmaxCrossEntropy(**options))
    yield "smoothed distributions", drawn(smoothed, rng.normal(size=(3, 4)), targets, rng)


def tied_readout(row: Row) -> mb.TiedReadout:
    """An embedding and positions, more than there are, below the embedding's own table."""
    return mb.TiedReadout(mb.Embedding(VOCAB, D, row("tanh")), mb.PositionalEmbedding(LENGTH + 1, D))


def words() -> tuple[np.ndarray, np.ndarray]:
    """Ids, one of them twice, and labels, one of which is ignored."""
    return np.asarray([[0, 1, 1], [3, 1, 2]]), np.asarray([[1, IGNORED, 2], [1, 0, 3]])


def projected(layer: mb.Attention, *after: Node) -> mb.Serial:
    """Attention of two heads to one of keys, on projections of one signal of 4 features."""
    dense = (mb.Dense(4, 2 * heads, bias=False) for heads in (layer.heads, 1, 1))
    return mb.Serial((mb.Parallel(tuple(dense)), layer, *after))


def _causal_in_blocks(rng: np.random.Generator) -> Iterator[Named]:
    """The first position sees itself alone (`in_sixteenths`), and the last block is not full."""
    layer, present = mb.Attention(2, 1, block=2), np.ones((2, 3), bool)
    yield "causal attention in blocks", in_sixteenths(_of_attention(layer, present, rng))
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    lean = drawn(mb.Objective(projected(layer), mb.squared_error), x, y, rng, function=LEAN)
    yield "causal attention in blocks, lean", in_sixteenths(lean)


def _run_again(rng: np.random.Generator) -> Iterator[Named]:
    """Residual blocks with dropout, as of a transformer, that a lean sweep runs forward again; the second in segments.

    No position sees one key alone, since what comes from a block before is rounded (`in_sixteenths`).
    """
    key = jax.random.key(int(rng.integers(2**31)))
    again = partial(drawn, rng=rng, function=LEAN, key=key)
    x, y = rng.normal(size=(3, 3, 4)), rng.normal(size=(3, 3, 4))
    attended = projected(mb.Attention(2, 1, causal=False), mb.Dropout(0.3))
    one_by_one = mb.Repeat(mb.Residual(attended), 2)
    yield "recomputed attention", again(mb.Objective(one_by_one, mb.squared_error, SMALL), x, y)
    dense = mb.Serial((mb.Dense(4, 4, "tanh"), mb.Dropout(0.3)))
    segmented = mb.Repeat(mb.Residual(dense), 5, recompute=False, segments=3)
    yield "recomputed segments", again(mb.Objective(segmented, mb.squared_error, SMALL), x, y)
