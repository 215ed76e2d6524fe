"""The note's local derivatives as explicit arrays, for one example, and the product that chains them.

All in denominator layout: dY/dX has the axes of X first, then those of Y, so that (B2) reads from left to
right as the note writes it. The sweep never forms these arrays; multiplying them out gives the same numbers
(a test does so layer by layer), and shows what the sweep saves.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import activations
from manual_backprop.activations import Activation


def prod(dZ_dY: Float[Array, "..."], dY_dX: Float[Array, "..."], *, rank: int) -> Float[Array, "..."]:
    """The chain rule dZ/dX = prod(dZ/dY, dY/dX), for X, Y, Z of any rank (C1).

    Args:
        dZ_dY: axes of Y, then of Z.
        dY_dX: axes of X, then of Y.
        rank: number of axes of Y, the ones summed over.

    Returns:
        dZ/dX: axes of X, then of Z. This swaps the factors, which is what denominator layout asks for.

    Raises:
        ValueError: the axes of Y differ in the two.
    """
    if not 0 <= rank <= min(dZ_dY.ndim, dY_dX.ndim):
        raise ValueError(f"rank of Y must lie in 0..{min(dZ_dY.ndim, dY_dX.ndim)}, got {rank}")
    first, last = dZ_dY.shape[:rank], dY_dX.shape[dY_dX.ndim - rank :]
    if first != last:
        raise ValueError(
            f"dZ/dY begins with the axes of Y {list(first)} and dY/dX ends with them {list(last)}: they differ"
        )
    return jnp.tensordot(dY_dX, dZ_dY, axes=rank)


def dz_dW(a_in: Float[Array, " d_in"], d_out: int) -> Float[Array, "{d_out} d_in {d_out}"]:
    """dz^(l)/dw_ij^(l): entry [i, j, k] is a_j where k = i, else 0 (C3)."""
    eye = jnp.eye(d_out, dtype=a_in.dtype)
    return jnp.einsum("ik,j->ijk", eye, a_in)


def dz_db(z: Float[Array, " d_out"]) -> Float[Array, "d_out d_out"]:
    """dz^(l)/db^(l) = I (C4)."""
    return jnp.eye(z.shape[0], dtype=z.dtype)


def dz_da(W: Float[Array, "d_out d_in"]) -> Float[Array, "d_in d_out"]:
    """dz^(l+1)/da^(l) = (W^(l+1))^T (C6)."""
    return W.T


def da_dz(activation: str | Activation, z: Float[Array, " d"], a: Float[Array, " d"]) -> Float[Array, "d d"]:
    """da^(l)/dz^(l) = diag(f_l'(z^(l))) (C7)."""
    return jnp.diag(activations.get(activation).slope(z, a))
