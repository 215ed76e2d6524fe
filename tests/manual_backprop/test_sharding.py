"""Layouts by name: what they split, that nothing else changes, and that they move no more than jax.grad does."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import FUSED, assert_close, batch, generic
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import manual_backprop as mb
import reference
from benchmarks import collectives
from manual_backprop import sharding
from reference import model

P = PartitionSpec
EQUAL = 1e-13  # of a leaf's largest entry, float64: sums in another order
N, WIDTH = 64, 32  # in smaller ones a few numbers more or less are a large part of the memory


def mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def block(width: int = WIDTH) -> mb.Serial:
    return mb.Serial((mb.Dense(width, 2 * width, "tanh"), mb.Dense(2 * width, width)))


CHAIN = mb.Repeat(mb.Residual(block()), 3)
NETS = {
    "dense": mb.Dense(WIDTH, WIDTH, "tanh"),
    "mlp": mb.mlp((WIDTH, 64, 64, WIDTH)),
    "chain": CHAIN,
    "kept": replace(CHAIN, recompute=False),
}


def problem(name: str) -> tuple[mb.Objective, Any, Any, Any]:
    net = NETS[name]
    return mb.Objective(net, mb.squared_error), generic(net, scale=0.3), batch(WIDTH, N), batch(WIDTH, N, seed=5)


def placed(name: str, layout: str, kind: AxisType = AxisType.Auto) -> tuple[Any, Any, Any]:
    objective, params, x, y = problem(name)
    specs = sharding.specs(objective.net, params, layout, mesh(kind))
    rows = sharding.place((x, y), mesh(kind), sharding.batch_spec(layout))
    return sharding.place(params, mesh(kind), specs), *rows


def shapes(net: Any) -> Any:
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


def test_specs_mirror_the_parameters():
    """Columns then rows in a block, heads, the vocabulary; blocks of a Repeat are never split."""
    of_chain = partial(sharding.specs, CHAIN, shapes(CHAIN), mesh=mesh())
    assert of_chain("data") == (mb.Affine(P(), P()),) * 2
    assert of_chain("tensor") == (mb.Affine(P(None, "model"), P(None, "model")), mb.Affine(P(None, None, "model"), P()))
    split = mb.Affine(P(None, "data"), P(None, "data"))
    assert of_chain("fsdp") == (split, replace(split, W=P(None, None, "data")))
    both = of_chain("2d")
    assert [leaf.W for leaf in both] == [P(None, "model", "data"), P(None, "data", "model")]

    net = mb.gpt(16, 8, 4, 2, 8, kv_heads=2, hidden=12, tied=True)
    of_table, (_, of_blocks, _) = sharding.specs(net, shapes(net), "tensor", mesh())
    (norm, q_k_v, _, out), (_, up, _, down) = of_blocks
    assert (of_table.W, norm.gain) == (P("model"), P())
    assert [leaf.W for leaf in (*q_k_v, *up)] == [P(None, "model")] * 5
    assert out.W == down.W == P(None, None, "model")


def test_heads_that_the_devices_do_not_divide_leave_attention_whole():
    net = mb.gpt(16, 8, 2, 2, 8, kv_heads=1)
    _, _, ((_, _, _, out), _), _, _ = sharding.specs(net, shapes(net), "tensor", mesh())
    assert tuple(out.W) == (None, "model")  # its rows come whole, so it begins anew by columns


@cache
def on_one_device(name: str) -> tuple[Any, Any]:
    objective, *inputs = problem(name)
    return jax.jit(mb.value_and_grad(objective))(*inputs)


class Checkpointed(mb.Residual):
    """A block that jax.grad runs forward again, as a recomputing `Repeat` does."""

    @classmethod
    def specimen(cls, block: Any, n: int) -> None:
        """None: it stays out of the catalogue."""


@model.through.register
def _(node: Checkpointed, at: Any, x: Any, params: Any, *uses: Any) -> Any:
    plain = partial(model.through, mb.Residual(node.block), at)
    return jax.checkpoint(plain)(x, params, *uses)


@pytest.mark.parametrize(
    ("name", "layout"), [("chain", "data"), ("chain", "fsdp"), ("chain", "2d"), ("mlp", "tensor"), ("kept", "fsdp")]
)
def test_a_layout_gives_the_numbers_of_one_device_and_moves_or_keeps_no_more_than_jax_grad(name, layout):
    """A recomputing Repeat beside jax.grad of a checkpointed block, which runs it again, too.

    Under automatic axes; `test_explicit_axes` has the numbers under the others.
    """
    objective = problem(name)[0]
    theirs = objective
    if name == "chain":
        theirs = replace(objective, net=replace(CHAIN, block=Checkpointed(block())))
    arguments = placed(name, layout)
    program, by_jax = (
        jax.jit(f).lower(*arguments).compile(FUSED)
        for f in (mb.value_and_grad(objective), reference.value_and_grad(theirs))
    )
    assert_close(program(*arguments), on_one_device("mlp" if name == "mlp" else "chain"), EQUAL)
    ours, of_jax = collectives.cost(program), collectives.cost(by_jax)
    assert 0 < ours.number <= of_jax.number
    assert 0 < ours.moved <= of_jax.moved
    assert ours.temporary <= of_jax.temporary + 512  # of scalars
    assert layout != "data" or ours.counts == {**dict.fromkeys(collectives.KINDS, 0), "all-reduce": ours.number}


def test_sums_over_devices_are_wider_than_16_bits():
    """Each device's part of W a is added up before it is rounded."""
    objective, *arrays = problem("mlp")
    params, x, y = jax.tree.map(lambda leaf: leaf.astype("float16"), arrays)
    on_devices = sharding.place(params, mesh(), sharding.specs(objective.net, params, "tensor", mesh()))
    rows = sharding.place((x, y), mesh(), P())
    text = jax.jit(mb.value_and_grad(objective)).lower(on_devices, *rows).compile().as_text()
    reduced = [line for line in text.splitlines() if " all-reduce(" in line]
    assert reduced and not any("= f16[" in line or "(f16[" in line for line in reduced)


