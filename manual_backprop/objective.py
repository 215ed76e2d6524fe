"""The objective J = L + s (J3), and its gradient by the three steps, with every intermediate value kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from manual_backprop import explicit, readout, validate
from manual_backprop.drawing import layer_keys
from manual_backprop.losses import TABLE, Loss, SoftmaxCrossEntropy
from manual_backprop.node import Node
from manual_backprop.precision import accumulator
from manual_backprop.readings.gradients import gradient_reader, total
from manual_backprop.regularizers import Frobenius
from manual_backprop.sweep import Rule, backpropagation, backward_sweep, checked_rule, forward_sweep, read
from manual_backprop.types import Coefficient, Examples, Flow, Leaf, Scalar, Targets, Tree, Weights, came


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """All results of one forward and one backward sweep, as plain values.

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
        if not isinstance(self.net, Node):
            raise TypeError(
                f"Objective net must be a network, a layer or composite such as mb.mlp gives, got {came(self.net)}"
            )
        if not isinstance(self.loss, Loss):
            raise TypeError(
                f"Objective loss must be a Loss, got {came(self.loss)}; a loss is an instance, such as mb.squared_error"
                f" (there are {', '.join(TABLE)}), or one of a subclass of mb.Loss"
            )
        if not (self.regularizer is None or isinstance(self.regularizer, Frobenius)):
            raise TypeError(f"Objective regularizer must be Frobenius(lam) or None, got {came(self.regularizer)}")
        if isinstance(self.loss, SoftmaxCrossEntropy) and self.loss.chunk is not None:
            readout.required_split(self.net, self.loss)

    @classmethod
    def required(cls, value: Any) -> "Objective":
        """Return an objective, checked to be one.

        Raises:
            TypeError: anything else, such as a network, which has no loss.
        """
        if not isinstance(value, cls):
            hint = "; with a loss a network becomes one, mb.Objective(net, loss)" if isinstance(value, Node) else ""
            raise TypeError(f"expected an Objective, got {came(value)}{hint}")
        return value

    def __call__(
        self,
        params: Tree,
        x: Examples,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Scalar:
        """J (J3).

        Args:
            params: as from `net.init`.
            x: a batch, one example a row.
            y: targets, as the loss takes them.
            lam: replaces the regulariser's own lambda, and may be traced.
            weights: one weight for each example; None is the mean, 1/N each.
            key: for layers that draw at random (`Dropout`), which are off without it; the same key draws the same.

        Raises:
            ValueError: shapes, structures or values that do not fit.
            TypeError: dtypes that differ; a key that is none, such as the number of a seed.
        """
        params, x, y, lam, weights = self.checked(params, x, y, lam, weights)
        keys = layer_keys(self.net, key)
        if (chunked := self.chunked(y)) is None:
            output, _ = forward_sweep(self.net, params, x, lean=True, keys=keys)
            losses = self.loss.checked_value(output, y)
        else:
            split, of_rows = chunked
            entered, _ = into_readout(split, params, x, keys)
            losses = readout.losses(of_rows, split.readout(params), entered, y)
        loss, penalty = self.summed(losses, params, lam, weights)
        return loss + penalty

    def chunked(self, y: Array, rule: Rule = backpropagation) -> tuple[readout.Split, SoftmaxCrossEntropy] | None:
        """The network split before its readout, and the loss, where no logits are made: `SoftmaxCrossEntropy.chunk`.

        Target distributions are as large as the logits, and another rule may want these, so both make them.
        """
        loss = self.loss
        if not isinstance(loss, SoftmaxCrossEntropy) or loss.chunk is None:
            return None
        if type(rule) is not Rule or not jnp.issubdtype(y.dtype, jnp.integer):
            return None
        return readout.required_split(self.net, loss), loss

    def checked(
        self, params: Tree, x: Any, y: Any, lam: Any, weights: Any
    ) -> tuple[Tree, Examples, Array, Coefficient | None, Array | None]:
        """Return the arguments of `__call__` as JAX arrays, or raise the error that says what is wrong with them."""
        params, x = validate.inputs(self.net, params, x)
        y = validate.array("y", y)
        if y.shape[:1] != (validate.count(x),):
            raise ValueError(f"y is {list(y.shape)} but x has {validate.count(x)} examples; they must agree in number")
        self.loss.check(validate.output(self.net, params, x), y)
        if lam is not None:
            if self.regularizer is None:
                raise ValueError("lam was given but the objective has no regularizer; give it Frobenius(0.0)")
            lam = validate.coefficient(lam, validate.dtype_of(params, x))
        if weights is not None:
            weights = validate.weights(weights, params, x)
        return params, x, y, lam, weights

    def terms(
        self, params: Tree, output: Array, y: Array, lam: Coefficient | None, weights: Array | None
    ) -> tuple[Scalar, Scalar]:
        """(L, s): the examples' losses summed with `weights` or averaged (J1), and the penalty (J2)."""
        return self.summed(self.loss.checked_value(output, y), params, lam, weights)

    def summed(
        self, losses: Array, params: Tree, lam: Coefficient | None, weights: Array | None
    ) -> tuple[Scalar, Scalar]:
        """(L, s) from the examples' losses."""
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
    x: Examples,
    y: Targets,
    *,
    lam: Coefficient | None = None,
    weights: Weights | None = None,
    rule: Rule = backpropagation,
    key: PRNGKeyArray | None = None,
) -> Step:
    """The note's three steps on one batch, with everything kept: z, a, delta, gradients, dL/dx.

    Arguments and errors are those of `Objective.__call__`; `rule` says how error terms travel down (`rules`).
    It works under jit, vmap, scan and JAX's own transformations. Under jit, results that the caller does not use are
    not computed.
    """
    params, x, y, lam, weights = Objective.required(objective).checked(params, x, y, lam, weights)
    net = objective.net
    output, trace = forward_sweep(net, params, x, keys=layer_keys(net, key))  # step 1
    d_output = objective.loss.checked_derivative(output, y)
    d_x, deltas = backward_sweep(net, params, trace, d_output, rule=checked_rule(rule))  # step 2
    gradients = read(net, gradient_reader(weights), (trace, deltas))  # step 3
    loss, penalty = objective.terms(params, output, y, lam, weights)
    return Step(
        value=loss + penalty,
        loss=loss,
        penalty=penalty,
        output=output,
        trace=trace,
        deltas=deltas,
        gradients=explicit.like(params, objective.add_penalty_gradient(gradients, params, lam)),
        d_x=d_x,
        d_lam=jnp.zeros_like(loss) if objective.regularizer is None else objective.regularizer.d_lam(params),
    )


