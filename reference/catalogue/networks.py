"""The networks that `manual-backprop check` proves: a small set that covers every pair of features.

A fault that needs two features together, such as float16 and softplus, or Repeat and a traced lambda, is found.
Testing every combination would take a hundred times as long.

Two of the features are the layers and the composites: every family registered on `reference.model.apply` and every
composite registered on `reference.model.through` that has a `specimen`. So a user's own is included as soon as it is
registered.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from manual_backprop.layers import Layer
from manual_backprop.node import Composite, Node
from reference import model
from reference.catalogue import data
from reference.xla import quick

EXAMPLES = 32
LOSSES = (
    "squared_error",
    "huber",
    "softmax_cross_entropy",
    "softmax_cross_entropy on distributions",
    "sigmoid_binary_cross_entropy",
    "binary_cross_entropy",
)
DTYPES = ("float64", "float32", "bfloat16", "float16")
PLAIN = {"composite": "serial", "layer": "dense"}  # the last layer's kind, and so that of a network of one layer
TYPICAL = 10  # features of a specimen that is only inspected, as many as in the smallest data set
TRACED_LAM = 0.3

Features = tuple[tuple[str, tuple[Any, ...]], ...]  # (name, values) of each
Setting = tuple[Any, ...]  # one value for each feature, in their order


def features() -> dict[str, tuple[Any, ...]]:
    """Every feature with its current values."""
    return {
        "activation": tuple(mb.activations.TABLE),
        "loss": LOSSES,
        "depth": tuple(range(1, 9)),
        "lam": ("none", "0.01", "traced"),
        "dtype": DTYPES,
        "composite": (*composites(), "repeated residual"),
        "layer": tuple(families()),
    }


def families() -> dict[str, type[Layer]]:
    """The families of layers that have a forward in the reference, and a specimen."""
    kinds = [kind for kind in model.apply.registry if issubclass(kind, Layer)]
    return _by_name(kind for kind in kinds if kind.specimen(TYPICAL, "tanh") is not None)


def composites() -> dict[str, type[Composite]]:
    """The composites that the reference knows how to join, and that have a specimen."""
    kinds = [kind for kind in model.through.registry if issubclass(kind, Composite)]
    return _by_name(kind for kind in kinds if kind.specimen(mb.Dense(TYPICAL, TYPICAL), 1) is not None)


def staying_out(module: ModuleType) -> list[str]:
    """Say of each layer and composite that a module defines, and that is not in the catalogue, why it is not."""
    known, told = {*families().values(), *composites().values()}, []
    for kind in vars(module).values():
        if not (isinstance(kind, type) and issubclass(kind, Layer | Composite) and kind.__module__ == module.__name__):
            continue
        on = "apply" if issubclass(kind, Layer) else "through"
        registered = kind in getattr(model, on).registry
        why = "it has no specimen" if registered else f"nothing is registered for it on reference.model.{on}"
        told += [] if kind in known else [f"{kind.__name__} stays out of the catalogue: {why}"]
    return told


def _by_name(kinds: Iterable[type]) -> dict[str, Any]:
    """Each class by its name in words; if a class was defined several times, as in a notebook, the last one."""
    named: dict[str, type] = {}
    for kind in kinds:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", kind.__name__).lower()
        if name in named and named[name].__module__ != kind.__module__:
            name = f"{name} of {kind.__module__}"
        named[name] = kind
    return named


def possible(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    """Whether two features can occur together: a single layer has no hidden layer to repeat, skip or choose."""
    both = dict((a, b))
    return both.get("depth") != 1 or all(both.get(name, plain) == plain for name, plain in PLAIN.items())


def _pairs(names: Iterable[str], setting: Setting) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(combinations(zip(names, setting, strict=True), 2))


@cache
def all_pairs(every: Features) -> frozenset[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every pair of values of two different features that can occur together."""
    pairs = set()
    for (a, of_a), (b, of_b) in combinations(every, 2):
        pairs |= {((a, u), (b, v)) for u in of_a for v in of_b if possible((a, u), (b, v))}
    return frozenset(pairs)


def covering(seed: int) -> tuple[Setting, ...]:
    """Settings that contain every possible pair of the current features."""
    return covered(seed, tuple(features().items()))


