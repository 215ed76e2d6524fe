"""Forward gradients: a random direction times the derivative along it, from forward passes alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

import manual_backprop as mb
from benchmarks.experiments.claims import Bound, Finding, Seeds, claim
from benchmarks.experiments.digits import CLASSES, Tree, compiled, drawn, keys, small
from reference import value_and_grad

SEEDS = (0, 1, 2)
NET = mb.mlp((16, 2, CLASSES), "tanh")  # 64 parameters, few enough to tell P + 2 from P
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)
DRAWS = 20_000
LIMIT = 5.0  # standard errors
BAYDIN = "Baydin et al. 2022, arXiv:2202.08587"
REN = "Ren et al. 2022, arXiv:2210.03310"
DISTRIBUTIONS = {"gauss": jax.random.normal, "sign": jax.random.rademacher, "cube": jax.random.uniform}


def point(seed: int, n: int) -> tuple[Tree, Array, Array]:
    """Random weights and biases, and n small images."""
    of_params, of_biases = keys(seed, 2)
    return drawn(NET, of_params, of_biases), *small(seed, n)


def direction(params: Tree, key: PRNGKeyArray, distribution: str) -> Tree:
    """One v, like params, with independent entries: Gaussian, +1 or -1, or uniform in [-1, 1]."""
    leaves, structure = jax.tree.flatten(params)
    own = jax.random.split(key, len(leaves))
    drawn = [DISTRIBUTIONS[distribution](k, leaf.shape, leaf.dtype) for k, leaf in zip(own, leaves, strict=True)]
    if distribution == "cube":
        drawn = [2 * leaf - 1 for leaf in drawn]
    return jax.tree.unflatten(structure, drawn)


def flat(tree: Tree) -> Float[Array, " P"]:
    """All leaves as one vector."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


@partial(compiled, static_argnums=(4, 5))
def weight_estimates(
    params: Tree, x: Array, y: Array, key: PRNGKeyArray, draws: int, distribution: str
) -> Float[Array, "draws P"]:
    """(g . v) v for many v, with g . v by `directional_derivative`."""

    def one(key: PRNGKeyArray) -> Array:
        v = direction(params, key, distribution)
        return mb.forward_mode.directional_derivative(OBJECTIVE, params, x, y, v) * flat(v)

    return jax.lax.map(one, jax.random.split(key, draws), batch_size=1000)


@partial(compiled, static_argnums=4)
def activity_estimates(params: Tree, x: Array, y: Array, key: PRNGKeyArray, draws: int) -> Float[Array, "draws P"]:
    """(v . delta) v a^T for many v, with one entry for every z; for one example, where a change of b is one of z."""
    _, trace = mb.forward(NET, params, x)

    def one(key: PRNGKeyArray) -> Array:
        v = direction([layer.b for layer in params], key, "gauss")
        along = tuple(mb.Affine(jnp.zeros_like(p.W), b) for p, b in zip(params, v, strict=True))
        slope = mb.forward_mode.directional_derivative(OBJECTIVE, params, x, y, along)
        return flat(mb.gradients(NET, trace, tuple(slope * b[None] for b in v)))

    return jax.lax.map(one, jax.random.split(key, draws), batch_size=1000)


def true_gradient(params: Tree, x: Array, y: Array) -> Float[Array, " P"]:
    """The gradient by jax.grad of the reference's objective."""
    return flat(value_and_grad(OBJECTIVE)(params, x, y)[1])


def bias(estimates: Float[Array, "draws P"], g: Float[Array, " P"]) -> float:
    """Distance of the mean from g, in standard errors: the largest over all entries and along g itself."""
    along = estimates @ (g / jnp.linalg.norm(g))
    samples = np.asarray(jnp.concatenate([estimates, along[:, None]], axis=1))
    truth = np.append(np.asarray(g), float(jnp.linalg.norm(g)))
    live = (truth != 0) | samples.any(axis=0)  # the weights of a pixel that is 0 have gradient and estimate 0
    return float(np.max(standard_errors(samples[:, live] - truth[live])))


