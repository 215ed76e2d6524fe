"""Gradients of GPTs of random shapes and choices against jax.grad of the reference: `python -m benchmarks.shapes`.

In float64. A leaf's difference is relative to its largest entry, or to a thousandth of the gradient's largest entry
where that is more: with one position, for one, queries and keys have the gradient 0.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from reference import model
from reference.xla import quick


@dataclass(frozen=True)
class Drawn:
    """One language model with a batch.

    Attributes:
        sizes: arguments of `mb.gpt`.
        loss: options of the loss.
        n: examples.
        length: positions.
        weighted: whether every example has a weight of its own.
    """

    sizes: dict[str, Any]
    loss: dict[str, Any]
    n: int
    length: int
    weighted: bool


def draw(seed: int) -> Drawn:
    """The model of a seed."""
    of = random.Random(seed)
    kv_heads = of.choice((1, 2))
    heads, layers, length = kv_heads * of.choice((1, 2, 3)), of.randint(1, 4), of.randint(1, 40)
    sizes = {
        "vocab": of.randint(2, 40),
        "d": heads * of.choice((4, 6, 8)),  # a layer norm of 2 features is a step function
        "heads": heads,
        "layers": layers,
        "length": length + of.randint(0, 3),
        "kv_heads": kv_heads,
        "hidden": of.choice((None, of.randint(1, 20))),
        "activation": of.choice(list(mb.activations.TABLE)),
        "gated": of.random() < 0.5,
        "norm": of.choice(("rms", "layer")),
        "rope": of.choice((None, 10.0, 10000.0)),
        "bias": of.random() < 0.5,
        "tied": of.random() < 0.5,
        "block": of.choice((None, of.randint(1, 40))),
        "recompute": of.random() < 0.5,
        "segments": of.choice((None, of.randint(1, layers))),
    }
    chunk = of.choice((None, of.randint(1, 50)))
    loss = {"chunk": chunk, "ignored": of.choice((None, 0)), "label_smoothing": of.choice((0.0, 0.1))}
    return Drawn(sizes, loss | {"z_loss": of.choice((0.0, 0.01))}, of.randint(1, 4), length, of.random() < 0.5)


def differences(seed: int) -> tuple[Drawn, float]:
    """The model of a seed, and the largest relative difference of its gradient."""
    drawn, rng = draw(seed), np.random.default_rng(seed)
    net = mb.gpt(**drawn.sizes)
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(**drawn.loss), mb.Frobenius(0.01))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.float64))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.3, 0.4, leaf.shape)), shapes)
    x, y = (jnp.asarray(rng.integers(0, drawn.sizes["vocab"], (drawn.n, drawn.length))) for _ in range(2))
    weights = jnp.asarray(rng.uniform(size=drawn.n)) if drawn.weighted else None

    def both(params: Any) -> tuple[Any, Any]:
        given = {"weights": weights}
        theirs = jax.value_and_grad(partial(model.value, objective))(params, x, y, **given)
        return mb.value_and_grad(objective)(params, x, y, **given), theirs

    ours, theirs = jax.device_get(jax.jit(both, compiler_options=quick())(params))
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    least = 1e-3 * max(np.abs(leaf).max() for _, leaf in pairs[1:])
    return drawn, max(np.abs(a - b).max() / max(np.abs(b).max(), least) for a, b in pairs)


def run(count: int, seed: int) -> Iterator[tuple[int, Drawn, float]]:
    """Yield (seed, model, difference) of each."""
    with jax.enable_x64(True):
        for each in range(seed, seed + count):
            yield each, *differences(each)


def main() -> int:
    """Print the largest difference; return 1 if one is above 1e-12."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many models, by default 200")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    given = parser.parse_args()
    worst = 0.0
    for seed, drawn, difference in run(given.count, given.seed):
        worst = max(worst, difference)
        if not difference <= 1e-12:
            print(f"seed {seed}: {difference:.2g} in {drawn}", flush=True)
    print(f"{given.count} models, largest difference {worst:.2g}")
    return int(not worst <= 1e-12)


if __name__ == "__main__":
    raise SystemExit(main())
