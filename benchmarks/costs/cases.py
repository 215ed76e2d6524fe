"""The rows of the table, and the two programs that each sets against one another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import manual_backprop as mb
from benchmarks.networks import NETS, arguments_of, objective_of, plain_loss, plain_objective, plain_outputs
from manual_backprop.activations import TABLE, Activation

BATCHES = (128, 2048)
EXACT = tuple(row.exact for row in TABLE.values() if row.short is not None)

Tree = Any
Program = Callable[[Tree, jax.Array, jax.Array, jax.Array | None, Tree], Any]
"""(params, x, y, weights, v) -> result; weights are the examples', None for their mean, and v is a tree like params."""


@dataclass(frozen=True)
class Setting:
    """The same for all rows of a table.

    Attributes:
        quantity: a key of QUANTITIES.
        lam: of the regulariser; 0 is none.
        weighted: J = sum_n w_n l_n in place of the mean.
    """

    quantity: str = "grad"
    lam: float = 0.0
    weighted: bool = False

    def __str__(self) -> str:
        weights = "weights of examples" if self.weighted else "the mean of examples"
        return f"{self.quantity}, {f'lam {self.lam:g}' if self.lam else 'no regulariser'}, {weights}"


@dataclass(frozen=True)
class Case:
    """One row: a network (a key of NETS) of one activation, and N."""

    activation: Activation
    net: str
    batch: int

    @property
    def name(self) -> str:
        """The activation's name, with .exact where it is that variant."""
        return repr(self.activation).removeprefix("activations.")

    @property
    def held(self) -> bool:
        """Whether --check holds it to the bounds: all but the exact variants."""
        return self.activation not in EXACT

    def programs(self, setting: Setting) -> tuple[Program, Program]:
        """(by hand, by jax.grad)."""
        by_hand, plain = QUANTITIES[setting.quantity]
        objective = objective_of(mb.mlp(NETS[self.net], self.activation), setting.lam)
        return by_hand(objective), plain(objective)

    def arguments(self, setting: Setting) -> tuple[Tree, jax.Array, jax.Array, jax.Array | None, Tree]:
        """Arrays for the programs; biases are not zero, and weights are between 0.5/N and 1.5/N."""
        sizes, n = NETS[self.net], self.batch
        net = mb.mlp(sizes, self.activation)
        start, x, y = arguments_of(net, sizes[0], sizes[-1], n)
        params = tuple(mb.Affine(layer.W, 0.1 * jnp.cos(jnp.arange(layer.b.size, dtype=x.dtype))) for layer in start)
        weights = (1 + 0.5 * jnp.sin(jnp.arange(n, dtype=x.dtype))) / n
        v = net.init(jax.random.key(1), x.dtype)
        return params, x, y, weights if setting.weighted else None, v


def gradient(objective: mb.Objective) -> Program:
    """(J, its gradient) by hand."""
    value_and_grad = mb.value_and_grad(objective)
    return lambda params, x, y, weights, v: value_and_grad(params, x, y, weights=weights)


def plain_gradient(objective: mb.Objective) -> Program:
    """(J, its gradient) by jax.value_and_grad."""
    value_and_grad = jax.value_and_grad(plain_objective(objective))
    return lambda params, x, y, weights, v: value_and_grad(params, x, y, weights)


def hessian_product(objective: mb.Objective) -> Program:
    """H v by hand."""
    return lambda params, x, y, weights, v: mb.hessian_vector_product(objective, params, x, y, v, weights=weights)


def plain_hessian_product(objective: mb.Objective) -> Program:
    """H v by forward over reverse mode."""
    gradient = jax.grad(plain_objective(objective))
    return lambda params, x, y, weights, v: jax.jvp(lambda p: gradient(p, x, y, weights), (params,), (v,))[1]


def gauss_newton_product(objective: mb.Objective) -> Program:
    """G v by hand."""
    return lambda params, x, y, weights, v: mb.gauss_newton_vector_product(objective, params, x, y, v, weights=weights)


def plain_gauss_newton_product(objective: mb.Objective) -> Program:
    """J^T (H (J v)) by jvp of the outputs, jvp of the loss's grad and vjp of the outputs, and lam v for the weights."""
    outputs, d_loss = plain_outputs(objective), jax.grad(plain_loss(objective))

    def product(params: Tree, x: jax.Array, y: jax.Array, weights: jax.Array | None, v: Tree) -> Tree:
        o, back = jax.vjp(lambda p: outputs(p, x), params)
        d_o = jax.jvp(lambda p: outputs(p, x), (params,), (v,))[1]
        curved = jax.jvp(lambda o: d_loss(o, y, weights), (o,), (d_o,))[1]
        found = back(curved)[0]
        if objective.regularizer is None:
            return found
        lam = objective.regularizer.lam
        return tuple(mb.Affine(g.W + lam * along.W, g.b) for g, along in zip(found, v, strict=True))

    return product


QUANTITIES: dict[str, tuple[Callable[[mb.Objective], Program], Callable[[mb.Objective], Program]]] = {
    "grad": (gradient, plain_gradient),
    "hvp": (hessian_product, plain_hessian_product),
    "gnvp": (gauss_newton_product, plain_gauss_newton_product),
}
"""The name of a quantity -> (its program by hand, its program by jax.grad), both from an objective."""


def cases(names: Iterable[str], nets: Iterable[str], batches: Iterable[int], exact: bool) -> list[Case]:
    """Every activation of these names, and its exact variant where that is wanted, in every net at every N."""
    names = set(names)
    rows = [row for row in (*TABLE.values(), *(EXACT if exact else ())) if row.name in names]
    return [Case(row, net, n) for net in nets for n in batches for row in rows]
