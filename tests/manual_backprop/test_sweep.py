"""Every number of one step against the independent reference, and what the sweep promises of its values."""

from dataclasses import replace
from functools import cache, partial
from itertools import starmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FUSED, NETWORKS, N, assert_close, batch, generic, problem, targets

import manual_backprop as mb
import reference
from manual_backprop.losses import TABLE as LOSSES
from manual_backprop.sweep import read
from reference import autodiff, model
from reference.equations.chain import layer_values

WEIGHTS = np.random.default_rng(3).uniform(size=N)
WEIGHTS[2] = 0.0


@cache
def program(name):
    """One compiled function (x, weights) -> all that the tests below compare in one network."""
    objective, params, _, y = problem(name)
    plain = mb.Objective(objective.net, objective.loss)
    net = objective.net

    @jax.jit
    def everything(x, weights):
        output, trace = mb.forward(net, params, x)
        d_x, deltas = mb.backward(net, params, trace, plain.loss.derivative(output, y))
        is_factor = lambda node: isinstance(node, mb.layers.Factor)  # noqa: E731
        return {
            "by name": (d_x, deltas, mb.gradients(net, trace, deltas)),
            "contracted": jax.tree.map(lambda f: f.weighted_sum(), mb.factors(net, trace, deltas), is_leaf=is_factor),
            "doubled": mb.gradients(net, trace, jax.tree.map(lambda d: 2 * d, deltas)),
            "per example": read(net, lambda factor: factor.per_example(), (trace, deltas)),
            "norms": read(net, lambda factor: factor.squared_norms(), (trace, deltas)),
            "step": mb.backprop(plain, params, x, y),
            "losses by jax": model.example_losses(plain, params, x, y, model.zero_probes(net, params, x))[0],
            "each by jax": autodiff.per_example_gradients(plain, params, x, y),
            "mean": mb.value_and_grad(objective, (0, 1))(params, x, y),
            "weighted": mb.value_and_grad(objective, (0, 1))(params, x, y, weights=weights),
            "weighted step": mb.backprop(objective, params, x, y, weights=weights),
            "weighted by jax": reference.backprop(objective, params, x, y, weights=weights),
        }

    return everything


def assert_same_step(ours, theirs):
    """All of a step; the reference's trace has z and a alone."""
    assert_close(layer_values(ours.trace), theirs.trace)
    assert_close(replace(ours, trace=None), replace(theirs, trace=None))


@cache
def found(name):
    return program(name)(problem(name)[2], WEIGHTS)


@pytest.fixture(scope="module", params=["mlp", "width 1", "nested", "leaf", "kept"])
def network(request):
    """The name of each kind, with all tests of one network in a row, since they share what is found."""
    return request.param


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in NETWORKS),
        *(("mlp", dtype) for dtype in ("float32", "bfloat16")),
        ("kept", "float16"),
    ],
)
def test_every_quantity_equals_the_reference(name, dtype):
    """(F1) (F2) (J3) (B1) (B2) (B3) (B4) (B5) (B6): z, a, L, s, J, delta, dW, db, dL/dx, ds/dlam, in its precision."""
    objective, params, x, y = problem(name)
    if dtype != "float64":
        params, x, y = jax.tree.map(lambda leaf: np.asarray(0.5 * leaf, jnp.dtype(dtype)), (params, x, y))
    reference.check(objective, params, x, y, dtype=dtype).raise_if_failed()


def test_without_a_regulariser_and_without_weights(network):
    """The gradient is the mean of the examples' own; an example's deltas are of no weight and no lambda."""
    step, witness = found(network)["step"], found(network)["weighted by jax"]
    assert_close(step.gradients, jax.tree.map(lambda leaf: leaf.mean(axis=0), found(network)["each by jax"]))
    assert_close(
        (layer_values(step.trace), step.deltas, step.d_x, step.loss),
        (witness.trace, witness.deltas, witness.d_x, np.asarray(found(network)["losses by jax"]).mean()),
    )
    assert_close((step.value, step.penalty, step.d_lam), (step.loss, np.zeros(()), np.zeros(())), 0)


