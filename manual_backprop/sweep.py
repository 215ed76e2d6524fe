"""The note's algorithm: one sweep forward and one back, which keep plain values of each layer.

`Sweep` is steps 1 and 2 at one layer, whatever its family; composites carry it through a network. The functions are
the public interface and check their arguments. Those whose names end in `_sweep` do the same without checks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
from jaxtyping import Array, PRNGKeyArray

from manual_backprop import explicit, validate
from manual_backprop.drawing import drawn, layer_keys
from manual_backprop.layers.base import Layer, LayerTrace, LeanTrace
from manual_backprop.node import Node, Step, Walk, vmapped
from manual_backprop.types import Examples, Flow, Part, Tree, came, override

Reader = Callable[..., Any]
"""A contraction of a layer's `Factor`, or of its factors in several batches, to the value kept for its parameters."""


@dataclass(frozen=True)
class Rule:
    """How error terms travel from a layer to the one below. This one is backpropagation; `rules` has others.

    A rule is a pytree. Once a sweep it lays out what it needs at every layer, in a tree that mirrors the parameters.
    Composites take that tree apart as they do the parameters, so nothing is looked up on the way.

    Attributes:
        linear: whether every error term is linear in the output's, so that a factor may be applied at the output as
            well as in the sum over examples. A subclass that does not say so is taken not to be.
    """

    linear: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "linear" not in vars(cls):
            cls.linear = False

    def carried(self, net: Node, params: Tree, trace: Tree, d_output: Flow) -> Tree:
        """Return one entry for every layer, in the structure of `params` down to the layers; here the parameters."""
        return params

    def params(self, carried: Any) -> Any:
        """The layer's parameters, which its entry must contain."""
        return carried

    def at_use(self, carried: Tree, use: Array) -> Tree:
        """The entries for one use of parameters that are used several times (`Tied`)."""
        return carried

    def delta(self, layer: Layer, carried: Any, trace: LayerTrace, d_a: Array) -> Array:
        """delta^(l), from dL/da^(l), which arrives from above (B1) (B2)."""
        return layer.error_term(trace, d_a)

    def transport(self, layer: Layer, carried: Any, saved: Tree, delta: Array) -> Any:
        """dL/da^(l-1) for the layer below: (W^(l))^T delta^(l) (B2)."""
        return layer.transport(carried, saved, delta)


jax.tree_util.register_static(Rule)
backpropagation = Rule()


@dataclass(frozen=True)
class Sweep(Step):
    """Steps 1 and 2 of the note at one layer, and step 3 on the way back where the caller does not need the deltas.

    Attributes:
        reader: contracts the layer's pair (a, delta) to the result found there; None finds delta itself.
        rule: how error terms travel.
        lean: whether the caller needs no trace.
    """

    reader: Reader | None = None
    rule: Rule = backpropagation
    lean: bool = False

    @override
    def forward(self, layer: Layer, x: Flow, own: Any) -> tuple[Array, LayerTrace]:
        z, saved = layer.net_input(self.rule.params(own), x)  # (F1)
        a = layer.f.value(z)  # (F2)
        return a, LeanTrace(z, a, saved) if self.lean else LayerTrace(z, a, saved)

    @override
    def backward(self, layer: Layer, d: Array, own: Any, kept: LayerTrace) -> tuple[Flow, Any]:
        layer.require_like_z("dL/da", d, kept)
        delta = self.rule.delta(layer, own, kept, d)  # (B1) (B2)
        found = delta
        if self.reader is not None:  # (B3) (B4)
            found = explicit.like(self.rule.params(own), self.reader(layer.factor(kept.saved, delta)))
        return self.rule.transport(layer, own, kept.saved, delta), found  # (B2) (B5)

    @override
    def at_use(self, owned: Tree, use: Array) -> Tree:
        return self.rule.at_use(owned, use)

    @property
    @override
    def unread(self) -> "Sweep":
        return replace(self, reader=None, lean=False)

    @override
    def read(self, block: Node, kept: Tree, found: Tree) -> Tree:
        return found if self.reader is None else read(block, self.reader, (kept, found), uses=1)

    @override
    def joined(self, layer: Any, kept: tuple[LayerTrace, ...], found: tuple[Array, ...]) -> Any:
        return None if self.reader is None else self.reader(layer.factor(tuple(k.saved for k in kept), found))


def forward_sweep(
    net: Node, params: Tree, x: Examples, *, lean: bool = False, keys: Tree | None = None, part: Part | None = None
) -> tuple[Flow, Tree]:
    """`forward` without checks; `lean` is for callers that need no trace, `keys` are from `layer_keys`.

    `part` says which examples of a batch x are, where the keys are to draw what they draw for the batch.
    """
    step, owned = drawn(net, Sweep(lean=lean), params, keys, part)
    return net.forward(step, x, owned)


