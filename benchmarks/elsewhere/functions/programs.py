"""Draws, bits, and programs that ask for their own dtype."""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.elsewhere.cases import Case, normal, positive

KEY = jax.random.key(0)


def _through_bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}"), x.dtype) * x


CASES: dict[str, Case] = {
    "bernoulli": normal(lambda x: jnp.where(jax.random.bernoulli(KEY, 0.7, x.shape), x / 0.7, 0) * x),
    "bitcast_convert_type": normal(_through_bits),
    "dtype": normal(lambda x: x * {2: 2, 4: 3, 8: 5}[x.dtype.itemsize]),
    "finfo": normal(lambda x: jnp.log(x**2 + jnp.finfo(x.dtype).eps)),
    "frexp": normal(lambda x: jnp.frexp(x)[0] ** 2),
    "gumbel": normal(lambda x: jax.nn.softmax(x + jax.random.gumbel(KEY, x.shape, x.dtype))),
    "mixed precision": normal(lambda x: jnp.tanh(x.astype("bfloat16") @ x.T.astype("bfloat16")).astype(x.dtype)),
    "mixed precision, a loss": normal(lambda x: jnp.mean(jax.nn.log_softmax(x.astype("float16")).astype(x.dtype) ** 2)),
    "normal": normal(lambda x: x * jax.random.normal(KEY, x.shape, x.dtype) + x**2),
    "permutation": normal(lambda x: jnp.sin(x)[jax.random.permutation(KEY, 6)]),
    "random.beta": positive(lambda x: jax.random.beta(KEY, x + 1, 2 * x, dtype=x.dtype)),
    "random.categorical": normal(lambda x: x**2 * jax.random.categorical(KEY, x, shape=(6,))[:, None]),
    "random.choice": normal(lambda x: jax.random.choice(KEY, x, (4,), replace=False) ** 2),
    "random.dirichlet": positive(lambda x: jax.random.dirichlet(KEY, 2 * x, dtype=x.dtype)),
    "random.exponential": normal(lambda x: jnp.exp(x) * jax.random.exponential(KEY, x.shape, x.dtype)),
    "random.gamma": positive(lambda x: jax.random.gamma(KEY, x + 0.5, dtype=x.dtype)),
    "random.laplace": normal(lambda x: x**2 + jax.random.laplace(KEY, x.shape, x.dtype)),
    "random.t": positive(lambda x: jax.random.t(KEY, x + 3, dtype=x.dtype)),
    "random.truncated_normal": normal(lambda x: x * jax.random.truncated_normal(KEY, -1, 1, x.shape, x.dtype)),
    "reduce_precision": normal(lambda x: jnp.sin(lax.reduce_precision(x, 5, 6))),
    "uniform": normal(lambda x: x * jax.random.uniform(KEY, x.shape, x.dtype)),
}