@jax.numpy_dtype_promotion("standard")  # optax's Adam needs it
def test_training_splits_its_work_and_compiles_once():
    """`place` copies, so the originals outlive donated steps; an epoch's batches are split as the data are."""
    objective, params, x, y = problem("dense")
    optimizer = optax.adam(0.1)
    step = mb.training.make_step(objective, optimizer)
    epoch = mb.training.make_epoch(objective, optimizer, 8)
    key, found = jax.random.key(1), []
    one = jax.sharding.Mesh(jax.devices()[:1], "data")
    for devices in (one, mesh(AxisType.Auto), mesh(AxisType.Explicit)):
        where, rows = sharding.place(params, devices, P()), sharding.place((x, y), devices, P("data"))
        state = sharding.init_optimizer(optimizer, where)
        for _ in range(2):
            where, state, J = step(where, state, *rows)
        where, state, values = epoch(where, state, key, *rows)
        found.append((where, J, values))
    by_one, *by_all = found
    for by_eight in by_all:
        assert_close(by_eight, by_one, 1e-11)
    assert step._cache_size() == 3  # one device, and all of them with axes of either kind
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_batch_of_an_epoch_is_split():
    """Left to itself a gather is whole on every device, and so is all work on it."""
    x = jax.device_put(batch(16, N), NamedSharding(mesh(), P("data")))
    lies = mb.training._lies(x, 8)
    drawn = jax.jit(lambda x, at: mb.training._placed(x[at], lies))(x, jnp.arange(8))
    assert drawn.sharding.spec == P("data") and drawn.sharding.shard_shape(drawn.shape) == (2, 16)
    assert mb.training._lies(x, 6) is None and mb.training._lies(batch(16, N), 8) is None


