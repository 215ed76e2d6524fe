"""Programs of several devices as programs of one.

`jax.shard_map` cuts arrays into shards, runs a body on each, and lets them meet in collectives such as psum. `jax.vmap`
with a named axis does the same with the rows of an array. So here the shards become rows, and the collectives become
sums over rows, which anything that reads a jaxpr knows already.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

Others = Mapping[str, Callable[[Any, dict[str, Any]], Any]]
"""Names of primitives, each with (an input, the equation's parameters) -> the output that it has instead."""
Evaluate = Callable[[ClosedJaxpr, list[Any], Others], list[Any]]
"""(a jaxpr, its inputs, other primitives) -> its outputs."""

AMONG_SHARDS: Others = {
    "pcast": lambda x, params: x,
    "pvary": lambda x, params: x,
    "psum_invariant": lambda x, params: jax.lax.psum(x, params["axes"]),
    "all_gather_invariant": lambda x, params: jax.lax.all_gather(
        x, params["axis_name"], axis=params["all_gather_dimension"], tiled=params["tiled"]
    ),
}
"""Collectives that also say in which shards a value may differ, as those that do not."""
OVER_ROWS: Others = {
    "pmax": lambda x, params: jnp.max(x, params["axes"]),
    "pmin": lambda x, params: jnp.min(x, params["axes"]),
    "psum": lambda x, params: jnp.sum(x, params["axes"]),
}
"""The collectives that vmap leaves, as sums and extremes over dimensions of an array."""


@lru_cache(maxsize=256)
def on_one_device(equation: JaxprEqn, evaluate: Evaluate) -> ClosedJaxpr:
    """The jaxpr of a shard_map, from its whole inputs to its whole outputs.

    Raises:
        NotImplementedError: the body holds a collective that vmap cannot batch.
    """
    params = equation.params
    body, mesh = params["jaxpr"], params["mesh"]
    axes = [name for name in mesh.axis_names if name in params["newly_manual_axes"]]
    takes = [_names(spec, variable.aval.ndim) for spec, variable in zip(params["in_specs"], body.invars, strict=True)]
    gives = [_names(spec, variable.aval.ndim) for spec, variable in zip(params["out_specs"], body.outvars, strict=True)]

    def on_a_shard(*inputs: Any) -> list[Any]:
        return evaluate(ClosedJaxpr(body, ()), [*inputs], AMONG_SHARDS)

    def whole(*inputs: Any) -> list[Any]:
        rows = [_cut(value, names, axes, mesh.shape) for value, names in zip(inputs, takes, strict=True)]
        shards: Any = on_a_shard
        for axis in reversed(axes):
            mapped = tuple(0 if any(axis in held for held in names) else None for names in takes)
            shards = jax.vmap(shards, mapped, axis_name=axis, axis_size=mesh.shape[axis])
        return [_joined(value, names, axes) for value, names in zip(shards(*rows), gives, strict=True)]

    avals: list[Any] = [variable.aval for variable in equation.invars]
    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    met = jax.make_jaxpr(whole)(*like)
    return jax.make_jaxpr(lambda *inputs: evaluate(met, [*inputs], OVER_ROWS))(*like)


def _names(spec: Any, ndim: int) -> list[tuple[str, ...]]:
    """For every dimension the mesh axes that it is cut along."""
    names = [() if held is None else (held,) if isinstance(held, str) else tuple(held) for held in spec]
    return names + [()] * (ndim - len(names))


def _cut(value: Any, names: list[tuple[str, ...]], axes: list[str], sizes: Any) -> Any:
    """An array with its mesh axes in front, in the order of `axes`, and a shard behind them."""
    held = [axis for each in names for axis in (*each, None)]
    cuts = [(*(sizes[axis] for axis in each), -1) for each in names]
    shape = [
        size if size >= 0 else whole // math.prod(cut[:-1])
        for whole, cut in zip(value.shape, cuts, strict=True)
        for size in cut
    ]
    front = [held.index(axis) for axis in axes if axis in held]
    return value.reshape(shape).transpose(*front, *(k for k, axis in enumerate(held) if axis is None))


def _joined(rows: Any, names: list[tuple[str, ...]], axes: list[str]) -> Any:
    """The inverse of `_cut`; along an axis that no dimension is cut along, the first shard stands for all."""
    cut_along = [axis for each in names for axis in each]
    rows = rows[tuple(slice(None) if axis in cut_along else 0 for axis in axes)]
    front = [axis for axis in axes if axis in cut_along]
    order, shape = [], []
    for k, each in enumerate(names, start=len(front)):
        places = [*(front.index(axis) for axis in each), k]
        order += places
        shape.append(math.prod(rows.shape[place] for place in places))
    return rows.transpose(order).reshape(shape)
