"""The note's algorithm: one sweep forward, one back, and what is kept of each layer is a plain value.

The step itself stands in `layers.base.Layer`, once for every family of layers; composites thread it. These
are the public doors, and they check what comes in, so that what is traced under jit stays clean.
"""

from jaxtyping import Array, Float

from manual_backprop import validate
from manual_backprop.layers.base import Node, Rule, backpropagation
from manual_backprop.layers.factor import Factor, Tree


def forward(net: Node, params: Tree, x: Float[Array, "N *features"]) -> tuple[Float[Array, "N *outputs"], Tree]:
    """Step 1, (F1) and (F2): z and a of every layer, up to the last.

    Args:
        net: a layer or composite.
        params: its parameters, as from `net.init`.
        x: a batch, one example a row; a^(0).

    Returns:
        The output a^(L), and the trace: it mirrors `net`, and `trace[l].z`, `trace[l].a` are plain arrays.

    Raises:
        ValueError: shapes that do not fit, or parameters of another structure.
        TypeError: dtypes that differ, or are not floats.
    """
    return net.forward(*validate.inputs(net, params, x))


def backward(
    net: Node,
    params: Tree,
    trace: Tree,
    d_output: Float[Array, "N *outputs"],
    *,
    rule: Rule = backpropagation,
) -> tuple[Float[Array, "N *features"], Tree]:
    """Step 2, (B1) and (B2): delta of every layer, last to first.

    Args:
        net: a layer or composite.
        params: its parameters.
        trace: from `forward`.
        d_output: dl/do of every example, unscaled.
        rule: how error terms travel down; another than backpropagation is in `rules`.

    Returns:
        dL/dx (B5), and the deltas (C5): they mirror `net`; row n is delta of example n, with no 1/N in it.

    Raises:
        ValueError: `d_output`, `trace`, `params` or the rule's own arrays do not belong together.
        TypeError: a rule that is none.
    """
    validate.params(net, params)
    return net.backward(params, trace, d_output, None, validate.rule(rule).way(net, params, trace, d_output))


def factors(net: Node, trace: Tree, deltas: Tree) -> Tree:
    """Step 3's raw material (C2): each layer's pair (what entered it, delta), as a `Factor`."""

    def itself(factor: Factor) -> Factor:
        return factor

    return net.read(itself, (trace, deltas))


def pushforward(
    net: Node, params: Tree, x: Float[Array, "N *features"], dparams: Tree, dx: Float[Array, "N *features"]
) -> tuple[Float[Array, "N *outputs"], Float[Array, "N *outputs"]]:
    """Forward propagation of a derivative: (output, its change along (dparams, dx)), the differential of (F3).

    One pass gives one directional derivative; the note's remark on why one propagates backward instead.

    Raises:
        ValueError: a tangent that has not the structure and shapes of what it is a tangent of.
        TypeError: likewise for dtypes.
    """
    params, x = validate.inputs(net, params, x)
    validate.like("dparams", dparams, "params", params)
    validate.like("dx", dx, "x", x)
    output, d_output, _, _ = net.tangent(params, x, dparams, dx)
    return output, d_output
