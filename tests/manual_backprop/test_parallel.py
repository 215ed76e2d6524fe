"""Several branches, several inputs, no parameters, integers: all that a sweep carries besides one array."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, batch, generic

import manual_backprop as mb
import reference
from manual_backprop import rules
from manual_backprop.layers import Factor, Layer, Parameters
from reference import autodiff, model
from reference.equations.chain import layer_values

N = 6


def gate(width: int, activation: str = "silu") -> mb.Serial:
    """SwiGLU's gate between two dense layers."""
    branches = (mb.Dense(width, width + 1, activation), mb.Dense(width, width + 1))
    return mb.Serial((mb.Parallel(branches), mb.Product(), mb.Dense(width + 1, width)))


NETS = {
    "gate": mb.Serial((gate(4), mb.Dense(4, 3))),
    "in everything": mb.Serial(
        (
            mb.Tied(mb.Repeat(mb.Residual(gate(4, "gelu")), 2), 2),
            mb.Parallel((mb.Dense(4, 3, "tanh"), mb.Serial((mb.Dense(4, 4, "softplus"), mb.Dense(4, 3))))),
            mb.Product("tanh"),
        )
    ),
}


def problem(name: str, lam: float | None = 0.1) -> tuple[mb.Objective, Any, Any, Any]:
    net = NETS[name]
    objective = mb.Objective(net, mb.squared_error, None if lam is None else mb.Frobenius(lam))
    return objective, generic(net, scale=0.8), batch(4, N), batch(3, N, seed=5)


@cache
def found() -> dict[str, Any]:
    """All that the tests below read of gates in everything, and the same by the reference, from one program."""
    objective, params, x, y = problem("in everything")
    net, plain = objective.net, mb.Objective(objective.net, objective.loss)
    v = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    weights = np.linspace(0.1, 1, N)

    @jax.jit
    def everything(v: Any, weights: Any, *data: Any) -> dict[str, Any]:
        step = mb.backprop(plain, *data)
        at = net, step.trace, step.deltas
        return {
            "step": mb.backprop(objective, *data),
            "step by jax": reference.backprop(objective, *data),
            "each": autodiff.per_example_gradients(plain, *data),
            "per example": mb.per_example_gradients(*at),
            "norms": mb.squared_norms(*at),
            "by layer": mb.squared_norms(*at, by_layer=True),
            "gram": mb.gram(*at),
            "second moment": mb.second_moment(*at),
            "clipped": mb.clipped_gradients(*at, 0.5),
            "noise": mb.noise_scale(*at).covariance_trace,
            "second order": [
                [f(objective, *data, v, weights=weights) for f in (getattr(mb, way), getattr(autodiff, way))]
                for way in ("hessian_vector_product", "gauss_newton_vector_product")
            ],
            "exported": jax.grad(mb.as_custom_vjp(objective), argnums=(0, 1))(*data),
        }

    return everything(v, weights, params, x, y)


def test_every_equation_and_number_is_proven():
    reference.check(*problem("in everything")).raise_if_failed()


def test_every_number_is_that_of_the_reference():
    ours, theirs = found()["step"], found()["step by jax"]
    assert_close(layer_values(ours.trace), theirs.trace)
    assert_close(replace(ours, trace=None), replace(theirs, trace=None))


def test_readings():
    """One sweep's readings against every example's gradient by jax.grad, cross terms of shared uses included."""
    ours, each = found(), jax.tree.map(np.asarray, found()["each"])
    rows = np.concatenate([leaf.reshape(N, -1) for leaf in jax.tree.leaves(each)], axis=1)
    norms = (rows**2).sum(1)
    assert_close(ours["per example"], each)
    assert_close(ours["norms"], norms)
    assert_close(ours["gram"], rows @ rows.T)
    assert_close(ours["second moment"], jax.tree.map(lambda g: (g**2).mean(0), each))
    clip = np.minimum(1, 0.5 / np.sqrt(norms))
    assert_close(ours["clipped"], jax.tree.map(lambda g: np.tensordot(clip, g, 1), each))
    spread = (rows**2).sum(1).mean() - (rows.mean(0) ** 2).sum()
    assert_close(ours["noise"], np.asarray(N / (N - 1) * spread), 1e-11)
    by_layer = map(np.asarray, jax.tree.leaves(ours["by layer"]))
    assert_close(sum(leaf.reshape(-1, N).sum(0) for leaf in by_layer), norms)


