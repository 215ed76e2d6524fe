"""The health of every layer's signals: whether z, a and delta vanish, explode, saturate or die."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.layers.base import Layer, LayerTrace
from manual_backprop.node import Node
from manual_backprop.precision import accumulator
from manual_backprop.types import Leaf, Tree, require_number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Signal:
    """One array of a layer in four numbers, in the precision of sums.

    Attributes:
        norm: root mean square over examples of the Euclidean norm of an example's values.
        mean: over all entries.
        deviation: standard deviation over all entries.
        zeros: share of entries that are exactly 0.
    """

    norm: Leaf
    mean: Leaf
    deviation: Leaf
    zeros: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer's signals; under `Repeat` and `Tied` every number has the blocks in front.

    Attributes:
        z: net input.
        a: activation.
        delta: error term. Its norm by depth shows vanishing and exploding.
        saturated: share of entries of z where |f'(z)| is below the threshold, so that little passes back.
        dead: share of neurons that are saturated for every example and position of the batch.
    """

    z: Signal
    a: Signal
    delta: Signal
    saturated: Leaf
    dead: Leaf


def diagnose(net: Node, trace: Tree, deltas: Tree, *, threshold: float = 0.01) -> Tree:
    """Norm, mean, deviation, zeros and saturation of every layer's z, a and delta (F1) (F2) (C5), from one sweep.

    After Glorot and Bengio (2010), who read vanishing and saturation off the same statistics.

    Args:
        net: a layer or composite.
        trace: from `forward`.
        deltas: from `backward`, under any rule.
        threshold: of |f'(z)|, below which an entry counts as saturated.

    Returns:
        A `LayerDiagnosis` for every layer, in the network's structure; `table` prints it.

    Raises:
        ValueError: a threshold that is not positive; deltas that are not the trace's.
    """
    require_number("threshold", threshold)
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}")

    def of_layer(layer: Layer, at: LayerTrace, delta: Array) -> LayerDiagnosis:
        flat = jnp.abs(layer.f.slope(at.z, at.a)) < threshold
        dead = jnp.all(flat, axis=tuple(range(flat.ndim - 1)))
        wide = accumulator(at.z.dtype)
        return LayerDiagnosis(
            _signal(at.z), _signal(at.a), _signal(delta), jnp.mean(flat, dtype=wide), jnp.mean(dead, dtype=wide)
        )

    batch = validate.batch(net, trace, deltas)
    return net.visit(of_layer, *batch)


def _signal(values: Array) -> Signal:
    wide = values.astype(accumulator(values.dtype))
    return Signal(
        norm=jnp.sqrt(jnp.sum(jnp.square(wide)) / values.shape[0]),
        mean=jnp.mean(wide),
        deviation=jnp.std(wide),
        zeros=jnp.mean(values == 0, dtype=wide.dtype),
    )


def table(diagnosis: Tree) -> str:
    """The result of `diagnose` as text, a line for each layer, first to last; blocks of a `Repeat` one by one.

    Raises:
        TypeError: anything but a result of `diagnose`, or one that is being traced: a table needs numbers.
    """
    head = f"{'layer':<14}{'|z|':>10}{'|a|':>10}{'|delta|':>10}{'a = 0':>8}{'satur.':>8}{'dead':>7}"
    lines = [head]
    leaves = jax.tree_util.tree_leaves_with_path(diagnosis, is_leaf=lambda node: isinstance(node, LayerDiagnosis))
    for path, layer in leaves:
        if not isinstance(layer, LayerDiagnosis) or isinstance(layer.dead, jax.core.Tracer):
            raise TypeError(f"table prints what diagnose returns, outside of jit; got {type(layer).__name__}")
        blocks = jnp.shape(layer.dead)
        for block in np.ndindex(blocks):
            one = jax.tree.map(lambda leaf, at=block: leaf[at], layer)
            name = jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in block)
            lines.append(
                f"{name or 'it':<14}{one.z.norm:>10.3g}{one.a.norm:>10.3g}{one.delta.norm:>10.3g}"
                f"{one.a.zeros:>8.0%}{one.saturated:>8.0%}{one.dead:>7.0%}"
            )
    return "\n".join(lines)
