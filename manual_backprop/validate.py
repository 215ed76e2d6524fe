"""Checks of public arguments; each error says what was expected, what came, and what to do.

They look at structures, shapes and dtypes, which are known during tracing, so they cost a compiled program
nothing. Nothing is broadcast, cast or dropped to make arguments fit.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.layers.base import LayerTrace
from manual_backprop.layers.factor import Factor
from manual_backprop.node import Node, Walk
from manual_backprop.precision import accumulator
from manual_backprop.types import Examples, Flow, Tree, came


@lru_cache(maxsize=256)
def _expected(net: Node) -> Tree:
    """Shapes of `net`'s parameters, from its own `init`; nothing is drawn."""
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


@lru_cache(maxsize=256)
def _output(net: Node, x: Flow) -> Flow:
    return net.output(x)


@lru_cache(maxsize=256)
def _layers(net: Node) -> Any:
    """The structure of trees with one entry for each use of a layer."""
    return jax.tree.structure(net.walk(lambda layer, uses: 0, Walk(of_uses=True, mirrored=True)))


def network(value: Any) -> Node:
    """Return a network, checked to be one.

    Raises:
        TypeError: anything else, such as an objective, whose network is `objective.net`, or arguments in another order.
    """
    if not isinstance(value, Node):
        hint = "; its network is objective.net" if isinstance(getattr(value, "net", None), Node) else ""
        raise TypeError(f"expected a layer or composite such as mb.mlp gives, got {came(value)} for the network{hint}")
    return value


def array(name: str, value: Any) -> Array:
    """`value` as a JAX float or integer array of the same dtype.

    Raises:
        TypeError: not an array, or of a dtype that JAX would change silently.
    """
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} has a mask, which JAX would drop; fill its entries, or leave examples out by weights of 0"
        )
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{name} must be an array, got {came(value)}; wrap it in jnp.asarray")
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise TypeError(
            f"{name} must hold numbers, got {value.dtype}; number text and objects first, by np.unique for one"
        )
    kept = jax.dtypes.canonicalize_dtype(value.dtype)
    if kept != value.dtype and jnp.issubdtype(value.dtype, jnp.inexact):
        raise TypeError(
            f"{name} is {value.dtype}, which JAX would make {kept} while x64 is off; convert it with"
            f' .astype("{kept}"), or enable x64'
        )
    # A copy: JAX may still read the memory after the caller has changed it. device_put compiles no program for it.
    return jax.device_put(np.array(value))


def _floating(name: str, value: Any) -> Array:
    value = array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name} must hold floats, got {value.dtype}; convert it with .astype")
    return value


def like(name: str, tree: Tree, other_name: str, other: Tree) -> None:
    """Refuse a tree that differs from `other` in structure, or in any leaf's shape or dtype.

    Raises:
        ValueError: another structure or shape.
        TypeError: another dtype.
    """
    same_structure(name, tree, other_name, other)
    leaves = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree_util.tree_leaves_with_path(other), strict=True)
    for (path, leaf), (_, expected) in leaves:
        where = f"{name}{jax.tree_util.keystr(path)}"
        leaf = array(where, leaf)
        if leaf.shape != expected.shape:
            raise ValueError(f"{where} is {list(leaf.shape)}, expected {list(expected.shape)} as in {other_name}")
        if leaf.dtype != expected.dtype:
            raise TypeError(
                f"{where} is {leaf.dtype}, expected {expected.dtype} as in {other_name}; convert it with .astype"
            )


def same_structure(name: str, tree: Tree, other_name: str, other: Tree) -> None:
    """Refuse a tree of another structure.

    Raises:
        ValueError: says both; where only a parameter is missing or too many, such as a bias, says which.
    """
    came: Any = jax.tree.structure(tree)
    expected: Any = jax.tree.structure(other)
    if came != expected:
        _same_but_for_none(name, tree, other_name, other)
        raise ValueError(f"{name} has structure\n  {came}\nbut {other_name} has\n  {expected}")


def _same_but_for_none(name: str, tree: Tree, other_name: str, other: Tree) -> None:
    """Refuse None in the place of an array, or the reverse, where the structures are the same in all else."""
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    others, expected = jax.tree_util.tree_flatten_with_path(other, is_leaf=lambda leaf: leaf is None)
    for (path, leaf), (_, wanted) in zip(leaves, others, strict=True) if structure == expected else ():
        if (leaf is None) != (wanted is None):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is {came(leaf)}, but {other_name} has {came(wanted)} there;"
                " the b of a layer with bias=False is None, and of every other one an array"
            )


