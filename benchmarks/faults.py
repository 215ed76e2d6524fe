"""Faults planted in the library's own sweep: every equation of the note, with the mistakes that people make in it.

A fault is planted in one layer: `plant(objective, layer)` gives an objective with one wrong equation there. All
other equations are right, so the consequences run on through the sweep as those of a real mistake would.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

import manual_backprop as mb
from manual_backprop.layers import Affine, Dense, OuterProduct
from manual_backprop.regularizers import Frobenius
from manual_backprop.types import override
from reference import model

Objective = mb.Objective
Plant = Callable[[Objective, int], Objective]


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        equation: the tag that a check must name.
        plant: (objective, index of the layer) -> the objective with the fault in it.
        cause: words that the probable cause must contain.
        fits: (objective, index) -> whether the fault is possible there: a square W to transpose, a layer below.
        shift: how many layers below its own the fault shows: that of W^T delta shows in the delta below.
        per_layer: whether the fault belongs to a layer rather than to the whole objective.
    """

    equation: str
    plant: Plant
    cause: str
    fits: Callable[[Objective, int], bool] = lambda objective, layer: True
    shift: int = 0
    per_layer: bool = True


@dataclass(frozen=True)
class FaultyDense(Dense):
    """A dense layer with some wrong maps; each takes the arguments of the right map, and the right result."""

    z: Callable[..., Any] | None = field(default=None, compare=False)
    back: Callable[..., Any] | None = field(default=None, compare=False)
    contract: Callable[..., Any] | None = field(default=None, compare=False)

    @override
    def net_input(self, params: Any, a_in: Any) -> Any:
        right, saved = super().net_input(params, a_in)
        return (self.z(params, a_in, right) if self.z else right), saved

    @override
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        right = super().transport(params, saved, delta)
        return self.back(params, delta, right) if self.back else right

    @override
    def factor(self, saved: Any, delta: Any) -> Any:
        right = super().factor(saved, delta)
        return FaultyProduct(saved, delta, right.one, self.contract) if self.contract else right


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FaultyProduct(OuterProduct):
    """A pair (a, delta) with a wrong contraction."""

    wrong: Any = field(default=None, metadata={"static": True})

    @override
    def weighted_sum(self, weights: Any = None) -> Any:
        return self.wrong(self.a_in, self.delta, super().weighted_sum(weights))


def layers(objective: Objective) -> list[Dense]:
    """The layers of a network that is a Serial of dense ones."""
    assert isinstance(objective.net, mb.Serial)
    return [node for node in objective.net.nodes if isinstance(node, Dense)]


def _with_layer(objective: Objective, index: int, layer: Dense) -> Objective:
    nodes = layers(objective)
    nodes[index] = layer
    return replace(objective, net=mb.Serial(tuple(nodes)))


def _maps(**maps: Callable[..., Any]) -> Plant:
    def plant(objective: Objective, index: int) -> Objective:
        right = layers(objective)[index]
        return _with_layer(objective, index, FaultyDense(*(getattr(right, of.name) for of in fields(Dense)), **maps))

    return plant


def _activation(change: Callable[[mb.Activation], dict[str, Any]]) -> Plant:
    def plant(objective: Objective, index: int) -> Objective:
        right = layers(objective)[index]
        return _with_layer(objective, index, replace(right, activation=replace(right.f, **change(right.f))))

    return plant


def _loss(**methods: Callable[..., Any]) -> Plant:
    """Plant a loss with `value` or `derivative` replaced by a function of (the right one, o, y)."""

    def plant(objective: Objective, index: int) -> Objective:
        right = objective.loss
        wrong = {
            name: lambda self, o, y, change=change, name=name: change(getattr(right, name), o, y)
            for name, change in methods.items()
        }
        kind = type(f"Wrong{type(right).__name__}", (type(right),), wrong)
        return replace(objective, loss=kind())

    return plant


def _penalty(**methods: Callable[..., Any]) -> Plant:
    """Plant a regulariser with methods replaced by functions of (the right one, *arguments)."""

    def plant(objective: Objective, index: int) -> Objective:
        right = objective.regularizer
        assert right is not None
        wrong = {name: lambda self, *given, change=change: change(right, *given) for name, change in methods.items()}
        return replace(objective, regularizer=type("WrongFrobenius", (Frobenius,), wrong)(right.lam))

    return plant