@cache
def covered(seed: int, every: Features) -> tuple[Setting, ...]:
    """Settings that contain every possible pair, chosen greedily: each adds as many new pairs as it can."""
    draw = random.Random(seed)
    missing, chosen = set(all_pairs(every)), []
    names = [name for name, _ in every]
    while missing:
        candidates = []
        for must in draw.sample(sorted(missing, key=repr), min(10, len(missing))):
            candidates.append(_extend(dict(must), every, missing, draw))
        best = max(candidates, key=lambda setting: len(_pairs(names, setting) & missing))
        chosen.append(best)
        missing -= _pairs(names, best)
    return tuple(chosen)


def each_value(settings: Sequence[Setting]) -> list[Setting]:
    """The first few of `settings` that together contain every single value."""
    names = tuple(features())
    missing = {(name, value) for name, values in features().items() for value in values}
    chosen = []
    for setting in settings:
        new = set(zip(names, setting, strict=True)) & missing
        if new:
            chosen.append(setting)
            missing -= new
    return chosen


def _extend(fixed: dict[str, Any], every: Features, missing: set, draw: random.Random) -> Setting:
    """Fill in the other features, each with the value that adds most new pairs with those before it.

    If no family would add a new pair, the layers are dense, which takes the least time.
    """
    values_of, can_meet = dict(every), all_pairs(every)
    order = list(values_of)
    for name in draw.sample(order, len(order)):
        if name in fixed:
            continue
        met = {
            value: [
                (item, (name, value)) if order.index(item[0]) < order.index(name) else ((name, value), item)
                for item in fixed.items()
            ]
            for value in values_of[name]
        }
        values = [value for value, pairs in met.items() if can_meet.issuperset(pairs)]
        draw.shuffle(values)
        gain = {value: (sum(pair in missing for pair in met[value]), value == PLAIN["layer"]) for value in values}
        fixed[name] = max(values, key=gain.__getitem__)
    return tuple(fixed[name] for name in order)


@dataclass(frozen=True)
class Plan:
    """One network that is yet to be built, which takes longer than to name it.

    Attributes:
        setting: the values of the features, in their order.
        seed: draws parameters and rows.
    """

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """The name for --only and in reports."""
        chosen = dict(zip(features(), self.setting, strict=True))
        name = "{activation}, {loss}, depth {depth}, lam {lam}, {dtype}, {composite}".format(**chosen)
        return name if chosen["layer"] == PLAIN["layer"] else f"{name}, {chosen['layer']}"

    def drawn(self, seed: int) -> "Case":
        """The network with the parameters and rows of a seed, its own or another."""
        with jax.enable_x64(True):
            return build(self.setting, seed)


@dataclass(frozen=True, eq=False)
class Case:
    """One network on real data, ready to check.

    Attributes:
        objective: the objective to prove.
        params: its parameters, biases not zero.
        x: rows of the data set, or passages.
        y: their targets.
        lam: a lambda given at the call, or None.
        dtype: the precision to prove it in.
        dataset: the data set of x and y.
    """

    objective: mb.Objective
    params: Any
    x: np.ndarray
    y: np.ndarray
    lam: float | None
    dtype: str
    dataset: str


def build(setting: Setting, seed: int) -> Case:
    """The case of one setting; the seed draws parameters and rows."""
    chosen = dict(zip(features(), setting, strict=True))
    x, y, outputs, dataset = _rows(chosen["loss"], seed)
    net = _network(chosen, x.shape[1], outputs)
    loss = mb.losses.TABLE[chosen["loss"].partition(" on ")[0]]
    regularizer = None if chosen["lam"] == "none" else mb.Frobenius(0.01)
    # A residual network adds its branches up; small branches keep a sum of eight within float16's range.
    gain = 0.4 if "residual" in chosen["composite"] else 1.0
    if len(families()[chosen["layer"]].inputs) > 1:
        gain *= 2  # the gates halve it
    params = draw_params(net, gain, np.random.default_rng(seed))
    lam = TRACED_LAM if chosen["lam"] == "traced" else None
    return Case(mb.Objective(net, loss, regularizer), params, x, y, lam, chosen["dtype"], dataset)


