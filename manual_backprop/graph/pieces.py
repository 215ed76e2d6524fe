"""A network taken apart into what is drawn one after the other; forward and backward graphs are made of the same."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from manual_backprop import validate
from manual_backprop.layers.base import Layer, Node
from manual_backprop.layers.factor import Tree
from manual_backprop.losses import Loss
from manual_backprop.network import Residual, Serial
from manual_backprop.network.scanned import Repeat, Tied
from manual_backprop.objective import Objective, Step, backprop

Opened = bool | int
LOOPS = "kjimnpqr"  # the letters that count a Repeat's blocks, outermost first


@dataclass(frozen=True)
class Index:
    """Which layer: a number, or within blocks that repeat a sum such as 2+3k, k the block's number from 0."""

    first: int
    loops: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        loops = [f"{stride if stride > 1 else ''}{letter}" for stride, letter in self.loops]
        return "+".join([str(self.first)] * (self.first > 0 or not loops) + loops)

    @property
    def slug(self) -> str:
        """As a part of a key."""
        return str(self).replace("+", "_")

    def plus(self, layers: int) -> "Index":
        """So many layers on."""
        return replace(self, first=self.first + layers)


@dataclass(frozen=True)
class Values:
    """What is known of a node: its parameters at least by shape, the rest where a batch was given."""

    params: Tree
    trace: Tree | None = None
    deltas: Tree | None = None
    gradients: Tree | None = None

    def at(self, i: int) -> "Values":
        """Of node `i` of a `Serial`."""
        trees = (getattr(self, field.name) for field in fields(self))
        return Values(*(None if tree is None else tree[i] for tree in trees))


@dataclass(frozen=True)
class LayerPiece:
    """A layer; `weights` is the index of its parameters, which `Tied` uses share."""

    layer: Layer
    index: Index
    weights: Index
    values: Values

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters by name: arrays, or their shapes."""
        return _named(self.values.params)

    @property
    def operators(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Its circles, each with its sign and the parameters that enter it (`Layer.operators`).

        Raises:
            ValueError: the family's operators do not name each of its parameters once.
        """
        parameters = tuple(self.parameters)
        operators = self.layer.operators or ((type(self.layer).__name__, parameters),)
        drawn = [name for _, names in operators for name in names]
        if sorted(drawn) != sorted(parameters):
            raise ValueError(
                f"{self.layer}: its operators name the parameters {drawn}, but it has {list(parameters)};"
                f" {type(self.layer).__name__}.operators must name each once, or be ()"
            )
        return operators

    @property
    def gradients(self) -> dict[str, Any]:
        """Likewise; empty where no batch was given."""
        return _named(self.values.gradients)

    @property
    def penalised(self) -> tuple[str, ...]:
        """The parameters that the regulariser counts (J2)."""
        return tuple(self.values.params.weights)


@dataclass(frozen=True)
class Closed:
    """A composite that is drawn as one box; `index` is its last layer's."""

    node: Node
    index: Index
    penalised: bool

    @property
    def label(self) -> str:
        """What it is."""
        return composite_label(self.node)

    @property
    def output(self) -> str:
        """The letter of what leaves it."""
        return output_letter(self.node)


@dataclass(frozen=True)
class Enter:
    """An opened composite begins; of one that repeats a block, `loop` counts the blocks from 0."""

    label: str
    index: Index
    loop: str


@dataclass(frozen=True)
class Sum:
    """Where a residual block's output is added to what entered it, which gives `letter`^(`index`)."""

    index: Index
    letter: str

    @property
    def slug(self) -> str:
        """As a part of a key."""
        return self.letter.replace("'", "p") + "_" + self.index.slug


@dataclass(frozen=True)
class Leave:
    """An opened composite ends; `output` is the label of what leaves it."""

    output: str


Piece = LayerPiece | Closed | Enter | Sum | Leave


def pieces(node: Node, index: Index, values: Values, opened: Opened, shared: Index | None = None) -> Iterator[Piece]:
    """What `node` is drawn as.

    Args:
        node: a layer or composite.
        index: of its first layer.
        values: of this node.
        opened: how many levels of composites are opened; True opens all.
        shared: within `Tied`, the index that all uses of the parameters have in common.
    """
    if isinstance(node, Layer):
        yield LayerPiece(node, index, shared or index, values)
    elif isinstance(node, Serial):
        for i, part in enumerate(node.nodes):
            yield from pieces(part, index, values.at(i), opened, shared)
            index, shared = index.plus(depth(part)), shared and shared.plus(_owned(part))
    elif (opened is not True and opened < 1) or not isinstance(node, Residual | Repeat | Tied):
        yield Closed(node, index.plus(depth(node) - 1), _any_penalised(values.params))
    else:
        inside = opened if opened is True else opened - 1
        yield from _of_composite(node, index, values, inside, shared)


