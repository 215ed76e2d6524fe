"""Sequences whose positions are split over devices: attention takes them whole, every other layer as they lie."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_close, generic
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import manual_backprop as mb

NET = mb.gpt(8, 4, 2, 1, 4, hidden=4, kv_heads=1, rope=10.0, tied=True)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 8, (4, 4)))


def test_the_gradient_is_that_of_one_device_under_explicit_axes():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    params = generic(NET)
    ids = jax.device_put(IDS, NamedSharding(mesh, PartitionSpec("data", "model")))
    on_all = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    by_hand = jax.jit(mb.value_and_grad(mb.Objective(NET, mb.softmax_cross_entropy)))
    assert_close(by_hand(on_all, ids, ids), by_hand(params, IDS, IDS), 1e-13)
