"""Readings of (a^(l-1), delta^(l)): quantities of every example, from one forward and one backward sweep.

Every reading takes (net, trace, deltas) as `backprop` or `forward` and `backward` give them, under any rule, and
works under jit. Where a layer family has no fast form, the reading forms the examples' gradients. Readings are of
the losses: the regulariser belongs to no example, so its part (B6) is not in them.
With layers on sequences, an example is a row of the batch, with all its positions. For parameters that are used
several times (`Tied`), an example's gradient is the sum over the uses.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import validate
from manual_backprop.layers.factor import Factor
from manual_backprop.node import Node
from manual_backprop.sweep import Reader, read
from manual_backprop.types import Leaf, Scalar, Tree, Weights


def gradient_reader(weights: Weights | None) -> Reader:
    """The reader that contracts each layer's pair to its parameter gradient, summed over examples by `weights`."""

    def contract(factor: Factor) -> Tree:
        return factor.weighted_sum(validate.weights_of(factor, weights))

    return contract


def total(factor: Factor) -> Tree:
    """The reader for error terms that carry the examples' weights already: the plain sum over examples."""
    return factor.total()


def gradients(net: Node, trace: Tree, deltas: Tree, *, weights: Weights | None = None) -> Tree:
    """Step 3: the gradient of sum_n weights[n] L_n with respect to every parameter (B3) (B4).

    The objective adds the regulariser's part (B6); see `backprop`.

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`, unscaled.
        weights: one weight for each example (masks, importance weights, clipping); None is the mean, 1/N each.

    Returns:
        A pytree of the parameters' structure.

    Raises:
        ValueError: weights that are not of shape (N,), or deltas of another batch or network than the trace.
    """
    return checked_read(gradient_reader(weights), net, trace, deltas)


def per_example_gradients(net: Node, trace: Tree, deltas: Tree) -> Tree:
    """dL_n/dparams of every example n (C2): the parameters' structure, with N in front of every leaf's shape.

    The other readings give contractions of these without forming this array of N gradients.
    """
    batch = validate.batch(net, trace, deltas)

    def examples_first(blocks: jax.ShapeDtypeStruct, gradient: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, len(blocks.shape), 0), gradient)

    blocks = jax.eval_shape(lambda: read(net, lambda factor: jnp.zeros(()), batch))  # under Repeat, its n
    return jax.tree.map(examples_first, blocks, read(net, lambda factor: factor.per_example(), batch))


def squared_norms(net: Node, trace: Tree, deltas: Tree, *, by_layer: bool = False) -> Tree:
    """||dL_n/dparams||^2 of every example n, no gradient formed: ||delta_n||^2 (||a_n||^2 + 1) for a dense layer.

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`.
        by_layer: return each layer's own, in the network's structure, (N,) each and (n, N) under `Repeat`.

    Returns:
        (N,), summed over layers, in the precision of sums. The square root and the mean are left to the caller.

    Source: Goodfellow, arXiv:1510.01799; for sequences Li et al., arXiv:2110.05679.
    """
    norms = checked_read(lambda factor: factor.squared_norms(), net, trace, deltas)
    if by_layer:
        return norms
    return over_layers(norms, 1)


def clip_weights(squared: Weights, max_norm: float | Scalar) -> Weights:
    """min(1, max_norm / norm_n), and 1 for a norm of 0: the factor by which DP-SGD clips each example's gradient.

    Args:
        squared: the squares of the norms (N,), as `squared_norms` gives them.
        max_norm: C >= 0; a Python number, or a scalar array that may be traced.

    Raises:
        ValueError: a max_norm that is negative or nan, where its value is known; traced, it gives nan.

    Source: Abadi et al., arXiv:1607.00133.
    """
    squared = validate.array("squared", squared)
    bound = validate.non_negative("max_norm", max_norm, squared.dtype)
    norm = jnp.sqrt(squared)
    return jnp.where(norm <= bound, jnp.ones_like(norm), bound / norm)


def clipped_gradients(
    net: Node, trace: Tree, deltas: Tree, max_norm: float | Scalar, *, weights: Weights | None = None
) -> Tree:
    """sum_n w_n g_n min(1, max_norm / ||g_n||): every example's gradient clipped, then summed, in the same sweep.

    The sum that DP-SGD adds its noise to, not the mean; `training.private_noise` is that noise as an optax
    transformation. No example's gradient is formed, and no second backward pass is needed, since delta is kept.

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`.
        max_norm: C, for the norm over all parameters.
        weights: applied after the clipping, such as 0 for padding; None is 1 each.

    Raises:
        ValueError: a max_norm that is negative or nan, where its value is known (traced, it gives nan); weights
            that are not (N,).

    Source: Abadi et al., arXiv:1607.00133; one sweep as in Bu et al., arXiv:2210.00038.
    """
    clip = clip_weights(squared_norms(net, trace, deltas), max_norm)

    def contract(factor: Factor) -> Tree:
        given = validate.weights_of(factor, weights)
        return factor.weighted_sum(clip if given is None else clip * given)

    return read(net, contract, (trace, deltas))


