"""The cost of the rows: time, in turns with plain gradients, and memory and flops as counted by XLA."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from benchmarks.interleaved import ratios
from benchmarks.readings.peers import one_gradient
from benchmarks.readings.rows import Reading, readings

SIZES = (784, 512, 512, 10)


@dataclass(frozen=True)
class Cost:
    """The cost of one way: time and flops relative to a plain gradient of the same batch, memory in bytes."""

    time: float
    flops: float
    temp: int
    out: int


@dataclass(frozen=True)
class Measured:
    """A row at one batch size; `apart` is the largest relative difference of the two ways' numbers."""

    name: str
    batch: int
    hand: Cost
    peer: Cost
    way: str
    apart: float


def problem(n: int) -> tuple[mb.Objective, tuple[Any, ...]]:
    """(objective, (params, x, y, more)), float32; biases are not zero."""
    net = mb.mlp(SIZES, "tanh")
    shaken = net.init(jax.random.key(0), jnp.float32)
    more = net.init(jax.random.key(1), jnp.float32)
    params = tuple(mb.Affine(layer.W, 0.1 * jnp.cos(jnp.arange(layer.b.size, dtype=jnp.float32))) for layer in shaken)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, SIZES[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, SIZES[-1], n), jnp.int32)
    return mb.Objective(net, mb.softmax_cross_entropy), (params, x, y, more)


def apart(hand: Any, peer: Any) -> float:
    """The largest difference of two results, relative to the largest magnitude in the peer's leaf.

    If a thousandth of the largest magnitude in any leaf is more, it is relative to that, since a leaf such as the mean
    of a delta may be 0 up to rounding.
    """
    ours, theirs = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)] for result in (hand, peer))
    largest = [np.max(np.abs(leaf)) for leaf in theirs]
    worst = []
    for a, b, scale in zip(ours, theirs, largest, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"a leaf is {list(a.shape)} by hand and {list(b.shape)} by its peer")
        worst.append(np.max(np.abs(a - b)) / max(scale, max(largest) / 1000))
    return float(np.max(worst))


def flops_of(compiled: Any) -> float:
    """XLA's own count of flops; in some versions it comes in a list of one."""
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def measure(reading: Reading, args: tuple[Any, ...], gradient: Any, rounds: int, heavy_rounds: int) -> Measured:
    """One row at one batch size."""
    hand, peer = (jax.jit(way).lower(*args).compile() for way in (reading.by_hand, reading.peer))
    difference = apart(hand(*args), peer(*args))
    contestants = {"grad": lambda: gradient(*args), "hand": lambda: hand(*args)}
    if reading.heavy:
        times = ratios(contestants, "grad", rounds=rounds)
        del contestants["hand"]
        contestants["peer"] = lambda: peer(*args)
        times["peer"] = ratios(contestants, "grad", rounds=heavy_rounds)["peer"]
    else:
        contestants["peer"] = lambda: peer(*args)
        times = ratios(contestants, "grad", rounds=rounds)

    def cost(name: str, compiled: Any) -> Cost:
        memory = compiled.memory_analysis()
        flops = flops_of(compiled) / flops_of(gradient)
        return Cost(times[name], flops, memory.temp_size_in_bytes, memory.output_size_in_bytes)

    return Measured(reading.name, args[1].shape[0], cost("hand", hand), cost("peer", peer), reading.way, difference)


def measured(batches: Iterable[int], only: str, rounds: int) -> Iterator[Measured]:
    """Every row whose name contains `only`, batch by batch."""
    for n in batches:
        objective, args = problem(n)
        gradient = jax.jit(one_gradient).lower(*args).compile()
        for reading in readings(objective):
            if only in reading.name:
                yield measure(reading, args, gradient, rounds, heavy_rounds=7 if n <= 128 else 2)