@pytest.mark.parametrize(("loss", "turn"), [(loss, i) for i, loss in enumerate(LOSSES.values())], ids=LOSSES)
def test_every_loss_and_every_activation(loss, turn):
    """Each activation once, in the chain of one loss; each leaf is held to its own largest entry, however small."""
    last = "sigmoid" if loss is mb.binary_cross_entropy else "identity"
    activations = tuple(mb.activations.TABLE)[turn :: len(LOSSES)]
    net = mb.mlp((5, *(4,) * len(activations), 3), activations, last)
    objective = mb.Objective(net, loss, mb.Frobenius(0.1))
    both = jax.jit(lambda *args: [f(objective, *args) for f in (mb.backprop, reference.backprop)])
    ours, theirs = both(generic(net), batch(5), targets(loss, 3))
    assert all(np.any(delta) for delta in ours.deltas)
    assert_close(ours.gradients, theirs.gradients)
    assert_close(ours.deltas, theirs.deltas)
    assert_close((ours.value, ours.d_x, ours.d_lam), (theirs.value, theirs.d_x, theirs.d_lam))


@pytest.mark.parametrize(("name", "every"), [("mlp", (0, 1, (0,), (0, 1))), ("kept", ((1, 0),))])
def test_value_and_grad_has_jax_value_and_grads_convention(name, every):
    objective, *args = problem(name)
    ways = mb.value_and_grad, reference.value_and_grad, jax.value_and_grad
    for ours, theirs, jaxs in jax.jit(lambda *args: [[f(objective, n)(*args) for f in ways] for n in every])(*args):
        assert_close(ours, theirs)
        assert_close(ours, jaxs)


def test_the_three_steps_by_their_public_names(network):
    """forward, backward, gradients make up the unregularised gradient of `backprop`."""
    step = found(network)["step"]
    assert_close(found(network)["by name"], (step.d_x, step.deltas, step.gradients), 0)
    if "Repeat" not in repr(NETWORKS[network]):  # stacked factors are contracted inside the network
        assert_close(found(network)["contracted"], step.gradients, 0)


@pytest.mark.parametrize("name", ["mlp", "width 1", "kept", "leaf"])
def test_an_example_alone_has_the_deltas_it_has_in_a_batch(name):
    """Unscaled (C5); N = 1, where 1/N cannot show but shapes can go wrong, is right by the reference."""
    objective, params, x, y = problem(name)
    alone = jax.jit(lambda *args: [f(objective, *args) for f in (mb.backprop, reference.backprop)])
    for n in (0, N - 1):
        ours, theirs = alone(params, x[n : n + 1], y[n : n + 1])
        assert_same_step(ours, theirs)
        together = found(name)["step"]
        assert_close(ours.d_x, together.d_x[n : n + 1], 1e-13)
        assert_close(ours.deltas, jax.tree.map(lambda delta, n=n: delta[..., n : n + 1, :], together.deltas), 1e-13)


def test_one_example_equation_by_equation():
    reference.check(*problem("one layer", n=1)).raise_if_failed()


def test_weights_take_the_place_of_the_mean(network):
    x = problem(network)[2]
    ours, step, witness = (found(network)[key] for key in ("weighted", "weighted step", "weighted by jax"))
    assert_same_step(step, witness)
    J, (gradient, d_x) = ours
    assert_close((J, gradient), (step.value, step.gradients))
    assert_close(d_x, WEIGHTS.reshape(N, *(1,) * (x.ndim - 1)) * step.d_x)
    mean = program(network)(x, np.full(N, 1 / N))
    assert_close(mean["weighted"], mean["mean"], 1e-13)
    J_masked, (gradient_masked, d_x_masked) = program(network)(x.at[2].set(99.0), WEIGHTS)["weighted"]
    assert_close((J_masked, gradient_masked), (J, gradient), 1e-13)
    assert_close(d_x_masked[2], np.zeros_like(d_x[2]), 0)


def test_a_lambda_and_weights_given_equation_by_equation():
    reference.check(*problem("mlp"), lam=0.7, weights=WEIGHTS).raise_if_failed()


