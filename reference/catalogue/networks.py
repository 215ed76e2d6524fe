"""The networks that `manual-backprop check` proves: a small set that covers every pair of features.

A fault that needs two features to meet (float16 and softplus, say, or Repeat and a traced lambda) is met;
testing every combination would take a hundred times as long.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import jax
import numpy as np

import manual_backprop as mb
from manual_backprop.layers import Node
from reference.catalogue import data

EXAMPLES = 32

FEATURES: dict[str, tuple[Any, ...]] = {
    "activation": tuple(mb.activations.TABLE),
    "loss": (
        "squared_error",
        "huber",
        "softmax_cross_entropy",
        "softmax_cross_entropy on distributions",
        "sigmoid_binary_cross_entropy",
        "binary_cross_entropy",
    ),
    "depth": tuple(range(1, 9)),
    "lam": ("none", "0.01", "traced"),
    "dtype": ("float64", "float32", "bfloat16", "float16"),
    "composite": ("serial", "residual", "repeat", "repeated residual", "tied"),
}
Setting = tuple[Any, ...]  # one value for each of FEATURES, in their order
TRACED_LAM = 0.3


def possible(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    """Whether two features can meet: one layer alone has no hidden layer to repeat or to skip."""
    both = dict((a, b))
    return not (both.get("depth") == 1 and both.get("composite", "serial") != "serial")


def _pairs(setting: Setting) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(combinations(zip(FEATURES, setting, strict=True), 2))


@cache
def all_pairs() -> frozenset[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every pair of values of two different features that can meet."""
    pairs = set()
    for a, b in combinations(FEATURES, 2):
        pairs |= {((a, u), (b, v)) for u in FEATURES[a] for v in FEATURES[b] if possible((a, u), (b, v))}
    return frozenset(pairs)


