"""A pipeline's value and gradient by every schedule, against jax.grad; its readings, its memory, its refusals."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, batch, every_time, generic, targets

import manual_backprop as mb
import reference
from benchmarks import pipeline
from manual_backprop.layers.base import Layer
from manual_backprop.schedules import NAMED, Operation, Schedule

N, M = 16, 4
BLOCK = mb.Residual(mb.Serial((mb.Dense(4, 5, "silu"), mb.Dense(5, 4))))
BLOCKS = mb.Repeat(BLOCK, 4)
GATE = mb.Serial((mb.Parallel((mb.Dense(4, 3, "silu"), mb.Dense(4, 3))), mb.Product("tanh"), mb.Dense(3, 4, "tanh")))
NESTED = mb.Residual(mb.Tied(mb.Repeat(GATE, 2), 2))
NETS = {
    "alone": mb.Repeat(BLOCK, 4, recompute=False),
    "between": mb.Serial((mb.Dense(6, 4, "tanh"), BLOCKS, mb.Dense(4, 5, "tanh"), mb.Dense(5, 3))),
    "last": mb.Serial((mb.Dense(6, 4, "tanh"), mb.Repeat(NESTED, 8, segments=4))),
}
FEATURES = {"alone": (4, 4), "between": (6, 3), "last": (6, 4)}


class Mine(mb.Dropout):
    """A layer that draws, and does not say what for a part of a batch."""

    drawing_for = Layer.drawing_for


def mesh(**axes: int) -> jax.sharding.Mesh:
    """Of the first devices, its axes explicit, as `jax.make_mesh` makes them."""
    count = int(np.prod(list(axes.values())))
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:count])


def automatic(**axes: int) -> jax.sharding.Mesh:
    """The same, cut by the compiler where nothing is said."""
    count = int(np.prod(list(axes.values())))
    return jax.sharding.Mesh(np.array(jax.devices()[:count]).reshape(*axes.values()), tuple(axes))


def problem(name: str, dtype: Any = "float64") -> tuple[mb.Objective, Any, Any, Any]:
    net, (enter, leave) = NETS[name], FEATURES[name]
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    x, y = batch(enter, N, dtype=dtype), targets(mb.squared_error, leave, N, dtype=dtype)
    return objective, generic(net, dtype=dtype, scale=0.8), x, y


@cache
def by_jax(name: str) -> tuple[Any, Any]:
    objective, params, x, y = problem(name)
    return jax.jit(reference.value_and_grad(objective))(params, x, y)


def weights() -> jax.Array:
    return jnp.asarray(np.linspace(0.1, 1, N))


def test_zero_bubble_gives_the_gradient_of_jax_grad():
    """Of gates in composites in composites; the tests below do it by the other schedules."""
    objective, params, x, y = problem("last")
    found = jax.jit(mb.pipeline(objective, mesh(stage=2), microbatches=M, schedule="zero_bubble"))
    assert_close(found(params, x, y), by_jax("last"))


def test_beside_data_parallelism():
    """With weights and another lam, on axes that the compiler cuts, and not compiled by the caller."""
    objective, params, x, y = problem("between")
    given = {"lam": 0.3, "weights": weights()}
    expected = jax.jit(reference.value_and_grad(objective))(params, x, y, **given)
    found = mb.pipeline(objective, automatic(data=2, stage=4), microbatches=M, data="data")
    assert_close(found(params, x, y, **given), expected)


DRAWN = {
    "around": mb.Serial(
        (
            *(mb.Embedding(6, 4), mb.Dropout(0.3)),
            mb.Repeat(mb.Residual(mb.Serial((mb.Dense(4, 4, "tanh"), mb.Dropout(0.3)))), 2),
            *(mb.Dropout(0.4), mb.Dense(4, 6, bias=False)),
        )
    ),
    "tied": mb.gpt(6, 4, 2, 2, 3, hidden=4, dropout=0.3, tied=True, gated=False),
}


@pytest.mark.parametrize("name", every_time(DRAWN, "tied"))
def test_with_a_key_a_microbatch_has_the_masks_of_its_examples_in_the_batch(name):
    """Of ids: before the blocks, in them and after them, where the readout goes in chunks.

    The table of a tied one is used by the first stage and by the last.
    """
    ids = jnp.asarray(np.random.default_rng(4).integers(0, 6, (8, 3)))
    objective = mb.Objective(DRAWN[name], mb.SoftmaxCrossEntropy(chunk=5))
    given = generic(DRAWN[name], scale=0.5), ids, ids[:, ::-1]
    key, other = jax.random.split(jax.random.key(9))
    by_hand = jax.jit(mb.value_and_grad(objective))
    expected = by_hand(*given, key=key)
    found = mb.pipeline(objective, mesh(data=2, stage=2), microbatches=2, data="data")
    assert_close(found(*given, key=key), expected)
    assert abs(by_hand(*given, key=other)[0] - expected[0]) > 1e-3


def test_ids_without_a_key():
    """The readout in chunks; against jax.grad."""
    net = mb.Serial((mb.Embedding(7, 4), mb.Repeat(BLOCK, 2), mb.Dense(4, 7, bias=False)))
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=5))
    ids = np.random.default_rng(0).integers(0, 7, (2, 4, 3))
    data = generic(net), *map(jnp.asarray, ids)
    found = jax.jit(mb.pipeline(objective, mesh(stage=2), microbatches=2))
    assert_close(found(*data), jax.jit(reference.value_and_grad(objective))(*data))


def test_gpipe_with_other_names_other_axes_and_fewer_microbatches_than_stages():
    objective, params, x, y = problem("between")
    found = mb.pipeline(objective, mesh(pipe=4, model=2), "pipe", microbatches=2, schedule="gpipe")
    assert_close(jax.jit(found)(params, x, y), by_jax("between"))


def test_one_stage_and_one_microbatch():
    objective, params, x, y = problem("alone")
    found = jax.jit(mb.pipeline(objective, mesh(stage=1), microbatches=1))
    assert_close(found(params, x, y), by_jax("alone"))


def test_a_schedule_of_your_own():
    """Last in, first out: with all waiting as long as they may, every buffer has a place for each microbatch."""
    forward = [Operation("F", m) for m in range(M)]
    backward = [Operation(kind, m) for kind in "BW" for m in reversed(range(M))]
    rows = (*forward, *[None] * (M + 1), *backward), (None, *forward, *backward, *[None] * M)
    objective, params, x, y = problem("alone")
    found = jax.jit(mb.pipeline(objective, mesh(stage=2), schedule=Schedule(rows)))
    assert_close(found(params, x, y), by_jax("alone"))


def test_every_number_is_proven_in_16_bits():
    """In float64 the other tests hold them against jax.grad."""
    objective, *data = problem("between")

    def pipelined(objective: mb.Objective) -> Any:
        return mb.pipeline(objective, mesh(data=2, stage=2), microbatches=M, data="data")

    reference.check(objective, *data, weights=weights(), dtype="bfloat16", value_and_grad=pipelined).raise_if_failed()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes_are_those_of_value_and_grad(dtype):
    """In 16 bits the sums over microbatches are in float32; what is returned is not."""
    objective, *data = problem("between", dtype)
    ours, theirs = mb.pipeline(objective, automatic(stage=2), microbatches=M), mb.value_and_grad(objective)
    assert jax.eval_shape(ours, *data) == jax.eval_shape(theirs, *data)


def test_training_takes_it():
    objective, params, x, y = problem("alone")

    def pipelined(objective: mb.Objective) -> Any:
        return mb.pipeline(objective, automatic(data=2, stage=2), microbatches=M, data="data")

    optimizer = optax.sgd(0.1)
    step = mb.training.make_step(objective, optimizer, value_and_grad=pipelined)
    _, gradient = by_jax("alone")
    expected = jax.tree.map(lambda own, leaf: own - 0.1 * leaf, params, gradient)
    assert_close(step(params, optimizer.init(params), x, y)[0], expected)


def test_readings():
    """Second moments and Kronecker factors, which are no sums of gradients, with weights and under data parallelism."""
    objective, params, x, y = problem("between")

    def kronecker(factor: Any, weights: Any) -> Any:
        # A and G of a microbatch are means over its examples, and its weights sum up to its part of the batch.
        return [jnp.sum(weights) * mean for mean in factor.kronecker("expand")]

    asked = {"second moment": lambda factor, weights: factor.squared_sum(weights), "Kronecker": kronecker}
    found = mb.pipeline(objective, mesh(data=2, stage=2), microbatches=M, data="data", readings=asked)
    value, gradient, readings = found(params, x, y)
    assert_close((value, gradient), by_jax("between"))

    def at_once(params: Any, x: Any, y: Any) -> Any:
        step = mb.backprop(objective, params, x, y)
        at = objective.net, step.trace, step.deltas
        return mb.second_moment(*at), mb.kronecker_factors(*at), mb.second_moment(*at, weights=weights())

    second_moment, factors, weighted = jax.jit(at_once)(params, x, y)
    assert_close(readings["second moment"], second_moment)
    assert_close(jax.tree.leaves(readings["Kronecker"]), jax.tree.leaves(factors))
    assert_close(found(params, x, y, weights=weights())[2]["second moment"], weighted)


def test_memory():
    """1F1B keeps as many microbatches as stages, GPipe all of them, as jax.grad through a forward pipeline does."""
    made = pipeline.programs(automatic(stage=2), microbatches=16, width=32, n=4)
    data = generic(pipeline.blocks(32, 4)), batch(32, 16 * 32), batch(32, 16 * 32, seed=2)
    compiled = {name: jax.jit(run).lower(*data).compile() for name, run in made.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    assert_close(compiled["1f1b"](*data), compiled[pipeline.BY_GRAD](*data))
    assert memory["1f1b"] < memory["zero_bubble"] < 0.6 * memory["gpipe"]
    assert memory["zero_bubble"] < 0.7 * memory[pipeline.CHECKPOINTED] < 0.7 * memory[pipeline.BY_GRAD]


def test_the_program_does_not_grow_with_the_ticks():
    objective, params, x, y = problem("alone")

    def lines(microbatches: int) -> int:
        run = jax.jit(mb.pipeline(objective, mesh(stage=2), microbatches=microbatches, schedule="1f1b"))
        return len(run.lower(params, x, y).as_text().splitlines())

    assert lines(16) == lines(8) > 100


def test_where_things_are():
    """Every stage has the gradient of its own blocks alone, and the rest is on every device; so may parameters be."""
    objective, params, x, y = problem("between")
    devices = mesh(stage=2)
    placed = jax.device_put(params, jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec()))
    in_stages = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("stage"))
    placed = (placed[0], jax.device_put(params[1], in_stages), *placed[2:])
    found = mb.pipeline(objective, devices, microbatches=M, schedule="1f1b")
    value, gradient = jax.jit(found)(placed, x, y)
    assert_close((value, gradient), by_jax("between"))
    assert {leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(gradient[1])} == {2}
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((value, gradient[0], gradient[2:])))


class Both(mb.Parallel):
    """A block that takes two arrays and returns two."""

    def forward(self, step: Any, x: Any, owned: Any) -> Any:
        each = [node.forward(step, part, own) for node, part, own in zip(self.nodes, x, owned, strict=True)]
        return tuple(output for output, _ in each), tuple(kept for _, kept in each)


def refused(match: str, error: Any = ValueError, *, net: Any = None, devices: Any = None, **arguments: Any) -> None:
    objective = mb.Objective(NETS["between"] if net is None else net, mb.squared_error)
    with pytest.raises(error, match=match):
        mb.pipeline(objective, mesh(stage=2) if devices is None else devices, **{"microbatches": M, **arguments})


@pytest.mark.usefixtures("without_hook")
def test_bad_input_says_what_is_wrong():
    dense = mb.Dense(4, 4)
    refused("3 stages do not divide the 4 blocks of 4 x .*; use a mesh", devices=mesh(stage=3))
    refused("must be a Repeat, or a Serial with exactly one Repeat .* got Dense\\(4 -> 4", net=dense)
    refused("exactly one Repeat among its nodes, got 0 in Dense", net=mb.Serial((dense,)))
    refused("exactly one Repeat among its nodes, got 2 in 4 x", net=mb.Serial((BLOCKS, BLOCKS)))
    refused("has the axes 'data', but stages='stage' is none of them", devices=mesh(data=2))
    refused("has the axes 'stage', but data='data' is none of them", data="data")
    refused("must be two, got 'stage' for both", data="stage")
    refused("mesh must be a mesh of devices, .* got int 4", TypeError, devices=4)
    refused("schedule must be one of gpipe, 1f1b, zero_bubble, or a Schedule, got 'pipedream'", schedule="pipedream")
    refused("schedule must be one of .* got int 1", TypeError, schedule=1)
    refused("microbatches must be an int >= 1, got None", microbatches=None)
    refused("microbatches must be an int >= 1, got int 0", microbatches=0)
    refused("the schedule has 4 stages and 8 microbatches, but .* 2 stages", schedule=NAMED["gpipe"](4, 8))
    refused("but the mesh has 2 stages and microbatches is 4", schedule=NAMED["gpipe"](2, 8))
    rows = NAMED["1f1b"](2, M).rows
    refused(
        "W3 \\(contraction\\) is missing in the row of stage 0", schedule=Schedule(((*rows[0][:-1], None), rows[1]))
    )
    refused("readings must map names to functions", TypeError, readings=["norms"])
    tied = mb.gpt(7, 4, 2, 2, 3, tied=True)
    refused("the first and the last stage of .* share a table", net=tied, readings={"norms": lambda f, w: 0})
    with pytest.raises(TypeError, match="expected an Objective, got Serial; with a loss"):
        mb.pipeline(NETS["between"], mesh(stage=2), microbatches=M)


@pytest.mark.usefixtures("without_hook")
def test_a_bad_batch_says_what_is_wrong():
    objective, params, x, y = problem("between")
    found = mb.pipeline(objective, mesh(stage=2), microbatches=M)
    with pytest.raises(ValueError, match="4 microbatches do not divide the batch, 15 examples; .* multiple of 4 ex"):
        found(params, x[:15], y[:15])
    of_data = mb.pipeline(objective, mesh(data=2, stage=2), microbatches=M, data="data")
    with pytest.raises(ValueError, match="2 devices along 'data' do not divide the batch of 15 examples"):
        of_data(params, x[:15], y[:15])
    with pytest.raises(ValueError, match="each device's part, along 'data', of the batch, 6 .* multiple of 8 ex"):
        of_data(params, x[:12], y[:12])
    unknown = mb.Objective(mb.Serial((Mine(0.5), *NETS["between"].nodes)), mb.squared_error)
    with pytest.raises(NotImplementedError, match="random, .* write drawing_for\\(self, part, key\\), or leave"):
        mb.pipeline(unknown, mesh(stage=2), microbatches=M)(((), *params), x, y, key=jax.random.key(0))
    by_example = {"norms": lambda factor, weights: factor.squared_norms()}
    with pytest.raises(ValueError, match="reading 'norms' returns \\[4\\] for one microbatch .* must be a sum over ex"):
        mb.pipeline(objective, mesh(stage=2), microbatches=M, readings=by_example)(params, x, y)
    counts = {"count": lambda factor, weights: jnp.asarray(factor.examples)}
    with pytest.raises(TypeError, match="reading 'count' must return floats, .* got int"):
        mb.pipeline(objective, mesh(stage=2), microbatches=M, readings=counts)(params, x, y)
    with pytest.raises(ValueError, match="y is \\[15, 3\\] but x has 16 examples"):
        found(params, x, y[:15])
    two = mb.Serial(
        (mb.Parallel((mb.Dense(3, 3), mb.Dense(3, 3))), mb.Repeat(Both((mb.Dense(3, 3),) * 2), 2), mb.Product())
    )
    with pytest.raises(ValueError, match="take one array, but 2 enter those of 2 x"):
        objective = mb.Objective(two, mb.squared_error)
        mb.pipeline(objective, mesh(stage=2), microbatches=M)(generic(two), batch(3, N), batch(3, N))
