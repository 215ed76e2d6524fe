"""A family that the library never heard of goes through `reference.check` whole: its bounds are measured."""

from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, batch, generic

import manual_backprop as mb
import reference
from manual_backprop.layers import AffineLayer, Factor, Parameters
from reference import autodiff, model
from reference.checks.step import prepare
from reference.equations import bounds, measured
from reference.equations.bounds import Arithmetic, Known


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel(Parameters):
    k: Any
    b: Any

    weights = ("k",)


def shifted(rows: Any, width: int) -> Any:
    """a_(p + k), around the end: (N, width, positions)."""
    return jnp.stack([jnp.roll(rows, -k, axis=1) for k in range(width)], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows(Factor):
    a_in: Any
    delta: Any

    def weighted_sum(self, weights: Any = None) -> Kernel:
        n = self.delta.shape[0]
        w = jnp.full(n, 1 / n, self.delta.dtype) if weights is None else weights.astype(self.delta.dtype)
        k = jnp.einsum("n,nkp,np->k", w, shifted(self.a_in, 3), self.delta)
        return Kernel(k, jnp.einsum("n,np->", w, self.delta)[None])


@dataclass(frozen=True)
class Convolution(AffineLayer):
    """One channel around a ring: z_p = b + sum_k k_k a_(p+k). It keeps the shape, so that it may be repeated."""

    activation: str = "tanh"
    broken: str = ""

    def __str__(self) -> str:
        return "Convolution"

    def init(self, key: Any, dtype: Any = None) -> Kernel:
        return Kernel(jax.random.normal(key, (3,), dtype), jnp.zeros(1, dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def net_input(self, params: Kernel, a_in: Any) -> Any:
        z = jnp.einsum("k,nkp->np", params.k, shifted(a_in, 3)) + jnp.broadcast_to(params.b, a_in.shape)
        return (jnp.roll(z, 1, axis=1) if self.broken == "net_input" else z), a_in

    def transport(self, params: Kernel, saved: Any, delta: Any) -> Any:
        back = jnp.stack([jnp.roll(delta, k, axis=1) for k in range(3)], axis=1)
        k = params.k[::-1] if self.broken == "transport" else params.k
        return jnp.einsum("k,nkp->np", k, back)

    def factor(self, saved: Any, delta: Any) -> Factor:
        return Windows(jnp.roll(saved, 1, axis=1) if self.broken == "factor" else saved, delta)

    def pushforward(self, params: Kernel, saved: Any, dparams: Kernel, da_in: Any) -> Any:
        along, _ = Convolution().net_input(replace(params, b=dparams.b), da_in)
        return along + jnp.einsum("k,nkp->np", dparams.k, shifted(saved, 3))

    def error_term(self, trace: Any, d_a: Any) -> Any:
        return d_a if self.broken == "error_term" else super().error_term(trace, d_a)


@model.apply.register
def _(layer: Convolution, params: Kernel, a_in: Any) -> Any:
    """By jnp.convolve of what is wrapped around."""
    wrapped = jnp.concatenate([a_in, a_in[:, :2]], axis=1)
    return jax.vmap(lambda row: jnp.convolve(row, params.k[::-1], mode="valid"))(wrapped) + params.b.reshape(1, 1)


def networks(layer: Any) -> dict[str, mb.Serial]:
    last = mb.Dense(6, 2)
    return {
        "serial": mb.Serial((mb.Dense(6, 6, "gelu"), layer, last)),
        "residual": mb.Serial((mb.Residual(mb.Serial((layer, mb.Dense(6, 6, "tanh")))), last)),
        "repeat": mb.Serial((mb.Repeat(layer, 3), last)),
        "tied": mb.Serial((mb.Tied(layer, 2), last)),
        "gated": mb.Serial((mb.Residual(mb.Serial((mb.Parallel((layer, mb.Dense(6, 6))), mb.Product("silu")))), last)),
    }


def problem(name: str, broken: str = "", width: int = 6) -> tuple[mb.Objective, Any, Any, Any]:
    net = networks(Convolution(broken=broken))[name]
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    return objective, jax.tree.map(lambda leaf: 0.6 * leaf, generic(net)), batch(width), batch(2, seed=3)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("serial", "float32"),
        ("repeat", "float16"),
        ("tied", "bfloat16"),
    ],  # and each of the networks in float64 in the test that follows
)
def test_a_family_of_ones_own_is_proven_equation_by_equation(name, dtype):
    report = reference.check(*problem(name), dtype=dtype)
    assert not report.failures, report.summary()
    assert report.passed or dtype in ("bfloat16", "float16")  # in which rounding may leave a row undecided
    kinds = {row.equation for row in report.rows if row.kind == "equation"}
    assert {"(F1)", "(F2)", "(B1)", "(B2)", "(B3)", "(B4)", "(B5)"} <= kinds


NAMED = {
    "net_input": "(F1)",
    "error_term": "(B2)",
    "transport": ("(B2)", "(B5)"),
    "factor": "(B4)",
}


def by_operation(judge: Any, objective: mb.Objective) -> Any:
    """The report on a step that is not compiled as a whole; its operations are compiled once for all faults."""
    step = mb.backprop(objective, *jax.tree.map(jnp.asarray, judge.inputs))
    return judge.report(jax.device_get(step))


@cache
def right(name: str) -> Any:
    """The reference's side, which has no part in what is broken."""
    return prepare(*problem(name))


@pytest.mark.usefixtures("without_hook")  # which takes half of the time of a run operation by operation
@pytest.mark.parametrize("name", ["serial", "residual", "repeat", "tied", "gated"])
def test_each_network_passes_where_nothing_is_broken(name):
    assert by_operation(right(name), problem(name)[0]).passed


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("name", "broken"),
    [
        *(("serial", broken) for broken in NAMED),
        ("residual", "net_input"),
        ("repeat", "error_term"),
        ("tied", "factor"),
        ("gated", "factor"),
        *((name, "transport") for name in ("residual", "repeat", "tied", "gated")),  # seen in another place in each
    ],
)
def test_a_fault_in_each_method_is_named_by_equation_and_layer(name, broken):
    found = by_operation(right(name), problem(name, broken)[0]).failures[0]
    place = {"serial": {2}, "residual": {1}, "repeat": {1, 3}, "tied": {1, 2}, "gated": {1}}[name]
    if broken == "transport":  # what it sends down shows in the delta of the layer below, or in dL/dx
        place = {"serial": {1}, "residual": {0}, "repeat": {2}, "tied": {1}, "gated": {0}}[name]
    assert found.kind == "equation"
    assert found.equation in NAMED[broken]
    assert found.layer in place, found.explain()