def _stale_a(objective: Objective, index: int) -> Objective:
    """A layer's dW from the input of the layer below it, whose contraction came before."""
    kept: dict[str, Any] = {}
    keep = _maps(contract=lambda a, d, right: kept.update(a=a) or right)
    use = _maps(contract=_of_weights(lambda a, d, W: jnp.asarray(d.T @ kept["a"] / len(d), W.dtype)))
    return use(keep(objective, index - 1), index)


def _stale_z(objective: Objective, index: int) -> Objective:
    """A layer's f' at the z of the layer above, whose delta is computed before."""
    kept: dict[str, Any] = {}
    keep = _activation(lambda row: {"df": lambda z, a: kept.update(z=z, a=a) or row.df(z, a)})
    use = _activation(lambda row: {"df": lambda z, a: row.df(kept["z"], kept["a"])})
    return use(keep(objective, index + 1), index)


def square(objective: Objective, index: int) -> bool:
    """Whether a transposed W has the same shape but other values."""
    layer = layers(objective)[index]
    return layer.d_in == layer.d_out > 1


def below_its_like(objective: Objective, index: int) -> bool:
    """Whether the layer above has the same shape, so that its values could be mistaken for this layer's."""
    here, above = [*layers(objective), None][index : index + 2]
    return above is not None and (here.d_out, here.f) == (above.d_out, above.f) and curved(objective, index)


def bent(objective: Objective, index: int) -> bool:
    """Whether f' at a differs from f' at z."""
    return layers(objective)[index].f.name not in ("identity", "relu", "leaky_relu")


def above_its_like(objective: Objective, index: int) -> bool:
    """Whether the input of the layer below has the same shape."""
    return index > 0 and layers(objective)[index - 1].d_in == layers(objective)[index].d_in


def curved(objective: Objective, index: int) -> bool:
    """Whether f is not the identity."""
    return layers(objective)[index].f.name != "identity"


def regularized(objective: Objective, index: int) -> bool:
    """Whether there is a penalty to get wrong."""
    return objective.regularizer is not None and objective.regularizer.lam > 0


def _f(row: mb.Activation) -> Any:
    return model.ACTIVATIONS.get(row.name, row.f)


def _first(array: Any, value: Any) -> Any:
    return array.at[(0,) * array.ndim].set(value)


def _of_weights(of: Callable[..., Any]) -> Callable[..., Any]:
    """A contraction with its W changed by `of`."""
    return lambda a, delta, right: replace(right, W=of(a, delta, right.W))