def draw_params(net: Node, gain: float, rng: np.random.Generator) -> Any:
    """Generic parameters: W that multiplies a signal by about `gain`, and a bias that is not zero.

    A bias of zero would hide a fault in its gradient. Scales, which start from 1, are drawn around 1.
    """

    def one(leaf: jax.ShapeDtypeStruct, start: np.ndarray) -> np.ndarray:
        matrix = leaf.ndim > 1 and leaf.shape[-1] > 1 and not start.any()
        return rng.normal(start, gain * leaf.shape[-1] ** -0.5 if matrix else 0.1, leaf.shape)

    return jax.tree.map(one, jax.eval_shape(lambda: net.init(jax.random.key(0))), net.map(_start))


@cache
def _start(layer: Layer) -> Any:
    """The vectors that a layer's parameters start from, and zero for the other parameters."""

    def vectors() -> Any:
        return jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else jnp.zeros(()), layer.init(jax.random.key(0)))

    return jax.device_get(jax.jit(vectors, compiler_options=quick())())


def _rows(loss: str, seed: int) -> tuple[np.ndarray, np.ndarray, int, str]:
    """(x, y, number of outputs, data set) that fit the loss."""
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
    """A network of `depth` layers; hidden ones are as wide as the input, so any can be skipped or repeated."""
    activation, hidden = chosen["activation"], chosen["depth"] - 1
    # A single layer has the activation at its output.
    last = "sigmoid" if chosen["loss"] == "binary_cross_entropy" else "identity" if hidden else activation
    body: tuple[Node, ...] = ()
    if hidden:
        family = families()[chosen["layer"]]
        n = hidden if len(family.inputs) == 1 else max(1, hidden // 2)  # with the dense ones in front, two deep
        whole = composed(chosen["composite"], block(family, width, activation), n, width)
        body = whole.nodes if isinstance(whole, mb.Serial) else (whole,)
    return mb.Serial((*body, mb.Dense(width, outputs, last)))


def block(family: type[Layer], width: int, activation: str | mb.Activation) -> Node:
    """A family's specimen; if it takes several inputs, with a dense layer in front of each.

    All but the first of these dense layers are gates between 0 and 1, so products stay within float16's range. The
    first has no bias, as in the gates of language models. So layers without bias meet every activation, loss,
    precision and composite, and no network is added for them.

    Raises:
        TypeError: it is no node.
        ValueError: it does not keep the shape.
    """
    specimen = family.specimen(width, activation)
    if len(family.inputs) > 1 and isinstance(specimen, Node):
        gates = (mb.Dense(width, width, "sigmoid"),) * (len(family.inputs) - 1)
        specimen = mb.Serial((mb.Parallel((mb.Dense(width, width, bias=False), *gates)), specimen))
    return _kept(family, specimen, width)


def composed(name: str, layer: Node, n: int, width: int) -> Node:
    """A composite's specimen, `n` layers deep.

    Raises:
        TypeError: it is no node.
        ValueError: it does not keep the shape.
    """
    if name == "repeated residual":
        return mb.Repeat(mb.Residual(layer), n)
    kind = composites()[name]
    return _kept(kind, kind.specimen(layer, n), width)


def require_fitting() -> None:
    """Refuse a specimen that cannot stand between other layers.

    Raises:
        TypeError: it is no node.
        ValueError: it does not keep the shape.
    """
    for family in families().values():
        block(family, TYPICAL, "tanh")
    for name in composites():
        composed(name, mb.Dense(TYPICAL, TYPICAL), 2, TYPICAL)


def _kept(kind: type, specimen: object, width: int) -> Node:
    """Return the specimen, checked to fit between other layers."""
    if not isinstance(specimen, Node):
        raise TypeError(f"{kind.__name__}.specimen must return a layer or composite, got {specimen!r}")
    shape = specimen.out_shape((width,))
    if shape != (width,):
        raise ValueError(f"{kind.__name__}.specimen must keep {width} features, but {specimen} makes {shape} of them")
    return specimen


def plans(seed: int, each_once: bool) -> list[Plan]:
    """The catalogue: every pair, or with `each_once` every value."""
    settings: Sequence[Setting] = covering(seed)
    if each_once:
        settings = each_value(settings)
    return [Plan(setting, seed + i) for i, setting in enumerate(settings)]
