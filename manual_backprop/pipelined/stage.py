"""One stage on one device: its part of the network and of the batch, and what F, B and W do there."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import readout
from manual_backprop.node import Node
from manual_backprop.objective import Objective, per_example_scaled
from manual_backprop.pipelined import arguments
from manual_backprop.pipelined.memory import Work, added, once, put, taken
from manual_backprop.pipelined.parts import Parts
from manual_backprop.pipelined.reading import Contraction, pair
from manual_backprop.pipelined.timetable import CODES, Now, Timetable
from manual_backprop.precision import accumulator
from manual_backprop.shards import zeros_beside
from manual_backprop.sweep import backward_sweep, forward_sweep
from manual_backprop.types import Distinct, Leaf, Part, Tree

Drawing = dict[str, Any]
"""The arguments `keys` and `part` of a sweep: what its layers draw, for which examples of the batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a device holds between two ticks.

    Attributes:
        below: block inputs that have arrived, (places, *microbatch).
        kept: what F keeps for B, with the places in front.
        above: error terms that have arrived; at the last stage, outputs of the blocks.
        pairs: (a, delta) of every layer, which B keeps for W, with the places in front.
        sent: what the stage's last F or B has made, for the stage above or below.
        loss: the loss so far.
        found: gradients and readings so far, of (before, the stage's blocks, after), in the precision of sums.
    """

    below: Leaf
    kept: Tree
    above: Leaf
    pairs: Tree
    sent: Leaf
    loss: Leaf
    found: tuple[Tree, Tree, Tree]


@dataclass(frozen=True)
class Stage:
    """A stage: F, B and W as functions of (state, now).

    Attributes:
        parts: the network, with this stage's blocks as its chain.
        objective: whose loss is taken, of `parts.after` if there is such a part.
        contraction: what W makes of the pairs.
        params: of (before, the stage's blocks, after).
        x, y, weights: of the device's examples, with the microbatches in front.
        keys: of (before, the stage's blocks, after), for layers that draw at random; None where nothing is drawn.
        shard: which part of the batch the device's examples are, and of how many parts, `shards`.
        first, last: whether it is the first stage, and the last.
    """

    parts: Parts
    objective: Objective
    contraction: Contraction
    params: tuple[Tree, Tree, Tree]
    x: Tree
    y: Array
    weights: Array
    keys: tuple[Tree, Tree, Tree]
    shard: Leaf
    shards: int
    first: Array
    last: Array

    def start(self, table: Timetable) -> State:
        """The state before the first tick: all zeros.

        Raises:
            TypeError: a reading that finds no floats.
            ValueError: a reading that is no sum over examples, but has something for each of them.
        """
        x, kept, pairs, found = self._shapes(1)
        if self.contraction.readings:
            arguments.require_sums(found, self._shapes(2)[3])

        def zeros(places: int, like: Tree) -> Tree:
            return jax.tree.map(lambda leaf: self._zeros((places, *leaf.shape), leaf.dtype), like)

        wide = accumulator(x.dtype)
        return State(
            below=zeros(table.below, x),
            kept=zeros(table.kept, kept),
            above=zeros(table.above, x),
            pairs=zeros(table.pairs, pairs),
            sent=self._zeros(x.shape, x.dtype),
            loss=self._zeros((), wide),
            found=jax.tree.map(lambda leaf: self._zeros(leaf.shape, accumulator(leaf.dtype)), found),
        )

    def _zeros(self, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return zeros_beside(self.weights, shape, dtype)

    def _shapes(self, times: int) -> tuple[Tree, Tree, Tree, Tree]:
        """Shapes of (a block's input, what F keeps, what B keeps, what is found), with so many times the examples."""

        def values(params: Tree, keys: Tree, x: Tree, y: Array, weights: Array) -> tuple[Tree, Tree, Tree, Tree]:
            one = replace(self, params=params, keys=keys, x=x, y=y, weights=weights, shard=0)
            entered = one.entering(0)
            _, kept = one.up(0, entered)
            _, pairs = one.down(0, kept, entered)
            found = one.into_batch(0, entered), one.contracted(0, pairs), one.turned(0, entered)[2]
            return entered, kept, pairs, found

        def more(leaf: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((leaf.shape[0], times * leaf.shape[1], *leaf.shape[2:]), leaf.dtype)

        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (self.params, self.keys))
        return jax.eval_shape(values, *given, *jax.tree.map(more, (self.x, self.y, self.weights)))

    def work(self, state: State, now: Now) -> State:
        """Do in one tick what the timetable says."""
        is_forward = now.code == CODES["F"]
        nothing = jax.tree.map(lambda leaf: self._zeros(leaf.shape[1:], leaf.dtype), state.kept)
        of_blocks, sent = once(is_forward, self.forward(state, now), (nothing, state.sent))
        # Out here, XLA sees which parts of the trace no B reads, and keeps none of them.
        state = replace(state, kept=put(state.kept, now.kept, of_blocks, when=is_forward), sent=sent)
        # Each operation reads the state after the one before: of one that is read and changed, XLA would make a copy.
        before, chain, after = state.found
        held = state.pairs, state.sent, (state.loss, before, after)
        pairs, sent, (loss, before, after) = once(now.code == CODES["B"], self.backward(state, now), held)
        state = replace(state, pairs=pairs, sent=sent, loss=loss)
        chain = once(now.code == CODES["W"], self.contract(state, now), chain)
        return replace(state, found=(before, chain, after))

    # F

    def forward(self, state: State, now: Now) -> Work:
        """F: up through the stage's blocks. (what they keep, sent) -> the same."""

        def work(held: tuple[Tree, Array]) -> tuple[Tree, Array]:
            x = once(self.first, lambda x: self.entering(now.microbatch), taken(state.below, now.below))
            left, kept = self.up(now.microbatch, x)
            return kept, left

        return work

    def entering(self, m: Leaf) -> Array:
        """The first block's input, from the batch."""
        return climbed(self.parts.before, self.params[0], taken(self.x, m), self.drawing(0, m))[0]

    def up(self, m: Leaf, x: Array) -> tuple[Array, Distinct]:
        """(what leaves the stage's blocks, what they keep)."""
        left, kept = climbed(self.parts.chain, self.params[1], x, self.drawing(1, m))
        return left, Distinct.of(kept)

    def drawing(self, place: int, m: Leaf) -> Drawing:
        """The keys of one of the three parts, and which examples of the batch a microbatch is."""
        microbatches, size = self.weights.shape
        start = (self.shard * microbatches + m) * size
        return {"keys": self.keys[place], "part": Part(start, self.shards * microbatches * size)}

    # B

    def backward(self, state: State, now: Now) -> Work:
        """B: error terms down through the stage's blocks; the last stage takes them from the loss.

        (pairs, sent, (loss, found before, found after)) -> the same.
        """
        m = now.microbatch

        def turn(held: tuple[Array, Array, Tree]) -> tuple[Array, Array, Tree]:
            x, loss, after = held
            here, d, found = self.turned(m, x)
            return d, loss + here, added(after, found)

        def work(held: tuple[Tree, Array, Tree]) -> tuple[Tree, Array, Tree]:
            pairs, _, (loss, before, after) = held
            arrived = taken(state.above, now.above)
            d, loss, after = once(self.last, turn, (arrived, loss, after))
            d, of_blocks = self.down(m, taken(state.kept, now.kept), d)
            before = once(self.first, lambda before: added(before, self.into_batch(m, d)), before)
            return put(pairs, now.pairs, of_blocks), d, (loss, before, after)

        return work

    def down(self, m: Leaf, kept: Distinct, d: Array) -> tuple[Array, Distinct]:
        """(the error term below the stage's blocks, their pairs)."""
        below, pairs = transported(self.parts.chain, self.params[1], kept.tree, d, self.drawing(1, m))
        return below, Distinct.of(pairs)

    def turned(self, m: Leaf, x: Array) -> tuple[Array, Array, Tree]:
        """(the microbatch's loss, the error term at the output x of the blocks, what is found of the part after)."""
        y, weights = taken((self.y, self.weights), m)
        loss, weighed = self.objective.loss, self.contraction.weighed
        node, params, drawing = self.parts.after, self.params[2], self.drawing(2, m)
        chunked = None if self.contraction.readings else self.objective.chunked(y)
        if chunked is not None:
            split, of_rows = chunked
            if drawing["keys"] is not None:
                drawing["keys"] = split.of_body(drawing["keys"])
            x, trace = climbed(split.body, split.of_body(params), x, drawing)
            losses, d, of_readout = readout.losses_and_gradients(
                of_rows, split.readout(params), x, y, weights, weigh_x=weighed
            )
            d, pairs = transported(split.body, split.of_body(params), trace, d, drawing)
            found: Tree = split.joined(self.contraction(split.body, pairs, weights)[0], of_readout), {}
        else:
            output, trace = climbed(node, params, x, drawing)
            losses, d = loss.checked_value(output, y), loss.checked_derivative(output, y)
            d, pairs = transported(node, params, trace, per_example_scaled(d, weights) if weighed else d, drawing)
            found = self.contraction(node, pairs, weights)
        return jnp.sum(weights * losses), d, found

    def into_batch(self, m: Leaf, d: Array) -> Tree:
        """The gradient and the readings of the part before, which is run again: nothing of it is kept."""
        node, params, drawing = self.parts.before, self.params[0], self.drawing(0, m)
        _, trace = climbed(node, params, taken(self.x, m), drawing)
        _, pairs = transported(node, params, trace, d, drawing)
        return self.contraction(node, pairs, taken(self.weights, m))

    # W

    def contract(self, state: State, now: Now) -> Work:
        """W: the pairs of one microbatch to its part of the gradient and of the readings. Found -> the same."""
        m = now.microbatch
        return lambda chain: added(chain, self.contracted(m, taken(state.pairs, now.pairs)))

    def contracted(self, m: Leaf, pairs: Distinct) -> Tree:
        """The gradient and the readings of the stage's blocks, in one microbatch."""
        return self.contraction(self.parts.chain, pairs.tree, taken(self.weights, m))


def climbed(node: Node | None, params: Tree, x: Tree, drawing: Drawing) -> tuple[Tree, Tree]:
    """(output, trace), lean; of no node, its input."""
    return (x, ()) if node is None else forward_sweep(node, params, x, lean=True, **drawing)


def transported(node: Node | None, params: Tree, trace: Tree, d: Array, drawing: Drawing) -> tuple[Tree, Tree]:
    """(the error term below, the pairs): nothing is contracted."""
    return (d, ()) if node is None else backward_sweep(node, params, trace, d, reader=pair, lean=True, **drawing)
