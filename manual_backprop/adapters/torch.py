"""PyTorch: state dicts, of tensors or of arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from manual_backprop.adapters.carried import Library, entries_by_names, params_by_names
from manual_backprop.adapters.common import (
    Found,
    There,
    by_number,
    dense,
    entries_of,
    families,
    layers_of,
    params_from,
)
from manual_backprop.adapters.names import Names
from manual_backprop.layers import Node
from manual_backprop.types import Tree

DENSE = dense(There("weight", ("d_out", "d_in")))
LIBRARY = Library(families(DENSE, "weight", "weight"), ".")


def from_torch_state_dict(state: Any, net: Node, *, names: Names | None = None) -> Tree:
    """Parameters of `net` from `module.state_dict()`, whose order is taken for the order of application.

    With `names`, by `by_names` or `gpt_names`, its order has no part in it, and `net` is any network that computes what
    the module does; activations, and the eps of norms, are not in a state dict and not compared.

    Tensors are copied, so a later in-place step does not change the result. bfloat16, which NumPy lacks, goes
    through float32 and comes back bit for bit.

    Raises:
        ValueError: an entry that is no weight or bias of a dense layer, a mapping that has been sorted or may have
            been, or layers that do not fit `net`. With names, a name that is not there, an entry that no layer takes,
            and arrays that do not fit.
        TypeError: not a mapping of float arrays or tensors of one dtype.
    """
    if names is not None:
        return params_by_names(LIBRARY, names, net, _mapping(state))
    return params_from(_torch(state), net)


def to_torch_state_dict(tree: Tree, like: Any, *, names: Names | None = None) -> dict[str, np.ndarray]:
    """Our parameters or gradients as NumPy arrays under the names of `like`, in its order.

    With `names`, `tree` mirrors the parameters of their network.

    `torch.from_numpy` takes all of them but bfloat16; convert that to float32 first.

    Raises:
        ValueError: as `from_torch_state_dict`, with `tree` in the place of `net`.
        TypeError: dtypes that differ, or a call under jit.
    """
    if names is None:
        entries = entries_of(_torch(like), tree)
    else:
        entries = entries_by_names(LIBRARY, names, tree, _mapping(like))
    if any(isinstance(entry, jax.core.Tracer) for entry in entries.values()):
        raise TypeError("to_torch_state_dict gives NumPy arrays, which do not exist under jit; call it on the result")
    return {name: np.array(entries[name]) for name in like}


def _mapping(state: Any) -> Mapping[str, Any]:
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names to tensors, got {type(state).__name__}; pass .state_dict()")
    return state


def _torch(state: Any) -> Found:
    entries = list(map(str, _mapping(state)))
    layers = layers_of(entries, DENSE, ".")
    found = Found(layers, state, DENSE, separator=".")
    if by_number(layers, ".") != layers:
        _require_order(found, entries)
    return found


def _require_order(found: Found, entries: list[str]) -> None:
    """Refuse a mapping that has been sorted, or may have been: JAX and optax sort dictionaries, "10" before "2".

    PyTorch registers a weight before its bias, so a layer with both shows it. Where no layer has a bias, nothing in a
    sorted dict does; PyTorch's own mapping is an OrderedDict, whose order JAX keeps.
    """
    both = [of for of in map(found.held, found.layers) if len(of) == 2]
    if any(entries.index(of["b"]) < entries.index(of["W"]) for of in both):
        again = "{name: state[name] for name in module.state_dict()}"
        raise ValueError(
            f"the mapping was sorted (a bias before its weight), so {found.layers} is no order; pass {again}"
        )
    if not both and len(found.layers) > 1 and type(found.leaves) is dict and entries == sorted(entries):
        raise ValueError(
            f"the dict is in alphabetical order and no layer has a bias, so whether it was sorted cannot be known, and"
            f" the order {found.layers} would be a guess; pass module.state_dict() itself, or an OrderedDict"
        )
