"""K-FAC's Kronecker factors of every layer, from the same sweep, and the natural gradient's direction by them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import explicit, validate
from manual_backprop.layers.base import Layer, LayerTrace, Parameters
from manual_backprop.layers.dense import OuterProduct
from manual_backprop.layers.factor import Factor, NoParameters
from manual_backprop.node import Node, Walk, vmapped
from manual_backprop.readings.gradients import checked_read
from manual_backprop.types import Leaf, Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KroneckerFactors:
    """K-FAC's two factors of one layer: its curvature in (W, b) is approximated by A (x) G.

    Attributes:
        A: mean over examples of a a^T, with a 1 below a for the bias, (d_in + 1, d_in + 1); without bias (d_in, d_in).
        G: mean over examples of delta delta^T, (d_out, d_out).
    """

    A: Leaf
    G: Leaf


def kronecker_factors(
    net: Node, trace: Tree, deltas: Tree, *, columns: bool = False, shared: str = "expand", partial: bool = False
) -> Tree:
    """K-FAC's factors A and G of every layer, in the network's structure (Martens & Grosse, arXiv:1503.05671).

    Args:
        net: a layer or composite; layers without parameters get ().
        trace: from `forward`.
        deltas: from `backward` of the loss itself, for the empirical Fisher; or, with `columns`, from
            `curvature.fisher_deltas`, with the columns in front, for the Fisher or Gauss-Newton matrix.
        columns: whether the deltas have columns in front; delta delta^T is then summed over columns.
        shared: what to do with positions and with the uses of `Tied`: "expand" or "reduce"
            (Eschenhagen et al., arXiv:2311.00636).
        partial: give None for layers whose gradient is no outer product (norms, embeddings), which are refused
            otherwise. `kfac_direction` leaves their gradients as they are.

    Raises:
        TypeError: without `partial`, a layer whose gradient is no outer product.
        ValueError: another `shared`.
    """
    if shared not in ("expand", "reduce"):
        raise ValueError(f'shared must be "expand" or "reduce", got {shared!r}')

    def without(factor: Factor) -> bool:
        return isinstance(factor, NoParameters) or (partial and not isinstance(factor, OuterProduct))

    def reader(factor: Factor) -> KroneckerFactors | tuple[()] | None:
        if without(factor):
            return () if isinstance(factor, NoParameters) else None
        return KroneckerFactors(*_outer_product(factor).kronecker(shared))

    if not columns:
        return checked_read(reader, net, trace, deltas)

    def of_layer(layer: Layer, uses: int, kept: LayerTrace, every: Array) -> KroneckerFactors | tuple[()] | None:
        def of_column(delta: Array) -> Factor:
            layer.require_like_z("delta", delta, kept)
            return vmapped(layer.factor, uses)(kept.saved, delta).over_uses(uses)

        first = of_column(jax.tree.map(lambda delta: delta[..., 0], every))
        if without(first):
            return reader(first)
        delta = jax.vmap(lambda delta: _outer_product(of_column(delta)).delta, -1)(every)
        # Columns are further rows of the one product that gives G. What entered, and so A, is the same for all.
        return reader(replace(_outer_product(first), delta=jax.lax.collapse(delta, 0, 2)))

    # A walk takes blocks and uses off the front, so the columns go to the end.
    _, columns_last = jax.vmap(lambda each: validate.batch(net, trace, each), out_axes=(None, -1))(deltas)
    return net.walk(of_layer, Walk(of_uses=True), trace, columns_last)


def _outer_product(factor: Factor) -> OuterProduct:
    """The factor, refused if it is of another family."""
    if not isinstance(factor, OuterProduct):
        raise TypeError(
            f"kronecker_factors are known for layers whose gradient is an outer product (Dense), got"
            f" {type(factor).__name__}"
        )
    return factor


def kfac_direction(factors: Tree, gradients: Tree, damping: float | Float[Array, ""]) -> Tree:
    """(A (x) G + damping I)^-1 times the gradient of every layer, exactly, by the eigenvectors of A and G.

    The natural gradient's direction under K-FAC's approximation (Martens & Grosse, arXiv:1503.05671); a step
    goes against it. With eigenvalues a_i of A and g_j of G, the gradient in their basis is divided by
    a_i g_j + damping, so the damping need not be split between the two. There is no trust region: the caller chooses
    damping and step size. The regulariser's lam is in `backprop`'s gradients but not in the factors; add it to the
    damping to account for it.

    Args:
        factors: from `kronecker_factors`.
        gradients: from `gradients` or `backprop`, of the same network.
        damping: > 0, or 0 where A and G are known to have full rank; a number, or a scalar that may be traced.

    Returns:
        The structure of `gradients`.

    Raises:
        ValueError: a damping that is negative or nan; factors and gradients that do not belong together.
    """
    _require_pairs(factors, gradients)
    leaves = jax.tree.leaves(gradients)
    bound = validate.non_negative("damping", damping, leaves[0].dtype)

    def of_layer(factor: KroneckerFactors | None, gradient: Any) -> Any:
        if factor is None:
            return gradient
        dW, db = gradient.W, gradient.b
        columns = dW.shape[-1] + (db is not None)
        if factor.A.shape[-1] != columns or factor.G.shape[-1] != dW.shape[-2] or factor.A.ndim != dW.ndim:
            raise ValueError(
                f"factors A {list(factor.A.shape)} and G {list(factor.G.shape)} do not fit the gradient W"
                f" {list(dW.shape)} {'without' if db is None else 'with'} a bias"
            )
        return explicit.automatic(_damped, jax.tree.map(explicit.lies_as, gradient), factor, gradient, bound)

    return jax.tree.map(of_layer, factors, gradients, is_leaf=_is_entry)


def _damped(factor: KroneckerFactors, gradient: Any, damping: Array) -> Any:
    """(A (x) G + damping I)^-1 times the gradient of a layer."""
    dW, db = gradient.W, gradient.b
    joint = dW if db is None else jnp.concatenate([dW, db[..., None]], axis=-1)
    of_A, basis_A = jnp.linalg.eigh(factor.A)
    of_G, basis_G = jnp.linalg.eigh(factor.G)
    turned = jnp.swapaxes(basis_G, -1, -2) @ joint @ basis_A
    # eigh may give a tiny negative where the true eigenvalue is 0
    scales = jnp.maximum(of_G, 0)[..., :, None] * jnp.maximum(of_A, 0)[..., None, :] + damping
    solved = basis_G @ (turned / scales) @ jnp.swapaxes(basis_A, -1, -2)
    return type(gradient)(W=solved[..., : dW.shape[-1]], b=None if db is None else solved[..., -1])


def _is_entry(node: Any) -> bool:
    """Whether this is what `kronecker_factors` gives for one layer."""
    return node is None or isinstance(node, KroneckerFactors)


def _require_pairs(factors: Tree, gradients: Tree) -> None:
    """Refuse factors and gradients that are of two networks or in the wrong order."""
    structures: list[Any] = []

    def is_parameters(node: Any) -> bool:
        return isinstance(node, Parameters)

    both = ("factors", factors, KroneckerFactors, _is_entry), ("gradients", gradients, Parameters, is_parameters)
    for name, tree, kind, is_kind in both:
        leaves, structure = jax.tree.flatten(tree, is_leaf=is_kind)
        if not all(map(is_kind, leaves)):
            raise TypeError(f"kfac_direction takes (factors, gradients, damping): {name} holds no {kind.__name__}")
        structures.append(structure)
    if structures[0] != structures[1]:
        raise ValueError(f"factors are of {structures[0]} but gradients of {structures[1]}: two networks")
