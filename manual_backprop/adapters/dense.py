"""Parameters of an MLP of another library in; parameters, gradients or updates out, in its own layout.

    Flax       from_flax              to_flax                 kernel (d_in, d_out), the transpose of W
    Equinox    from_equinox           to_equinox              weight (d_out, d_in), as W
    PyTorch    from_torch_state_dict  to_torch_state_dict     weight (d_out, d_in), as W

None of them is imported. Arrays move between the dense layers of a tree, in the order of application, and our
tuple of `Affine`; bits and dtypes stay. What a `Serial` of `Dense` cannot express is refused by name, and so is
an order that would be a guess. Flax and PyTorch trees hold no activations, so `net` must have the model's;
Equinox modules do, and `from_equinox` compares them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop import validate
from manual_backprop.layers import Affine, Dense, Node
from manual_backprop.layers.base import Shape
from manual_backprop.layers.factor import Tree
from manual_backprop.network import Serial


def from_flax(variables: Any, net: Node, *, order: Sequence[str] | None = None) -> Tree:
    """Parameters of `net` from those of a Flax model, or gradients from its gradients.

    Args:
        variables: Linen's variables or their "params"; `nnx.state(model, nnx.Param)` or its pure dict.
        net: `mlp(sizes, activation)` with the model's sizes and activations.
        order: names of the layers in the order of application, nested ones as "encoder/out". Not needed where
            the names are one stem with different numbers (Dense_0 .. Dense_10, layers/0, fc1): these are taken
            by number. Other names tell no order, for JAX and NNX sort the trees that hold them.

    Raises:
        ValueError: an entry that is no kernel or bias of a dense layer, an order that cannot be known, or
            layers that do not fit `net`.
        TypeError: not a mapping of float arrays of one dtype.
    """
    return _params(_flax(variables, order), net)


def to_flax(tree: Tree, like: Any, *, order: Sequence[str] | None = None) -> Any:
    """Parameters or gradients of ours with the names and containers of `like`, for optax or `nnx.update`.

    Args:
        tree: one `Affine` a layer.
        like: the model's own variables, "params" or state; only shapes and dtypes of its arrays are read.
        order: as for `from_flax`.

    Raises:
        ValueError: as `from_flax`, with `tree` in the place of `net`.
        TypeError: dtypes that differ.
    """
    return _rebuilt(like, _entries(_flax(like, order), tree))


def from_equinox(model: Any, net: Node) -> Tree:
    """Parameters of `net` from an `equinox.nn.MLP`, or a `Sequential` of `Linear` and `Lambda`.

    The model's activations are held against `net`'s on a grid. Where they are None, as in the gradients that
    `equinox.filter_grad` returns, there is nothing to compare.

    Raises:
        ValueError: a part that no `Serial` of `Dense` has, layers that do not fit `net`, or another activation.
        TypeError: not one of these modules, or not float arrays of one dtype.
    """
    found = _equinox(model)
    params = _params(found, net)
    for layer, applied, node in zip(found.layers, _applied(model), _denses(net), strict=True):
        _same_function(layer, applied, node)
    return params


def to_equinox(tree: Tree, like: Any) -> Any:
    """Parameters or gradients of ours in the structure that `equinox.filter_grad` gives for the model `like`.

    That is `equinox.filter(like, equinox.is_inexact_array)`: everything but weights and biases is None.

    Raises:
        ValueError: as `from_equinox`, with `tree` in the place of `net`.
        TypeError: dtypes that differ.
    """
    return _rebuilt(like, _entries(_equinox(like), tree))


def from_torch_state_dict(state: Any, net: Node) -> Tree:
    """Parameters of `net` from `module.state_dict()`, whose order is taken for the order of application.

    Tensors are copied, so that a later step in place does not reach the result; bfloat16, which NumPy lacks,
    goes through float32 and comes back bit for bit.

    Raises:
        ValueError: an entry that is no weight or bias of a dense layer, a mapping that was sorted on its way,
            or layers that do not fit `net`.
        TypeError: not a mapping of float arrays or tensors of one dtype.
    """
    return _params(_torch(state), net)


def to_torch_state_dict(tree: Tree, like: Any) -> dict[str, np.ndarray]:
    """Parameters or gradients of ours as NumPy arrays under the names of `like`, in its order.

    `torch.from_numpy` takes them all but bfloat16, which it refuses: go through float32.

    Raises:
        ValueError: as `from_torch_state_dict`, with `tree` in the place of `net`.
        TypeError: dtypes that differ, or a call under jit.
    """
    found = _torch(like)
    entries = _entries(found, tree)
    if any(isinstance(entry, jax.core.Tracer) for entry in entries.values()):
        raise TypeError("to_torch_state_dict gives NumPy arrays, which do not exist under jit; call it on the result")
    return {name: np.array(entries[name]) for name in like}


@dataclass(frozen=True)
class _Found:
    """The dense layers of the other library's tree.

    Attributes:
        layers: their names in the order of application.
        leaves: every array by name, "layer/kernel" and "layer/bias".
        matrix: "kernel", the transpose of W, or "weight", which is W.
        separator: what stands between the steps of a name.
    """

    layers: Sequence[str]
    leaves: Mapping[str, Any]
    matrix: str = "weight"
    separator: str = "/"

    def __post_init__(self) -> None:
        for layer in self.layers:
            for name, rank in zip(self.names(layer), (2, 1), strict=True):
                if name not in self.leaves:
                    raise ValueError(
                        f"layer {layer!r} has no {name!r}; a Dense has W and b, and a zero in the place of b would get"
                        " a gradient and be trained: give the model both in every layer"
                    )
                shape = list(np.shape(self.leaves[name]))
                if len(shape) != rank:
                    raise ValueError(
                        f"{name} is {shape}, expected rank {rank}, for a Serial of Dense has no other layers"
                    )

    def names(self, layer: str) -> tuple[str, str]:
        """Names of a layer's matrix and bias."""
        stem = layer + self.separator if layer else ""
        return stem + self.matrix, stem + "bias"

    def turned(self, W: Array) -> Array:
        """W as the other library has it, or back."""
        return W.T if self.matrix == "kernel" else W