def test_a_lambda_given_at_the_call_takes_the_place_of_the_static_one():
    objective, params, x, y = problem("mlp", lam=0.1)
    other = mb.Objective(objective.net, objective.loss, mb.Frobenius(0.7))

    @jax.jit
    def both(lam):
        given = mb.value_and_grad(objective)(params, x, y, lam=0.7), objective(params, x, y, lam=lam)
        return given, (mb.value_and_grad(other)(params, x, y), other(params, x, y))

    assert_close(*both(0.7), 0)


def test_sequences_have_positions_between_batch_and_features():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(N, 3, 6)), rng.normal(size=(N, 3, 4))
    objective, params, *_ = problem("one layer")
    reference.check(objective, params, x, y).raise_if_failed()
    objective, params, *_ = problem("kept")
    y = rng.normal(size=(N, 3, 6))
    assert_same_step(
        *jax.jit(lambda *args: [f(objective, *args) for f in (mb.backprop, reference.backprop)])(params, x, y)
    )


def test_factors_know_every_examples_gradient(network):
    """`per_example` and `squared_norms` against vmap(jax.grad) of the reference."""
    per_example, norms, witness = (found(network)[key] for key in ("per example", "norms", "each by jax"))
    if "Repeat" not in repr(NETWORKS[network]):
        assert_close(per_example, witness, 1e-13)
    total = sum(np.asarray(leaf).reshape(-1, N).sum(axis=0) for leaf in jax.tree.leaves(norms))
    stacked = sum(np.square(leaf).sum() for leaf in jax.tree.leaves(per_example))
    expected = sum(np.square(leaf).reshape(N, -1).sum(axis=1) for leaf in jax.tree.leaves(witness))
    assert_close(total, expected, 1e-13)
    assert_close(stacked, expected.sum(), 1e-13)


def test_repeat_keeps_or_rebuilds_with_one_result():
    block = mb.Residual(mb.Serial((mb.Dense(6, 3, "gelu"), mb.Dense(3, 6, "tanh"))))
    kept, rebuilt = mb.Repeat(block, 4, recompute=False), mb.Repeat(block, 4, recompute=True)
    inner = mb.Objective(mb.Repeat(mb.Repeat(mb.Dense(6, 6, "tanh"), 2, recompute=True), 3, recompute=False), mb.huber)

    @jax.jit
    def both(params, of_inner, x, y):
        of_blocks = [mb.value_and_grad(mb.Objective(net, mb.huber))(params, x, y) for net in (kept, rebuilt)]
        return of_blocks, [f(inner, of_inner, x, y) for f in (mb.backprop, reference.backprop)]

    of_blocks, of_inner = both(generic(kept), generic(inner.net), batch(6), batch(6, seed=5))
    assert_close(*of_blocks, 1e-14)
    assert_same_step(*of_inner)


INNER = mb.Serial(
    (mb.Repeat(mb.Dense(5, 5, "tanh"), 3, recompute=False, segments=2), mb.Tied(mb.Dense(5, 5, "elu"), 2))
)


BLOCK = mb.Residual(mb.Dense(5, 5, "gelu"))


def in_segments(n, segments, recompute, block=BLOCK):
    """A chain and its head, whose parameters do not depend on the segments."""
    return mb.Serial((mb.Repeat(block, n, recompute, segments), mb.Dense(5, 3, "tanh")))


@pytest.mark.parametrize(
    ("n", "chains"),
    [(2, [(1, True), (2, False)]), (8, [(3, True), (5, False), (8, True)])],
)
def test_segments_change_no_gradient(n, chains):
    """Numbers of them that divide n or do not, recomputed or kept: against jax.grad and against the chain at once."""

    def objective(*chain):
        return mb.Objective(in_segments(n, *chain), mb.squared_error, mb.Frobenius(0.1))

    plain = objective(None, True)

    @jax.jit
    def all_of_them(*at):
        given = {"weights": WEIGHTS}
        theirs = reference.value_and_grad(plain, (0, 1))(*at, **given)
        return theirs, [mb.value_and_grad(each, (0, 1))(*at, **given) for each in (plain, *starmap(objective, chains))]

    theirs, (at_once, *ours) = all_of_them(generic(plain.net), batch(5), batch(3, seed=5))
    for each in ours:
        assert_close(each, theirs)
        assert_close(each, at_once, 1e-14)


