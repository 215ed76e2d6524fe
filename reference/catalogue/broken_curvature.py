"""Small objectives for mutation testing of Hessian-vector products, one for each part of a language model.

No gradient uses a layer's `pushforward` and `change`. Every layer but the first stands on one with parameters, so that
what enters it changes along the direction.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

import manual_backprop as mb
from reference.catalogue.broken_sequences import IGNORED, SMALL, projected, tied_readout, words
from reference.catalogue.subject import Subject, drawn, in_sixteenths

Row = Callable[[str], mb.Activation]


def subjects(row: Row, rng: np.random.Generator) -> Iterator[tuple[str, Subject]]:
    """(name, subject) of each; `row` is that of `mutating`."""
    product = partial(drawn, rng=rng, function="hessian_vector_product")
    for name, layer in (("", mb.Attention(2, 1)), (" in blocks", mb.Attention(2, 1, block=2))):
        x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
        attended = mb.Objective(projected(layer), mb.squared_error)
        yield f"curvature of attention{name}", in_sixteenths(product(attended, x, y))
    norms = (mb.Dense(4, 4), mb.LayerNorm(4), mb.RMSNorm(4))
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    yield "curvature of norms", product(mb.Objective(mb.Serial(norms), mb.squared_error, SMALL), x, y)
    smoothed = mb.SoftmaxCrossEntropy(ignored=IGNORED, label_smoothing=0.1, z_loss=0.05)
    yield "curvature of a tied readout", product(mb.Objective(tied_readout(row), smoothed, SMALL), *words())
    gate = (mb.Parallel((mb.Dense(4, 3, row("silu")), mb.Dense(4, 3, bias=False))), mb.Product(), mb.Dropout(0.4))
    dropped = mb.Objective(mb.Serial((*gate, mb.Dense(3, 2))), mb.squared_error, SMALL)
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 2))
    yield "curvature of a gate with dropout", product(dropped, x, y, key=jax.random.key(int(rng.integers(2**31))))