def _layers(entries: Iterable[str], matrix: str, separator: str = "/") -> list[str]:
    """Names of the layers in the order in which they first appear; anything but their W and b is refused."""
    layers: dict[str, None] = {}
    for entry in entries:
        layer, _, kind = entry.rpartition(separator)
        if kind not in (matrix, "bias"):
            raise ValueError(f"{entry!r} is no {matrix} or bias of a dense layer, and a Serial of Dense has no more")
        layers[layer] = None
    return list(layers)


def _by_number(names: Sequence[str], separator: str = "/") -> list[str] | None:
    """Names that are one stem with different numbers, by number; None where the names tell no order."""
    number = rf"\d+(?={re.escape(separator)}|$)"
    stems = {re.sub(number, "#", name) for name in names}
    numbered = {tuple(map(int, re.findall(number, name))): name for name in names}
    return [numbered[key] for key in sorted(numbered)] if len(stems) <= 1 and len(numbered) == len(names) else None


def _denses(net: Node) -> tuple[Dense, ...]:
    """The layers of a `Serial` of `Dense`; any other network is refused, and the part of it is named."""
    if not isinstance(net, Node):
        raise TypeError(f"net must be a network such as mlp(sizes, activation), got {type(net).__name__}")
    if type(net) is not Serial:
        raise ValueError(f"net must be a Serial of Dense, as mlp(sizes) is, got {type(net).__name__}: {net}")
    for i, node in enumerate(net.nodes):
        if type(node) is not Dense:
            raise ValueError(f"net must be a Serial of Dense alone, got {type(node).__name__} as node {i}: {node}")
    return tuple(node for node in net.nodes if isinstance(node, Dense))


def _params(found: _Found, net: Node) -> Tree:
    """Our parameters, checked against `net`."""
    _fit(found, [((node.d_out, node.d_in), (node.d_out,)) for node in _denses(net)], f"the network {net}")
    pairs = [[_array(name, found.leaves[name]) for name in found.names(layer)] for layer in found.layers]
    return validate.params(net, tuple(Affine(found.turned(W), b) for W, b in pairs))


def _entries(found: _Found, tree: Tree) -> dict[str, Array]:
    """Our arrays under the other library's names, checked against what stands there."""
    if not isinstance(tree, tuple) or not all(isinstance(one, Affine) for one in tree):
        kinds = [type(one).__name__ for one in tree] if isinstance(tree, tuple) else type(tree).__name__
        raise TypeError(f"tree must be a tuple with one Affine a layer, as params and gradients of mlp; got {kinds}")
    ours = [tuple(validate.array(f"tree[{i}].{k}", v) for k, v in vars(one).items()) for i, one in enumerate(tree)]
    _fit(found, [(W.shape, b.shape) for W, b in ours], "tree")
    entries: dict[str, Array] = {}
    for layer, (W, b) in zip(found.layers, ours, strict=True):
        entries |= zip(found.names(layer), (found.turned(W), b), strict=True)
    for name, entry in entries.items():
        there = str(getattr(found.leaves[name], "dtype", "no array")).removeprefix("torch.")
        if there != str(entry.dtype):
            raise TypeError(f"{name} is {there} in like, {entry.dtype} in tree; nothing is cast, convert one of them")
    return entries


