"""Equinox: an MLP, or a Sequential of Linear and Lambda; the model holds activations, which are compared."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.adapters.carried import Library, entries_by_names, params_by_names
from manual_backprop.adapters.common import (
    Found,
    There,
    dense,
    entries_of,
    families,
    layers_of,
    named,
    nodes_of,
    params_from,
    rebuilt,
)
from manual_backprop.adapters.names import Named, Names, rows_of
from manual_backprop.layers import Dense, Embedding, LayerNorm, Node, PositionalEmbedding, RMSNorm
from manual_backprop.types import Tree

DENSE = dense(There("weight", ("d_out", "d_in")))
LIBRARY = Library(families(DENSE, "weight", "weight"), "/")
MODULES = {
    Dense: "Linear",
    Embedding: "Embedding",
    PositionalEmbedding: "Embedding",
    RMSNorm: "RMSNorm",
    LayerNorm: "LayerNorm",
}
"""Equinox's own classes for our layers."""


def from_equinox(model: Any, net: Node, *, names: Names | None = None) -> Tree:
    """Parameters of `net` from an `equinox.nn.MLP`, or a `Sequential` of `Linear` and `Lambda`.

    The model's activations are compared with `net`'s on a grid, unless they are None, as in the gradients that
    `equinox.filter_grad` returns.

    With `names`, by `by_names` or `gpt_names`, the model is any module, and `net` any network that computes the same.
    The kinds of Equinox's own modules, and the eps of norms, are compared; activations then are not.

    Raises:
        ValueError: a part that no `Serial` of `Dense` has, layers that do not fit `net`, or another activation. With
            names, a name that is not there, a float array that no layer takes, arrays that do not fit, or a module of
            another kind or eps.
        TypeError: not one of these modules, or not float arrays of one dtype.
    """
    if names is not None:
        params = params_by_names(LIBRARY, names, net, _floats(model))
        for one in names.layers:
            _same_module(model, one)
        return params
    found = _equinox(model)
    params = params_from(found, net)
    for layer, applied, node in zip(found.layers, _applied(model), nodes_of(net), strict=True):
        _same_function(layer, applied, node)
    return params


def to_equinox(tree: Tree, like: Any, *, names: Names | None = None) -> Any:
    """Our parameters or gradients in the structure that `equinox.filter_grad` gives for the model `like`.

    That is `equinox.filter(like, equinox.is_inexact_array)`: everything but weights and biases is None. With `names`,
    `tree` mirrors the parameters of their network.

    Raises:
        ValueError: as `from_equinox`, with `tree` in the place of `net`.
        TypeError: dtypes that differ.
    """
    if names is not None:
        return rebuilt(like, entries_by_names(LIBRARY, names, tree, _floats(like)))
    return rebuilt(like, entries_of(_equinox(like), tree))


def _floats(model: Any) -> dict[str, Any]:
    """All float arrays by name; the others, such as a mask of integers, are no parameters."""
    leaves = {name: leaf for name, leaf in named(model).items() if hasattr(leaf, "dtype")}
    return {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}


def _same_module(model: Any, one: Named) -> None:
    """Refuse one of Equinox's own modules that is of another kind, or a norm with another eps, than our layer."""
    for entry in one.entries:
        if not isinstance(entry, str):
            continue
        name = rows_of(entry)[0].replace(".", "/")
        for numbers in one.numbers(name):
            part = reduce(_inside, name.format(*numbers).split("/"), model)
            own = type(part).__module__.startswith("equinox.")
            if own and _kind(part) != MODULES.get(type(one.layer), _kind(part)):
                raise ValueError(f"{name.format(*numbers)} is a {_kind(part)}, which {one} is not")
            there, ours = (getattr(side, "eps", None) for side in (part, one.layer))
            if None not in (there, ours) and there != ours:
                raise ValueError(f"{name.format(*numbers)} has eps={there}, but {one}; build both with the same")


def _inside(part: Any, step: str) -> Any:
    if isinstance(part, Mapping):
        return part[step]
    return part[int(step)] if isinstance(part, Sequence) else getattr(part, step)


def _kind(part: Any) -> str:
    """The name of an Equinox class; for any other class with its module, so that another `Linear` is told apart."""
    kind = type(part)
    return kind.__name__ if kind.__module__.startswith("equinox.") else f"{kind.__module__}.{kind.__qualname__}"


def _equinox(model: Any) -> Found:
    if _kind(model) not in ("MLP", "Sequential"):
        raise TypeError(f"model must be an equinox.nn.MLP, or a Sequential of Linear and Lambda, got {_kind(model)}")
    if getattr(model, "scan", False):
        raise ValueError("the MLP has scan=True, which stacks its hidden layers; build it with scan=False")
    linear = []
    for i, part in enumerate(model.layers):
        if _kind(part) == "Linear":
            linear.append(f"layers/{i}")
            if "scalar" in (part.in_features, part.out_features):
                raise ValueError(f"layers/{i} has the size 'scalar', which is no axis; build it with 1 instead")
        elif _kind(part) != "Lambda":
            raise ValueError(f"layers/{i} is a {_kind(part)}, expected Linear or Lambda; a Serial of Dense has no more")
    leaves = {name: leaf for name, leaf in named(model).items() if hasattr(leaf, "dtype")}
    layers_of(leaves, DENSE)
    return Found(linear, leaves, DENSE)


def _applied(model: Any) -> list[list[Any]]:
    """The functions applied to a row after each linear layer, in turn; None where one was filtered out."""
    if _kind(model) == "MLP":
        hidden, last = ([f and jax.vmap(f)] for f in (model.activation, model.final_activation))
        depth = len(model.layers) - 1
        return [hidden] * depth + [last] if depth else [[]]  # without a hidden layer, Equinox skips the last f too
    after: list[list[Any]] = []
    for i, part in enumerate(model.layers):
        if _kind(part) == "Linear":
            after.append([])
        elif not after:
            raise ValueError(f"layers/{i} is a Lambda before the first Linear, where a Serial of Dense has none")
        else:
            after[-1].append(part.fn)
    return after


def _same_function(layer: str, applied: Sequence[Any], node: Dense) -> None:
    """Refuse an activation that differs from `node`'s anywhere on a grid by more than float32 rounding."""
    if None in applied:
        return
    with jax.ensure_compile_time_eval():  # values, under jit too
        z = theirs = jnp.asarray(np.linspace(-8, 8, 32 * node.d_out, dtype=np.float32).reshape(32, node.d_out))
        for f in applied:
            theirs = jax.vmap(f)(theirs)
        there, ours = np.asarray(theirs, np.float64), np.asarray(node.f.f(z), np.float64)
    if there.shape != ours.shape or not np.all(np.abs(there - ours) <= 1e-5 * (1 + np.abs(ours))):
        functions = " and then ".join(getattr(f, "__name__", repr(f)) for f in applied) or "nothing"
        raise ValueError(
            f"after {layer} the model applies {functions}, which is not what {node} applies; build net with the"
            " model's activations, with an Activation of your own where the table has none"
        )
