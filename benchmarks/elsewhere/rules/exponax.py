"""exponax: steps of partial differential equations, by Fourier transforms."""

import exponax as ex
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case, drawn, formula, itself


def _stepper(kind: str, *given: object, **options: object) -> object:
    return lambda u: getattr(ex.stepper, kind)(1, 3.0, u.shape[-1], 0.01, *given, **options)(u)


def _diffused(u: jax.Array) -> jax.Array:
    """Heat, by its own exponential."""
    n = u.shape[-1]
    k = 2 * jnp.pi / 3.0 * jnp.arange(n // 2 + 1, dtype=u.dtype)
    return jnp.fft.irfft(jnp.fft.rfft(u) * jnp.exp(-0.1 * k**2 * 0.01), n)


_WIDE = ("float64", "float32")

CASES: dict[str, Case] = {
    "exponax.Diffusion": formula(_stepper("Diffusion", diffusivity=0.1), _diffused, drawn(1, 16), dtypes=("float32",)),
    "exponax.Advection": itself(_stepper("Advection", velocity=0.5), drawn(1, 15), dtypes=("float32",)),
    "exponax.Burgers": itself(_stepper("Burgers", diffusivity=0.1), drawn(1, 16), dtypes=("float32",)),
    "exponax.KuramotoSivashinsky": itself(_stepper("KuramotoSivashinsky"), drawn(1, 16), dtypes=("float32",)),
    "exponax.derivative": itself(lambda u: ex.derivative(u, 3.0), drawn(1, 16), dtypes=_WIDE),
}