def backward_sweep(
    net: Node,
    params: Tree,
    trace: Tree,
    d_output: Flow,
    *,
    reader: Reader | None = None,
    rule: Rule = backpropagation,
    lean: bool = False,
    keys: Tree | None = None,
    part: Part | None = None,
) -> tuple[Flow, Tree]:
    """`backward` without checks; with a reader, its result for every layer takes the place of the deltas.

    `lean`, `keys` and `part` are those of a lean forward sweep: blocks that are run forward again are run in the same
    way.
    """
    carried = rule.carried(net, params, trace, d_output)
    if carried is not params:
        _require_mirror(rule, net, params, carried)
    step, owned = drawn(net, Sweep(reader, rule, lean), carried, keys, part)
    return net.backward(step, d_output, owned, trace)


def _require_mirror(rule: Rule, net: Node, params: Tree, carried: Tree) -> None:
    try:
        net.map(lambda layer, own, entry: (), params, carried)
    except (TypeError, ValueError) as wrong:
        raise ValueError(
            f"{type(rule).__name__}.carried must give one entry for every layer, in a tree that mirrors the parameters"
            " (blocks of a Repeat in front), as net.map and net.keys do"
        ) from wrong


def read(net: Node, reader: Reader, *batches: tuple[Tree, Tree], uses: int = 0) -> Tree:
    """Step 3, after the sweep: `reader` applied to every layer's factor, in the parameters' structure.

    Args:
        net: a layer or composite.
        reader: takes one factor of the layer for each batch.
        batches: (trace, deltas) of each batch.
        uses: the number of axes of uses that stand in front already.
    """

    def at(layer: Layer, uses: int, *entries: Any) -> Any:
        factors = []
        for trace, delta in zip(entries[::2], entries[1::2], strict=True):
            layer.require_like_z("delta", delta, trace)
            factors.append(vmapped(layer.factor, uses)(trace.saved, delta).over_uses(uses))
        return reader(*factors)

    return net.walk(at, Walk(of_uses=True, uses=uses), *(tree for batch in batches for tree in batch))


def forward(net: Node, params: Tree, x: Examples, *, key: PRNGKeyArray | None = None) -> tuple[Flow, Tree]:
    """Step 1, (F1) and (F2): z and a of every layer, up to the last.

    Args:
        net: a layer or composite.
        params: its parameters, as from `net.init`.
        x: a batch (N, *features), one example a row; a^(0). A tuple of these where the first layer has several inputs.
        key: for layers that draw at random (`Dropout`), which are off without it; the same key draws the same. Without
            such a layer it changes nothing. What is drawn is in the trace, so `backward` takes no key.

    Returns:
        The output a^(L), and the trace: it mirrors `net`, and `trace[l].z`, `trace[l].a` are plain arrays.

    Raises:
        ValueError: shapes that do not fit, or parameters of another structure.
        TypeError: dtypes that differ, or are not floats; a key that is none, such as the number of a seed.
    """
    return forward_sweep(net, *validate.inputs(net, params, x), keys=layer_keys(net, key))


def backward(
    net: Node, params: Tree, trace: Tree, d_output: Flow, *, rule: Rule = backpropagation
) -> tuple[Flow, Tree]:
    """Step 2, (B1) and (B2): delta of every layer, last to first.

    Args:
        net: a layer or composite.
        params: its parameters.
        trace: from `forward`.
        d_output: dl/do of every example, unscaled.
        rule: how error terms travel down; `rules` has alternatives to backpropagation.

    Returns:
        dL/dx (B5), and the deltas (C5): they mirror `net`; row n is delta of example n, with no 1/N in it.

    Raises:
        ValueError: `d_output`, `trace`, `params` or the rule's own arrays do not belong together.
        TypeError: a `rule` that is no rule, a trace that is none, or a `d_output` that is no array.
    """
    validate.params(net, params)
    validate.of_network(net, trace, "backward takes (net, params, trace, d_output), the trace as from forward")
    return backward_sweep(net, params, trace, validate.flow("d_output", d_output), rule=checked_rule(rule))


def factors(net: Node, trace: Tree, deltas: Tree) -> Tree:
    """Each layer's pair (input, delta) as a `Factor`, from which step 3 starts (C2)."""
    return read(net, lambda factor: factor, validate.batch(net, trace, deltas))


def checked_rule(value: Any) -> Rule:
    """Return a rule by which error terms travel, checked to be one.

    Raises:
        TypeError: anything else, such as a rule's class or name.
    """
    if not isinstance(value, Rule):
        raise TypeError(f"rule must be an instance such as mb.rules.FeedbackAlignment(feedback), got {came(value)}")
    return value
