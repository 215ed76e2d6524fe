"""Fisher, Gauss-Newton and K-FAC against the matrices themselves, built by jax.jacobian of the reference's outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

import manual_backprop as mb
from benchmarks.experiments.claims import Bound, Finding, Seeds, claim
from benchmarks.experiments.digits import (
    CLASSES,
    Tree,
    at,
    compiled,
    drawn,
    keys,
    reference_output,
    relative,
    rows,
    sequences,
    small,
    trained,
)
from manual_backprop.losses import Outputs, Roots, Targets

SEEDS = (0, 1, 2)
EXACT = 1e-12
N = 50
NET = mb.mlp((16, 6, CLASSES), "tanh")
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)
Matrix = Float[Array, "P P"]
MARTENS = "Martens 2014, arXiv:1412.1193; Kunstner et al. 2019, arXiv:1905.12558"
KFAC = "Martens & Grosse 2015, arXiv:1503.05671"
SHARING = "Eschenhagen et al. 2023, arXiv:2311.00636"


def jacobian(output: Callable[[Tree, Array], Array], params: Tree, x: Array) -> Tree:
    """The derivative d output_n / d params, (N, outputs, ...) in every leaf, by jax.jacobian example by example."""
    return jax.vmap(jax.jacobian(lambda p, x: output(p, x[None])[0].reshape(-1)), (None, 0))(params, x)


@compiled
def gauss_newton(params: Tree, x: Array, y: Array) -> Matrix:
    """(1/N) sum_n J_n^T H_n J_n of softmax cross-entropy, with H_n by jax.hessian of the loss."""
    J = jacobian(partial(reference_output, NET), params, x)
    J = jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(J)], axis=2)

    def loss(o: Array, y: Array) -> Array:
        return jax.nn.logsumexp(o) - o[y]

    H = jax.vmap(jax.hessian(loss))(reference_output(NET, params, x), y)
    return jnp.einsum("noi,nop,npj->ij", J, H, J) / x.shape[0]


@partial(compiled, static_argnames=("labels", "samples"))
def fisher(
    params: Tree, x: Array, y: Array, key: PRNGKeyArray | None = None, *, labels: str, samples: int = 1
) -> Matrix:
    """(1/N) sum_n sum_k g_nk g_nk^T, from the columns of `fisher_deltas`."""
    trace, columns = mb.fisher_deltas(OBJECTIVE, params, x, y, labels=labels, key=key, samples=samples)
    gradients = jax.vmap(lambda deltas: rows(mb.per_example_gradients(NET, trace, deltas)))(columns)
    gradients = gradients.reshape(-1, gradients.shape[2])
    return gradients.T @ gradients / x.shape[0]


def halfway(seed: int) -> tuple[Tree, Array, Array]:
    """(parameters after two epochs, x, y): past the initial weights, but not where all gradients are small."""
    x, y = small(seed, 500)
    of_params, of_biases, of_order = keys(seed, 3)
    start = drawn(NET, of_params, of_biases)
    return at(trained(OBJECTIVE, start, mb.rules.backprop, of_order, x, y, 2), -1), x[:N], y[:N]


@claim("Fisher-is-GGN", "the Fisher matrix is Gauss-Newton's for softmax, the empirical one is not", MARTENS)
def fisher_is_gauss_newton(seeds: Seeds = SEEDS) -> Finding:
    """Fisher matrix from the columns of all labels against J^T H J; control: from the labels in the data."""
    ours, empirical = [], []
    for seed in seeds:
        params, x, y = halfway(seed)
        G = gauss_newton(params, x, y)
        ours.append(relative(fisher(params, x, y, labels="all"), G))
        empirical.append(relative(fisher(params, x, y, labels="given"), G))
    return Finding(
        Bound("worst relative error (Frobenius), all labels", max(ours), "<=", EXACT),
        Bound("least of the empirical Fisher", min(empirical), ">=", 0.3),
        seeds,
    )


SAMPLES = (4, 16, 64)


@claim("Fisher-sampled", "the sampled Fisher matrix nears it as 1/sqrt(samples)", MARTENS)
def fisher_sampled(seeds: Seeds = SEEDS, draws: int = 8) -> Finding:
    """Slope of log error by log samples, with errors as root mean squares of draws; control: uniform labels.

    Labels that are drawn uniformly, not from the model, leave an error that more samples do not remove.
    """
    own, uniform = [], []
    for seed in seeds:
        params, x, y = halfway(seed)
        G = gauss_newton(params, x, y)
        many = jax.random.split(jax.random.key(500 + seed), draws)
        own.append(_slope([_error(_sampled(params, x, y, many, samples), G) for samples in SAMPLES]))
        uniform.append(_slope([_error(_evenly_labelled(params, x, many, samples), G) for samples in SAMPLES]))
    return Finding(
        Bound("slope, most off -1/2", max(abs(slope + 0.5) for slope in own), "<=", 0.1),
        Bound("least slope with uniform labels", min(uniform), ">=", -0.25),
        seeds,
        f"slopes {' '.join(f'{slope:.2f}' for slope in own)} over {SAMPLES[0]} to {SAMPLES[-1]} samples",
    )


def _sampled(params: Tree, x: Array, y: Array, many: PRNGKeyArray, samples: int) -> Float[Array, "draws P P"]:
    return jnp.stack([fisher(params, x, y, key, labels="sampled", samples=samples) for key in many])


def _evenly_labelled(params: Tree, x: Array, many: PRNGKeyArray, samples: int) -> Float[Array, "draws P P"]:
    repeated = jnp.tile(x, (samples, 1))
    labels = (jax.random.randint(key, repeated.shape[:1], 0, CLASSES) for key in many)
    return jnp.stack([fisher(params, repeated, y, labels="given") for y in labels])


def _error(estimates: Float[Array, "draws P P"], G: Matrix) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.sum(jnp.square(estimates - G[None]), axis=(1, 2)))))


def _slope(errors: list[float]) -> float:
    return float(np.polyfit(np.log(SAMPLES), np.log(errors), 1)[0])


@dataclass(frozen=True)
class OfTheMean(mb.Loss):
    """(1/2) ||mean of o over positions - y||^2: a loss that depends on an example's positions by their mean alone."""

    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """Half the squared error of the mean."""
        return 0.5 * jnp.sum(jnp.square(jnp.mean(o, axis=1) - y), axis=1)

    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The error of the mean times 1/T at each of T positions."""
        return jnp.repeat((jnp.mean(o, axis=1) - y)[:, None] / o.shape[1], o.shape[1], axis=1)

    def hessian_root(self, o: Outputs, y: Targets) -> Roots:
        """Vector k is 1/T at output k of every position."""
        unit = jnp.eye(o.shape[2], dtype=o.dtype) / o.shape[1]
        return jnp.broadcast_to(unit[:, None, None], (o.shape[2], *o.shape))

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Refuse targets that are not one row for each example."""
        if y.shape != (o.shape[0], o.shape[2]):
            raise ValueError(f"{self}: y must be {[o.shape[0], o.shape[2]]} for outputs {list(o.shape)}, got {y.shape}")


