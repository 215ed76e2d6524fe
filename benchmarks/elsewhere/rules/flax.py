"""Flax: layers of linen and of nnx, and the rules of its 8-bit operations."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.linen import fp8_ops

from benchmarks.elsewhere.cases import Case, Draw, drawn, itself, rule

KEY = jax.random.key(0)


def _linen(layer: nn.Module, *given: object, **fields: object) -> Case:
    """By the variables of a layer, and its input."""
    shapes = [jnp.ones(x.shape) if isinstance(x, Draw) else x for x in given]
    return itself(lambda variables, *x: layer.apply(variables, *x), layer.init(KEY, *shapes), *given, **fields)


def _cell(cell: nn.RNNCellBase, carried: tuple[Draw, ...]) -> Case:
    """By its variables, what it carries, and its input."""
    carry = cell.initialize_carry(KEY, (4,))
    variables = cell.init(KEY, carry, jnp.ones(4))
    pack = (lambda h: tuple(h)) if isinstance(carry, tuple) else (lambda h: h[0])
    return itself(lambda variables, x, *h: cell.apply(variables, pack(h), x), variables, drawn(4), *carried)


def _nnx(layer: nnx.Module, *given: object) -> Case:
    """By the parameters of a layer, and its input."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def function(values: dict, *x: jax.Array) -> jax.Array:
        state = nnx.clone(params)
        nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, state, rest)(*x)

    return itself(function, nnx.to_pure_dict(params), *given)


_CONTRACT = (((1,), (0,)), ((), ()))

CASES: dict[str, Case] = {
    "flax.linen.fp8_ops.dot_general_with_precision": rule(
        fp8_ops.dot_general_with_precision, drawn(3, 4), drawn(4, 2), _CONTRACT, None, None, mode="jvp"
    ),
    "flax.linen.fp8_ops.out_qdq": rule(
        fp8_ops.out_qdq, jnp.float32, jnp.float8_e5m2, drawn(3, 4), jnp.ones(1), jnp.zeros(16), dtypes=("float32",)
    ),
    "flax.linen.Dense": _linen(nn.Dense(3), drawn(2, 4)),
    "flax.linen.Dense, in bfloat16": _linen(nn.Dense(3, dtype="bfloat16"), drawn(2, 4)),
    "flax.linen.DenseGeneral": _linen(nn.DenseGeneral((2, 3), axis=(-2, -1)), drawn(2, 3, 4)),
    "flax.linen.Einsum": _linen(nn.Einsum((4, 3), "ab,bc->ac", use_bias=False), drawn(2, 4)),
    "flax.linen.Conv": _linen(nn.Conv(3, (3, 3)), drawn(1, 5, 5, 2)),
    "flax.linen.ConvTranspose": _linen(nn.ConvTranspose(3, (3, 3), (2, 2)), drawn(1, 3, 3, 2)),
    "flax.linen.ConvLocal": _linen(nn.ConvLocal(2, (3,)), drawn(1, 5, 2)),
    "flax.linen.LayerNorm": _linen(nn.LayerNorm(), drawn(3, 5)),
    "flax.linen.RMSNorm": _linen(nn.RMSNorm(), drawn(3, 5)),
    "flax.linen.GroupNorm": _linen(nn.GroupNorm(2), drawn(2, 3, 4)),
    "flax.linen.InstanceNorm": _linen(nn.InstanceNorm(), drawn(2, 5, 3)),
    "flax.linen.PReLU": _linen(nn.PReLU(), drawn(9)),
    "flax.linen.GRUCell": _cell(nn.GRUCell(3), (drawn(3),)),
    "flax.linen.LSTMCell": _cell(nn.LSTMCell(3), (drawn(3), drawn(3))),
    "flax.linen.OptimizedLSTMCell": _cell(nn.OptimizedLSTMCell(3), (drawn(3), drawn(3))),
    "flax.linen.MGUCell": _cell(nn.MGUCell(3), (drawn(3),)),
    "flax.linen.LayerNorm, in float16": _linen(nn.LayerNorm(dtype="float16"), drawn(2, 4)),
    "flax.linen.MultiHeadDotProductAttention": _linen(
        nn.MultiHeadDotProductAttention(2, use_bias=False), drawn(1, 3, 4)
    ),
    "flax.linen.avg_pool": itself(lambda x: nn.avg_pool(x, (2, 2), (2, 2)), drawn(1, 4, 4, 2)),
    "flax.linen.max_pool": itself(lambda x: nn.max_pool(x, (2, 2), (2, 2)), drawn(1, 4, 4, 2)),
    "flax.nnx.Linear": _nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), drawn(2, 4)),
    "flax.nnx.LayerNorm": _nnx(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), drawn(2, 4)),
    "flax.nnx.LoRALinear": _nnx(nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0)), drawn(2, 4)),
}