def value_and_grad(objective: Objective, argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Scalar, Any]]:
    """`jax.value_and_grad(objective, argnums)`, written by hand.

    Each layer's delta is contracted to its gradient as the backward sweep passes, so no trace or delta
    outlives its use. As nobody sees them, 1/N or the weights enter at the output, and f' of tanh, sigmoid and softsign
    is taken from a alone. Like jax.grad's, it ends where a rounds to its limit, and costs no more memory. The row
    `activations.tanh.exact` keeps the tail here too, as `backprop` does with any row.

    Args:
        objective: the function to differentiate.
        argnums: 0 for params, 1 for x, or a sequence of these, as in JAX.

    Returns:
        A function (params, x, y, *, lam=None, weights=None, rule=backpropagation, key=None) -> (J, gradient). The
        gradient is that of J, so the one with respect to x includes the examples' weights (1/N), as jax.grad's does.

    Raises:
        ValueError: argnums other than 0 and 1.
        TypeError: no objective, or argnums that are not integers.
    """
    Objective.required(objective)
    wanted = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in wanted):
        raise TypeError(f"argnums must be an int or a sequence of ints, got {argnums!r}")
    if not wanted or not set(wanted) <= {0, 1}:
        raise ValueError(f"argnums may name 0 (params) and 1 (x), got {argnums!r}")

    def value_and_gradient(
        params: Tree,
        x: Examples,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
        rule: Rule = backpropagation,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Scalar, Any]:
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        keys = layer_keys(objective.net, key)
        losses, gradients, d_x = lean_gradients(objective, params, x, y, weights, checked_rule(rule), keys)
        loss, penalty = objective.summed(losses, params, lam, weights)
        by_argument = explicit.like(params, objective.add_penalty_gradient(gradients, params, lam)), d_x
        picked = tuple(by_argument[i] for i in wanted)
        return loss + penalty, picked[0] if isinstance(argnums, int) else picked

    return value_and_gradient