def test_a_gate_is_diagnosed_in_numbers():
    objective, *data = problem("gate", lam=None)

    @jax.jit
    def diagnosis(*data):
        step = mb.backprop(objective, *data)
        return mb.diagnose(objective.net, step.trace, step.deltas)

    assert "nan" not in mb.diagnosis.table(diagnosis(*data))


def test_a_layer_without_parameters_has_nothing_to_read():
    net = mb.Product()
    u, v = batch(3, N), batch(3, N, seed=9)

    @jax.jit
    def everything(*x):
        output, trace = mb.forward(net, (), x)
        d_x, delta = mb.backward(net, (), trace, jnp.ones_like(output))
        at = net, trace, delta
        gradients = mb.gradients(*at), mb.per_example_gradients(*at), mb.kronecker_factors(*at)
        return (output, *d_x, delta), gradients, (mb.squared_norms(*at), mb.gram(*at))

    values, gradients, (norms, gram) = everything(u, v)
    assert_close(values, (u * v, v, u, np.ones((N, 3))))
    assert gradients == ((), (), ())
    assert_close((norms, gram), (np.zeros(N), np.zeros((N, N))))
    assert net.init(jax.random.key(0)) == () and list(net.layers()) == [net]


def test_second_order():
    """Products with the Hessian and the Gauss-Newton matrix through gates."""
    for by_hand, by_jax in found()["second order"]:
        assert_close(by_hand, by_jax, 1e-11)


def test_jax_grad_of_the_exported_objective_is_our_sweep():
    gradient, d_x = found()["exported"]
    assert_close(gradient, found()["step by jax"].gradients)
    assert_close(d_x, np.asarray(found()["step by jax"].d_x) / N)


def test_a_gate_is_passed_by_its_true_transpose_under_any_rule():
    objective, params, x, y = problem("gate", lam=None)
    net, feedback = objective.net, generic(objective.net, seed=7)
    z, up, down = params[0], feedback[0], feedback[1]

    @jax.jit
    def everything(key):
        step = mb.backprop(objective, params, x, y, rule=rules.FeedbackAlignment(feedback))
        slope = jax.vmap(jax.vmap(jax.grad(jax.nn.silu)))(step.trace[0][0][0].z)
        B = rules.direct_feedback(net, key)
        return step, slope, B, mb.backprop(objective, params, x, y, rule=rules.DirectFeedbackAlignment(B))

    step, slope, B, direct = jax.tree.map(np.asarray, everything(jax.random.key(1)))
    gated, valued = step.trace[0][0]
    d_gate = (step.output - y) @ down.W @ up[2].W
    assert_close(step.deltas[0][1], d_gate)
    assert_close(step.deltas[0][0], (slope * valued.a * d_gate, gated.a * d_gate))
    through = [delta @ B.W for delta, B in zip(step.deltas[0][0], up[0], strict=True)]
    assert_close(step.d_x, through[0] + through[1])
    assert B[0][1] is None and B[1] is None and B[0][0][0].shape == (3, 5)
    assert_close(direct.deltas[0][0][0], slope * ((step.output - y) @ B[0][0][0]))
    assert_close(direct.deltas[0][1], direct.deltas[0][2] @ z[2].W)  # what the layer above sends


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gain(Parameters):
    """Parameters of which none is a weight."""

    g: Any