def test_within_shard_map_the_gradient_is_of_the_shard():
    """So its mean over shards is the gradient; jax.grad of replicated parameters has summed over them already."""
    net = mb.Serial((mb.Repeat(mb.Dense(4, 4, "tanh"), 2), mb.Tied(mb.Residual(mb.Dense(4, 4, "tanh")), 2)))
    objective, params = mb.Objective(net, mb.squared_error), generic(net)
    x, y = batch(4, N), batch(4, N, seed=5)

    def mean(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data"), tree)

    def everything(over: Any, total: Any, params: Any, x: Any, y: Any) -> Any:
        step = mb.backprop(objective, params, x, y)
        at = net, step.trace, step.deltas

        def exported(params: Any) -> Any:
            return over(mb.as_custom_vjp(objective)(params, x, y))

        means = mb.value_and_grad(objective)(params, x, y), step.gradients, mb.kronecker_factors(*at)
        second = mb.hessian_vector_product(objective, params, x, y, params), mb.second_moment(*at)
        clipped = total(mb.clipped_gradients(*at, 0.5))
        return over((means, second)), jax.grad(exported)(params), clipped, mb.squared_norms(*at)

    total = partial(jax.tree.map, lambda leaf: jax.lax.psum(leaf, "data"))
    devices = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    on_shards = jax.shard_map(
        partial(everything, mean, total),
        mesh=devices,
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P(), P(), P(), P("data")),
    )
    whole = jax.jit(partial(everything, lambda tree: tree, lambda tree: tree))(params, x, y)
    assert_close(jax.jit(on_shards)(params, x, y), whole, 1e-12)

    def by_jax(params: Any, x: Any, y: Any) -> Any:
        return mean(jax.grad(objective)(params, x, y))

    summed = jax.shard_map(by_jax, mesh=devices, in_specs=(P(), P("data"), P("data")), out_specs=P())
    assert_close(jax.tree.map(lambda leaf: leaf / 8, jax.jit(summed)(params, x, y)), whole[1], 1e-12)


def test_bad_input_says_what_is_wrong(without_hook):
    objective, params, x, _ = problem("mlp")
    net, devices = objective.net, mesh()
    with pytest.raises(ValueError, match="layout must be one of data, fsdp, tensor, 2d, got 'pipeline'"):
        sharding.specs(net, params, "pipeline", devices)
    with pytest.raises(ValueError, match="layout must be one of"):
        sharding.batch_spec("rows")
    with pytest.raises(
        ValueError, match="\"tensor\" needs a mesh with an axis 'heads', got axes \\('data', 'model'\\)"
    ):
        sharding.specs(net, params, "tensor", devices, model="heads")
    with pytest.raises(ValueError, match='"tensor" splits no parameter of .* multiple of the devices, model=2'):
        odd = mb.mlp((3, 5, 3))
        sharding.specs(odd, generic(odd), "tensor", devices)
    with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh, as from jax.make_mesh, got"):
        sharding.specs(net, params, "data", jax.devices())
    with pytest.raises(ValueError, match="params"):
        sharding.specs(net, params[:1], "data", devices)
    with pytest.raises(ValueError, match="splits an axis of 64 into 3 parts, which do not divide it"):
        three = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])
        sharding.place({"x": x}, three, P("data"))
    with pytest.raises(ValueError, match="\\['x'\\]: .* names the axis 'rows', but the mesh has \\('data', 'model'\\)"):
        sharding.place({"x": x}, devices, P("rows"))
    with pytest.raises(ValueError, match="has 3 axes but the array is \\[64, 32\\]"):
        sharding.place(x, devices, P(None, None, "data"))
    with pytest.raises(TypeError, match="specs must hold jax.sharding.PartitionSpec, got str 'data'"):
        sharding.place(x, devices, "data")
    assert np.isfinite(x).all()
