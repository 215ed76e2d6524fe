"""Recompute every equation of a step by itself, in float64, from the stored values that enter it.

Each value of a `Step` is compared with the result of its own equation on the stored values before it (z from a, a
from z, delta from the delta above). So an error belongs to that equation and to no other, and the first that fails
names the fault. Bounds for the error of a right answer are derived, formula by formula, in
`reference.equations.bounds`, or measured for a family without derived bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.objective import Objective, Step
from reference import model
from reference.equations import bounds, joins
from reference.equations import dense as dense  # registers its derived bounds
from reference.equations import joined as joined  # used for a composite that is not registered
from reference.equations import measured as measured  # used for every other family
from reference.equations import norms as norms  # registers its derived bounds
from reference.equations import product as product  # registers its derived bounds
from reference.equations import tables as tables  # registers theirs
from reference.equations.bounds import Arithmetic, Curve, Known
from reference.equations.chain import Use, Wide, shared, wide, written_out
from reference.equations.families import KnownFlow, Mistakes, family
from reference.equations.joins import Arriving, Way

Tree = Any


@dataclass(frozen=True)
class Equation:
    """One equation: the value under test, and its expected value.

    Attributes:
        path: the value's place on a `Step`.
        tag: of the equation.
        layer: 1 for the first, counting every block of a Repeat and every use of a Tied; 0 for none.
        manual: the value under test.
        known: the equation's result on the stored values before it.
        parameter: for a gradient, the parameter that it is with respect to.
        counted: whether the regulariser counts that parameter.
        mistakes: the values that mistakes would give, by mistake.
        by: for an error term, the numbers of the layers whose transports it is computed from.
    """

    path: str
    tag: str
    layer: int
    manual: Any
    known: Known
    parameter: Any = None
    counted: bool = False
    mistakes: Mistakes = field(default_factory=dict)
    by: tuple[int, ...] = ()


def equations(
    objective: Objective,
    params: Tree,
    x: Any,
    y: Any,
    step: Step,
    arithmetic: Arithmetic,
    lam: Any = None,
    weights: Any = None,
    masks: Tree | None = None,
) -> list[Equation]:
    """Every equation of a step, in the order of computation.

    Args:
        objective: the step's objective.
        params: the step's parameters.
        x: the step's inputs.
        y: the step's targets.
        step: the step under test.
        arithmetic: the arithmetic in which it was computed.
        lam: the lambda given to it, or None.
        weights: the weights given to it, or None.
        masks: of its dropout, as from `reference.masks`, or None.

    Raises:
        TypeError: a layer or composite that the reference does not know.
    """
    uses = written_out(objective.net, params, step, masks)
    n = model.examples(x)
    shares = np.full(n, 1 / n) if weights is None else wide(weights)
    coefficient = 0.0 if objective.regularizer is None else float(objective.regularizer.lam if lam is None else lam)
    entering = jax.tree.map(lambda part: Known.exactly(_floats_wide(part)), x)
    with np.errstate(all="ignore"):  # values that overflow are inf or nan, and their bound says so
        ways = Ways(objective, arithmetic, uses, step)
        upward, output, seen = ways.forward(entering)
        of_objective, d_output = ways.objective_rows(output, y, shares, coefficient)
        downward, deltas = ways.backward(d_output, seen)
        counted = objective.regularizer is not None
        gradients = list(ways.gradients(seen, deltas, shares, coefficient, counted))
    return [*upward, *of_objective, *downward, *gradients]


def _floats_wide(part: Any) -> Wide:
    part = np.asarray(part)
    return wide(part) if jnp.issubdtype(part.dtype, jnp.floating) else part


@dataclass(frozen=True, eq=False)
class Seen:
    """Results of the way up for one use of a layer: its input, and f with its derivatives at its z."""

    a_in: KnownFlow
    at: Curve


@dataclass(frozen=True, eq=False)
class Ways:
    """The ways up and down one step under test; `entered` is as in `joins.Way`."""

    objective: Objective
    of: Arithmetic
    uses: list[Use]
    step: Step
    entered: dict[int, KnownFlow] = field(default_factory=dict)

    def forward(self, x: KnownFlow) -> tuple[list[Equation], Known, dict[Use, Seen]]:
        """(F1) and (F2) of every layer, and (F3); also the output, and a `Seen` for every use."""
        rows: list[Equation] = []
        seen: dict[Use, Seen] = {}

        def at(use: Use, a_in: KnownFlow) -> Known:
            z, wrong = family(use.layer).net_input(self.of, use, a_in)
            name = use.name("trace", ".z")
            rows.append(Equation(name, "(F1)", use.number, use.values.z, z, mistakes=wrong))
            function = model.ACTIVATIONS.get(use.layer.f.name, use.layer.f.f)
            curve = bounds.curve(function, use.values.z, z.slack)
            seen[use] = Seen(a_in, curve)
            a = bounds.activated(self.of, curve)
            rows.append(self._activation(use, a, curve))
            return a.stored(use.values.a)

        output = joins.up(self.objective.net, Way(self.of, at, self.entered), x, iter(self.uses))
        rows.append(Equation("output", "(F3)", 0, self.step.output, output))
        return rows, output.stored(wide(self.step.output)), seen

    def _activation(self, use: Use, a: Known, curve: Curve) -> Equation:
        wrong = {"z itself: the activation function is missing": use.values.z, "f' where f is meant": curve.slope}
        return Equation(use.name("trace", ".a"), "(F2)", use.number, use.values.a, a, mistakes=wrong)

    def objective_rows(self, output: Known, y: Any, shares: Wide, lam: float) -> tuple[list[Equation], Known]:
        """(J1), (J2), (J3) and ds/dlambda; also dl/do."""
        y = _floats_wide(y)
        losses, d_output = bounds.example_losses(self.of, self.objective.loss, output, y)
        return [self._loss(losses, shares), *self._penalty(lam)], d_output

    def _loss(self, losses: Known, shares: Wide) -> Equation:
        size = np.abs(shares) @ np.abs(losses.value)
        error = np.abs(shares) @ losses.bound + self.of.gamma(len(shares) + 2) * size + self.of.eta
        loss = Known.exactly(shares @ losses.value).further(error)
        summed = {"the examples are summed, not averaged (1/N missing)": losses.value.sum()}
        return Equation("loss", "(J1)", 0, self.step.loss, loss, mistakes=summed)

    def _penalty(self, lam: float) -> Iterator[Equation]:
        of, step = self.of, self.step
        owners = [uses[0] for uses in shared(self.uses)]
        weights = [W for own in owners for W in own.weights.values()] if self.objective.regularizer is not None else []
        free = [leaf for own in owners for name, (leaf, _) in own.parameters.items() if name not in own.weights]
        norm = bounds.squared_norm(of, weights, 0.5)
        error = abs(lam) * (norm.bound + 2 * of.u_sum * norm.value) + of.eta * bool(weights)
        penalty = Known.exactly(lam * norm.value).further(error)
        mistakes = {
            "lam/2 is lam": 2 * penalty.value,
            "the biases are counted too": penalty.value + lam / 2 * sum(float(np.sum(np.square(b))) for b in free),
            "the norm is not squared": lam / 2 * sum(float(np.linalg.norm(W)) for W in weights),
        }
        yield Equation("penalty", "(J2)", 0, step.penalty, penalty, mistakes=mistakes)
        J = wide(step.loss) + wide(step.penalty)
        value = Known.exactly(J).further(2 * of.u_sum * np.abs(J) + of.eta)
        yield Equation("value", "(J3)", 0, step.value, value, mistakes={"the penalty is missing": wide(step.loss)})
        yield Equation("d_lam", "(B6)", 0, step.d_lam, norm)

    def backward(self, d_output: Known, seen: dict[Use, Seen]) -> tuple[list[Equation], dict[Use, Known]]:
        """(B1) and (B2) of every layer, last to first, and (B5); also the deltas with their slack."""
        rows: list[Equation] = []
        deltas: dict[Use, Known] = {}

        def at(use: Use, d: Arriving) -> Any:
            delta = bounds.error_term(self.of, seen[use].at, d.known)
            rows.append(self._error_term(use, d, delta, seen))
            deltas[use] = delta.stored(use.delta)
            below, wrong = family(use.layer).transport(self.of, use, seen[use].a_in, deltas[use])
            return jax.tree.map(lambda known: Arriving(known, wrong, (use.number,)), below)

        way = Way(self.of, at, self.entered)
        d_x = joins.down(self.objective.net, way, Arriving(d_output), iter(reversed(self.uses)))
        parts = jax.tree_util.tree_leaves_with_path(self.step.d_x)
        for (path, manual), d in zip(parts, jax.tree.leaves(d_x), strict=True):
            name = f"d_x{jax.tree_util.keystr(path)}"
            rows.append(Equation(name, "(B5)", 0, manual, d.known, mistakes=d.mistakes, by=d.by))
        return rows, deltas

    def _error_term(self, use: Use, d: Arriving, delta: Known, seen: dict[Use, Seen]) -> Equation:
        at, d_a = seen[use].at, d.known.value
        mistakes = {"f' is missing": d_a, "f where f' is meant": at.f * d_a}
        mistakes |= {what: at.slope * value for what, value in d.mistakes.items()}
        for other in self.uses:
            if other is not use and other.delta.shape == use.delta.shape:
                mistakes[f"the delta of layer {other.number} (stale)"] = other.delta
                mistakes[f"f' at the z of layer {other.number} (stale)"] = seen[other].at.slope * d_a
        tag = "(B1)" if use is self.uses[-1] else "(B2)"
        return Equation(use.name("deltas"), tag, use.number, use.delta, delta, mistakes=mistakes, by=d.by)

    def gradients(
        self, seen: dict[Use, Seen], deltas: dict[Use, Known], shares: Wide, lam: float, counted: bool
    ) -> Iterator[Equation]:
        """(B4) with (B6), and (B3), of every layer; tied layers are summed over their uses like positions."""
        entered = {use: of.a_in for use, of in seen.items()}
        for uses in shared(self.uses):
            use, kind = uses[0], family(uses[0].layer)
            found = kind.gradient(self.of, uses, [entered[u] for u in uses], [deltas[u] for u in uses], shares)
            for name, (leaf, gradient) in use.parameters.items():
                weight = name in use.weights
                decay = lam * leaf if weight and counted else 0.0
                known = self._decayed(found[name], decay, counted) if weight else found[name]
                wrong = kind.gradient_mistakes(use, entered, shares, name) if len(uses) == 1 else {}
                wrong = {what: value + decay for what, value in wrong.items()}
                tag = "(B4)" if weight else "(B3)"
                path = use.name("gradients", name)
                yield Equation(path, tag, use.number, gradient, known, leaf, weight and counted, wrong)

    def _decayed(self, gradient: Known, decay: Wide, counted: bool) -> Known:
        """The gradient with the regulariser's part added, if it counts the parameter (B6)."""
        if not counted:
            return self.of.rounded(gradient)
        size = np.abs(gradient.value) + np.abs(decay)
        return self.of.rounded(gradient + Known.exactly(decay).further(2 * self.of.u_sum * size))
