"""Readings of single examples from (a, delta) against jax.grad of each: norms, clipping, noise scale, influence."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import manual_backprop as mb
from benchmarks.experiments.claims import Bound, Finding, Seeds, claim
from benchmarks.experiments.digits import (
    CLASSES,
    NET,
    OBJECTIVE,
    TRAIN,
    Tree,
    at,
    compiled,
    drawn,
    example_gradients,
    keys,
    relative,
    rows,
    sequences,
    split,
    trained,
)
from manual_backprop.layers.dense import OuterProduct
from manual_backprop.node import Node

SEEDS = (0, 1, 2)
EXACT = 1e-12
FAR = 1e-3  # the least error that a wrong formula must have, compared with EXACT
N = 64


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: trace and deltas of our sweep, and its examples' gradients by jax.grad."""

    net: Node
    trace: Tree
    deltas: Tree
    theirs: Tree


def batch(seed: int, n: int = N) -> Batch:
    """The first n images at random weights and biases."""
    return _batch(OBJECTIVE, seed, split(seed).x[:n], split(seed).y[:n])


def batch_of_sequences(seed: int, n: int = N) -> Batch:
    """The first n images row by row through a net with a loss at every position; the label is that of the image."""
    x, y = sequences(seed, n)
    net = mb.mlp((8, 30, 30, CLASSES), "tanh")
    return _batch(mb.Objective(net, mb.softmax_cross_entropy), seed, x, jnp.repeat(y[:, None], 8, axis=1))


def _batch(objective: mb.Objective, seed: int, x: Array, y: Array) -> Batch:
    of_params, of_biases = keys(seed, 2)
    params = drawn(objective.net, of_params, of_biases)
    trace, deltas = _swept(objective, params, x, y)
    return Batch(objective.net, trace, deltas, example_gradients(objective, params, x, y))


@partial(compiled, static_argnums=0)
def _swept(objective: mb.Objective, params: Tree, x: Array, y: Array) -> tuple[Tree, Tree]:
    step = mb.backprop(objective, params, x, y)
    return step.trace, step.deltas


@compiled
def squares(gradients: Tree) -> Float[Array, " N"]:
    """Squared norm of every example's gradient."""
    return jnp.sum(jnp.square(rows(gradients)), axis=1)


def outer_products(b: Batch) -> list[OuterProduct]:
    """Each layer's (a, delta), positions in the middle."""
    return list(mb.factors(b.net, b.trace, b.deltas))


