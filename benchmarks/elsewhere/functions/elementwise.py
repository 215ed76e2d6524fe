"""Functions of numbers."""

import jax.numpy as jnp
from jax import lax

from benchmarks.elsewhere.cases import Case, between, drawn, itself, normal, positive, within

CASES: dict[str, Case] = {
    "abs": normal(jnp.abs),
    "angle": normal(lambda x: jnp.angle(x + 1j * jnp.sin(x)), dtypes=("float64", "float32")),
    "arccos": between(jnp.arccos, -0.9, 0.9),
    "arccosh": between(jnp.arccosh, 1.2, 4),
    "arcsin": between(jnp.arcsin, -0.9, 0.9),
    "arcsinh": normal(jnp.arcsinh),
    "arctan": normal(jnp.arctan),
    "arctan2": itself(jnp.arctan2, drawn(12), within(0.3, 2, 12)),
    "arctanh": between(jnp.arctanh, -0.9, 0.9),
    "cbrt": positive(jnp.cbrt),
    "clip": normal(lambda x: jnp.clip(x, -0.5, 0.7)),
    "copysign": itself(jnp.copysign, drawn(8), drawn(8)),
    "cosh": normal(jnp.cosh),
    "deg2rad": normal(jnp.deg2rad),
    "divmod": itself(lambda x, y: jnp.divmod(x, y)[1] * x, within(5, 5.8, 8), within(1.1, 1.2, 8)),
    "exp2": normal(jnp.exp2),
    "expm1": normal(jnp.expm1),
    "float_power": positive(lambda x: jnp.float_power(x, x)),
    "fmax": itself(jnp.fmax, drawn(8), drawn(8)),
    "hypot": itself(jnp.hypot, drawn(8), drawn(8)),
    "integer_pow": normal(lambda x: x**3 - lax.integer_pow(x, -2)),
    "ldexp": normal(lambda x: jnp.ldexp(x, jnp.arange(5)) ** 2),
    "log10": positive(jnp.log10),
    "log1p": positive(jnp.log1p),
    "log2": positive(jnp.log2),
    "logaddexp": normal(lambda x: jnp.logaddexp(x, 0.25 * x)),
    "logaddexp2": itself(jnp.logaddexp2, drawn(8), drawn(8)),
    "maximum": itself(jnp.maximum, drawn(8), drawn(8)),
    "nan_to_num": normal(lambda x: jnp.nan_to_num(x) * x),
    "power": itself(jnp.power, within(0.3, 2, 8), drawn(8)),
    "reciprocal": positive(jnp.reciprocal),
    "remainder": between(lambda x: jnp.remainder(x, 1.0) * x, 0.1, 0.9),
    "rsqrt": positive(lax.rsqrt),
    "sinc": normal(jnp.sinc),
    "sinh": normal(jnp.sinh),
    "square": normal(jnp.square),
    "tan": between(jnp.tan, -1.2, 1.2),
    "true_divide": itself(jnp.true_divide, drawn(8), within(0.5, 2, 8)),
    "unwrap": normal(lambda x: jnp.unwrap(3 * x) * x, 12),
}