def _of_composite(
    node: Residual | Repeat | Tied, index: Index, values: Values, opened: Opened, shared: Index | None
) -> Iterator[Piece]:
    within, block, letter = index, node.block, ""
    if isinstance(node, Repeat | Tied):
        letter = LOOPS[len(index.loops) :][:1] or f"k{len(index.loops)}"
        within = replace(index, loops=(*index.loops, (depth(block), letter)))
        if isinstance(node, Tied):
            shared = shared or index
        elif shared is not None:
            shared = replace(shared, loops=(*shared.loops, (_owned(block), letter)))
    yield Enter(composite_label(node, letter), within, letter)
    yield from pieces(block, within, values, opened, shared)
    if isinstance(node, Residual):
        yield Sum(index.plus(depth(block) - 1), output_letter(node))
    yield Leave(f"{output_letter(node)}^({index.plus(depth(node) - 1)})")


def composite_label(node: Node, letter: str = "") -> str:
    """What stands on a composite's box."""
    if isinstance(node, Repeat | Tied):
        return f"{type(node).__name__}: {node.n} blocks" + (f", {letter} = 0..{node.n - 1}" if letter else "")
    return "Residual: x + f(x)" if isinstance(node, Residual) else type(node).__name__


def output_letter(node: Node) -> str:
    """The letter of what leaves a node: a of a layer; of a residual block h, with a prime for every one within it."""
    if isinstance(node, Residual):
        inner = output_letter(node.block)
        return "h" if inner == "a" else inner + "'"
    if isinstance(node, Serial):
        return output_letter(node.nodes[-1])
    return output_letter(node.block) if isinstance(node, Repeat | Tied) else "a"


def depth(node: Node) -> int:
    """How many layers a signal goes through, every use counted."""
    if isinstance(node, Serial):
        return sum(depth(part) for part in node.nodes)
    if isinstance(node, Repeat | Tied):
        return node.n * depth(node.block)
    return depth(node.block) if isinstance(node, Residual) else len(list(node.layers()))


def _owned(node: Node) -> int:
    """How many layers with parameters of their own."""
    if isinstance(node, Serial):
        return sum(_owned(part) for part in node.nodes)
    if isinstance(node, Repeat):
        return node.n * _owned(node.block)
    return _owned(node.block) if isinstance(node, Residual | Tied) else len(list(node.layers()))


def values_of(objective: Objective, params: Tree, x: Any, y: Any) -> tuple[Values, Step | None]:
    """What the graph can show: shapes of parameters, or with a batch every value.

    Raises:
        ValueError: some of params, x and y, but not all; or values that are being traced by JAX.
    """
    given = [name for name, value in (("params", params), ("x", x), ("y", y)) if value is not None]
    if not given:
        return Values(jax.eval_shape(lambda: objective.net.init(jax.random.key(0)))), None
    if len(given) < 3:
        raise ValueError(f"a graph with values needs params, x and y, got only {' and '.join(given)}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, x, y))):
        raise ValueError("a graph shows values, which are not known under jit, vmap or grad; draw it outside of them")
    params = validate.params(objective.net, params)
    step = jax.jit(partial(backprop, objective))(params, x, y)
    return Values(params, step.trace, step.deltas, step.gradients), step


def opening(objective: Objective, opened: Opened) -> Opened:
    """How many levels to open, once both arguments are known to be what they should.

    Raises:
        TypeError: no `Objective`, or levels that are no number.
        ValueError: levels below 0.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"a graph is drawn of an Objective, got {type(objective).__name__}; Objective(net, loss) makes one"
        )
    if not isinstance(opened, int | np.integer):
        raise TypeError(f"opened must be True, False or a number of levels, got {opened!r}")
    if opened < 0:
        raise ValueError(f"opened must be 0 or more levels, got {opened}")
    return opened if isinstance(opened, bool) else int(opened)


def words(loss: Loss) -> tuple[str, ...]:
    """The name of a loss, one word a line."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+[^A-Z_]*|[^A-Z_]+", type(loss).__name__))


def notes(value: Any) -> tuple[str, ...]:
    """Shape and Frobenius norm of an array, or of a scalar its value; nothing of nothing."""
    if value is None or isinstance(value, jax.ShapeDtypeStruct):
        return ()
    numbers = np.asarray(value)
    if numbers.ndim == 0:
        return (f"{float(numbers):.4g}",)
    shape = "×".join(map(str, numbers.shape))
    if np.issubdtype(numbers.dtype, np.integer):
        return (shape,)
    return (shape, f"‖·‖ {np.linalg.norm(numbers.astype(np.float64)):.3g}")


def _named(params: Any) -> dict[str, Any]:
    return {field.name: getattr(params, field.name) for field in fields(params)} if is_dataclass(params) else {}


def _any_penalised(params: Tree) -> bool:
    blocks = jax.tree.leaves(params, is_leaf=lambda node: hasattr(node, "weights"))
    return any(getattr(block, "weights", ()) for block in blocks)
