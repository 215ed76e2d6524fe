"""The objective J = L + s (J3), and its gradient by the three steps, with every intermediate as a value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from manual_backprop import validate
from manual_backprop.layers.base import Leaf, Node, Rule, backpropagation
from manual_backprop.layers.factor import Tree
from manual_backprop.losses import Loss
from manual_backprop.readings.gradients import gradient_reader
from manual_backprop.regularizers import Coefficient, Frobenius, Scalar

Batch = Float[Array, "N *features"]
Targets = Shaped[Array, "N *targets"]
Weights = Float[Array, " N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """Everything that one forward and one backward sweep know, each a plain value.

    Attributes:
        value: J = L + s (J3).
        loss: L, the weighted sum (by default the mean) of the examples' losses (J1).
        penalty: s (J2).
        output: a^(L) of every example.
        trace: z^(l), a^(l) of every layer (F1) (F2); mirrors the network.
        deltas: delta^(l) = dL_n/dz^(l), per example and unscaled (C5); mirrors the network.
        gradients: dJ/dparams, regulariser included (B3) (B4) (B6); the parameters' structure.
        d_x: dL_n/dx_n, per example and unscaled (B5).
        d_lam: ds/dlam (B6); zero without a regulariser.
    """

    value: Leaf
    loss: Leaf
    penalty: Leaf
    output: Leaf
    trace: Tree
    deltas: Tree
    gradients: Tree
    d_x: Leaf
    d_lam: Leaf


@dataclass(frozen=True)
class Objective:
    """J = sum_n weights[n] l(o_n, y_n) + s, a pure function of (params, x, y); static under jit.

    Attributes:
        net: a layer or composite, such as `mlp` gives.
        loss: a row of `losses`, or one of your own.
        regularizer: `Frobenius(lam)`, or None for J = L.
    """

    net: Node
    loss: Loss
    regularizer: Frobenius | None = None

    def __post_init__(self) -> None:
        for name, kind in (("net", Node), ("loss", Loss)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"Objective {name} must be a {kind.__name__}, got {getattr(self, name)!r}"
                    + (" (a loss is an instance, such as mb.squared_error)" if name == "loss" else "")
                )
        if not (self.regularizer is None or isinstance(self.regularizer, Frobenius)):
            raise TypeError(f"Objective regularizer must be Frobenius(lam) or None, got {self.regularizer!r}")

    def __call__(
        self,
        params: Tree,
        x: Batch,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
    ) -> Scalar:
        """J (J3).

        Args:
            params: as from `net.init`.
            x: a batch, one example a row.
            y: targets, as the loss takes them.
            lam: takes the place of the regulariser's own lambda, and may be traced.
            weights: one weight an example; None is the mean, 1/N each.

        Raises:
            ValueError: shapes, structures or values that do not fit.
            TypeError: dtypes that differ.
        """
        params, x, y, lam, weights = self.checked(params, x, y, lam, weights)
        output, _ = self.net.lean_forward(params, x)
        loss, penalty = self.terms(params, output, y, lam, weights)
        return loss + penalty

    def checked(
        self, params: Tree, x: Any, y: Any, lam: Any, weights: Any
    ) -> tuple[Tree, Array, Array, Coefficient | None, Array | None]:
        """The arguments of `__call__` as JAX arrays, or the error that says what is wrong with them."""
        params, x = validate.inputs(self.net, params, x)
        y = validate.array("y", y)
        if y.shape[:1] != x.shape[:1]:
            raise ValueError(f"y is {list(y.shape)} but x has {x.shape[0]} examples; they must agree in number")
        self.loss.check(validate.output(self.net, x), y)
        if lam is not None:
            if self.regularizer is None:
                raise ValueError("lam was given but the objective has no regularizer; give it Frobenius(0.0)")
            lam = validate.coefficient(lam, x)
        if weights is not None:
            weights = validate.weights(weights, x)
        return params, x, y, lam, weights

    def terms(
        self, params: Tree, output: Array, y: Array, lam: Coefficient | None, weights: Array | None
    ) -> tuple[Scalar, Scalar]:
        """(L, s): the examples' losses summed with `weights` or averaged (J1), and the penalty (J2)."""
        losses = self.loss.value(output, y)
        loss = jnp.mean(losses) if weights is None else jnp.sum(weights * losses)
        if self.regularizer is None:
            return loss, jnp.zeros_like(loss)
        return loss, self.regularizer.penalty(params, lam)

    def add_penalty_gradient(self, gradients: Tree, params: Tree, lam: Coefficient | None) -> Tree:
        """dJ/dparams from dL/dparams (B6)."""
        if self.regularizer is None:
            return gradients
        return self.regularizer.add_gradient(gradients, params, lam)


