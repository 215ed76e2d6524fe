"""Readings in one lean sweep, where no trace, delta or logit outlives its use."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, PRNGKeyArray

from manual_backprop import explicit
from manual_backprop.drawing import layer_keys
from manual_backprop.network.tied_readout import OfBoth
from manual_backprop.objective import Objective, into_readout
from manual_backprop.readout import SharedLookup, losses_and_gradients
from manual_backprop.readout_rows import OfRows, OfTiedRows
from manual_backprop.sweep import Reader, Rule, backpropagation, backward_sweep, checked_rule, forward_sweep
from manual_backprop.types import Coefficient, Examples, Scalar, Targets, Tree, Weights, came


def value_and_reading(objective: Objective, reader: Reader) -> Callable[..., tuple[Scalar, Tree]]:
    """J, and what a reader makes of every layer's pair (a, delta) as the backward sweep passes.

    `mb.value_and_reading(objective, lambda factor: factor.squared_norms())` has the numbers of `squared_norms` with
    `by_layer`, in the memory of `value_and_grad`: a recomputing `Repeat` keeps its blocks' inputs alone, and a loss
    with a chunk never makes all logits. `over_layers` adds them up. A reader may return several readings at once.

    Args:
        objective: the function whose sweep is read.
        reader: takes a layer's `Factor`, where deltas are per example and unscaled. It has the methods
            `weighted_sum(weights)`, `per_example()`, `squared_norms()`, `squared_sum(weights)` and `gram(factor)`.

    Returns:
        A function (params, x, y, *, lam=None, weights=None, rule=backpropagation, key=None) -> (J, readings). These
        have the parameters' structure down to the layers, with the blocks of a `Repeat` in front; the weights enter J
        alone.

    Raises:
        TypeError: no objective, or a reader that is no function.
    """
    Objective.required(objective)
    if not callable(reader):
        raise TypeError(f"reader must be a function of a layer's Factor, got {came(reader)}")

    def value_and_read(
        params: Tree,
        x: Examples,
        y: Targets,
        *,
        lam: Coefficient | None = None,
        weights: Weights | None = None,
        rule: Rule = backpropagation,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Scalar, Tree]:
        params, x, y, lam, weights = objective.checked(params, x, y, lam, weights)
        keys = layer_keys(objective.net, key)
        losses, readings = _read(objective, reader, params, x, y, checked_rule(rule), keys)
        loss, penalty = objective.summed(losses, params, lam, weights)
        return loss + penalty, readings

    return value_and_read


def _read(
    objective: Objective, reader: Reader, params: Tree, x: Examples, y: Array, rule: Rule, keys: Tree | None
) -> tuple[Array, Tree]:
    """(the examples' losses, the readings) of checked arguments."""
    net, loss = objective.net, objective.loss
    chunked = objective.chunked(y, rule)
    if chunked is None:
        output, trace = forward_sweep(net, params, x, lean=True, keys=keys)
        d_output = loss.checked_derivative(output, y)
        _, found = backward_sweep(net, params, trace, d_output, reader=reader, rule=rule, lean=True, keys=keys)
        return loss.checked_value(output, y), found
    split, of_rows = chunked
    entered, trace = into_readout(split, params, x, keys)
    losses, d, _ = losses_and_gradients(of_rows, split.readout(params), entered, y, None, weigh_x=False)
    rows = OfRows(entered, y, split.readout(params), of_rows)

    def below(factor: Any) -> Any:
        return factor if isinstance(factor, SharedLookup) else reader(factor)

    found = ()
    if split.body is not None:
        of_body, keys = split.of_body(params), None if keys is None else split.of_body(keys)
        _, found = backward_sweep(split.body, of_body, trace, d, reader=below, lean=True, keys=keys)

    def alone(rows: OfRows) -> Any:
        return reader(OfTiedRows(rows) if split.by_table else rows)

    def with_lookup(lookup: SharedLookup, rows: OfRows) -> Any:
        return reader(OfBoth(lookup, OfTiedRows(rows)))

    return losses, split.join(
        found,
        lambda: explicit.everywhere(alone, rows),
        lambda lookup: explicit.everywhere(with_lookup, lookup, rows),
    )