def test_whose_transport_is_wrong_is_said():
    """The delta of layer 1 is what shows a wrong W^T of layer 2: the cause says whose W it is."""
    net = mb.mlp((4, 5, 5, 3))
    objective, params, x, y = mb.Objective(net, mb.squared_error), generic(net), batch(4), batch(3, seed=3)

    class Transposed(mb.Dense):
        def transport(self, params: Any, saved: Any, delta: Any) -> Any:
            return delta @ params.W.T

    layers = list(net.nodes)
    layers[1] = Transposed(5, 5, "tanh")
    wrong = replace(objective, net=mb.Serial(tuple(layers)))
    row = by_operation(prepare(objective, params, x, y), wrong).failures[0]
    assert (row.equation, row.layer) == ("(B2)", 1)
    assert row.by == "2"
    assert "(B2) of layer 1, sent by the transport of layer 2: deltas[0]" in row.explain()
    assert row.cause == "W is not transposed"


def test_measured_bounds_are_like_the_derived_ones():
    """Of a dense layer both are known: the measured bound is within a factor of eight of the derived one."""
    layer, params = mb.Dense(6, 4), generic(mb.Dense(6, 4))
    W, b = (np.asarray(leaf, np.float64) for leaf in (params.W, params.b))
    a_in = Known.exactly(np.asarray(batch(6)))
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        of = Arithmetic.of(dtype)
        derived = bounds.net_input(of, W, b, a_in)
        found = measured.measured(of, measured._net_input, layer, params, a_in)
        np.testing.assert_allclose(found.value, derived.value, rtol=1e-13)
        ratio = np.median(found.bound / derived.bound)
        assert 1 / 8 < ratio < 8, (dtype, ratio)


