"""signax: signatures of paths."""

import jax
import jax.numpy as jnp
import signax

from benchmarks.elsewhere.cases import Case, drawn, formula, itself


def _second(x: jax.Array) -> list[jax.Array]:
    """Of depth 2, from the definition for a path of straight pieces."""
    steps = jnp.diff(x, axis=0)
    before = jnp.cumsum(steps, 0) - steps
    return [steps.sum(0), jnp.einsum("ti,tj->ij", before + steps / 2, steps)]


CASES: dict[str, Case] = {
    "signax.signature, 2": formula(lambda x: signax.signature(x, 2, flatten=False), _second, drawn(6, 2)),
    "signax.signature, 3": itself(lambda x: signax.signature(x, 3), drawn(6, 2)),
    "signax.logsignature": itself(lambda x: signax.logsignature(x, 3), drawn(6, 2)),
    "signax.signature, stream": itself(lambda x: signax.signature(x, 2, stream=True), drawn(6, 2)),
}
