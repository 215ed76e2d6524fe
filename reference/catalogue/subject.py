"""The subjects of mutation testing: an objective with arguments, and the function of it that is broken."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from manual_backprop.layers import LayerTrace
from reference import autodiff
from reference.catalogue import networks
from reference.compare import each_compared
from reference.model import LayerValues
from reference.tolerance.rounding import measure

Tree = Any


def _step(objective: mb.Objective, *args: Any, **given: Any) -> mb.Step:
    """`backprop`, with z and a alone in the trace."""
    full = mb.backprop(objective, *args, **given)
    values = jax.tree.map(
        lambda layer: LayerValues(layer.z, layer.a), full.trace, is_leaf=lambda node: isinstance(node, LayerTrace)
    )
    return replace(full, trace=values)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "backprop": (_step, autodiff.backprop),
    "value_and_grad": (
        lambda objective, *args, **given: mb.value_and_grad(objective)(*args, **given),
        lambda objective, *args, **given: autodiff.value_and_grad(objective)(*args, **given),
    ),
    "hessian_vector_product": (mb.hessian_vector_product, autodiff.hessian_vector_product),
}
"""(by hand, by autodiff) of every function that is broken, as functions of (objective, params, x, y, **given)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One objective, with arguments on which a fault can show.

    Attributes:
        objective: the function to differentiate.
        params: generic parameters: no zero, no symmetry.
        x: a batch.
        y: its targets.
        given: lam and weights, if they are given at the call, and v of a Hessian-vector product.
        function: the one of `FUNCTIONS` that is broken. The sweep of `value_and_grad` keeps less than that of
            `backprop`, and runs blocks forward again.
        key: of what dropout draws; None draws nothing.
    """

    objective: mb.Objective
    params: Tree
    x: Tree
    y: Any
    given: dict[str, Any] = field(default_factory=dict)
    function: str = "backprop"
    key: Any = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of `by_hand` and `by_autodiff`."""
        return self.params, self.x, self.y, self.given

    def placed(self) -> "Subject":
        """The subject with JAX's arrays."""
        params, x, y, given = jax.tree.map(jnp.asarray, self.args)
        return replace(self, params=params, x=x, y=y, given=given)

    def by_hand(self, params: Tree, x: Tree, y: Any, given: dict[str, Any]) -> Any:
        """The function under test."""
        return FUNCTIONS[self.function][0](self.objective, params, x, y, **given, key=self.key)

    def by_autodiff(self, params: Tree, x: Tree, y: Any, given: dict[str, Any]) -> Any:
        """The reference's counterpart of `by_hand`."""
        return FUNCTIONS[self.function][1](self.objective, params, x, y, **given, key=self.key)


def step_check(subject: Subject) -> Callable[[Callable[..., Any]], bool]:
    """A check of `subject.by_hand`: False if any number of the result on the subject differs from the reference's."""
    witness = measure(subject.by_autodiff, *subject.args, dtype="float64")

    def check(step: Callable[..., Any]) -> bool:
        by_hand = jax.device_get(step(*subject.args))
        rows = each_compared("step", by_hand, witness.value, witness.tolerance, cause=lambda *_: ("", ""))
        return all(row.verdict == "pass" for row in rows)

    return check


def drawn(objective: mb.Objective, x: Any, y: Any, rng: np.random.Generator, **fields: Any) -> Subject:
    """A subject with parameters that are drawn; its `value_and_grad` is given weights, and a product a direction."""
    params = networks.draw_params(objective.net, 1.0, rng)
    function, given = fields.get("function"), {}
    if function == "value_and_grad":
        given["weights"] = rng.uniform(0.1, 1, len(y))
    if function == "hessian_vector_product":
        given["v"] = networks.draw_params(objective.net, 1.0, rng)
    return Subject(objective, params, x, y, given, **fields)


def in_sixteenths(subject: Subject) -> Subject:
    """The subject with its floats moved to odd sixteenths: sums of a few products of these have no rounding error.

    A position that sees itself alone has the weight 1, and 0 comes down to its query: a difference of two equal sums.
    Without rounding it is exactly 0, so that it hides a fault of the query and does not show one where there is none.
    """

    def moved(leaf: Any) -> Any:
        floats = np.issubdtype(np.asarray(leaf).dtype, np.floating)
        return (2 * np.floor(8 * leaf) + 1) / 16 if floats else leaf

    params, x, y, given = jax.tree.map(moved, subject.args)
    return replace(subject, params=params, x=x, y=y, given=given)
