"""Every equation of a step by itself: recomputed in float64 from the values that entered it.

Each value of a `Step` is held against what its own equation makes of the stored values before it (z from a, a
from z, delta from the delta above), so an error is of that equation and of no other, and the first that fails
names the fault. How far a right answer may be off is derived, formula by formula, in `reference.equations.bounds`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from manual_backprop.layers import Dense, Node
from manual_backprop.network import Repeat, Residual, Serial, Tied
from manual_backprop.objective import Objective, Step
from reference import model
from reference.equations import bounds
from reference.equations.bounds import Arithmetic, Known

Tree = Any
Wide = Any  # float64 arrays of NumPy, and the numbers that it turns arrays without axes into


@dataclass(frozen=True)
class Equation:
    """One equation: the value under test, and what it should be.

    Attributes:
        path: of the value, as one reaches it on a `Step`.
        tag: of the equation.
        layer: 1 for the first, every block of a Repeat and use of a Tied counted; 0 for none.
        manual: the value under test.
        known: what the equation makes of the values before it.
        parameter: what this is the gradient with respect to, if it is one.
        counted: whether the regulariser counts that parameter.
        mistakes: what else the value would be, by the mistake that would make it so.
    """

    path: str
    tag: str
    layer: int
    manual: Any
    known: Known
    parameter: Any = None
    counted: bool = False
    mistakes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Site:
    """One dense layer where it stands in the network, with its share of the step.

    Attributes:
        layer: what it is.
        number: 1 for the first.
        path: of its entry in the trees of the step.
        block: which block of the Repeats and use of the Tieds around it: the first indices of its z, a and delta.
        owner: of the Repeats alone: the first indices of its parameters.
        params: its parameters, float64.
        trace: its z and a.
        delta: its error term.
        gradient: of its parameters.
        at: f and its derivatives at its z, known once the forward sweep has passed.
        a_in: what entered it, likewise.
        delta_used: its delta and the slack of it, known once the backward sweep has passed.
    """

    layer: Dense
    number: int
    path: str
    block: str
    owner: str
    params: Any
    trace: Any
    delta: Any
    gradient: Any
    at: Any = None
    a_in: Any = None
    delta_used: Any = None

    def name(self, what: str, field: str = "") -> str:
        """The path of one of its leaves, `gradients[1].W[0]`."""
        return f"{what}{self.path}{field}{self.owner if what == 'gradients' else self.block}"


@dataclass
class Sum:
    """A residual connection: the sites of its block."""

    inside: "Chain"


Chain = list[Site | Sum]


def chain(net: Node, params: Tree, step: Step) -> Chain:
    """The network written out: every layer once for every time that it stands there.

    Raises:
        TypeError: a layer or composite that this file does not know.
    """
    count = iter(range(1, 1 << 30))
    trees = jax.tree.map(_wide, (params, step.trace, step.deltas, step.gradients))
    return list(_chain(net, trees, "", "", "", count))


def _wide(leaf: Any) -> Wide:
    return np.asarray(leaf).astype(np.float64)


def _chain(node: Node, trees: Tree, path: str, block: str, owner: str, count: Iterator[int]) -> Iterator[Site | Sum]:
    if isinstance(node, Serial):
        for i, child in enumerate(node.nodes):
            yield from _chain(child, [tree[i] for tree in trees], f"{path}[{i}]", block, owner, count)
    elif isinstance(node, Residual):
        yield Sum(list(_chain(node.block, trees, path, block, owner, count)))
    elif isinstance(node, Repeat):
        for i in range(node.n):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], trees)
            yield from _chain(node.block, one, path, f"{block}[{i}]", f"{owner}[{i}]", count)
    elif isinstance(node, Tied):
        params, trace, deltas, gradients = trees
        for i in range(node.n):
            t, d = jax.tree.map(lambda leaf, i=i: leaf[i], (trace, deltas))
            yield from _chain(node.block, (params, t, d, gradients), path, f"{block}[{i}]", owner, count)
    elif isinstance(node, Dense):
        yield Site(node, next(count), path, block, owner, *trees)
    else:
        raise TypeError(f"no equations are known for {type(node).__name__}; check it with reference.check_layer")


def sites(chain: Chain) -> Iterator[Site]:
    """Every layer, first to last."""
    for item in chain:
        if isinstance(item, Sum):
            yield from sites(item.inside)
        else:
            yield item


def parameters(chain: Chain) -> list[list[Site]]:
    """The sites of every parameter set, which are several where it is tied, in the order of their first."""
    owned: dict[tuple[str, str], list[Site]] = {}
    for site in sites(chain):
        owned.setdefault((site.path, site.owner), []).append(site)
    return list(owned.values())


def equations(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Any,
    step: Step,
    arithmetic: Arithmetic,
    lam: Any = None,
    weights: Any = None,
) -> Iterator[Equation]:
    """Every equation of a step, in the order of computation.

    Args:
        objective: what the step is of.
        params: as the step had them.
        x: likewise.
        y: likewise.
        step: under test.
        arithmetic: in which it was computed.
        lam: as it was given, or None.
        weights: as they were given, or None.
    """
    whole = chain(objective.net, params, step)
    n = len(x)
    shares = np.full(n, 1 / n) if weights is None else _wide(weights)
    coefficient = 0.0 if objective.regularizer is None else float(objective.regularizer.lam if lam is None else lam)
    with np.errstate(all="ignore"):  # what overflows is inf or nan, and its bound says so
        output = yield from _forward(arithmetic, whole, Known.exactly(_wide(x)))
        yield Equation("output", "(F3)", 0, step.output, output)
        stored = output.stored(_wide(step.output))
        d_output = yield from _objective(arithmetic, objective, whole, step, stored, y, shares, coefficient)
        every = list(sites(whole))
        d_x, mistaken = yield from _backward(arithmetic, whole, d_output, {}, every)
        yield Equation("d_x", "(B5)", 0, step.d_x, d_x, mistakes=mistaken)
        yield from _gradients(arithmetic, whole, shares, coefficient, objective.regularizer is not None)


def _forward(of: Arithmetic, chain: Chain, a: Known) -> Any:
    """(F1) and (F2) of every layer; returns the output."""
    for item in chain:
        if isinstance(item, Sum):
            branch = yield from _forward(of, item.inside, a)
            a = of.rounded(a + branch)
            continue
        item.a_in = a
        z = yield from _net_input(of, item, a)
        function = model.ACTIVATIONS.get(item.layer.f.name, item.layer.f.f)
        item.at = bounds.curve(function, item.trace.z, z.slack)
        a = yield from _activation(of, item)
    return a


def _net_input(of: Arithmetic, site: Site, a_in: Known) -> Any:
    W, b = site.params.W, site.params.b
    known = bounds.net_input(of, W, b, a_in)
    mistakes = {"the bias is missing": known.value - b}
    if W.shape[0] == W.shape[1]:
        mistakes["W is transposed"] = a_in.value @ W + b
    yield Equation(site.name("trace", ".z"), "(F1)", site.number, site.trace.z, known, mistakes=mistakes)
    return known


def _activation(of: Arithmetic, site: Site) -> Any:
    known = bounds.activated(of, site.at)
    mistakes = {"z itself: the activation function is missing": site.trace.z, "f' where f is meant": site.at.slope}
    yield Equation(site.name("trace", ".a"), "(F2)", site.number, site.trace.a, known, mistakes=mistakes)
    return known.stored(site.trace.a)


def _objective(
    of: Arithmetic, objective: Objective, chain: Chain, step: Step, output: Known, y: Any, shares: Wide, lam: float
) -> Any:
    """(J1), (J2), (J3) and ds/dlambda; returns dl/do."""
    y = np.asarray(y)
    y = y if np.issubdtype(y.dtype, np.integer) else _wide(y)
    losses, d_output = bounds.example_losses(of, objective.loss, output, y)
    size = np.abs(shares) @ np.abs(losses.value)
    error = np.abs(shares) @ losses.bound + of.gamma(len(shares) + 2) * size + of.eta
    loss = Known.exactly(shares @ losses.value).further(error)
    yield Equation(
        "loss",
        "(J1)",
        0,
        step.loss,
        loss,
        mistakes={"the examples are summed, not averaged (1/N missing)": losses.value.sum()},
    )
    owners = [uses[0].params for uses in parameters(chain)]
    weights = [own.W for own in owners] if objective.regularizer is not None else []
    norm = bounds.squared_norm(of, weights, 0.5)
    error = abs(lam) * (norm.bound + 2 * of.u_sum * norm.value) + of.eta * bool(weights)
    penalty = Known.exactly(lam * norm.value).further(error)
    biases = lam / 2 * sum(float(np.sum(np.square(own.b))) for own in owners)
    mistakes = {
        "lam/2 is lam": 2 * penalty.value,
        "the biases are counted too": penalty.value + biases,
        "the norm is not squared": lam / 2 * sum(float(np.linalg.norm(W)) for W in weights),
    }
    yield Equation("penalty", "(J2)", 0, step.penalty, penalty, mistakes=mistakes)
    J = _wide(step.loss) + _wide(step.penalty)
    yield Equation(
        "value",
        "(J3)",
        0,
        step.value,
        Known.exactly(J).further(2 * of.u_sum * np.abs(J) + of.eta),
        mistakes={"the penalty is missing": _wide(step.loss)},
    )
    yield Equation("d_lam", "(B6)", 0, step.d_lam, norm)
    return d_output


def _backward(of: Arithmetic, chain: Chain, d_a: Known, mistaken: dict[str, Wide], every: list[Site]) -> Any:
    """(B1) and (B2) of every layer, last to first; returns dL/d(what entered), and what it would be by mistake."""
    for item in reversed(chain):
        if isinstance(item, Sum):
            branch, wrong = yield from _backward(of, item.inside, d_a, mistaken, every)
            mistaken = {what: d_a.value + value for what, value in wrong.items()}
            mistaken["the branch of the residual is missing"] = d_a.value
            mistaken["the skip of the residual is missing"] = branch.value
            d_a = of.rounded(d_a + branch)
            continue
        yield _error_term(of, item, d_a, mistaken, every)
        d_a = bounds.transport(of, item.params.W, item.delta_used)
        square = item.layer.d_in == item.layer.d_out
        mistaken = {"W is not transposed": item.delta @ item.params.W.T} if square else {}
    return d_a, mistaken


def _error_term(of: Arithmetic, site: Site, d_a: Known, mistaken: dict[str, Wide], every: list[Site]) -> Equation:
    known = bounds.error_term(of, site.at, d_a)
    site.delta_used = known.stored(site.delta)
    mistakes = {"f' is missing": d_a.value, "f where f' is meant": site.at.f * d_a.value}
    mistakes |= {what: site.at.slope * value for what, value in mistaken.items()}
    for other in every:
        if other is not site and other.delta.shape == site.delta.shape:
            mistakes[f"the delta of layer {other.number} (stale)"] = other.delta
            mistakes[f"f' at the z of layer {other.number} (stale)"] = other.at.slope * d_a.value
    tag = "(B1)" if site is every[-1] else "(B2)"
    return Equation(site.name("deltas"), tag, site.number, site.delta, known, mistakes=mistakes)


def _gradients(of: Arithmetic, chain: Chain, shares: Wide, lam: float, counted: bool) -> Iterator[Equation]:
    """(B4) with (B6), and (B3), of every layer; of tied layers, summed over their uses like positions."""
    every = list(sites(chain))
    for uses in parameters(chain):
        site = uses[0]
        a_in, delta = Known.together([use.a_in for use in uses]), Known.together([use.delta_used for use in uses])
        dW, db = bounds.contraction(of, a_in, delta, shares)
        size = np.abs(dW.value) + lam * np.abs(site.params.W)
        penalty = Known.exactly(lam * site.params.W).further(2 * of.u_sum * size)
        decayed = dW + penalty if counted else dW
        yield Equation(
            site.name("gradients", ".W"),
            "(B4)",
            site.number,
            site.gradient.W,
            of.rounded(decayed),
            site.params.W,
            counted,
            {} if len(uses) > 1 else _wrong_contractions(site, every, shares, lam if counted else 0.0),
        )
        yield Equation(site.name("gradients", ".b"), "(B3)", site.number, site.gradient.b, db, site.params.b)


def _wrong_contractions(site: Site, every: list[Site], shares: Wide, lam: float) -> dict[str, Wide]:
    """What dW would be from what should not have entered it."""

    def dW(delta: Wide, a: Wide) -> Wide:
        weighted = shares.reshape(-1, *(1,) * (delta.ndim - 1)) * delta
        product = weighted.reshape(-1, delta.shape[-1]).T @ a.reshape(-1, a.shape[-1])
        return product + lam * site.params.W

    entered = site.a_in.value
    wrong = {}
    for other in every:
        if other.trace.z.shape == entered.shape:
            wrong[f"z of layer {other.number} where its a is meant"] = dW(site.delta, other.trace.z)
        if other is not site and other.a_in.value.shape == entered.shape:
            wrong[f"what entered layer {other.number} (stale)"] = dW(site.delta, other.a_in.value)
        if other is not site and other.delta.shape == site.delta.shape:
            wrong[f"the delta of layer {other.number} (stale)"] = dW(other.delta, entered)
    return wrong