def params(net: Node, params: Tree) -> Tree:
    """Parameters of `net`, as JAX arrays of one float dtype.

    Raises:
        ValueError: another structure or shape than `net.init` gives.
        TypeError: not float arrays, or dtypes that differ.
    """
    expected = _expected(network(net))
    same_structure("params", params, "the network's init", expected)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    dtypes = set()
    for (path, leaf), shape in zip(leaves, jax.tree.leaves(expected), strict=True):
        where = f"params{jax.tree_util.keystr(path)}"
        leaf = _floating(where, leaf)
        if leaf.shape != shape.shape:
            raise ValueError(
                f"{where} is {list(leaf.shape)}, expected {list(shape.shape)} for the network {net}"
                " (W has one row an output)"
            )
        dtypes.add(leaf.dtype)
    if len(dtypes) > 1:
        raise TypeError(f"params mix the dtypes {sorted(map(str, dtypes))}; convert them to one")
    return jax.tree.map(lambda leaf: array("params", leaf), params)


def inputs(net: Node, tree: Tree, x: Any) -> tuple[Tree, Examples]:
    """Parameters and a batch that fit `net` and each other.

    Raises:
        ValueError: shapes that do not fit, an empty batch, parameters of another structure, or integers that are out of
            range, where they are known.
        TypeError: not float arrays, or dtypes that differ.
    """
    tree = params(net, tree)
    if isinstance(x, tuple) and not x:
        raise ValueError("x is an empty tuple, expected a batch (N, *features), or a tuple of these for several inputs")
    x = tuple(_examples(f"x[{i}]", part) for i, part in enumerate(x)) if isinstance(x, tuple) else _examples("x", x)
    if len({part.shape[0] for part in jax.tree.leaves(x)}) > 1:
        raise ValueError(f"the parts of x have {[part.shape[0] for part in x]} examples; they must agree in number")
    dtype = dtype_of(tree, x)
    _output(net, described(x, dtype))
    for part in jax.tree.leaves(x):
        if jnp.issubdtype(part.dtype, jnp.floating) and part.dtype != dtype:
            raise TypeError(f"x is {part.dtype} but params are {dtype}; convert one of them with .astype")
    if any(jnp.issubdtype(part.dtype, jnp.integer) and _known(part) for part in jax.tree.leaves(x)):
        net.check_input(x)
    return tree, x


def _known(part: Array) -> bool:
    return not isinstance(part, jax.core.Tracer)