def second_moment(net: Node, trace: Tree, deltas: Tree, *, weights: Weights | None = None) -> Tree:
    """sum_n w_n (dL_n/dparams)^2, entry by entry, by default the mean: the diagonal of the empirical Fisher.

    For a dense layer (delta^2)^T a^2, one product of matrices (Dangel et al., arXiv:1912.10985). In the precision of
    sums. Arguments and errors as for `gradients`.
    """

    def squares(factor: Factor) -> Tree:
        return factor.squared_sum(validate.weights_of(factor, weights))

    return checked_read(squares, net, trace, deltas)


def gram(net: Node, trace: Tree, deltas: Tree, other: tuple[Tree, Tree] | None = None) -> Float[Array, "N M"]:
    """<g_n, g'_m> for every pair of examples: sum_l (a_n . a'_m + 1)(delta_n . delta'_m), no gradient formed.

    With deltas of the outputs it is the empirical neural tangent kernel. With deltas of the loss, and times the
    learning rate, it is the influence that TracIn sums over checkpoints (Pruthi et al., arXiv:2002.08484).

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`.
        other: (trace, deltas) of a second batch, such as (step.trace, step.deltas) of test examples at the same
            parameters; None takes the same batch twice.

    Returns:
        (N, M), in the precision of sums.

    Raises:
        ValueError: traces and deltas that do not belong together, or are of two networks.
        TypeError: an `other` that is not such a pair.
    """

    def products(mine: Factor, theirs: Factor) -> Array:
        return mine.gram(theirs)

    mine = validate.batch(net, trace, deltas)
    return over_layers(read(net, products, mine, mine if other is None else _other_batch(net, deltas, other)), 2)


def _other_batch(net: Node, deltas: Tree, other: Any) -> tuple[Tree, Tree]:
    if not isinstance(other, tuple) or len(other) != 2:
        raise TypeError(f"gram's other must be the pair (trace, deltas) of a second batch, got {type(other).__name__}")
    validate.same_structure("the other batch's deltas", other[1], "these", deltas)
    return validate.batch(net, *other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScale:
    """The noise of one example's gradient relative to the gradient itself (McCandlish et al., arXiv:1812.06162).

    Attributes:
        covariance_trace: S, the trace of the examples' gradient covariance, estimated without bias.
        squared_gradient: |G|^2, the squared norm of the true gradient, estimated without bias. The estimate may be
            negative where noise outweighs the gradient.
        scale: B_simple = S / |G|^2, in examples: the batch size at which noise and signal are equal. It is unstable
            where |G|^2 nears 0, as it does late in training.
    """

    covariance_trace: Leaf
    squared_gradient: Leaf
    scale: Leaf


def noise_scale(net: Node, trace: Tree, deltas: Tree) -> NoiseScale:
    """S = N/(N-1) (mean_n ||g_n||^2 - ||g||^2) and |G|^2 = (N ||g||^2 - mean_n ||g_n||^2)/(N-1), with g the mean.

    Raises:
        ValueError: a batch of one, which has no spread.
    """
    norms = squared_norms(net, trace, deltas)
    n = norms.shape[0]
    if n < 2:
        raise ValueError("noise_scale compares the examples of a batch and needs at least 2, got 1")
    mean = read(net, gradient_reader(None), (trace, deltas))
    of_mean = over_layers(jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf.astype(norms.dtype))), mean), 0)
    of_one = jnp.mean(norms)
    covariance_trace = n / (n - 1) * (of_one - of_mean)
    squared_gradient = (n * of_mean - of_one) / (n - 1)
    return NoiseScale(covariance_trace, squared_gradient, covariance_trace / squared_gradient)


def over_layers(by_layer: Tree, axes: int = 1) -> Array:
    """Add a reading of every layer up, over the blocks of a `Repeat` too, which stand in front.

    Args:
        by_layer: as from `value_and_reading`, or `squared_norms` with `by_layer`.
        axes: of one layer's values: 1 for norms (N,), 2 for products (N, M).
    """
    leaves = [jnp.sum(leaf, axis=tuple(range(leaf.ndim - axes))) for leaf in jax.tree.leaves(by_layer)]
    return sum(leaves[1:], leaves[0])


def checked_read(reader: Reader, net: Node, trace: Tree, deltas: Tree) -> Tree:
    """Check that trace and deltas belong together, then call `sweep.read`."""
    return read(net, reader, validate.batch(net, trace, deltas))
