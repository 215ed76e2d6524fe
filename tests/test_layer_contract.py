"""The contract of a layer's methods: what they return, and the row that says what is wrong with it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.checks.layer import check_layer
from tests.test_layer_check import PARAMS, Convolution, Kernel, X


class Raises(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        raise NotImplementedError("no transpose yet")


class WrongShape(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, params, saved, delta)[:, 1:]


class WrongDtype(Convolution):
    def pushforward(self, params: Any, saved: Any, dparams: Any, da_in: Any) -> Any:
        return Convolution.pushforward(self, params, saved, dparams, da_in).astype("float32")


class WrongOutShape(Convolution):
    def out_shape(self, in_shape: Any) -> Any:
        return in_shape


class SavesParameters(Convolution):
    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = Convolution.net_input(self, params, a_in)
        return z, (saved, 2 * params.k)


class InitWithoutBias(Convolution):
    def init(self, key: Any, dtype: Any = None) -> Any:
        return Kernel(jax.random.normal(key, (self.width,), dtype), jnp.zeros(0, dtype))


class InitIgnoresDtype(Convolution):
    def init(self, key: Any, dtype: Any = None) -> Any:
        return Convolution.init(self, key, "float64")


class FactorIsTuple(Convolution):
    def factor(self, saved: Any, delta: Any) -> Any:
        return saved, delta


class ForwardOnly(Convolution):
    def net_input(self, params: Any, a_in: Any) -> Any:
        return Convolution.net_input(self, params, a_in)[0]


class NotTraceable(Convolution):
    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, params, saved, jnp.asarray(np.asarray(delta)))


@pytest.mark.parametrize(
    ("layer", "path", "cause"),
    [
        (Raises, "transport", "transport raised NotImplementedError: no transpose yet"),
        (WrongShape, "transport", "expected float64[4, 6] as a_in has, got float64[4, 5]"),
        (WrongDtype, "pushforward", "got float32[4, 4]"),
        (WrongOutShape, "out_shape", "one example of z is (4,)"),
        (SavesParameters, "net_input.saved", "saved[1] is made of parameters alone"),
        (InitWithoutBias, "init", "got float64[0]"),
        (InitIgnoresDtype, "init", "expected float32"),
        (FactorIsTuple, "factor", "a Factor expected, got tuple"),
        (ForwardOnly, "net_input", "must return (z, saved)"),
        (NotTraceable, "jit", "TracerArrayConversionError"),
    ],
)
def test_a_broken_contract_is_a_row_with_its_reason(layer: Any, path: str, cause: str) -> None:
    report = check_layer(layer(), PARAMS, X)
    assert report.failures[0].path == path, report
    assert cause in report.failures[0].cause
    assert "was not checked" in report.notes[-1]


def test_parameters_of_zeros_are_noted_and_bad_input_is_refused() -> None:
    report = check_layer(Convolution(), replace(PARAMS, b=jnp.zeros(1)), X)
    assert any("params.b is zero throughout" in note for note in report.notes)
    for bad in (X[:1], np.ones((3, 6), int)):
        with pytest.raises(ValueError, match="two examples or more"):
            check_layer(Convolution(), PARAMS, bad)