def test_segments_of_composites():
    """Chains in chains and uses of one block, under a rule that draws: the chain at once is proven by other tests."""
    plain, rebuilt = (
        mb.Objective(in_segments(5, segments, True, mb.Residual(INNER)), mb.squared_error) for segments in (None, 3)
    )

    def scaled(site):
        """By a number that its key alone decides."""
        return site.delta * (1 + jax.random.key_data(site.key)[0].astype("float64") / 2**32)

    drawing = mb.rules.on_delta(scaled, key=jax.random.key(0))

    @jax.jit
    def all_of_them(*at):
        return [mb.value_and_grad(each)(*at, rule=drawing) for each in (plain, rebuilt)]

    at_once, by_segments = all_of_them(generic(plain.net), batch(5), batch(3, seed=5))
    assert_close(by_segments, at_once, 1e-13)


def test_jax_transforms_a_sweep_by_segments():
    """vmap, and derivatives through the gradient, forward and in reverse."""
    plain, by_segments = (mb.Objective(in_segments(5, segments, True), mb.squared_error) for segments in (None, 3))

    @jax.jit
    def all_of_them(params, x, y):
        def of(objective):
            gradient = mb.value_and_grad(objective)

            def along(x):
                return gradient(params, x, y)[1][1].W.sum()

            each = jax.vmap(lambda x, y: gradient(params, x[None], y[None]))(x, y)
            return each, jax.jvp(along, (x,), (y[:, :1] * x,)), jax.grad(along)(x)

        return of(by_segments), of(plain)

    assert_close(*all_of_them(generic(plain.net), batch(5), batch(3, seed=5)), 1e-13)


def test_segments_are_for_lean_sweeps_alone():
    """Whatever keeps values is the same program, with or without segments."""
    objective, plain = (mb.Objective(in_segments(5, k, True), mb.squared_error) for k in (3, None))
    at = generic(objective.net), batch(5), batch(3, seed=5)

    def programs(function, *more):
        return [str(jax.make_jaxpr(partial(function, each))(*at, *more)) for each in (objective, plain)]

    for several in (programs(mb.backprop), programs(mb.hessian_vector_product, at[0])):
        assert several[0] == several[1]
    lean, at_once = programs(lambda objective, *at: mb.value_and_grad(objective)(*at))
    assert lean != at_once


@pytest.mark.evidence
def test_segments_take_an_eighth_of_the_memory_of_jax_grad():
    """Temporary memory by XLA's own count, in few segments and in many."""
    width, n, layers = 64, 512, 64

    def in_wide(segments, recompute=True):
        return mb.Repeat(mb.Dense(width, width, "tanh"), layers, recompute, segments)

    shapes = jax.eval_shape(lambda: in_wide(None).init(jax.random.key(0), "float32"))
    x, y = (jax.ShapeDtypeStruct((n, width), "float32") for _ in range(2))

    def J(params, x, y):
        o, _ = jax.lax.scan(lambda a, layer: (jnp.tanh(a @ layer.W.T + layer.b[None]), None), x, params)
        return 0.5 * jnp.sum((o - y) ** 2) / n

    def temporary(function):
        compiled = jax.jit(function).lower(shapes, x, y).compile(compiler_options=FUSED)
        return compiled.memory_analysis().temp_size_in_bytes

    def by_hand(*chain):
        return temporary(mb.value_and_grad(mb.Objective(in_wide(*chain), mb.squared_error)))

    by_jax = temporary(jax.value_and_grad(J))
    assert by_hand(8) < 0.125 * by_jax
    assert by_hand(12, False) < 0.16 * by_jax
    assert by_hand(2) < 0.21 * by_jax


