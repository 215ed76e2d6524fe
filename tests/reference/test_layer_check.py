"""The check of one layer: a right one passes, and one with a broken method is told which."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop import activations
from manual_backprop.layers import Factor, Layer, OuterProduct, Parameters
from manual_backprop.layers.factor import Difference
from reference import model
from reference.checks.layer import check_layer
from tests.helpers import batch, by_method, by_operation, generic


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel(Parameters):
    k: Any
    b: Any

    weights = ("k",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows(Factor):
    """A stack of shifted inputs, (N, width, positions), and delta, (N, positions)."""

    windows: Any
    delta: Any

    def weighted_sum(self, weights: Any = None) -> Kernel:
        w = jnp.full(len(self.delta), 1 / len(self.delta)) if weights is None else weights
        shares = w.reshape(-1, 1) * self.delta
        return Kernel(jnp.tensordot(self.windows, shares, ((0, 2), (0, 1))), jnp.sum(shares)[None])

    def squared_norms(self) -> Any:
        k = jnp.einsum("nkp,np->nk", self.windows, self.delta)
        return jnp.sum(k**2, axis=1) + jnp.sum(self.delta, axis=1) ** 2


def shifts(width: int, out: int) -> np.ndarray:
    """(k, p, q): 1 where q = p + k."""
    return np.stack([np.eye(out, out + width - 1, k) for k in range(width)])


@dataclass(frozen=True)
class Convolution(Layer):
    """One channel along a line: z_p = b + sum_k k_k a_(p+k). It has few operations, since many tests run them."""

    width: int = 3
    activation: Any = activations.tanh

    def init(self, key: Any, dtype: Any = None) -> Kernel:
        return Kernel(jax.random.normal(key, (self.width,), dtype), jnp.zeros(1, dtype))

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (in_shape[0] - self.width + 1,)

    def net_input(self, params: Kernel, a_in: Any) -> Any:
        out = a_in.shape[1] - self.width + 1
        windows = jnp.tensordot(a_in, shifts(self.width, out), (1, 2))
        return jnp.tensordot(params.k, windows, (0, 1)) + jnp.broadcast_to(params.b, (len(a_in), out)), windows

    def transport(self, params: Kernel, saved: Any, delta: Any) -> Any:
        return delta @ jnp.tensordot(params.k, shifts(self.width, delta.shape[1]), 1)

    def factor(self, saved: Any, delta: Any) -> Factor:
        return Windows(saved, delta)

    def pushforward(self, params: Kernel, saved: Any, dparams: Kernel, da_in: Any) -> Any:
        along = jnp.tensordot(dparams.k, saved, (0, 1))
        return Convolution.net_input(self, replace(params, b=dparams.b), da_in)[0] + along


class Curved(Convolution):
    """The same with the change of its transposes."""

    def change(self, params: Kernel, saved: Any, dparams: Kernel, da_in: Any, delta: Any) -> Any:
        moved = Convolution.net_input(self, params, da_in)[1]
        gradient = Difference(Windows(moved, delta), Windows(jnp.zeros_like(moved), delta))
        return Convolution.transport(self, dparams, saved, delta), gradient


@model.apply.register
def _(layer: Curved, params: Kernel, a_in: Any) -> Any:
    def one(row: Any) -> Any:
        return jnp.convolve(row, params.k[::-1], mode="valid")

    z = jax.vmap(one)(a_in)
    return z + jnp.broadcast_to(params.b, z.shape)


PARAMS = Kernel(jnp.asarray([0.4, -0.7, 1.1]), jnp.asarray([0.3]))
X = batch(6, 4)
METHODS = {"net_input", "pushforward", "transport", "factor", "out_shape", "init", "forward", "backward", "error_term"}


def methods(report: Any) -> set[str]:
    return {row.path.split(",")[0].split(".")[0].split("[")[0] for row in report.rows}


READINGS = ("factor.squared_sum.W", "factor.gram", "factor.tied", "pushforward_params", "change[1].weighted_sum.W")


@pytest.mark.parametrize("layer", [mb.Dense(6, 3, "tanh"), Curved()], ids=["dense", "curved"])
def test_layers_of_ours_and_a_new_one_pass(layer: Any) -> None:
    """Ours as it is compiled; the next tests say what another one's compilation may change."""
    with nullcontext() if isinstance(layer, mb.Dense) else by_operation():
        report = check_layer(layer, generic(layer), X)
    assert report.passed, report
    assert not report.notes
    assert any(row.witness == "reference.model" for row in report.rows)
    if isinstance(layer, mb.Dense):
        assert type(layer.factor(X, X)) is OuterProduct
        assert {row.path for row in report.rows} >= set(READINGS)
    assert report.worst.used < 0.1
    assert methods(report) >= {*METHODS, "change"}