def _examples(name: str, x: Any) -> Array:
    x = array(name, x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{name} must hold floats, integers or booleans, got {x.dtype}; convert it with .astype")
    if x.ndim < (2 if jnp.issubdtype(x.dtype, jnp.floating) else 1):
        raise ValueError(f"{name} is {list(x.shape)}, expected a batch with one example a row; one example is x[None]")
    if x.shape[0] == 0:
        raise ValueError(f"{name} is {list(x.shape)}: a batch needs at least one example")
    return x


def described(x: Examples, dtype: Any) -> Flow:
    """Shapes and dtypes of a batch, with its floats in that dtype."""

    def of_part(part: Array) -> jax.ShapeDtypeStruct:
        kind = dtype if jnp.issubdtype(part.dtype, jnp.floating) else part.dtype
        return jax.ShapeDtypeStruct(part.shape, kind)

    return jax.tree.map(of_part, x)


def dtype_of(tree: Tree, x: Examples) -> jnp.dtype:
    """The float type that a network computes in: that of its parameters, or of its input where it has none.

    Raises:
        TypeError: there is no float among them.
    """
    for leaf in (*jax.tree.leaves(tree), *jax.tree.leaves(x)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.dtype
    raise TypeError("x must hold floats where the network has no parameters, got integers; convert it with .astype")


def count(x: Examples) -> int:
    """N, the number of examples."""
    return jax.tree.leaves(x)[0].shape[0]


def output(net: Node, tree: Tree, x: Examples) -> Flow:
    """Shape and dtype of `net`'s output for parameters and a batch that `inputs` has checked.

    Raises:
        TypeError: a network whose output is a tuple.
    """
    found = _output(net, described(x, dtype_of(tree, x)))
    if isinstance(found, tuple):
        raise TypeError(f"a loss takes one output, but {net} has {len(found)}; join them, by a Product for one")
    return jax.ShapeDtypeStruct(found.shape, dtype_of(tree, x))


def weights(value: Any, tree: Tree, x: Examples) -> Array:
    """One weight for each example of the batch x, in the precision of sums.

    Raises:
        ValueError: not of shape (N,).
        TypeError: not floats of x's dtype or of the precision of sums.
    """
    return _weights(value, count(x), dtype_of(tree, x), "x is")


def weights_of(factor: Factor, value: Any) -> Array | None:
    """One weight for each example of a layer's factor, checked as by `weights`; None stays None."""
    if value is None:
        return None
    return _weights(value, factor.examples, factor.dtype, "the deltas are")


def _weights(value: Any, n: int, dtype: Any, whose: str) -> Array:
    value = _floating("weights", value)
    if value.shape != (n,):
        raise ValueError(f"weights are {list(value.shape)}, expected [{n}]: one for each example")
    if value.dtype not in (dtype, accumulator(dtype)):
        raise TypeError(f"weights are {value.dtype} but {whose} {dtype}; convert them with .astype")
    return value.astype(accumulator(dtype))


def batch(net: Any, trace: Tree, deltas: Tree) -> tuple[Tree, Tree]:
    """A trace and deltas of one network, as a pair.

    Raises:
        ValueError: deltas of another structure than the trace's.
        TypeError: no network, or a trace that holds anything but `LayerTrace`.
    """
    of_network(net, trace, "readings take (net, trace, deltas), as from backprop")
    same_structure("deltas", deltas, "the trace", jax.tree.map(lambda layer: layer.z, trace, is_leaf=_is_layer))
    return trace, deltas


def of_network(net: Any, trace: Tree, order: str) -> None:
    """Refuse a trace that is none, or that is of another network; `order` says what the caller takes.

    Raises:
        ValueError: a trace of another structure than the network's.
        TypeError: no network, or a trace that holds anything but `LayerTrace`.
    """
    layers, structure = jax.tree.flatten(trace, is_leaf=_is_layer)
    strangers = sorted({type(layer).__name__ for layer in layers if not _is_layer(layer)})
    if strangers:
        raise TypeError(f"the trace holds {', '.join(strangers)}; {order}")
    if structure != _layers(network(net)):
        raise ValueError(f"the trace is of another network than {net}: it has {structure}; {order}")


def flow(name: str, value: Any) -> Flow:
    """Arrays that flow between nodes: one, or a tuple of them, in which None is a zero.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, tuple):
        return tuple(None if part is None else flow(f"{name}[{i}]", part) for i, part in enumerate(value))
    return array(name, value)


def _is_layer(node: object) -> bool:
    return isinstance(node, LayerTrace)


def non_negative(name: str, value: Any, dtype: Any) -> Array:
    """A scalar >= 0 in that dtype: a Python number, or a scalar array that may be traced.

    Raises:
        ValueError: not a scalar; or negative or nan, where its value is known. A traced one becomes nan instead.
        TypeError: no number, or an array of another dtype.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
        return jnp.asarray(value, dtype)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"{name} must be a number, got {came(value)}")
    value = _floating(name, value)
    if value.shape != ():
        raise ValueError(f"{name} is {list(value.shape)}, expected a scalar")
    if value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype}, expected {jnp.dtype(dtype)}; convert it with .astype")
    if isinstance(value, jax.core.Tracer):
        return jnp.where(value >= 0, value, jnp.nan)
    if not float(value) >= 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return value


def coefficient(value: Any, dtype: Any) -> Array | float:
    """A lambda given at the call: a Python number, or a scalar array that may be traced.

    Raises:
        ValueError: not a scalar; or negative or not finite, where its value is known.
        TypeError: not a float of the precision of sums.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
        if not 0 <= value < float("inf"):
            raise ValueError(f"lam must be finite and >= 0, got {value}")
        return value
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"lam must be a number, or a scalar array, got {came(value)}")
    value = _floating("lam", value)
    wide = accumulator(dtype)
    if value.shape != ():
        raise ValueError(f"lam is {list(value.shape)}, expected a scalar; sweep over several with jax.vmap")
    if value.dtype != wide:
        raise TypeError(f"lam is {value.dtype}, expected {wide} for x of {jnp.dtype(dtype)}; convert it with .astype")
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < float("inf"):
        raise ValueError(f"lam must be finite and >= 0, got {value}")
    return value
