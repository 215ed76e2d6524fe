"""jaxwt: wavelet transforms."""

import jax
import jax.numpy as jnp
import jaxwt

from benchmarks.elsewhere.cases import Case, drawn, formula, itself

_WIDE = ("float64", "float32")


def _haar(x: jax.Array) -> list[jax.Array]:
    """One level."""
    return [(x[::2] + x[1::2]) / 2**0.5, (x[::2] - x[1::2]) / 2**0.5]


CASES: dict[str, Case] = {
    "jaxwt.wavedec, haar": formula(
        lambda x: [y.ravel() for y in jaxwt.wavedec(x, "haar", level=1, mode="zero")], _haar, drawn(12), dtypes=_WIDE
    ),
    "jaxwt.wavedec, db3": itself(lambda x: jaxwt.wavedec(x, "db3", level=2), drawn(20), dtypes=_WIDE),
    "jaxwt.waverec": itself(lambda x: jaxwt.waverec(jaxwt.wavedec(x, "db2", level=2), "db2"), drawn(16), dtypes=_WIDE),
    "jaxwt.wavedec2": itself(lambda x: jnp.ravel(jaxwt.wavedec2(x, "haar", level=1)[0]), drawn(1, 8, 8), dtypes=_WIDE),
}