def test_a_family_without_change_is_noted_and_passes() -> None:
    with by_operation():
        report = check_layer(Convolution(), PARAMS, X)
    assert report.passed, report
    assert methods(report) >= METHODS
    assert "change" not in methods(report)
    assert any("not registered on reference.model.apply: its z is taken as is" in note for note in report.notes)
    assert "Convolution has no method `change`: Hessian-vector products refuse it" in report.notes


class ScaledKernelInForward(Convolution):
    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = Convolution.net_input(self, params, a_in)
        return 1.01 * z, saved


class SavedReversed(Convolution):
    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = Convolution.net_input(self, params, a_in)
        return z, saved[:, ::-1]


class NotTransposed(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, replace(params, k=params.k[::-1]), saved, delta)


class OneEntryOff(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, params, saved, delta) * jnp.ones(X.shape).at[2, 3].set(1 + 1e-9)


class DeltaTwice(Convolution):
    def factor(self, saved: Any, delta: Any) -> Any:
        return Windows(saved, 2 * delta)


class NotLinear(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, params, saved, delta + 1e-6 * delta**2)


class NoBiasForward(Convolution):
    def pushforward(self, params: Any, saved: Any, dparams: Any, da_in: Any) -> Any:
        return Convolution.pushforward(self, params, saved, replace(dparams, b=0 * dparams.b), da_in)


class WrongNorms(Windows):
    def squared_norms(self) -> Any:
        return Windows.squared_norms(self) - jnp.sum(self.delta, axis=1) ** 2


class WrongMean(Windows):
    def weighted_sum(self, weights: Any = None) -> Any:
        total = Windows.weighted_sum(self, weights)
        return total if weights is not None else jax.tree.map(lambda leaf: len(self.delta) * leaf, total)


class WrongPerExample(Windows):
    def per_example(self) -> Any:
        return jax.tree.map(lambda leaf: leaf[::-1], Windows.per_example(self))


for _factor in (WrongNorms, WrongMean, WrongPerExample):
    jax.tree_util.register_dataclass(_factor, ["windows", "delta"], [])


def reads(factor: Any) -> Any:
    class With(Convolution):
        def factor(self, saved: Any, delta: Any) -> Any:
            return factor(saved, delta)

    return With


@pytest.mark.parametrize(
    ("layer", "path", "cause"),
    [
        (ScaledKernelInForward, "net_input", "agree with each other"),
        (SavedReversed, "net_input", "z or saved"),
        (NotTransposed, "transport", "transport is not the transpose of pushforward"),
        (OneEntryOff, "transport", "not the transpose"),
        (NotLinear, "transport", "not the transpose"),
        (DeltaTwice, "factor.weighted_sum", "factor is not the transpose"),
        (NoBiasForward, "pushforward, dparams alone", "not the derivative of net_input in params"),
        (reads(WrongNorms), "factor.squared_norms", "not those of per_example"),
        (reads(WrongMean), "factor.weighted_sum(None)", "not the mean"),
        (reads(WrongPerExample), "factor.per_example", "each example"),
    ],
)
def test_the_first_row_that_fails_names_the_broken_method(layer: Any, path: str, cause: str) -> None:
    with by_operation():
        report = check_layer(layer(), PARAMS, X)
    first = report.failures[0]
    assert first.path.startswith(path), report
    assert cause in first.cause
    assert cause in report.summary()


def test_the_entry_at_fault_is_named() -> None:
    with by_operation():
        assert check_layer(OneEntryOff(), PARAMS, X).failures[0].where == (2, 3)


class OtherWhenTraced(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        right = Convolution.transport(self, params, saved, delta)
        return 2 * right if isinstance(saved, jax.core.Tracer) else right


def test_a_method_that_is_right_until_it_is_compiled_is_named() -> None:
    first = check_layer(OtherWhenTraced(), PARAMS, X).failures[0]
    assert (first.path, first.cause) == ("transport, jit", "transport differs under jit")


class ShiftedDense(mb.Dense):
    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = mb.Dense.net_input(self, params, a_in)
        return z + 1e-9, saved


def test_a_forward_that_no_derivative_sees_is_caught_by_the_reference() -> None:
    layer = ShiftedDense(6, 3)
    assert model.apply.dispatch(ShiftedDense) is model.apply.dispatch(mb.Dense)
    with by_operation():
        report = check_layer(layer, generic(layer), X)
    assert [row.path for row in report.failures] == ["net_input.z"]
    assert report.failures[0].witness == "reference.model"


def test_x64_off_and_promotion_off_give_the_same_verdict() -> None:
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        single = jax.tree.map(lambda leaf: np.asarray(leaf, "float32"), PARAMS)
        with by_method(Convolution, Windows):
            report = check_layer(Convolution(), single, np.asarray(X))
        assert report.passed, report
        assert report.dtype == "float64"