@cache
def covering(seed: int) -> tuple[Setting, ...]:
    """Settings that meet every possible pair, greedily: each next one meets as many new pairs as it can."""
    draw = random.Random(seed)
    missing, chosen = set(all_pairs()), []
    while missing:
        candidates = []
        for must in draw.sample(sorted(missing, key=repr), min(10, len(missing))):
            candidates.append(_extend(dict(must), missing, draw))
        best = max(candidates, key=lambda setting: len(_pairs(setting) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return tuple(chosen)


def each_value(settings: Sequence[Setting]) -> list[Setting]:
    """The first few of `settings` that between them meet every single value."""
    missing = {(name, value) for name, values in FEATURES.items() for value in values}
    chosen = []
    for setting in settings:
        new = set(zip(FEATURES, setting, strict=True)) & missing
        if new:
            chosen.append(setting)
            missing -= new
    return chosen


def _extend(fixed: dict[str, Any], missing: set, draw: random.Random) -> Setting:
    """Fill in the other features, each with the value that meets most new pairs with those before it."""
    order, every = list(FEATURES), all_pairs()
    for name in draw.sample(order, len(order)):
        if name in fixed:
            continue
        met = {
            value: [
                (item, (name, value)) if order.index(item[0]) < order.index(name) else ((name, value), item)
                for item in fixed.items()
            ]
            for value in FEATURES[name]
        }
        values = [value for value, pairs in met.items() if every.issuperset(pairs)]
        draw.shuffle(values)
        gain = {value: sum(pair in missing for pair in met[value]) for value in values}
        fixed[name] = max(values, key=gain.__getitem__)
    return tuple(fixed[name] for name in FEATURES)


@dataclass(frozen=True, eq=False)
class Case:
    """One network on real data, ready to check.

    Attributes:
        name: what --only matches and reports print.
        objective: what to prove.
        params: its parameters, biases not zero.
        x: EXAMPLES rows of the data set.
        y: their targets.
        lam: a lambda given at the call, or None.
        dtype: the precision to prove it in.
        dataset: where x and y come from.
        setting: the values of FEATURES that it was built from.
    """

    name: str
    objective: mb.Objective
    params: Any
    x: np.ndarray
    y: np.ndarray
    lam: float | None
    dtype: str
    dataset: str
    setting: Setting


def build(setting: Setting, seed: int) -> Case:
    """The case of one setting; the seed draws parameters and rows."""
    chosen = dict(zip(FEATURES, setting, strict=True))
    x, y, outputs, dataset = _rows(chosen["loss"], seed)
    net = _network(chosen, x.shape[1], outputs)
    loss = mb.losses.TABLE[chosen["loss"].partition(" on ")[0]]
    regularizer = None if chosen["lam"] == "none" else mb.Frobenius(0.01)
    # A residual network adds its branches up; small ones keep eight of them within float16's range.
    gain = 0.4 if "residual" in chosen["composite"] else 1.0
    params = draw_params(net, gain, np.random.default_rng(seed))
    name = "{activation}, {loss}, depth {depth}, lam {lam}, {dtype}, {composite}".format(**chosen)
    lam = TRACED_LAM if chosen["lam"] == "traced" else None
    return Case(name, mb.Objective(net, loss, regularizer), params, x, y, lam, chosen["dtype"], dataset, setting)


def draw_params(net: Node, gain: float, rng: np.random.Generator) -> Any:
    """Generic parameters: W that multiplies a signal by about `gain`, and a bias that is not zero.

    A bias of zero would hide what is wrong with its gradient.
    """

    def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        deviation = gain * leaf.shape[-1] ** -0.5 if leaf.ndim > 1 and leaf.shape[-1] > 1 else 0.1
        return rng.normal(0, deviation, leaf.shape)

    return jax.tree.map(one, jax.eval_shape(lambda: net.init(jax.random.key(0))))


def _rows(loss: str, seed: int) -> tuple[np.ndarray, np.ndarray, int, str]:
    """(x, y, number of outputs, data set) in the form that the loss takes."""
    dataset = data.load(
        "diabetes" if loss in ("squared_error", "huber") else "digits" if "softmax" in loss else "breast_cancer"
    )
    rows = np.random.default_rng(seed).choice(len(dataset.x), EXAMPLES, replace=False)
    x, y = dataset.x[rows], dataset.y[rows]
    if loss == "softmax_cross_entropy":
        return x, y, dataset.classes, dataset.name
    if loss == "softmax_cross_entropy on distributions":
        smoothed = 0.9 * np.eye(dataset.classes)[y] + 0.1 / dataset.classes
        return x, smoothed, dataset.classes, dataset.name
    return x, y.reshape(-1, 1).astype(np.float64), 1, dataset.name


def _network(chosen: dict[str, Any], width: int, outputs: int) -> mb.Serial:
    """`depth` layers: hidden ones as wide as the input, so that any of them can be skipped or repeated."""
    activation, hidden = chosen["activation"], chosen["depth"] - 1
    # One layer alone has only the output to carry the activation.
    last = "sigmoid" if chosen["loss"] == "binary_cross_entropy" else "identity" if hidden else activation
    layer = mb.Dense(width, width, activation)
    wrap: dict[str, Callable[[], tuple[Node, ...]]] = {
        "serial": lambda: (layer,) * hidden,
        "residual": lambda: (mb.Residual(layer),) * hidden,
        "repeat": lambda: (mb.Repeat(layer, hidden),),
        "repeated residual": lambda: (mb.Repeat(mb.Residual(layer), hidden),),
        "tied": lambda: (mb.Tied(layer, hidden),),
    }
    body = wrap[chosen["composite"]]() if hidden else ()
    return mb.Serial((*body, mb.Dense(width, outputs, last)))


def cases(seed: int, quick: bool) -> list[Case]:
    """The catalogue: every pair, or with `quick` every value."""
    settings: Sequence[Setting] = covering(seed)
    if quick:
        settings = each_value(settings)
    with jax.enable_x64(True):
        return [build(setting, seed + i) for i, setting in enumerate(settings)]