def test_every_reading_and_product_of_a_family_of_ones_own():
    """Norms, Gram matrix and Hessian-vector product by the general forms, against autodiff of the reference."""
    objective, params, x, y = problem("gated")
    v = jax.tree.map(jnp.cos, params)

    @jax.jit
    def both(params: Any, x: Any, y: Any, v: Any) -> Any:
        step = mb.backprop(objective, params, x, y)
        each = autodiff.per_example_gradients(replace(objective, regularizer=None), params, x, y)
        rows = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(each)], axis=1)
        at = (objective.net, step.trace, step.deltas)
        return {
            "norms": (mb.squared_norms(*at), jnp.sum(rows**2, axis=1)),
            "gram": (mb.gram(*at), rows @ rows.T),
            "product": (
                mb.hessian_vector_product(objective, params, x, y, v),
                autodiff.hessian_vector_product(objective, params, x, y, v),
            ),
        }

    found = both(params, x, y, v)
    for name, tolerance in (("norms", 1e-12), ("gram", 1e-12), ("product", 1e-11)):
        assert_close(*found[name], tolerance)


@dataclass(frozen=True)
class Mean(mb.node.Branches):
    """The mean of what several nodes make of one input."""

    nodes: Any
    broken: str = ""

    def __str__(self) -> str:
        return "Mean"

    def forward(self, step: Any, x: Any, owned: Any) -> Any:
        each = zip(self.nodes, owned, strict=True)
        outputs, kept = zip(*(node.forward(step, x, own) for node, own in each), strict=True)
        return jax.tree.map(lambda a: a / len(self.nodes), reduce(mb.node.add, outputs)), kept

    def backward(self, step: Any, d: Any, owned: Any, kept: Any) -> Any:
        share = jax.tree.map(lambda leaf: leaf / (1 if self.broken else len(self.nodes)), d)
        each = zip(self.nodes, owned, kept, strict=True)
        d_x, found = zip(*(node.backward(step, share, own, of_node) for node, own, of_node in each), strict=True)
        return reduce(mb.node.add, d_x), found


@model.through.register
def _(node: Mean, at: Any, x: Any, params: Any, *uses: Any) -> Any:
    branches = zip(node.nodes, params, *uses, strict=True)
    outputs, found = zip(*(model.through(child, at, x, *each) for child, *each in branches), strict=True)
    return jnp.mean(jnp.stack(outputs), axis=0), found


def averaged(broken: str = "") -> tuple[mb.Objective, Any, Any, Any]:
    """A composite that the equation check never heard of, around layers that it knows and one that it does not."""
    inner = mb.Repeat(mb.Residual(mb.Dense(6, 6, "tanh")), 2)
    branches = (mb.Serial((mb.Dense(6, 6, "gelu"), inner)), Convolution(), mb.Tied(mb.Dense(6, 6, "silu"), 2))
    net = mb.Serial((mb.Dense(6, 6, "tanh"), mb.Residual(Mean(branches, broken)), mb.Dense(6, 2)))
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    return objective, jax.tree.map(lambda leaf: 0.6 * leaf, generic(net)), batch(6), batch(2, seed=3)


EVERY_LAYER = set(range(9))


def layers_of(report: reference.Report) -> set[Any]:
    return {row.layer for row in report.rows if row.kind == "equation"}


@pytest.mark.usefixtures("without_hook")
def test_a_composite_of_ones_own_is_proven_and_a_fault_in_its_joins_is_seen_where_it_first_shows():
    """Equation by equation; `test_catalogue` has another one compiled."""
    judge = prepare(*averaged())
    right = by_operation(judge, averaged()[0])
    assert right.passed and layers_of(right) == EVERY_LAYER
    found = by_operation(judge, averaged("backward")[0]).failures[0]
    assert (found.kind, found.equation) == ("equation", "(B2)")
    assert found.layer == 7  # the last use within the composite
