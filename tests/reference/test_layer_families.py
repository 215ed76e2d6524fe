"""check_layer on families unlike Dense: integers enter, several inputs, no parameters, activations of all kinds."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from manual_backprop import activations
from manual_backprop.layers import AffineLayer, Factor, Layer, ParameterFree, Parameters, Product
from manual_backprop.layers.factor import NoParameters
from reference.checks.layer import check_layer
from tests.helpers import batch, by_operation, generic
from tests.reference.test_layer_check import METHODS, PARAMS, Curved, X, methods

IDS = jnp.asarray([[0, 3], [3, 3], [1, 4], [0, 1]])
PAIR = (batch(6, 4), batch(6, 4, seed=3))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table(Parameters):
    W: Any

    weights = ("W",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scattered(Factor):
    """Indices (N, T), and delta (N, T, d): a row of the table gets the deltas of the places where it was looked up."""

    ids: Any
    delta: Any
    rows: int = field(metadata={"static": True})

    def weighted_sum(self, weights: Any = None) -> Table:
        w = jnp.full(len(self.delta), 1 / len(self.delta)) if weights is None else weights
        shares = w.reshape(-1, *(1,) * (self.delta.ndim - 1)) * self.delta
        return Table(jnp.zeros((self.rows, self.delta.shape[-1])).at[self.ids].add(shares))


@dataclass(frozen=True)
class Embedding(AffineLayer):
    """Rows of a table: z = W[ids]."""

    rows: int = 5
    width: int = 3
    activation: str = "tanh"

    takes_integers = True

    def init(self, key: Any, dtype: Any = None) -> Table:
        return Table(jax.random.normal(key, (self.rows, self.width), dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return (*in_shape, self.width)

    def net_input(self, params: Table, a_in: Any) -> Any:
        return params.W[a_in], a_in

    def transport(self, params: Table, saved: Any, delta: Any) -> None:
        return None

    def factor(self, saved: Any, delta: Any) -> Factor:
        return Scattered(saved, delta, self.rows)

    def pushforward(self, params: Table, saved: Any, dparams: Table, da_in: None) -> Any:
        return dparams.W[saved]


@dataclass(frozen=True)
class Gated(Layer):
    """Two inputs, indices and floats: z = W[ids] * x."""

    rows: int = 5
    width: int = 3
    activation: str = "sigmoid"

    takes_integers = True

    def init(self, key: Any, dtype: Any = None) -> Table:
        return Table(jax.random.normal(key, (self.rows, self.width), dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape[1]

    def net_input(self, params: Table, a_in: Any) -> Any:
        ids, x = a_in
        return params.W[ids] * x, a_in

    def transport(self, params: Table, saved: Any, delta: Any) -> Any:
        return None, params.W[saved[0]] * delta

    def factor(self, saved: Any, delta: Any) -> Factor:
        ids, x = saved
        return Scattered(ids, x * delta, self.rows)

    def pushforward(self, params: Table, saved: Any, dparams: Table, da_in: Any) -> Any:
        (ids, x), (_, dx) = saved, da_in
        return dparams.W[ids] * x + params.W[ids] * dx.astype(x.dtype)

    def change(self, params: Table, saved: Any, dparams: Table, da_in: Any, delta: Any) -> Any:
        (ids, _), (_, dx) = saved, da_in
        return (None, dparams.W[ids] * delta), Scattered(ids, dx * delta, self.rows)


@pytest.mark.parametrize(
    ("layer", "a_in", "compiled"),
    [
        (Embedding(), IDS, True),
        (Embedding(), IDS[:, 0], False),
        (Gated(), (IDS[:, 0], X[:, :3]), False),
        (Product("softplus"), PAIR, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_integers_and_several_inputs_pass(layer: Any, a_in: Any, compiled: bool) -> None:
    with nullcontext() if compiled else by_operation():
        report = check_layer(layer, generic(layer), a_in)
    assert report.passed, report
    assert report.worst.used < 0.1
    assert methods(report) >= {*METHODS, "change"}
    assert report.n_examples == 4


@dataclass(frozen=True)
class Doubling(ParameterFree):
    """A layer without parameters."""

    activation: Any = activations.identity

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def net_input(self, params: Any, a_in: Any) -> Any:
        return 2 * a_in, ()

    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return 2 * delta

    def pushforward(self, params: Any, saved: Any, dparams: Any, da_in: Any) -> Any:
        return 2 * da_in


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nothing(Factor):
    def weighted_sum(self, weights: Any = None) -> tuple:
        return ()


@pytest.fixture
def single_operations() -> Iterator[None]:
    with by_operation():
        yield


@pytest.mark.usefixtures("single_operations")
def test_a_layer_without_parameters_passes_and_its_transport_is_checked() -> None:
    assert check_layer(Doubling(), (), X).passed
    assert type(Doubling().factor((), X)) is NoParameters

    class Tripled(Doubling):
        def transport(self, params: Any, saved: Any, delta: Any) -> Any:
            return 3 * delta

    assert check_layer(Tripled(), (), X).failures[0].path == "transport"

    class Leafless(Doubling):
        def factor(self, saved: Any, delta: Any) -> Any:
            return Nothing()

    first = check_layer(Leafless(), (), X).failures[0]
    assert first.path == "factor"
    assert "as NoParameters(delta) has" in first.cause


@dataclass(frozen=True)
class Named(Curved):
    """Its activation is a field of its own, as a dataclass has it."""

    activation: Any = "identity"


@pytest.mark.usefixtures("single_operations")
def test_an_activation_by_its_name_runs_and_a_wrong_one_is_told() -> None:
    assert check_layer(Named(), PARAMS, X).passed
    first = check_layer(Named(activation="tahn"), PARAMS, X).failures[0]
    assert first.path == "activation"
    assert "no activation is called 'tahn'" in first.cause


@pytest.mark.usefixtures("single_operations")
def test_an_activation_of_ones_own_is_checked_too() -> None:
    swish = replace(activations.silu, name="swish")
    flat = check_layer(Named(activation=replace(swish, d2f=None)), PARAMS, X)
    assert flat.passed, flat
    assert set(flat.notes) == {
        "swish is not in reference.model.ACTIVATIONS: its values are taken as is",
        "swish has no d2f: Hessian-vector products refuse it",
    }
    for wrong, path in (  # the last is the first row that looks at d2f
        (replace(activations.tanh, f=activations.sigmoid.f), "activation"),
        (replace(swish, df=activations.sigmoid.df), "error_term"),
        (replace(swish, d2f=activations.tanh.d2f), "backward, tangent of d_a_in"),
    ):
        assert check_layer(Named(activation=wrong), PARAMS, X).failures[0].path == path


@pytest.mark.usefixtures("single_operations")
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu_tanh", "relu"])
def test_saturated_activations_are_no_fault(name: str) -> None:
    report = check_layer(Named(activation=name), PARAMS, 3 + 4 * jnp.abs(X))
    assert not report.failures, report
