"""Readings of (a^(l-1), delta^(l)): here the parameter gradients, summed over examples (B3) (B4)."""

from jaxtyping import Array, Float

from manual_backprop.layers.base import Layer, Node, Reader, Tree


def gradient_reader(weights: Float[Array, " N"] | None) -> Reader:
    """The reader that contracts each layer's pair to its parameter gradient, examples summed by `weights`."""

    def contract(layer: Layer, saved: Tree, delta: Array) -> Tree:
        if weights is not None and weights.shape != delta.shape[:1]:
            raise ValueError(f"weights are {list(weights.shape)}, expected [{delta.shape[0]}]: one for each example")
        return layer.factor(saved, delta).weighted_sum(weights)

    return contract


def gradients(net: Node, trace: Tree, deltas: Tree, *, weights: Float[Array, " N"] | None = None) -> Tree:
    """Step 3: the gradient of sum_n weights[n] L_n with respect to every parameter (B3) (B4).

    The regulariser's part (B6) is the objective's business; see `backprop`.

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`, unscaled.
        weights: one weight an example: masks, importance weights, clipping; None is the mean, 1/N each.

    Returns:
        A pytree of the parameters' structure.

    Raises:
        ValueError: weights that are not of shape (N,).
    """
    return net.read(trace, deltas, gradient_reader(weights))
