"""The network written out: one entry for every use of every layer, with its share of a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from manual_backprop.layers import Layer, LayerTrace, Parameters
from manual_backprop.network import Repeat, Tied, TiedReadout
from manual_backprop.node import Branches, Node, Wrapper
from manual_backprop.objective import Step
from reference.model import LayerValues

Tree = Any
Wide = Any  # float64 arrays of NumPy, and the numbers that NumPy returns for arrays without axes


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in the network, with its share of the step.

    Attributes:
        layer: the layer.
        number: 1 for the first, counting every block of a Repeat and every use of a Tied.
        path: of its entry in the trees that mirror uses, such as the trace.
        home: of its entry in the trees that mirror parameters; the same for all uses of these.
        block: its block in every Repeat and its use in every Tied around it: the first indices of its z, a and delta.
        owner: the same for the Repeats alone: the first indices of its parameters.
        params: its parameters, float64.
        values: its z and a, as `LayerValues`.
        delta: its error term.
        mask: of a dropout that draws; () for every other layer.
        gradient: of its parameters.
    """

    layer: Layer
    number: int
    path: str
    home: str
    block: tuple[int, ...]
    owner: tuple[int, ...]
    params: Any
    values: Any
    delta: Any
    mask: Any
    gradient: Any

    def name(self, what: str, field: str = "") -> str:
        """The path of one of its leaves, `gradients[1].W[0]`."""
        path, index = (self.home, self.owner) if what == "gradients" else (self.path, self.block)
        return f"{what}{path}{field}" + "".join(f"[{i}]" for i in index)

    def of(self, tree: Tree, owned: bool = False) -> Tree:
        """Its share of another tree that mirrors uses, or parameters if `owned`."""
        path = self.home if owned else self.path
        for step in path.strip("[]").split("][") if path else ():
            tree = tree[int(step)]
        return jax.tree.map(lambda leaf: leaf[self.owner if owned else self.block], tree)

    @property
    def taken(self) -> Any:
        """The layer's parameters, or the mask of a dropout that draws: all that its forward takes beside the input."""
        return self.params if isinstance(self.mask, tuple) else self.mask

    @property
    def parameters(self) -> dict[str, tuple[Wide, Wide]]:
        """Each of its parameters with the gradient, by the path inside, such as ".W"."""
        pairs = zip(jax.tree_util.tree_leaves_with_path(self.params), jax.tree.leaves(self.gradient), strict=True)
        return {jax.tree_util.keystr(path): (leaf, gradient) for (path, leaf), gradient in pairs}

    @property
    def weights(self) -> dict[str, Wide]:
        """Its parameters that the regulariser counts (J2)."""
        names = self.params.weights if isinstance(self.params, Parameters) else ()
        return {f".{name}": getattr(self.params, name) for name in names}


def written_out(net: Node, params: Tree, step: Step, masks: Tree | None = None) -> list[Use]:
    """Every use of every layer, first to last; `masks` as from `reference.masks`.

    Raises:
        TypeError: a composite of an unknown kind, whose trees cannot be read.
    """
    values = layer_values(step.trace)
    if masks is None:
        masks = jax.tree.map(lambda layer: (), values, is_leaf=lambda node: isinstance(node, LayerValues))
    params, *of_uses, gradients = jax.tree.map(wide, (params, values, step.deltas, step.gradients))
    found = _uses(net, (params, *of_uses, masks, gradients), ("", ""), (), ())
    return [Use(layer, number, *rest) for number, (layer, *rest) in enumerate(found, 1)]


def _uses(
    node: Node, trees: Any, paths: tuple[str, str], block: tuple[int, ...], owner: tuple[int, ...]
) -> Iterator[Any]:
    """Every use with its entries in `trees`; `paths` are the node's among uses and among parameters."""
    if isinstance(node, Layer):
        yield node, *paths, block, owner, *trees
    elif isinstance(node, Branches):
        for i, child in enumerate(node.nodes):
            yield from _uses(child, [tree[i] for tree in trees], _inside(paths, i, i), block, owner)
    elif isinstance(node, TiedReadout):
        params, *of_uses, gradients = trees
        for i, (child, home) in enumerate(zip(node.parts, (0, 1, 0), strict=True)):
            each = [params[home], *(tree[i] for tree in of_uses), gradients[home]]
            yield from _uses(child, each, _inside(paths, i, home), block, owner)
    elif isinstance(node, Repeat):
        for i in range(node.n):
            yield from _uses(node.block, _at(trees, i), paths, (*block, i), (*owner, i))
    elif isinstance(node, Tied):
        params, *of_uses, gradients = trees
        for i in range(node.n):
            yield from _uses(node.block, [params, *_at(of_uses, i), gradients], paths, (*block, i), owner)
    elif isinstance(node, Wrapper):
        yield from _uses(node.block, trees, paths, block, owner)
    else:
        raise TypeError(f"{type(node).__name__} is neither Branches nor a Wrapper, so how trees mirror it is not known")


def _inside(paths: tuple[str, str], use: int, home: int) -> tuple[str, str]:
    return f"{paths[0]}[{use}]", f"{paths[1]}[{home}]"


def _at(trees: Any, i: int) -> list[Tree]:
    return [jax.tree.map(lambda leaf: leaf[i], tree) for tree in trees]


def shared(uses: list[Use]) -> list[list[Use]]:
    """The uses of every set of parameters, several where it is tied, in the order of first use."""
    owned: dict[tuple[str, tuple[int, ...]], list[Use]] = {}
    for use in uses:
        owned.setdefault((use.home, use.owner), []).append(use)
    return list(owned.values())


def layer_values(trace: Tree) -> Tree:
    """The z and a of every layer of a trace, by hand or by the reference."""

    def values(layer: Any) -> Any:
        return LayerValues(layer.z, layer.a) if isinstance(layer, LayerTrace) else layer

    return jax.tree.map(values, trace, is_leaf=lambda node: isinstance(node, LayerTrace))


def wide(leaf: Any) -> Wide:
    """A float64 array of NumPy."""
    return np.asarray(leaf).astype(np.float64)