def off(estimates: Float[Array, "draws P"], g: Float[Array, " P"], expected: float) -> float:
    """Distance of the mean squared norm from `expected` times ||g||^2, in standard errors.

    Each draw is compared with `expected` times ghat . g, whose mean is ||g||^2 if ghat is unbiased: the two share most
    of their noise.
    """
    return float(standard_errors(np.asarray(jnp.sum(jnp.square(estimates), axis=1) - expected * (estimates @ g))))


def standard_errors(samples: np.ndarray) -> np.ndarray:
    """|mean| over its standard error, column by column."""
    return np.abs(samples.mean(axis=0)) / (samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


@claim("forward-unbiased", "forward gradients (g . v) v are unbiased", BAYDIN)
def unbiased(seeds: Seeds = SEEDS, draws: int = DRAWS) -> Finding:
    """Mean of many estimates against jax.grad; control: v uniform in a cube, whose variance is not 1."""
    gauss, cube = [], []
    for seed in seeds:
        params, x, y = point(seed, 8)
        g, (key,) = true_gradient(params, x, y), keys(200 + seed, 1)
        gauss.append(bias(weight_estimates(params, x, y, key, draws, "gauss"), g))
        cube.append(bias(weight_estimates(params, x, y, key, draws, "cube"), g))
    return Finding(
        Bound("worst entry of the mean, standard errors off", max(gauss), "<=", LIMIT),
        Bound("least, v uniform in [-1, 1]", min(cube), ">=", 10.0),
        seeds,
        f"{draws} draws",
    )


@claim("forward-second-moment", "E ||(g . v) v||^2 = (P + 2) ||g||^2 for Gaussian v", BAYDIN)
def second_moment(seeds: Seeds = SEEDS, draws: int = DRAWS) -> Finding:
    """Mean squared norm against (P + 2) ||g||^2; control: v of signs, for which it is P ||g||^2."""
    gauss, sign = [], []
    for seed in seeds:
        params, x, y = point(seed, 8)
        g, (key,) = true_gradient(params, x, y), keys(300 + seed, 1)
        gauss.append(off(weight_estimates(params, x, y, key, draws, "gauss"), g, g.size + 2))
        sign.append(off(weight_estimates(params, x, y, key, draws, "sign"), g, g.size + 2))
    return Finding(
        Bound("worst, standard errors off", max(gauss), "<=", LIMIT),
        Bound("least with v = +1 or -1", min(sign), ">=", 10.0),
        seeds,
        f"P = {g.size}, {draws} draws",
    )


def activity_second_moment(params: Tree, x: Array, y: Array) -> float:
    """sum_l alpha_l (n_l ||delta||^2 + 2 ||delta_l||^2) / sum_l alpha_l ||delta_l||^2, alpha_l = ||a_(l-1)||^2 + 1."""
    step = mb.backprop(OBJECTIVE, params, x, y)
    pairs = mb.factors(NET, step.trace, step.deltas)
    alpha = np.array([float(jnp.sum(jnp.square(f.a_in))) + 1 for f in pairs])
    delta = np.array([float(jnp.sum(jnp.square(f.delta))) for f in pairs])
    widths = np.array([f.delta.shape[1] for f in pairs])
    return float(np.sum(alpha * (widths * delta.sum() + 2 * delta)) / np.sum(alpha * delta))


@claim("forward-activity", "perturbing z, not W: unbiased, and its second moment as derived", REN)
def activity(seeds: Seeds = SEEDS, draws: int = DRAWS) -> Finding:
    """Bias and second moment for one example; control: perturbing W has a second moment several times as large."""
    worst, ratio = [], []
    for seed in seeds:
        params, x, y = point(seed, 1)
        g, (key,) = true_gradient(params, x, y), keys(400 + seed, 1)
        expected = activity_second_moment(params, x, y)
        estimates = activity_estimates(params, x, y, key, draws)
        worst.append(max(bias(estimates, g), off(estimates, g, expected)))
        weights = weight_estimates(params, x, y, key, draws, "gauss")
        ratio.append(float(jnp.mean(jnp.sum(jnp.square(weights), axis=1)) / (expected * (g @ g))))
    return Finding(
        Bound("worst of mean and second moment, standard errors off", max(worst), "<=", LIMIT),
        Bound("least second moment of perturbing W, times", min(ratio), ">=", 2.0),
        seeds,
        f"{draws} draws",
    )
