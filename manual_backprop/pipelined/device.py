"""The program of every device of a pipeline: a scan over ticks, in which it works and hands on the result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.network import Repeat
from manual_backprop.objective import Objective
from manual_backprop.pipelined.memory import put
from manual_backprop.pipelined.parts import Parts
from manual_backprop.pipelined.reading import Contraction, Reading
from manual_backprop.pipelined.stage import Stage, State
from manual_backprop.pipelined.timetable import NOTHING, Now, Timetable
from manual_backprop.shards import varying_along
from manual_backprop.types import Scalar, Tree

ByPart = tuple[Tree, Tree, Tree]
"""A tree of the part before the blocks, one of the blocks, and one of the part after them."""

Found = ByPart
"""(the gradient, the readings by name) of the part before the blocks, of the blocks, and of the part after them."""


@dataclass(frozen=True)
class Device:
    """The body of `jax.shard_map`.

    Attributes:
        parts: the whole network.
        objective: whose loss is taken.
        readings: by name.
        table: of the schedule.
        stages: the axis of the stages.
        data: the axes along which the batch is split: one or none.
    """

    parts: Parts
    objective: Objective
    readings: Mapping[str, Reading]
    table: Timetable
    stages: str
    data: tuple[str, ...]

    def __call__(
        self, now: Now, params: ByPart, x: Tree, y: Array, weights: Array, keys: ByPart
    ) -> tuple[Scalar, Found]:
        """(L, what is found), from the device's column of the timetable, its parameters, its examples and its keys.

        Until the end nothing is summed over devices; L and the gradients of the parts before and after the blocks are
        then summed over all, as each is made on one stage, and those of the blocks along the data alone.
        """
        everywhere = (self.stages, *self.data)
        own: Now = jax.tree.map(lambda leaf: leaf[:, 0], now)
        params, x, y, weights = varying_along(everywhere, (params, x, y, weights))
        stage = self._stage(params, x, y, weights, keys)
        count = jax.lax.axis_size(self.stages)
        up, down = [(s, s + 1) for s in range(count - 1)], [(s + 1, s) for s in range(count - 1)]

        def tick(state: State, now: Now) -> tuple[State, None]:
            state = stage.work(state, now)
            from_below = jax.lax.ppermute(state.sent, self.stages, up)
            from_above = jax.lax.ppermute(state.sent, self.stages, down)
            from_above = jnp.where(stage.last, state.sent, from_above)  # outputs of the last stage wait for its B
            below = put(state.below, now.from_below, from_below, when=now.from_below != NOTHING)
            above = put(state.above, now.from_above, from_above, when=now.from_above != NOTHING)
            return replace(state, below=below, above=above), None

        done, _ = jax.lax.scan(tick, stage.start(self.table), varying_along(everywhere, own))
        before, chain, after = done.found
        loss, before, after = jax.lax.psum((done.loss, before, after), everywhere)
        return loss, (before, jax.lax.psum(chain, self.data) if self.data else chain, after)

    def _stage(self, params: ByPart, x: Tree, y: Array, weights: Array, keys: ByPart) -> Stage:
        count, place = jax.lax.axis_size(self.stages), jax.lax.axis_index(self.stages)
        after = self.parts.chain if self.parts.after is None else self.parts.after
        shard = jax.lax.axis_index(self.data) if self.data else 0
        x, y, weights = jax.tree.map(partial(_cut, self.table.microbatches), (x, y, weights))
        return Stage(
            parts=replace(self.parts, chain=_share(self.parts.chain, count)),
            objective=Objective(after, self.objective.loss),
            contraction=Contraction(
                self.readings, weighed=weights.dtype == validate.dtype_of(params, x) and not self.readings
            ),
            params=params,
            x=x,
            y=y,
            weights=weights,
            keys=keys,
            shard=shard,
            shards=jax.lax.axis_size(self.data) if self.data else 1,
            first=place == 0,
            last=place == count - 1,
        )


def _share(chain: Repeat, count: int) -> Repeat:
    """The blocks of one stage."""
    segments = None if chain.segments is None else -(-chain.segments // count)
    return replace(chain, n=chain.n // count, segments=segments)


def _cut(microbatches: int, leaf: Array) -> Array:
    """The examples with the microbatches in front."""
    return leaf.reshape(microbatches, -1, *leaf.shape[1:])