def test_repeat_is_the_serial_of_its_blocks():
    """(F3): the scan says the same as the chain written out."""
    repeated = mb.Serial((mb.Repeat(mb.Dense(5, 5, "tanh"), 3), mb.Dense(5, 2)))
    chain = mb.mlp((5, 5, 5, 5, 2))
    params = generic(chain)
    stacked = (jax.tree.map(lambda *leaves: np.stack(leaves), *params[:3]), params[3])

    @jax.jit
    def both(*data):
        of = zip((repeated, chain), (stacked, params), strict=True)
        return [mb.backprop(mb.Objective(net, mb.squared_error, mb.Frobenius(0.1)), own, *data) for net, own in of]

    ours, theirs = both(batch(5), batch(2, seed=8))
    assert_close(ours.gradients[0], jax.tree.map(lambda *leaves: np.stack(leaves), *theirs.gradients[:3]), 1e-14)
    assert_close((ours.value, ours.d_x, ours.d_lam), (theirs.value, theirs.d_x, theirs.d_lam), 1e-14)


def test_values_can_be_replaced(network):
    """A trace is plain data: scaled deltas give scaled gradients, an edited trace is what backward reads."""
    step = found(network)["step"]
    assert_close(found(network)["doubled"], jax.tree.map(lambda g: 2 * g, step.gradients), 1e-14)
    assert jax.tree.structure(step.deltas) == jax.tree.structure(
        jax.tree.map(lambda v: v.z, layer_values(step.trace), is_leaf=lambda v: isinstance(v, model.LayerValues))
    )


def test_edited_z_changes_the_delta_of_its_layer_and_below():
    objective, params, x, y = problem("mlp", lam=None)

    @jax.jit
    def edited_deltas(params, x, y):
        output, trace = mb.forward(objective.net, params, x)
        z = trace[1].z.at[0].set(50.0)  # example 0 saturates layer 2
        edited = (trace[0], mb.layers.LayerTrace(z, trace[1].a, trace[1].saved), trace[2])
        return mb.backward(objective.net, params, edited, objective.loss.derivative(output, y))[1]

    deltas = jax.tree.map(np.abs, edited_deltas(params, x, y))
    assert deltas[1][0].max() < 1e-40
    assert deltas[0][0].max() < 1e-40
    assert deltas[0][1].max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_reference_itself_agrees_with_finite_differences(loss):
    """A third witness, so that the two programs cannot share a mistake in (J1) to (J3)."""
    net = mb.mlp((4, 4, 3), "tanh", "sigmoid" if loss is mb.binary_cross_entropy else "identity")
    objective = mb.Objective(net, loss, mb.Frobenius(0.1))
    at, along, y, h = (generic(net), batch(4)), (generic(net, seed=5), batch(4, seed=6)), targets(loss, 3), 1e-4

    @jax.jit
    def slopes(at, along):
        """Along one direction: central differences of both values, theirs by JAX in either mode, and ours by hand."""
        ways = partial(model.value, objective, y=y), partial(objective, y=y)

        def moved(t):
            return jax.tree.map(lambda leaf, v: leaf + t * v, at, along)

        def summed(gradient):
            return sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), gradient, along)))

        differences = [(way(*moved(h)) - way(*moved(-h))) / (2 * h) for way in ways]
        forward = [jax.jvp(way, at, along)[1] for way in ways]
        reverse = [summed(jax.grad(way, (0, 1))(*at)) for way in ways]
        return differences, forward, reverse, summed(mb.value_and_grad(objective, (0, 1))(*at, y)[1])

    differences, forward, reverse, by_hand = slopes(at, along)
    for found in (*forward, *reverse, by_hand):
        np.testing.assert_allclose(differences, np.asarray(found), rtol=1e-6)


def test_the_regulariser_is_checked_beside_a_loss_that_could_hide_it():
    """The gradient's difference between lambda and 0 is lam W to float64 rounding, biases exactly none (B6)."""
    objective, params, x, y = problem("mlp", lam=0.0)
    of_lam = jax.jit(lambda lam: mb.value_and_grad(objective)(params, x, y, lam=lam)[1])
    base = jax.jit(lambda: mb.value_and_grad(objective)(params, x, y)[1])()
    for lam in (1e-3, 1.0, 1e3):
        for layer, zero, g in zip(params, base, of_lam(lam), strict=True):
            np.testing.assert_allclose(g.W - zero.W, lam * layer.W, rtol=0, atol=1e-14 * max(1, lam))
            np.testing.assert_array_equal(g.b, zero.b)
