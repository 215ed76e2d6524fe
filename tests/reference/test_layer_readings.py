"""check_layer holds a family's own fast forms to their definitions: a wrong one is named, whatever else is right."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_operation, generic

import manual_backprop as mb
from manual_backprop.layers import Affine, AffineLayer, Factor, Layer, OuterProduct
from reference import check_layer
from tests.manual_backprop.test_readings import PlainDense
from tests.reference.test_layer_check import READINGS

X = array(np.sin(np.arange(48.0)).reshape(4, 2, 6))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Broken(OuterProduct):
    """One reading wrong, by the name of its mistake."""

    a_in: Any
    delta: Any
    mistake = ""

    def squared_sum(self, weights: Any = None) -> Affine:
        right = super().squared_sum(weights)
        return Affine(right.W, 1.001 * right.b) if self.mistake == "squared_sum" else right

    def gram(self, other: Any) -> Any:
        right = super().gram(other)
        return right.T if self.mistake == "gram" else right

    def tied(self) -> OuterProduct:
        right = super().tied()
        return OuterProduct(right.a_in[:, :1], right.delta[:, :1]) if self.mistake == "tied" else right


MISTAKES = {
    "squared_sum": {"factor.squared_sum"},
    "gram": {"factor.gram"},
    "tied": {"factor.tied"},
    "change": {
        "change[1].weighted_sum", "change[1].weighted_sum(None)", "change[1].tied", "backward, tangent of gradient",
    },
    "pushforward_params": {"pushforward_params", "forward, tangent of params"},
}  # fmt: skip
"""Which rows fail for each."""
BROKEN = {
    mistake: jax.tree_util.register_dataclass(
        type(f"Broken_{mistake}", (Broken,), {"mistake": mistake}), data_fields=["a_in", "delta"], meta_fields=["one"]
    )
    for mistake in MISTAKES
}


class BrokenDense(mb.Dense):
    mistake = ""

    def factor(self, saved: Any, delta: Any) -> OuterProduct:
        return BROKEN[self.mistake](saved, delta)

    def change(self, params: Any, saved: Any, dparams: Any, da_in: Any, delta: Any) -> tuple[Any, Factor | None]:
        bent, moved = super().change(params, saved, dparams, da_in, delta)
        with_bias = da_in is not None and self.mistake == "change"
        return bent, OuterProduct(da_in, delta) if with_bias else moved

    def pushforward_params(self, params: Any, a_in: Any, saved: Any, dparams: Any) -> Any:
        right = super().pushforward_params(params, a_in, saved, dparams)
        return right + 0.001 if self.mistake == "pushforward_params" else right


def test_dense_passes_on_sequences_too():
    layer = mb.Dense(6, 3, "tanh")
    with by_operation():
        report = check_layer(layer, generic(layer), X)
    report.raise_if_failed()
    assert {row.path for row in report.rows} >= set(READINGS)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_fast_form_is_named(mistake):
    layer = type("Mistaken", (BrokenDense,), {"mistake": mistake})(6, 3, "tanh")
    with by_operation():
        report = check_layer(layer, generic(layer), X)
    failed = {row.path.split(".W")[0].split(".b")[0] for row in report.rows if row.verdict == "fail"}
    assert failed == MISTAKES[mistake]


class Tangentless(PlainDense):
    """Dense's maps, and a factor that knows its gradient alone: tangents by the general forms."""

    pushforward_params = Layer.pushforward_params
    change = AffineLayer.change


def around(dense: Any) -> mb.Serial:
    """One family as first layer, within every composite, and last."""
    inner = (mb.Repeat(mb.Residual(dense(4, 4, "softplus")), 2), mb.Tied(dense(4, 4, "sigmoid"), 2))
    return mb.Serial((dense(6, 4, "tanh"), *inner, dense(4, 3)))


def test_tangents_have_general_forms():
    layer = Tangentless(6, 3, "tanh")
    with by_operation():
        check_layer(layer, generic(layer), X).raise_if_failed()
    data = X[:, 0], jnp.cos(X[:, 1, :3]), generic(layer, 1)
    assert_close(*(jax.jit(partial(tangents, family(6, 3)))(*data) for family in (Tangentless, mb.Dense)))


def tangents(layer: Layer, saved: Any, delta: Any, dparams: Any) -> tuple[Any, ...]:
    """Along a change of what entered, and along none; with weights and without."""
    params, da, weights = generic(layer), jnp.sin(3 * saved), jnp.linspace(0.1, 0.5, len(saved))
    bent, moved = layer.change(params, saved, dparams, da, delta)
    along_params, still = layer.change(params, saved, dparams, None, delta)
    assert still is None
    return (
        layer.pushforward_params(params, saved, saved, dparams),
        *(bent, along_params),
        *(moved.weighted_sum(w) for w in (None, weights)),
    )


def test_a_family_without_tangents_has_the_hessian_products_of_dense():
    y, weights = jnp.cos(X[..., :3]), jnp.linspace(0.1, 0.5, len(X))
    objectives = [mb.Objective(around(dense), mb.squared_error, mb.Frobenius(0.1)) for dense in (mb.Dense, Tangentless)]
    params, v = generic(around(mb.Dense), 1), generic(around(mb.Dense), 2)

    def products(params: Any, v: Any) -> Any:
        return [mb.hessian_vector_product(J, params, X, y, v, weights=weights) for J in objectives]

    dense, general = jax.jit(products)(params, v)
    assert_close(general, dense)
