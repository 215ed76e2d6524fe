"""The equations of a family without derived bounds: the error of a right answer is measured.

Monte Carlo arithmetic runs over the reference's forward of that one layer, and over its vjp, from the layer's stored
inputs. The samples vary these within their slack, since a program may go on with values that it has not yet rounded.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from manual_backprop.layers import Layer
from reference import model
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import Family, KnownFlow, Mistakes, family
from reference.tolerance.monte_carlo import perturbed
from reference.tolerance.noise import noises
from reference.tolerance.rounding import SAMPLES, spread

Tree = Any
SEED = 0


@family.register
def _(layer: Layer) -> Family:
    return _Measured()


class _Measured(Family):
    def net_input(self, of: Arithmetic, use: Use, a_in: KnownFlow) -> tuple[Known, Mistakes]:
        return measured(of, _net_input, use.layer, use.taken, a_in), {}

    def transport(self, of: Arithmetic, use: Use, a_in: KnownFlow, delta: Known) -> tuple[KnownFlow, Mistakes]:
        return measured(of, _transport, use.layer, use.taken, a_in, delta), {}

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[KnownFlow], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        if not uses[0].parameters:
            return {}
        of_uses = zip(uses, a_in, delta, strict=True)
        each = [measured(of, _gradient, use.layer, use.taken, *flows, shares) for use, *flows in of_uses]
        named = [jax.tree_util.tree_leaves_with_path(one) for one in each]
        every = zip(*named, strict=True)
        return {jax.tree_util.keystr(same[0][0]): _summed(of, [g for _, g in same]) for same in every}


def _summed(of: Arithmetic, terms: list[Known]) -> Known:
    """The sum over a parameter's uses, rounded."""
    total = sum(terms[1:], terms[0])
    size = sum(np.abs(term.value) for term in terms)
    return of.rounded(total.further(of.gamma(len(terms)) * size)) if len(terms) > 1 else total


def _net_input(layer: Layer, params: Tree, a_in: Any) -> Any:
    return model.apply(layer, params, a_in)


def _transport(layer: Layer, params: Tree, a_in: Any, delta: Any) -> Any:
    d_in = jax.vjp(lambda a_in: model.apply(layer, params, a_in), a_in)[1](delta)[0]
    return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, d_in)


def _gradient(layer: Layer, params: Tree, a_in: Any, delta: Any, shares: Any) -> Any:
    weighted = shares.reshape(-1, *(1,) * (delta.ndim - 1)) * delta
    return jax.vjp(lambda params: model.apply(layer, params, a_in), params)[1](weighted)[0]


def measured(of: Arithmetic, function: Callable[..., Any], layer: Any, *args: Tree) -> Tree:
    """function(layer, *args) with a `Known` for every float of its result.

    Args:
        of: the arithmetic of the step under test.
        function: traceable by JAX.
        layer: must be hashable; one program is compiled for it.
        args: trees of float64 arrays, which are exact, and of `Known`, which vary within their slack.
    """
    rng = np.random.default_rng(SEED)

    def sampled(leaf: Any) -> np.ndarray:
        known = leaf if isinstance(leaf, Known) else Known.exactly(np.asarray(leaf))
        samples = np.stack([known.value] * (SAMPLES + 1))
        if np.issubdtype(samples.dtype, np.floating):
            samples[1:] += rng.uniform(-1, 1, (SAMPLES, *samples.shape[1:])) * known.slack
        return samples

    with np.errstate(invalid="ignore"), jax.enable_x64(True):
        samples = jax.tree.map(sampled, args)
        leaves, structure = jax.tree.flatten(samples)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves)
        closed, result = _program(function, layer, structure, shapes)
        flat = perturbed(closed, noises(of, SAMPLES, SEED), leaves)
    return jax.tree.unflatten(result, [_known(*spread(leaf)) for leaf in flat])


def _known(value: Wide, tolerance: Wide) -> Known:
    return Known(value, tolerance, tolerance)


@lru_cache(maxsize=128)
def _program(
    function: Callable[..., Any], layer: Any, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[ClosedJaxpr, Any]:
    """The function's jaxpr, and the structure of its result."""

    def flat(*leaves: Any) -> Any:
        return function(layer, *jax.tree.unflatten(structure, leaves))

    closed, result = jax.make_jaxpr(flat, return_shape=True)(*shapes)
    return closed, jax.tree.structure(result)