@dataclass(frozen=True)
class Scale(Layer):
    """z = g a: it has parameters, and no weights."""

    activation: str = "identity"

    def init(self, key: Any, dtype: Any = None) -> Gain:
        return Gain(jnp.ones(4, dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def net_input(self, params: Gain, a_in: Any) -> Any:
        return a_in * params.g[None], a_in

    def transport(self, params: Gain, saved: Any, delta: Any) -> Any:
        return delta * params.g[None]

    def factor(self, saved: Any, delta: Any) -> Factor:
        raise NotImplementedError

    def pushforward(self, params: Gain, saved: Any, dparams: Gain, da_in: Any) -> Any:
        raise NotImplementedError


def test_parameters_that_are_no_weights_are_not_replaced():
    """Feedback puts random numbers in the place of weights alone: a gain passes error terms as it is."""
    net = mb.Serial((mb.Dense(4, 4, "tanh"), Scale(), mb.Dense(4, 2)))
    params, feedback = generic(net), generic(net, seed=7)
    x = batch(4, N)
    by_rule = [rules.FeedbackAlignment(feedback), rules.SignSymmetry()]

    @jax.jit
    def everything(params, x):
        output, trace = mb.forward(net, params, x)
        return output, trace, [mb.backward(net, params, trace, output, rule=rule)[1] for rule in by_rule]

    output, trace, (deltas, signed) = jax.tree.map(np.asarray, everything(params, x))
    g = np.asarray(params[1].g)
    assert_close(deltas[1], output @ feedback[2].W)
    assert_close(deltas[0], (1 - trace[0].a ** 2) * (deltas[1] * g))
    assert_close(signed[0], (1 - trace[0].a ** 2) * (signed[1] * g))


def test_edits_mirror_branches():
    objective, params, x, y = problem("gate", lam=None)
    frozen = rules.on_delta((((mb.edits.freeze, None), None, None), None))
    given = [{"rule": frozen}, {}]
    step, plain = jax.jit(lambda *args: [mb.backprop(objective, *args, **rule) for rule in given])(params, x, y)
    assert not np.any(step.deltas[0][0][0]) and np.any(plain.deltas[0][0][0])
    assert_close(step.deltas[0][0][1], plain.deltas[0][0][1])
    with pytest.raises(ValueError, match="3 edits in a tuple do not mirror"):
        uneven = rules.on_delta((((None,) * 3, None, None), None))
        jax.eval_shape(partial(mb.backprop, objective, rule=uneven), params, x, y)


def test_bad_input_says_what_is_wrong():
    u, v = batch(3, N), batch(3, N, seed=9)
    with pytest.raises(ValueError, match="Product\\(identity\\) takes two inputs of one shape"):
        mb.forward(mb.Product(), (), u)
    with pytest.raises(ValueError, match="takes two inputs of one shape.*got \\(\\(3,\\), \\(2,\\)\\)"):
        mb.forward(mb.Product(), (), (u, batch(2, N)))
    with pytest.raises(ValueError, match="the parts of x have \\[6, 5\\] examples; they must agree in number"):
        mb.forward(mb.Product(), (), (u, v[:5]))
    with pytest.raises(TypeError, match="x must hold floats where the network has no parameters"):
        mb.forward(mb.Product(), (), (jnp.arange(6).reshape(6, 1),) * 2)
    with pytest.raises(TypeError, match="x must hold floats, got int64; convert it with .astype"):
        net = mb.Dense(3, 2)
        mb.forward(net, generic(net), jnp.ones((N, 3), int))
    with pytest.raises(ValueError, match="Parallel needs at least one node, got none"):
        mb.Parallel(())
    with pytest.raises(TypeError, match="Parallel is made of layers and composites, got str"):
        mb.node.require_node("Parallel", "tanh")
    two = mb.Parallel((mb.Dense(3, 2), mb.Dense(3, 2)))
    with pytest.raises(TypeError, match="a loss takes one output, but .* has 2; join them"):
        mb.Objective(two, mb.squared_error)(generic(two), u, v)
    uneven = mb.Residual(mb.Serial((two, mb.Product())))
    with pytest.raises(
        ValueError, match="Residual needs a block that keeps the shape, but .* maps \\(3,\\) to \\(2,\\)"
    ):
        uneven.out_shape((3,))
    with pytest.raises(ValueError, match="net must be a Serial of Dense alone, got Parallel as node 0"):
        mb.adapters.from_torch_state_dict({}, mb.Serial((two, mb.Product())))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table(Parameters):
    rows: Any

    weights = ("rows",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn(Factor):
    """Which rows were drawn, (N, positions), and delta; the number of rows is no array."""

    ids: Any
    delta: Any

    def weighted_sum(self, weights: Any = None) -> Table:
        n = self.delta.shape[0]
        w = jnp.full(n, 1 / n, self.delta.dtype) if weights is None else weights
        weighted = w.reshape(-1, 1, 1) * self.delta
        return Table(jnp.zeros((8, 4), self.delta.dtype).at[self.ids].add(weighted))


class Embedding(Layer):
    """Eight rows of four numbers, drawn by index: (N, positions) -> (N, positions, 4)."""

    takes_integers = True

    def __str__(self) -> str:
        return "Embedding"

    def init(self, key: Any, dtype: Any = None) -> Table:
        return Table(jax.random.normal(key, (8, 4), dtype))

    def out_shape(self, in_shape: Any) -> Any:
        return (*in_shape, 4)

    def net_input(self, params: Table, a_in: Any) -> Any:
        return params.rows[a_in], a_in

    def transport(self, params: Table, saved: Any, delta: Any) -> None:
        return None

    def factor(self, saved: Any, delta: Any) -> Factor:
        return Drawn(saved, delta)

    def pushforward(self, params: Table, saved: Any, dparams: Table, da_in: None) -> Any:
        return dparams.rows[saved]

    def change(self, params: Table, saved: Any, dparams: Table, da_in: None, delta: Any) -> Any:
        return None, None


@model.apply.register
def _(layer: Embedding, params: Table, a_in: Any) -> Any:
    return jax.nn.one_hot(a_in, 8, dtype=params.rows.dtype) @ params.rows


def test_integers_have_no_error_term():
    """Ids in, and no derivative by them: the sweep, the check, norms and second order go on."""
    net = mb.Serial((Embedding(), mb.Residual(mb.Dense(4, 4, "silu")), mb.Dense(4, 2)))
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params = generic(net)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 8, (N, 3)))
    y = jnp.asarray(np.random.default_rng(1).normal(size=(N, 3, 2)))
    report = reference.check(objective, params, ids, y)
    report.raise_if_failed()
    assert any(row.equation == "(B4)" and row.layer == 1 for row in report.rows)
    v = jax.tree.map(np.cos, params)

    @jax.jit
    def everything(v, *data):
        step = mb.backprop(objective, *data)
        assert step.d_x is None
        each = autodiff.per_example_gradients(mb.Objective(net, mb.squared_error), *data)
        second = [way.hessian_vector_product(objective, *data, v) for way in (mb, autodiff)]
        exported = jax.grad(mb.as_custom_vjp(objective))(*data)
        return (exported, step.gradients), second, each, mb.squared_norms(net, step.trace, step.deltas)

    first, second, each, norms = everything(v, params, ids, y)
    assert_close(norms, sum(np.square(leaf).reshape(N, -1).sum(1) for leaf in jax.tree.leaves(each)))
    assert_close(*second)
    assert_close(*first)


def test_a_family_without_change_is_refused_by_name():
    class Stubborn(mb.Dense):
        change = Layer.change

    net = mb.Serial((mb.Dense(4, 3, "tanh"), Stubborn(3, 2)))
    objective = mb.Objective(net, mb.squared_error)
    params = generic(net)
    with pytest.raises(
        ValueError, match="Dense\\(3 -> 2, identity\\): no Hessian-vector .* Stubborn has no method `change`"
    ):
        jax.eval_shape(partial(mb.hessian_vector_product, objective), params, batch(4, N), batch(2, N), params)
