"""einops: rearrangements and reductions."""

import einops
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case, drawn, formula, within

CASES: dict[str, Case] = {
    "einops.rearrange": formula(
        lambda x: jnp.sin(einops.rearrange(x, "a (b c) -> c (a b)", b=3)),
        lambda x: jnp.sin(x.reshape(4, 3, 2).transpose(2, 0, 1).reshape(2, 12)),
        drawn(4, 6),
    ),
    "einops.reduce, mean": formula(
        lambda x: einops.reduce(x, "a (b c) -> a b", "mean", b=3), lambda x: x.reshape(4, 3, 2).mean(2), drawn(4, 6)
    ),
    "einops.reduce, max": formula(
        lambda x: einops.reduce(x, "a (b c) -> a b", "max", b=3), lambda x: x.reshape(4, 3, 2).max(2), drawn(4, 6)
    ),
    "einops.reduce, prod": formula(
        lambda x: einops.reduce(x, "a b -> a", "prod"), lambda x: x[:, 0] * x[:, 1] * x[:, 2], within(0.3, 2, 4, 3)
    ),
    "einops.repeat": formula(
        lambda x: einops.repeat(x, "a b -> a (b 2)") ** 2, lambda x: jnp.repeat(x, 2, 1) ** 2, drawn(4, 3)
    ),
    "einops.einsum": formula(
        lambda x, y: einops.einsum(x, y, "a b, b c -> c a"), lambda x, y: (x @ y).T, drawn(4, 3), drawn(3, 2)
    ),
}
