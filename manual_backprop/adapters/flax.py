"""Flax: Linen's variables and NNX's state, whose kernels are (d_in, d_out)."""

from collections.abc import Mapping, Sequence
from typing import Any

from manual_backprop.adapters.carried import Library, entries_by_names, params_by_names
from manual_backprop.adapters.common import (
    Found,
    There,
    by_number,
    dense,
    entries_of,
    families,
    layers_of,
    named,
    params_from,
    rebuilt,
)
from manual_backprop.adapters.names import Names
from manual_backprop.layers import Node
from manual_backprop.types import Tree

DENSE = dense(There("kernel", ("d_in", "d_out"), turned=True, parted=True))
LIBRARY = Library(families(DENSE, "embedding", "scale"), "/")


def from_flax(variables: Any, net: Node, *, order: Sequence[str] | None = None, names: Names | None = None) -> Tree:
    """Parameters of `net` from those of a Flax model, or gradients from its gradients.

    Args:
        variables: Linen's variables or their "params"; `nnx.state(model, nnx.Param)` or its pure dict.
        net: `mlp(sizes, activation)` with the model's sizes and activations. With names, any network that computes
            what the model does: its activations, and the eps of its norms, are not in `variables` and not compared.
        order: names of the layers in the order of application, nested ones as "encoder/out". It is not needed where
            the names differ only in their numbers (Dense_0 .. Dense_10, layers/0, fc1): these are taken by number.
            Other names tell no order, because JAX and NNX sort the trees that hold them.
        names: of the model's modules for every layer of `net`, by `by_names` or `gpt_names`. The heads of Flax's own
            attention, kernels (d, heads, size) and (heads, size, d), are joined, as `Attention` has them.

    Raises:
        ValueError: an entry that is no kernel or bias of a dense layer, an order that cannot be known, or
            layers that do not fit `net`. With names, a name that is not there, an entry that no layer takes, and
            arrays that do not fit.
        TypeError: not a mapping of float arrays of one dtype.
    """
    if names is not None:
        return params_by_names(LIBRARY, names, net, _named(variables, order))
    return params_from(_flax(variables, order), net)


def to_flax(tree: Tree, like: Any, *, order: Sequence[str] | None = None, names: Names | None = None) -> Any:
    """Our parameters or gradients with the names and containers of `like`, for optax or `nnx.update`.

    Args:
        tree: one `Affine` a layer; with names, what mirrors the parameters of their network.
        like: the model's own variables, "params" or state; only shapes and dtypes of its arrays are read.
        order: as for `from_flax`.
        names: as for `from_flax`.

    Raises:
        ValueError: as `from_flax`, with `tree` in the place of `net`.
        TypeError: dtypes that differ.
    """
    if names is not None:
        return rebuilt(like, entries_by_names(LIBRARY, names, tree, _named(like, order)))
    return rebuilt(like, entries_of(_flax(like, order), tree))


def _leaves(variables: Any) -> dict[str, Any]:
    """All arrays by name."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"expected Linen's params or nnx.state(model, nnx.Param), got {type(variables).__name__}")
    others = [str(key) for key in variables if key != "params"]
    if "params" in variables and others:
        raise ValueError(f"besides params there is {', '.join(others)}, which no Dense has; pass variables['params']")
    return named(variables)


def _named(variables: Any, order: Sequence[str] | None) -> dict[str, Any]:
    if order is not None:
        raise ValueError("order is for models whose layers are found; leave it out where names are given")
    return _leaves(variables)


def _flax(variables: Any, order: Sequence[str] | None) -> Found:
    leaves = _leaves(variables)
    layers = layers_of(leaves, DENSE)
    known = by_number(layers)
    if order is None and known is None:
        raise ValueError(
            f"the order of application cannot be known from the names {layers}: they are not one stem with different"
            " numbers, and JAX and NNX sort their trees; pass order= with these names in the order of application"
        )
    if order is not None and sorted(order) != sorted(layers):
        raise ValueError(f"order must name every layer once; it has {list(order)}, there are {layers}")
    return Found(list(order or known or layers), leaves, DENSE)