def lean_gradients(
    objective: Objective,
    params: Tree,
    x: Examples,
    y: Array,
    weights: Array | None,
    rule: Rule = backpropagation,
    keys: Tree | None = None,
) -> tuple[Array, Tree, Flow]:
    """(the examples' losses, dL/dparams, dL/dx) of checked arguments, where nobody asks for z, a and delta."""
    net, loss = objective.net, objective.loss
    chunked = objective.chunked(y, rule)
    if chunked is None:
        output, trace = forward_sweep(net, params, x, lean=True, keys=keys)
        d_output = loss.checked_derivative(output, y)
        d_x, gradients = lean_backward(net, params, trace, d_output, weights, rule, keys)
        return loss.checked_value(output, y), gradients, d_x
    split, of_rows = chunked
    affine = split.readout(params)
    if split.body is None:
        losses, d_x, of_readout = readout.losses_and_gradients(of_rows, affine, x, y, weights, weigh_x=True)
        return losses, split.joined((), of_readout), d_x
    entered, trace = into_readout(split, params, x, keys)
    losses, d_entered, of_readout = readout.losses_and_gradients(of_rows, affine, entered, y, weights, weigh_x=False)
    of_body, keys = split.of_body(params), None if keys is None else split.of_body(keys)
    d_x, gradients = lean_backward(split.body, of_body, trace, d_entered, weights, keys=keys)
    return losses, split.joined(gradients, of_readout), d_x


def into_readout(split: readout.Split, params: Tree, x: Examples, keys: Tree | None) -> tuple[Flow, Tree]:
    """The rows that enter the readout, and the trace of the body; the keys are the network's."""
    if split.body is None:
        return x, ()
    keys = None if keys is None else split.of_body(keys)
    return forward_sweep(split.body, split.of_body(params), x, lean=True, keys=keys)


def lean_backward(
    net: Node,
    params: Tree,
    trace: Tree,
    d_output: Flow,
    weights: Array | None,
    rule: Rule = backpropagation,
    keys: Tree | None = None,
) -> tuple[Flow, Tree]:
    """(dJ/dx, the gradients summed by `weights`) from dl/do of every example, where nobody asks for the deltas."""
    if rule.linear and weighable(d_output):
        d_sum = per_example_scaled(d_output, weights)
        return backward_sweep(net, params, trace, d_sum, reader=total, rule=rule, lean=True, keys=keys)
    reader = gradient_reader(weights)
    d_x, gradients = backward_sweep(net, params, trace, d_output, reader=reader, rule=rule, lean=True, keys=keys)
    return per_example_scaled(d_x, weights), gradients


def weighable(d_output: Flow) -> bool:
    """Whether the examples' weights, or 1/N, may enter at the output, for sweeps that are linear in it.

    That equals weights at the sums, and saves a pass over every dW. In 16 bits they stay at the sums, which are formed
    in float32: there delta / N would underflow.
    """
    return all(leaf.dtype == accumulator(leaf.dtype) for leaf in jax.tree.leaves(d_output))


def per_example_scaled(d_x: Flow, weights: Array | None) -> Flow:
    """Row n times its example's weight, or 1/N: dJ/dx from dL_n/dx_n."""

    def of_rows(rows: Array) -> Array:
        if weights is None:
            return rows / rows.shape[0]
        return (weights.reshape(-1, *(1,) * (rows.ndim - 1)) * rows.astype(weights.dtype)).astype(rows.dtype)

    return jax.tree.map(of_rows, d_x)
