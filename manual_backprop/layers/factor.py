"""The pair (a, delta) of one layer and its readings, each in a general form that suits every family of layers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop import explicit
from manual_backprop.node import vmapped
from manual_backprop.precision import accumulator
from manual_backprop.types import Leaf, Tree, override


class Factor(ABC):
    """A layer's input and its delta: every first-order quantity of its parameters follows from this pair.

    Subclasses give `weighted_sum`. Every other reading has a general form here, which forms the examples'
    gradients. A family overrides the readings for which it knows a faster form, so nothing is unsupported, only
    slower. Each factor is a frozen dataclass registered as a pytree, with the examples on its leaves' first axis.
    """

    @abstractmethod
    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """Sum over examples n of weights[n] dL_n/dparams; weights None means the mean, 1/N each."""

    def total(self) -> Tree:
        """The plain sum over examples, for error terms that carry the examples' weights already."""
        return self.weighted_sum(jnp.ones(self.examples, accumulator(self.dtype)))

    @property
    def examples(self) -> int:
        """N."""
        return jax.tree.leaves(self)[0].shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """Of its floats, delta among them."""
        return next(leaf.dtype for leaf in jax.tree.leaves(self) if jnp.issubdtype(leaf.dtype, jnp.floating))

    def per_example(self) -> Tree:
        """dL_n/dparams of every example n: the parameters' tree, with N in front of every leaf's shape."""
        return jax.vmap(lambda one: jax.tree.map(lambda leaf: leaf[None], one).weighted_sum())(self)

    def squared_norms(self) -> Float[Array, " N"]:
        """||dL_n/dparams||^2 of every example n, in the precision of sums."""

        def total(g: Array) -> Array:
            return jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)))

        return self._total([total(g) for g in self._wide_examples()], (self.examples,))

    def squared_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """Sum over n of weights[n] (dL_n/dparams)^2, entry by entry; None is the mean. In the precision of sums."""

        def total(g: Array) -> Array:
            squares = jnp.square(g.astype(accumulator(g.dtype)))
            return jnp.mean(squares, axis=0) if weights is None else explicit.dot(weights, squares, ((0,), (0,)))

        return jax.tree.map(total, self.per_example())

    def gram(self, other: "Factor") -> Float[Array, "N M"]:
        """<dL_n/dparams, dL'_m/dparams> for every example n of this and m of `other`, in the precision of sums."""

        def products(g: Array, h: Array) -> Array:
            return explicit.dot(_flat(g), _flat(h), ((1,), (1,)))

        pairs = zip(self._wide_examples(), other._wide_examples(), strict=True)
        return self._total([products(g, h) for g, h in pairs], (self.examples, other.examples))

    def tied(self) -> "Factor":
        """One factor for several uses of the same parameters; every leaf of `self` has the uses in front.

        The gradient of parameters used more than once is the sum over their uses. That sum is formed before
        anything that is not linear in the gradient.
        """
        return SeveralUses(self)

    def over_uses(self, axes: int) -> "Factor":
        """Apply `tied` once for every axis of uses in front of the leaves, the innermost first."""
        factor = self
        for outer in reversed(range(axes)):
            factor = vmapped(lambda one: one.tied(), outer)(factor)
        return factor

    def _wide_examples(self) -> list[Array]:
        return [g.astype(accumulator(g.dtype)) for g in jax.tree.leaves(self.per_example())]

    def _total(self, terms: list[Array], shape: tuple[int, ...]) -> Array:
        """The sum of arrays of one shape; zeros where a layer has no parameters."""
        if terms:
            return sum(terms[1:], terms[0])
        return jnp.zeros(shape, accumulator(self.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoParameters(Factor):
    """The pair of a layer that has no parameters: its gradient is (), every norm of it 0.

    Attributes:
        delta: shape (N, ...).
    """

    delta: Leaf

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """()."""
        return ()

    def tied(self) -> "NoParameters":
        """The pair of any one use, here the first."""
        return NoParameters(self.delta[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Difference(Factor):
    """The difference of two factors of one family: its gradient is the difference of theirs."""

    of: Factor
    less: Factor

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """The difference, entry by entry."""
        return jax.tree.map(jnp.subtract, self.of.weighted_sum(weights), self.less.weighted_sum(weights))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SeveralUses(Factor):
    """The general form of parameters used more than once: `uses` is a factor with the uses in front."""

    uses: Factor

    @property
    @override
    def examples(self) -> int:
        return jax.tree.leaves(self.uses)[0].shape[1]

    def weighted_sum(self, weights: Float[Array, " N"] | None = None) -> Tree:
        """The sum over uses of each use's sum over examples."""
        return _sum_first(jax.vmap(lambda one: one.weighted_sum(weights))(self.uses))

    def per_example(self) -> Tree:
        """The sum over uses, for every example."""
        return _sum_first(jax.vmap(lambda one: one.per_example())(self.uses))


def _flat(g: Array) -> Array:
    """Every example's gradient as a row."""
    return explicit.whole(g, *range(1, g.ndim)).reshape(g.shape[0], -1)


def _sum_first(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.sum(leaf.astype(accumulator(leaf.dtype)), axis=0).astype(leaf.dtype), tree)