def _of_biases(of: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, delta, right: replace(right, b=of(a, delta, right.b))


def _decayed(scale: Callable[[int], float], biases: float = 0.0) -> Callable[..., Any]:
    """(B6) with lambda scaled, and with `biases` times lambda on the biases."""

    def wrong(right: Frobenius, gradients: Any, params: Any, lam: Any = None) -> Any:
        def of(gradient: Affine, block: Affine) -> Affine:
            k = right.lam if lam is None else lam
            decay = jnp.asarray(k * scale(7), block.W.dtype)
            on_b = jnp.asarray(k * biases, block.b.dtype)
            return Affine(gradient.W + decay * block.W, gradient.b + on_b * block.b)

        return jax.tree.map(of, gradients, params, is_leaf=lambda node: isinstance(node, Affine))

    return wrong


FAULTS: dict[str, Fault] = {
    "bias missing": Fault("(F1)", _maps(z=lambda p, a, z: a @ p.W.T), "bias is missing"),
    "bias subtracted": Fault("(F1)", _maps(z=lambda p, a, z: 2 * (a @ p.W.T) - z), ""),
    "W transposed": Fault("(F1)", _maps(z=lambda p, a, z: a @ p.W + (z - a @ p.W.T)), "W is transposed", square),
    "z doubled": Fault("(F1)", _maps(z=lambda p, a, z: 2 * z), "factor of 2"),
    "f missing": Fault("(F2)", _activation(lambda row: {"f": lambda z: z}), "activation function is missing", curved),
    "f' for f": Fault("(F2)", _activation(lambda row: {"f": lambda z: row.df(z, row.f(z))}), "f' where f", curved),
    "f' missing": Fault(
        "(B2)", _activation(lambda row: {"df": lambda z, a: jnp.ones_like(z)}), "f' is missing", curved
    ),
    "f for f'": Fault("(B2)", _activation(lambda row: {"df": lambda z, a: a}), "f where f'", curved),
    "f'(a) for f'(z)": Fault("(B2)", _activation(lambda row: {"df": lambda z, a: row.df(a, row.f(a))}), "", bent),
    "delta negated": Fault("(B2)", _activation(lambda row: {"df": lambda z, a: -row.df(z, a)}), "sign"),
    "delta off by a tenth": Fault(
        "(B2)", _activation(lambda row: {"df": lambda z, a: 1.1 * row.df(z, a)}), "factor of 1.1"
    ),
    "one entry of delta zero": Fault("(B2)", _activation(lambda row: {"df": lambda z, a: _first(row.df(z, a), 0)}), ""),
    "W not transposed on the way back": Fault(
        "(B2)", _maps(back=lambda p, d, right: d @ p.W.T), "W is not transposed", square, shift=1
    ),
    "W delta negated": Fault("(B2)", _maps(back=lambda p, d, right: -right), "sign", shift=1),
    "W delta doubled": Fault("(B2)", _maps(back=lambda p, d, right: 2 * right), "factor of 2", shift=1),
    "f' at the z of the layer above": Fault("(B2)", _stale_z, "stale", below_its_like),
    "dW from what entered the layer below": Fault("(B4)", _stale_a, "stale", above_its_like),
    "dW summed, not averaged": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: len(d) * W)), "1/N missing"),
    "dW averaged twice": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: W / len(d))), "1/N twice"),
    "dW negated": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: -W)), "sign"),
    "dW transposed": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: W.T)), "transposed", square),
    "one entry of dW zero": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: _first(W, 0))), ""),
    "dW of the first example": Fault("(B4)", _maps(contract=_of_weights(lambda a, d, W: jnp.outer(d[0], a[0]))), ""),
    "db summed, not averaged": Fault("(B3)", _maps(contract=_of_biases(lambda a, d, b: len(d) * b)), "1/N missing"),
    "db averaged twice": Fault("(B3)", _maps(contract=_of_biases(lambda a, d, b: b / len(d))), "1/N twice"),
    "db negated": Fault("(B3)", _maps(contract=_of_biases(lambda a, d, b: -b)), "sign"),
    "db of the last example": Fault("(B3)", _maps(contract=_of_biases(lambda a, d, b: d[-1])), ""),
    "loss summed, not averaged": Fault(
        "(J1)", _loss(value=lambda right, o, y: len(o) * right(o, y)), "1/N missing", per_layer=False
    ),
    "dl/do negated": Fault("(B1)", _loss(derivative=lambda right, o, y: -right(o, y)), "sign", per_layer=False),
    "dl/do doubled": Fault(
        "(B1)", _loss(derivative=lambda right, o, y: 2 * right(o, y)), "factor of 2", per_layer=False
    ),
    "dl/do averaged already": Fault(
        "(B1)", _loss(derivative=lambda right, o, y: right(o, y) / len(o)), "1/N twice", per_layer=False
    ),
    "lam for lam/2": Fault(
        "(J2)",
        _penalty(penalty=lambda right, p, lam=None: 2 * right.penalty(p, lam)),
        "lam/2 is lam",
        regularized,
        per_layer=False,
    ),
    "norm not squared": Fault(
        "(J2)",
        _penalty(
            penalty=lambda right, p, lam=None: (
                right.lam / 2 * sum(jnp.linalg.norm(q.W.astype(right.d_lam(p).dtype)) for q in p)
            )
        ),
        "not squared",
        regularized,
        per_layer=False,
    ),
    "lam W missing": Fault(
        "(B4)", _penalty(add_gradient=_decayed(lambda n: 0.0)), "lam W missing", regularized, per_layer=False
    ),
    "lam W doubled": Fault(
        "(B4)", _penalty(add_gradient=_decayed(lambda n: 2.0)), "lam W counted twice", regularized, per_layer=False
    ),
    "biases penalised": Fault(
        "(B3)", _penalty(add_gradient=_decayed(lambda n: 1.0, 1.0)), "bias is penalised", regularized, per_layer=False
    ),
    "ds/dlam doubled": Fault(
        "(B6)",
        _penalty(d_lam=lambda right, p: 2 * right.d_lam(p), penalty=lambda right, p, lam=None: right.penalty(p, lam)),
        "factor of 2",
        regularized,
        per_layer=False,
    ),
}
