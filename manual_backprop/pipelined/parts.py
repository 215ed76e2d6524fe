"""A network as what stands before its blocks, the blocks that are split into stages, and what stands after them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import jax
import jax.numpy as jnp

from manual_backprop.network import Repeat, Serial, TiedReadout
from manual_backprop.node import Node
from manual_backprop.types import Tree


@dataclass(frozen=True)
class Parts:
    """A network in three parts, in the order in which a signal passes them.

    Attributes:
        before: None where nothing stands before the blocks.
        chain: the blocks.
        after: None where nothing stands after them.
        apart: takes a tree that mirrors the network's parameters apart; () is the tree of a part that is None.
        join: puts gradients of the three together, in the structure of the network's parameters.
        shares: whether `before` and `after` share parameters, so that only sums over uses can be joined.
    """

    before: Node | None
    chain: Repeat
    after: Node | None
    apart: Callable[[Tree], tuple[Tree, Tree, Tree]]
    join: Callable[[Tree, Tree, Tree], Tree]
    shares: bool = False


@singledispatch
def parts(net: Node) -> Parts:
    """The parts of a network. A composite with blocks of its own registers here how it is taken apart.

    Raises:
        ValueError: a network without a `Repeat`, or with several.
    """
    raise ValueError(
        f"pipeline splits the blocks of a Repeat into stages: the network must be a Repeat, or a Serial with exactly"
        f" one Repeat among its nodes, got {net}; write its equal blocks as mb.Repeat(block, n)"
    )


@parts.register
def _(net: Repeat) -> Parts:
    return Parts(None, net, None, lambda tree: ((), tree, ()), lambda before, chain, after: chain)


@parts.register
def _(net: Serial) -> Parts:
    places = [place for place, node in enumerate(net.nodes) if isinstance(node, Repeat)]
    if len(places) != 1:
        raise ValueError(
            f"pipeline splits the blocks of one Repeat into stages: the Serial must have exactly one Repeat among its"
            f" nodes, got {len(places)} in {net}; write its equal blocks as one mb.Repeat(block, n)"
        )
    at = places[0]
    chain = net.nodes[at]
    assert isinstance(chain, Repeat)

    def apart(tree: Tree) -> tuple[Tree, Tree, Tree]:
        return tree[:at], tree[at], tree[at + 1 :]

    def join(before: Tree, chain: Tree, after: Tree) -> Tree:
        return (*before, chain, *after)

    return Parts(_in_turn(net.nodes[:at]), chain, _in_turn(net.nodes[at + 1 :]), apart, join)


@parts.register
def _(net: TiedReadout) -> Parts:
    body = parts(net.body)
    before = Serial((net.embedding, *_nodes(body.before)))
    after = Serial((*_nodes(body.after), net.readout))

    def apart(tree: Tree) -> tuple[Tree, Tree, Tree]:
        table, of_body = tree
        before, chain, after = body.apart(of_body)
        return (table, *before), chain, (*after, table)

    def join(before: Tree, chain: Tree, after: Tree) -> Tree:
        both = jax.tree.map(jnp.add, before[0], after[-1])
        return both, body.join(before[1:], chain, after[:-1])

    return Parts(before, body.chain, after, apart, join, shares=True)


def _in_turn(nodes: tuple[Node, ...]) -> Serial | None:
    return Serial(nodes) if nodes else None


def _nodes(part: Node | None) -> tuple[Node, ...]:
    return part.nodes if isinstance(part, Serial) else ()
