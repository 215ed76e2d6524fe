"""The contract of a layer's methods: what they return, and the row that says what is wrong with it."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.layers import AffineLayer, Layer
from manual_backprop.tangent import Pair
from reference import model
from reference.checks.layer import check_layer
from tests.helpers import by_operation, generic
from tests.reference.test_layer_check import PARAMS, Convolution, Curved, Kernel, X
from tests.reference.test_layer_families import IDS, PAIR, Embedding, Gated


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
    with nullcontext() if layer is NotTraceable else by_operation():
        report = check_layer(layer(), PARAMS, X)
    assert report.failures[0].path == path, report
    assert cause in report.failures[0].cause
    assert "was not checked" in report.notes[-1]


def twice(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: 2 * leaf, tree)


def changed(change: Any) -> Any:
    """A method whose result is changed, as a factory of methods that override `method`."""

    def of(method: Any) -> Any:
        return lambda self, *args: change(method(self, *args))

    return of


def in_sweep(change: Any) -> Any:
    """A change of what a step returned, in the sweep of values alone."""
    return changed(lambda out: out if isinstance(jax.tree.leaves(out, is_leaf=is_pair)[0], Pair) else change(*out))


def in_tangent(change: Any) -> Any:
    """A change of what a step returned, in the sweep of tangents alone."""
    return changed(lambda out: change(*out) if isinstance(jax.tree.leaves(out, is_leaf=is_pair)[0], Pair) else out)


def is_pair(node: Any) -> bool:
    return isinstance(node, Pair)


def along_twice(pair: Pair) -> Pair:
    return replace(pair, change=2 * pair.change)


# Those of net_input, transport and factor are in test_layer_check.py, with their causes.
FAULTS = {
    "out_shape": ("out_shape", changed(lambda shape: (1, *shape)), "out_shape"),
    "init": ("init", changed(lambda params: replace(params, b=jnp.zeros((), params.b.dtype))), "init"),
    "pushforward": ("pushforward", changed(twice), "pushforward"),
    "pushforward_params": ("pushforward_params", changed(twice), "pushforward_params"),
    "change of transport": ("change", changed(lambda out: (2 * out[0], out[1])), "change[0]"),
    "change of gradient": ("change", changed(lambda out: (out[0], twice(out[1]))), "change[1].weighted_sum"),
    "no change of gradient": ("change", changed(lambda out: (out[0], None)), "change[1].weighted_sum"),
    "error_term": ("error_term", changed(twice), "error_term"),
    "forward, output": ("forward", in_sweep(lambda a, kept: (2 * a, kept)), "forward"),
    "forward, kept a": ("forward", in_sweep(lambda a, kept: (a, replace(kept, a=kept.z))), "forward.a"),
    "forward, kept z": ("forward", in_sweep(lambda a, kept: (a, replace(kept, z=kept.a))), "forward.z"),
    "forward, nothing kept": ("forward", in_sweep(lambda a, kept: a), "forward"),
    "forward, pairs": ("forward", changed(lambda out: (2 * out[0], out[1])), "forward"),
    "forward, tangent": ("forward", in_tangent(lambda a, kept: (along_twice(a), kept)), "forward, tangent"),
    "backward, down": ("backward", in_sweep(lambda d, found: (2 * d, found)), "backward.d_a_in"),
    "backward, delta": ("backward", in_sweep(lambda d, found: (d, twice(found))), "backward.delta"),
    "backward, tangent": ("backward", in_tangent(lambda d, found: (along_twice(d), found)), "backward, tangent"),
}


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_any_method_is_named_by_the_first_row_that_fails(fault: str) -> None:
    method, change, path = FAULTS[fault]
    broken = type("Broken", (Curved,), {method: change(getattr(Curved, method))})
    with by_operation():
        report = check_layer(broken(), PARAMS, X)
    assert report.failures[0].path.startswith(path), report
    assert path in report.summary()
    if fault == "forward, nothing kept":
        assert "it must return (a, LayerTrace)" in report.failures[0].cause


class SavesAProduct(Convolution):
    """What entered times a parameter, which the methods could not make of either alone."""

    def net_input(self, params: Any, a_in: Any) -> Any:
        z, saved = Convolution.net_input(self, params, a_in)
        return z, (saved, params.k[0] * a_in)

    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return Convolution.transport(self, params, saved[0], delta)

    def factor(self, saved: Any, delta: Any) -> Any:
        return Convolution.factor(self, saved[0], delta)

    def pushforward(self, params: Any, saved: Any, dparams: Any, da_in: Any) -> Any:
        return Convolution.pushforward(self, params, saved[0], dparams, da_in)


def test_what_is_made_of_parameters_and_input_may_be_saved() -> None:
    with by_operation():
        check_layer(SavesAProduct(), PARAMS, X).raise_if_failed()


@pytest.mark.parametrize(
    ("layer", "method", "change", "a_in", "path"),
    [
        (mb.layers.Product("tanh"), "transport", changed(lambda d: d[::-1]), PAIR, "transport[0]"),
        (mb.layers.Product("tanh"), "change", changed(lambda out: (twice(out[0]), None)), PAIR, "change[0][0]"),
        (Gated(), "transport", changed(lambda d: (jnp.zeros(4), d[1])), (IDS[:, 0], X[:, :3]), "transport"),
        (Gated(), "change", changed(lambda out: (out[0], None)), (IDS[:, 0], X[:, :3]), "change[1].weighted_sum.W"),
        (Embedding(), "transport", changed(lambda d: jnp.zeros(4)), IDS[:, 0], "transport"),
        (Embedding(), "factor", changed(lambda f: replace(f, ids=f.ids[::-1])), IDS[:, 0], "factor.weighted_sum.W"),
        (Embedding(), "forward", in_sweep(lambda a, kept: (2 * a, kept)), IDS[:, 0], "forward"),
        (mb.Dense(6, 3, "tanh"), "change", changed(lambda out: (2 * out[0], out[1])), X, "change[0]"),
    ],
)
def test_a_fault_is_named_whatever_enters(layer: Any, method: str, change: Any, a_in: Any, path: str) -> None:
    kind = type(layer)
    broken = type("Broken", (kind,), {method: change(getattr(kind, method))})
    with by_operation():
        report = check_layer(broken(**vars(layer)), generic(layer), a_in)
    assert report.failures[0].path == path, report


class SavesWindows(Curved, AffineLayer):
    """Affine, but what it saves is not what entered."""


class SavesNegative(mb.Dense):
    def net_input(self, params: Any, a_in: Any) -> Any:
        return mb.Dense.net_input(self, params, a_in)[0], -a_in


class Squares(mb.Dense):
    """Its z is not affine in what entered."""

    change = AffineLayer.change
    specimen = Layer.specimen  # it stays out of the catalogue

    def net_input(self, params: Any, a_in: Any) -> Any:
        return mb.Dense.net_input(self, params, a_in**2)[0], a_in

    def transport(self, params: Any, saved: Any, delta: Any) -> Any:
        return 2 * saved * mb.Dense.transport(self, params, saved, delta)

    def factor(self, saved: Any, delta: Any) -> Any:
        return mb.Dense.factor(self, saved**2, delta)

    def pushforward(self, params: Any, saved: Any, dparams: Any, da_in: Any) -> Any:
        return mb.Dense.pushforward(self, params, saved**2, dparams, 2 * saved * da_in)

    def pushforward_params(self, params: Any, a_in: Any, saved: Any, dparams: Any) -> Any:
        return mb.Dense.pushforward_params(self, params, a_in, saved**2, dparams)


@model.apply.register
def _(layer: Squares, params: Any, a_in: Any) -> Any:
    return jax.lax.square(a_in) @ params.W.T + jnp.broadcast_to(params.b, (len(a_in), layer.d_out))


def test_an_affine_layer_that_is_none_is_told() -> None:
    dense = generic(mb.Dense(6, 3))
    for layer, params, path, cause in (
        (SavesWindows(), PARAMS, "net_input.saved", "saves what entered, a_in; got float64[4, 3, 4]"),
        (SavesNegative(6, 3), dense, "net_input.saved", "saves what entered, a_in; got float64[4, 6]: other values"),
        (Squares(6, 3), dense, "transport, other parameters", "an AffineLayer's z is affine in params and in a_in"),
    ):
        with by_operation():
            report = check_layer(layer, params, X)
        assert report.failures[0].path == path, report
        assert cause in report.failures[0].cause


def test_parameters_of_zeros_are_noted_and_bad_input_is_refused() -> None:
    with by_operation():
        report = check_layer(Convolution(), replace(PARAMS, b=jnp.zeros(1)), X)
    assert any("params.b is zero throughout" in note for note in report.notes)
    for bad in (X[:1], np.ones((3, 6), int)):
        with pytest.raises(ValueError, match="two examples or more"):
            check_layer(Convolution(), PARAMS, bad)
    with pytest.raises(ValueError, match="floats, integers or booleans of two examples or more, as many in every part"):
        check_layer(Gated(), generic(Gated()), (IDS[:, 0], X[:3, :3]))


def test_what_is_no_layer_is_refused(without_hook: None) -> None:
    with pytest.raises(TypeError, match="check_layer checks one layer"):
        check_layer(mb.mlp((6, 3)), (), X)
