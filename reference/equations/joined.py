"""Measured error bounds for the flow through a composite that is not registered in `reference.equations.joins`.

They need only `reference.model.through`, which says how the composite is joined. The stored values stand in for its
layers, one after the other in the order of computation, so the input of each layer is known before its own equations
are evaluated. On the way down JAX transposes the joins, and each layer sends the result of its own transport.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.layers import Layer
from manual_backprop.network import Repeat, Tied, TiedReadout
from manual_backprop.node import Branches, Node
from reference import model
from reference.equations.bounds import Known
from reference.equations.chain import Use
from reference.equations.families import KnownFlow
from reference.equations.joins import Arriving, Way, down, up
from reference.equations.measured import measured

Tree = Any


@up.register
def _(node: Node, way: Way, x: KnownFlow, uses: Iterator[Use]) -> KnownFlow:
    inside = [next(uses) for _ in range(node.depth)]
    way.entered[inside[0].number] = x
    left = [Known.exactly(use.values.a) for use in inside]
    for i, use in enumerate(inside):
        _, entering = measured(way.of, _up, node, x, mirroring(node, iter(left)))
        left[i] = way.at(use, listed(node, entering)[i])
    return measured(way.of, _up, node, x, mirroring(node, iter(left)))[0]


@down.register
def _(node: Node, way: Way, d: Any, uses: Iterator[Use]) -> Any:
    inside = [next(uses) for _ in range(node.depth)][::-1]
    x = way.entered[inside[0].number]
    left = mirroring(node, iter([Known.exactly(use.values.a) for use in inside]))
    _, entering = measured(way.of, _up, node, x, left)
    sent = [jax.tree.map(_nothing, each) for each in listed(node, entering)]
    run = partial(measured, way.of, _down, node, x, left)
    of_output = jax.tree.map(lambda arriving: arriving.known, d)
    for i in reversed(range(len(inside))):
        _, arriving = run(mirroring(node, iter(sent)), of_output)
        below = way.at(inside[i], Arriving(listed(node, arriving)[i]))
        sent[i] = jax.tree.map(lambda each: each.known, below)
    by = tuple(use.number for use in inside)
    return jax.tree.map(lambda known: Arriving(known, by=by), run(mirroring(node, iter(sent)), of_output)[0])


def _nothing(known: Known) -> Known | None:
    """A zero in place of the term that a layer sends down, until that is known; None for integers."""
    moves = np.issubdtype(np.asarray(known.value).dtype, np.floating)
    return Known.exactly(np.zeros_like(known.value)) if moves else None


def _up(node: Node, x: Any, left: Tree) -> Any:
    """The composite's output and the input of each of its layers, given the layers' outputs `left`."""
    return model.through(node, lambda layer, x, params, a: (a, x), x, node.map(lambda layer: ()), left)


def _down(node: Node, x: Any, left: Tree, sent: Tree, d_output: Any) -> Any:
    """dL/d(input of the composite) and dL/d(output of each layer), given the terms `sent` down by the layers."""

    def output(x: Any, probes: Tree) -> Any:
        def at(layer: Layer, x: Any, params: Any, a: Any, sends: Any, probe: Any) -> Any:
            return _stand_in(x, a, sends, probe), ()

        return model.through(node, at, x, node.map(lambda layer: ()), left, sent, probes)[0]

    _, pull = jax.vjp(output, x, jax.tree.map(jnp.zeros_like, left))
    d_x, arriving = pull(d_output)
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, d_x), arriving


@jax.custom_vjp
def _stand_in(x: Any, a: Any, sends: Any, probe: Any) -> Any:
    """A layer with a known output `a` and a known term `sends` to send down; the probe's cotangent is dL/da."""
    return a


_stand_in.defvjp(lambda x, a, sends, probe: (a, (x, a, sends)), lambda kept, d_a: (*_sent(*kept), d_a))


def _sent(x: Any, a: Any, sends: Any) -> Any:
    return sends, jnp.zeros_like(a), jax.tree.map(jnp.zeros_like, sends)


def mirroring(node: Node, values: Iterator[Any]) -> Tree:
    """Build the tree that mirrors the uses of a node, from one entry for each use, first to last."""
    if isinstance(node, Layer):
        return next(values)
    if isinstance(node, Branches | TiedReadout):
        return tuple(mirroring(child, values) for child in _parts_of(node))
    if isinstance(node, Repeat | Tied):
        return jax.tree.map(_stacked, *(mirroring(node.block, values) for _ in range(node.n)))
    return mirroring(node.block, values)  # type: ignore[attr-defined]


def listed(node: Node, tree: Tree) -> list[Any]:
    """The entries of a tree that mirrors the uses of a node, first to last."""
    if isinstance(node, Layer):
        return [tree]
    if isinstance(node, Branches | TiedReadout):
        return [entry for child, part in zip(_parts_of(node), tree, strict=True) for entry in listed(child, part)]
    if isinstance(node, Repeat | Tied):
        parts = (jax.tree.map(lambda known, i=i: _parts(known, lambda leaf: leaf[i]), tree) for i in range(node.n))
        return [entry for part in parts for entry in listed(node.block, part)]
    return listed(node.block, tree)  # type: ignore[attr-defined]


def _parts_of(node: Branches | TiedReadout) -> tuple[Node, ...]:
    return node.parts if isinstance(node, TiedReadout) else node.nodes


def _stacked(*each: Known) -> Known:
    return Known(*(np.stack([getattr(known, name) for known in each]) for name in ("value", "bound", "slack")))


def _parts(known: Known, take: Any) -> Known:
    return Known(take(known.value), take(known.bound), take(known.slack))