@claim(
    "norms",
    "||a||^2 ||delta||^2 (and a 1 for the bias) is each example's squared norm",
    "Goodfellow 2015, arXiv:1510.01799",
)
def norms(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Norms against jax.grad of every example; control: without the bias's 1."""
    ours, without = [], []
    for seed in seeds:
        b = batch(seed, n)
        theirs = squares(b.theirs)
        plain = [_square(f.a_in) * _square(f.delta) for f in outer_products(b)]
        ours.append(relative(mb.squared_norms(b.net, b.trace, b.deltas), theirs))
        without.append(relative(sum(plain[1:], plain[0]), theirs))
    return Finding(
        Bound("worst relative error", max(ours), "<=", EXACT),
        Bound("least, without the bias", min(without), ">=", FAR),
        seeds,
    )


@claim("norms-sequences", "with positions, the sum over pairs of them of products", "Li et al. 2021, arXiv:2110.05679")
def norms_of_sequences(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Norms of digits as eight positions; control: the sum over single positions, without pairs."""
    ours, alone = [], []
    for seed in seeds:
        b = batch_of_sequences(seed, n)
        theirs = squares(b.theirs)
        each = [jnp.sum((_square(f.a_in) + 1) * _square(f.delta), axis=1) for f in outer_products(b)]
        ours.append(relative(mb.squared_norms(b.net, b.trace, b.deltas), theirs))
        alone.append(relative(sum(each[1:], each[0]), theirs))
    return Finding(
        Bound("worst relative error", max(ours), "<=", EXACT),
        Bound("least, each position by itself", min(alone), ">=", FAR),
        seeds,
    )


def _square(rows: Array) -> Array:
    return jnp.sum(jnp.square(rows), axis=-1)


@claim(
    "clipping",
    "one sweep gives the sum of clipped gradients",
    "Bu et al. 2022, arXiv:2210.00038; Abadi et al., arXiv:1607.00133",
)
def clipping(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Clipped sums against optax's clip of jax.grad's, at the median norm; control: clipping the mean gradient."""
    ours, of_mean = [], []
    for seed in seeds:
        b = batch(seed, n)
        bound = jnp.median(jnp.sqrt(squares(b.theirs)))
        leaves = jax.tree.leaves(b.theirs)
        theirs, clipped = compiled(optax.per_example_global_norm_clip)(leaves, bound)
        if clipped != n // 2:
            raise AssertionError(f"the median should clip {n // 2} of {n} examples, optax clipped {clipped}")
        mean = [np.mean(leaf, axis=0) for leaf in leaves]
        scale = n * min(1.0, float(bound) / np.sqrt(sum(np.sum(leaf**2) for leaf in mean)))
        clip = compiled(mb.clipped_gradients, static_argnums=0)
        ours.append(relative(clip(b.net, b.trace, b.deltas, bound), theirs))
        of_mean.append(relative([scale * leaf for leaf in mean], theirs))
    return Finding(
        Bound("worst relative error", max(ours), "<=", EXACT),
        Bound("least, clipping the mean instead", min(of_mean), ">=", FAR),
        seeds,
    )


@claim(
    "noise-trace",
    "S of the noise scale is the trace of the unbiased covariance",
    "McCandlish et al. 2018, arXiv:1812.06162",
)
def noise_trace(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Trace against the variance of jax.grad's gradients; control: the covariance with 1/N for 1/(N-1)."""
    ours, biased = [], []
    for seed in seeds:
        b = batch(seed, n)
        S = mb.noise_scale(b.net, b.trace, b.deltas).covariance_trace
        theirs = np.asarray(rows(b.theirs))
        ours.append(relative(S, np.sum(np.var(theirs, axis=0, ddof=1))))
        biased.append(relative(S, np.sum(np.var(theirs, axis=0))))
    return Finding(
        Bound("worst relative error", max(ours), "<=", EXACT),
        Bound("least, with 1/N", min(biased), ">=", FAR),
        seeds,
    )


@compiled
def _noise(params: Tree, x: Array, y: Array) -> Array:
    step = mb.backprop(OBJECTIVE, params, x, y)
    return mb.noise_scale(NET, step.trace, step.deltas).scale


@claim("noise-grows", "the noise scale grows while a network is trained", "McCandlish et al. 2018, arXiv:1812.06162")
def noise_grows(seeds: Seeds = SEEDS, epochs: tuple[int, ...] = (1, 2, 5)) -> Finding:
    """S / |G|^2 on all training images, the ratio after to before training; control: another untrained network."""
    grown, untrained, course = [], [], []
    for seed in seeds:
        digits = split(seed)
        of_params, of_order, of_other = keys(seed, 3)
        start, other = NET.init(of_params), NET.init(of_other)
        history = trained(OBJECTIVE, start, mb.rules.backprop, of_order, digits.x, digits.y, max(epochs))
        scales = [_noise(p, digits.x, digits.y) for p in (start, *(at(history, e - 1) for e in epochs))]
        grown.append(float(scales[-1] / scales[0]))
        untrained.append(float(_noise(other, digits.x, digits.y) / scales[0]))
        course.append([float(scale) for scale in scales])
    means = " ".join(f"{scale:.0f}" for scale in np.median(course, axis=0))
    return Finding(
        Bound(f"least growth over {max(epochs)} epochs, times", min(grown), ">=", 3.0),
        Bound("most of another untrained network, times", max(max(u, 1 / u) for u in untrained), "<=", 3.0),
        seeds,
        f"median at epochs 0 {' '.join(map(str, epochs))}: {means}; late values are unstable, |G|^2 nears 0",
    )


def area_under_curve(scores: Array, positive: Array) -> float:
    """The probability that a positive outranks a negative: Mann and Whitney's U, ties at a half."""
    values, chosen = np.asarray(scores), np.asarray(positive)
    above, below = values[chosen][:, None], values[~chosen][None]
    return float(np.mean(above > below) + 0.5 * np.mean(above == below))


@compiled
def _squared_norms(params: Tree, x: Array, y: Array) -> Array:
    step = mb.backprop(OBJECTIVE, params, x, y)
    return mb.squared_norms(NET, step.trace, step.deltas)


def mislabelled(seed: int, share: float = 0.1) -> tuple[Array, Array]:
    """(labels with a share of them wrong, a mask of the wrong ones)."""
    of_which, of_shift = keys(seed, 2)
    flipped = jax.random.permutation(of_which, jnp.arange(TRAIN) < round(share * TRAIN))
    shift = jax.random.randint(of_shift, (TRAIN,), 1, CLASSES, split(seed).y.dtype)
    return jnp.where(flipped, (split(seed).y + shift) % CLASSES, split(seed).y), flipped


@claim("TracIn", "self-influence over checkpoints finds mislabelled examples", "Pruthi et al. 2020, arXiv:2002.08484")
def tracin(seeds: Seeds = SEEDS, epochs: int = 5) -> Finding:
    """Area under the curve of the ranking by TracIn, a tenth mislabelled; control: an untrained network's ranking."""
    areas, untrained, top = [], [], []
    for seed in seeds:
        x, (y, flipped) = split(seed).x, mislabelled(seed)
        of_params, of_order = keys(100 + seed, 2)
        start = NET.init(of_params)
        history = trained(OBJECTIVE, start, mb.rules.backprop, of_order, x, y, epochs)
        influence = sum(_squared_norms(at(history, epoch), x, y) for epoch in range(epochs))
        areas.append(area_under_curve(influence, flipped))
        untrained.append(area_under_curve(_squared_norms(start, x, y), flipped))
        first = jnp.argsort(-influence)[: TRAIN // 5]
        top.append(float(jnp.sum(flipped[first]) / jnp.sum(flipped)))
    return Finding(
        Bound("least area under the curve", min(areas), ">=", 0.95),
        Bound("most of an untrained network", max(untrained), "<=", 0.7),
        seeds,
        f"in the top fifth: {min(top):.0%} of the mislabelled, worst seed",
    )