@partial(compiled, static_argnums=(0, 4))
def kronecker_errors(objective: mb.Objective, params: Tree, x: Array, y: Array, shared: str) -> Float[Array, " layers"]:
    """Relative Frobenius error of A (x) G of every layer against its block of the Gauss-Newton matrix.

    The Hessian of a squared error is the identity (for `OfTheMean`, with respect to the mean of the outputs). So a
    block is (1/N) sum_n J_n^T J_n, with J_n by jax.jacobian; its rows are ordered as those of (W b), outputs first.
    """
    trace, columns = mb.fisher_deltas(objective, params, x, y)
    ours = mb.kronecker_factors(objective.net, trace, columns, columns=True, shared=shared)

    def output(params: Tree, x: Array) -> Array:
        every = reference_output(objective.net, params, x)
        return jnp.mean(every, axis=1) if isinstance(objective.loss, OfTheMean) else every

    errors = []
    for J, layer in zip(jacobian(output, params, x), ours, strict=True):
        joint = jnp.concatenate([J.W, J.b[..., None]], axis=-1).reshape(*J.b.shape[:2], -1)
        block = jnp.einsum("noi,noj->ij", joint, joint) / x.shape[0]
        errors.append(jnp.linalg.norm(jnp.kron(layer.G, layer.A) - block) / jnp.linalg.norm(block))
    return jnp.stack(errors)


def one_hot(y: Array) -> Float[Array, "N classes"]:
    """Labels as rows to fit by squared error."""
    return jax.nn.one_hot(y, CLASSES, dtype=jnp.float64)


def errors_of(
    net: mb.Serial, seed: int, x: Array, y: Array, shared: str = "expand", loss: mb.Loss = mb.squared_error
) -> list[float]:
    """`kronecker_errors` at random weights and biases."""
    of_params, of_biases = keys(seed, 2)
    params = drawn(net, of_params, of_biases)
    return kronecker_errors(mb.Objective(net, loss), params, x, y, shared).tolist()


@claim("KFAC-exact", "K-FAC is exact, block by block, for deep linear nets, and is not for tanh", KFAC)
def kfac_exact(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Errors of all blocks of a linear net; control: those below the last of a tanh net (any net's last is exact)."""
    linear, curved = [], []
    for seed in seeds:
        x, y = small(seed, n)
        linear += errors_of(mb.mlp((16, 6, 5, CLASSES), "identity"), seed, x, one_hot(y))
        curved += errors_of(mb.mlp((16, 6, 5, CLASSES), "tanh"), seed, x, one_hot(y))[:-1]
    return Finding(
        Bound("worst relative error of a block, linear", max(linear), "<=", EXACT),
        Bound("least of a block below the last, tanh", min(curved), ">=", 0.02),
        seeds,
    )


ROWS = mb.mlp((8, 6, 5, CLASSES), "identity")  # applied to each of eight positions, a row of pixels


@claim("KFAC-expand", "with a loss at every position the expand setting is exact for deep linear nets", SHARING)
def kfac_expand(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Errors of the blocks by expand; control: by reduce."""
    expand, reduce = [], []
    for seed in seeds:
        x, labels = sequences(seed, n)
        y = jnp.repeat(one_hot(labels)[:, None], 8, axis=1)
        expand += errors_of(ROWS, seed, x, y, "expand")
        reduce += errors_of(ROWS, seed, x, y, "reduce")
    return _flavours(expand, "expand", reduce, "reduce", seeds)


@claim("KFAC-reduce", "with a loss of the mean over positions reduce is exact for deep linear nets", SHARING)
def kfac_reduce(seeds: Seeds = SEEDS, n: int = N) -> Finding:
    """Errors of the blocks by reduce; control: by expand."""
    expand, reduce = [], []
    for seed in seeds:
        x, labels = sequences(seed, n)
        expand += errors_of(ROWS, seed, x, one_hot(labels), "expand", OfTheMean())
        reduce += errors_of(ROWS, seed, x, one_hot(labels), "reduce", OfTheMean())
    return _flavours(reduce, "reduce", expand, "expand", seeds)


def _flavours(right: list[float], name: str, wrong: list[float], other: str, seeds: Seeds) -> Finding:
    return Finding(
        Bound(f"worst relative error of a block, {name}", max(right), "<=", EXACT),
        Bound(f"least of a block, {other}", min(wrong), ">=", 0.02),
        seeds,
    )