def backprop(
    objective: Objective,
    params: Tree,
    x: Batch,
    y: Targets,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
    rule: Rule = backpropagation,
) -> Step:
    """The note's three steps on one batch, keeping everything: z, a, delta, gradients, dL/dx.

    Arguments and errors are those of `Objective.__call__`; `rule` says how error terms travel down (`rules`).
    Works under jit, vmap, scan and JAX's own transformations; what a compiled caller does not use is not
    computed.
    """
    params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
    net = objective.net
    output, trace = net.forward(params, x)  # step 1
    d_output = objective.loss.derivative(output, y)
    way = validate.rule(rule).way(net, params, trace, d_output)
    d_x, deltas = net.backward(params, trace, d_output, None, way)  # step 2
    gradients = net.read(gradient_reader(weights), (trace, deltas))  # step 3
    loss, penalty = objective.terms(params, output, y, lam, weights)
    return Step(
        value=loss + penalty,
        loss=loss,
        penalty=penalty,
        output=output,
        trace=trace,
        deltas=deltas,
        gradients=objective.add_penalty_gradient(gradients, params, lam),
        d_x=d_x,
        d_lam=jnp.zeros_like(loss) if objective.regularizer is None else objective.regularizer.d_lam(params),
    )


def value_and_grad(objective: Objective, argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Scalar, Any]]:
    """`jax.value_and_grad(objective, argnums)`, written by hand.

    Each layer's delta is contracted to its gradient as the backward sweep passes, so no trace or delta
    outlives its use.

    Args:
        objective: the function to differentiate.
        argnums: 0 for params, 1 for x, or a sequence of these, as in JAX.

    Returns:
        A function (params, x, y, *, lam=None, weights=None, rule=backpropagation) -> (J, gradient), where the
        gradient is of J: that with respect to x has the examples' weights (1/N) in it, as jax.grad's has.

    Raises:
        ValueError: argnums other than 0 and 1.
        TypeError: argnums that are not integers.
    """
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(isinstance(i, int) for i in wanted):
        raise TypeError(f"argnums must be an int or a sequence of ints, got {argnums!r}")
    if not wanted or not set(wanted) <= {0, 1}:
        raise ValueError(f"argnums may name 0 (params) and 1 (x), got {argnums!r}")

    def value_and_gradient(
        params: Tree,
        x: Batch,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
        rule: Rule = backpropagation,
    ) -> tuple[Scalar, Any]:
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        net = objective.net
        output, trace = net.lean_forward(params, x)
        d_output = objective.loss.derivative(output, y)
        way = validate.rule(rule).way(net, params, trace, d_output)
        d_x, gradients = net.backward(params, trace, d_output, gradient_reader(weights), way)
        loss, penalty = objective.terms(params, output, y, lam, weights)
        by_argument = (
            objective.add_penalty_gradient(gradients, params, lam),
            per_example_scaled(d_x, weights),
        )
        picked = tuple(by_argument[i] for i in wanted)
        return loss + penalty, picked[0] if isinstance(argnums, int) else picked

    return value_and_gradient


def per_example_scaled(d_x: Array, weights: Array | None) -> Array:
    """dJ/dx from dL_n/dx_n: row n times its example's weight."""
    if weights is None:
        return d_x / d_x.shape[0]
    return (weights.reshape(-1, *(1,) * (d_x.ndim - 1)) * d_x.astype(weights.dtype)).astype(d_x.dtype)