def _fit(found: _Found, shapes: Sequence[tuple[Shape, Shape]], what: str) -> None:
    """Refuse layers of other shapes than ours, (W, b) of each, and show both sides."""
    there = [tuple(list(found.leaves[name].shape) for name in found.names(layer)) for layer in found.layers]
    ours = [(list(W[::-1] if found.matrix == "kernel" else W), list(b)) for W, b in shapes]
    if there == ours:
        return
    rows = []
    for i, (left, right) in enumerate(zip_longest(there, ours)):
        has = f"{found.layers[i]!r} with {found.matrix} {left[0]}, bias {left[1]}" if left else "nothing"
        wants = f"{found.matrix} {right[0]}, bias {right[1]}" if right else "nothing"
        rows.append(f"  layer {i + 1}: {has}; expected {wants}" + ("" if left == right else "  <- differs"))
    axes = "(d_in, d_out)" if found.matrix == "kernel" else "(d_out, d_in)"
    raise ValueError(f"the model's layers do not fit {what}; a {found.matrix} is {axes}:\n" + "\n".join(rows))


def _array(name: str, value: Any) -> Array:
    """`value` as a JAX array of the same dtype, from a copy: JAX may read NumPy's memory later, and tensors change."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        brain = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(jnp.bfloat16) if brain else value.numpy()
    if not isinstance(value, jax.Array) and hasattr(value, "__array__"):
        value = np.array(value)
    return validate.array(name, value)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by name, without Linen's "params" in front and without the box that Flax puts around an array."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        steps = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))) for step in path]
        boxed = path[-1:] == (jax.tree_util.GetAttrKey("value"),)
        name = "/".join(steps[steps[0] == "params" : len(steps) - boxed])
        if name in named:
            raise ValueError(f"two entries have the name {name!r}; rename one")
        named[name] = leaf
    return named


def _rebuilt(like: Any, entries: Mapping[str, Array]) -> Any:
    """The containers of `like` around our arrays, and None in the place of every other leaf."""
    return jax.tree.unflatten(jax.tree.structure(like), [entries.get(name) for name in _named(like)])


def _flax(variables: Any, order: Sequence[str] | None) -> _Found:
    if not isinstance(variables, Mapping):
        raise TypeError(f"expected Linen's params or nnx.state(model, nnx.Param), got {type(variables).__name__}")
    others = [str(key) for key in variables if key != "params"]
    if "params" in variables and others:
        raise ValueError(f"besides params there is {', '.join(others)}, which no Dense has; pass variables['params']")
    leaves = _named(variables)
    layers = _layers(leaves, "kernel")
    known = _by_number(layers)
    if order is None and known is None:
        raise ValueError(
            f"the order of application cannot be known from the names {layers}: they are not one stem with different"
            " numbers, and JAX and NNX sort their trees; pass order= with these names in the order of application"
        )
    if order is not None and sorted(order) != sorted(layers):
        raise ValueError(f"order must name every layer once; it has {list(order)}, there are {layers}")
    return _Found(list(order or known or layers), leaves, "kernel")


def _kind(part: Any) -> str:
    """Name of a class of Equinox; any other with its module, so that a model's own `Linear` is not taken for it."""
    kind = type(part)
    return kind.__name__ if kind.__module__.startswith("equinox.") else f"{kind.__module__}.{kind.__qualname__}"


def _equinox(model: Any) -> _Found:
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
    leaves = {name: leaf for name, leaf in _named(model).items() if hasattr(leaf, "dtype")}
    _layers(leaves, "weight")
    return _Found(linear, leaves)


def _applied(model: Any) -> list[list[Any]]:
    """What the model applies to a row after each of its linear layers, in turn; None where it was filtered out."""
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
    """Refuse an activation that differs from `node`'s anywhere on a grid, by more than float32 rounds."""
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


def _torch(state: Any) -> _Found:
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names to tensors, got {type(state).__name__}; pass .state_dict()")
    entries = list(map(str, state))
    layers = _layers(entries, "weight", ".")
    found = _Found(layers, state, separator=".")
    # PyTorch registers a weight before its bias. JAX and optax give dictionaries back sorted, "10" before "2".
    resorted = any(entries.index(b) < entries.index(W) for W, b in map(found.names, layers))
    if resorted and _by_number(layers, ".") != layers:
        again = "{name: state[name] for name in module.state_dict()}"
        raise ValueError(f"the mapping was sorted (a bias before its weight), so {layers} is no order; pass {again}")
    return found
