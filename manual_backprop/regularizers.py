"""The regularisation term s of (J2) and its gradient (B6)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop.layers.base import Parameters
from manual_backprop.precision import accumulator, compiled
from manual_backprop.types import Coefficient, Scalar, Tree, require_number


def _is_parameters(node: object) -> bool:
    return isinstance(node, Parameters)


@compiled
def _sum_of_squares(W: Array) -> Scalar:
    return jnp.sum(jnp.square(W.astype(accumulator(W.dtype))))


@compiled
def _add_scaled(gradient: Array, factor: Coefficient, W: Array) -> Array:
    wide = accumulator(W.dtype)
    return (gradient.astype(wide) + factor * W.astype(wide)).astype(W.dtype)


@dataclass(frozen=True)
class Frobenius:
    """s = (lam/2) (||W^(1)||_F^2 + ... + ||W^(L)||_F^2): squared norms of the weights, not of the biases (J2).

    Attributes:
        lam: the coefficient lambda >= 0, a Python number, static under jit. For a lambda that is traced (a sweep
            over lambda under `vmap`) give `lam=` at the call, which replaces this one.
    """

    lam: float

    def __post_init__(self) -> None:
        if isinstance(self.lam, jax.Array):
            raise TypeError(
                f"Frobenius(lam) is static and must be a Python number, got {self.lam}; a traced lambda goes"
                " in at the call: objective(params, x, y, lam=...)"
            )
        require_number("Frobenius lam", self.lam)
        if not (self.lam >= 0 and math.isfinite(self.lam)):
            raise ValueError(f"Frobenius lam must be finite and >= 0, got {self.lam}")
        object.__setattr__(self, "lam", float(self.lam))

    def penalty(self, params: Tree, lam: Coefficient | None = None) -> Scalar:
        """The term s, in float32 or wider (J2)."""
        return (self.lam if lam is None else lam) * self.d_lam(params)

    def d_lam(self, params: Tree) -> Scalar:
        """ds/dlam = (1/2) sum_l ||W^(l)||_F^2, which is s/lam (B6)."""
        blocks = jax.tree.leaves(params, is_leaf=_is_parameters)
        squares = [_sum_of_squares(getattr(block, name)) for block in blocks for name in block.weights]
        return 0.5 * sum(squares[1:], squares[0]) if squares else jnp.zeros(())

    def gradient(self, params: Tree, lam: Coefficient | None = None) -> Tree:
        """ds/dW^(l) = lam W^(l) and zero for everything else, in the shape of `params` (B6)."""
        return self.add_gradient(jax.tree.map(jnp.zeros_like, params), params, lam)

    def add_gradient(self, gradients: Tree, params: Tree, lam: Coefficient | None = None) -> Tree:
        """dJ/dW^(l) = dL/dW^(l) + lam W^(l); everything else is unchanged (B6)."""
        factor = self.lam if lam is None else lam

        def of_block(gradient: Parameters, block: Parameters) -> Parameters:
            counted = {k: _add_scaled(getattr(gradient, k), factor, getattr(block, k)) for k in block.weights}
            return type(block)(**{**vars(gradient), **counted})

        return jax.tree.map(of_block, gradients, params, is_leaf=_is_parameters)
