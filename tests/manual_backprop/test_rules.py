"""Other transports against jax.grad of networks whose layers lie about their derivative, and closed forms."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, generic

import manual_backprop as mb
from manual_backprop import rules
from manual_backprop.layers import Layer
from manual_backprop.rules import edits
from reference import autodiff

N = 6
MLP = mb.mlp((3, 5, 4, 2), ("tanh", "softplus"), "sigmoid")
NET = mb.Serial(
    (
        mb.Dense(3, 4, "tanh"),
        mb.Repeat(mb.Residual(mb.Dense(4, 4, "softplus")), 3),
        mb.Tied(mb.Dense(4, 4, "tanh"), 2),
        mb.Dense(4, 2),
    )
)


def problem(net: Any, positions: tuple[int, ...] = ()) -> tuple[Any, Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.normal(size=(N, *positions, width))) for width in (3, 2))
    return mb.Objective(net, mb.squared_error), generic(net, 0), x, y


@partial(jax.jit, static_argnums=0)
def stepped(objective: mb.Objective, params: Any, x: Any, y: Any, rule: Any) -> mb.Step:
    """The step under a rule, compiled once for all tests of an objective and a kind of rule."""
    return mb.backprop(objective, params, x, y, rule=rule)


@jax.custom_vjp
def lying(a: Any, W: Any, b: Any, B: Any) -> Any:
    """W a + b, which says that its derivative by a is B."""
    return a @ W.T + jnp.broadcast_to(b, (len(a), len(b)))


lying.defvjp(
    lambda a, W, b, B: (lying(a, W, b, B), (a, B)),
    lambda saved, g: (g @ saved[1], g.T @ saved[0], g.sum(0), jnp.zeros_like(saved[1])),
)


def by_lying(net: Any, params: Any, feedback: Any, x: Any, y: Any) -> Any:
    """The mean squared error of `net`, of lying layers."""

    def apply(node: Any, p: Any, B: Any, x: Any) -> Any:
        if isinstance(node, mb.Serial):
            for child, q, c in zip(node.nodes, p, B, strict=True):
                x = apply(child, q, c, x)
            return x
        if isinstance(node, mb.Residual):
            return x + apply(node.block, p, B, x)
        if isinstance(node, mb.Repeat):
            for i in range(node.n):
                x = apply(node.block, *jax.tree.map(lambda leaf, i=i: leaf[i], (p, B)), x)
            return x
        if isinstance(node, mb.Tied):
            for _ in range(node.n):
                x = apply(node.block, p, B, x)
            return x
        return autodiff.model.ACTIVATIONS[node.f.name](lying(x, p.W, p.b, B.W))

    return 0.5 * jnp.sum((apply(net, params, feedback, x) - y) ** 2) / len(x)


def signs(params: Any, magnitudes: Any = None, scale: float = 1.0) -> Any:
    if magnitudes is None:
        return jax.tree.map(lambda W: scale * jnp.sign(W), params)
    return jax.tree.map(lambda M, W: jnp.abs(M) * jnp.sign(W), magnitudes, params)


@pytest.mark.parametrize("net", [MLP, NET], ids=["mlp", "composites"])
def test_rules_with_other_weights_equal_jax_grad_of_lying_layers(net):
    """Feedback alignment, Kolen-Pollack and both sign-symmetries, one of a kind in each network; dL/dx too."""
    objective, _, x, y = problem(net)
    # Larger weights saturate the tanh, and then jax.grad's 1 - tanh^2 is a difference with few digits left.
    params, B = generic(net, 0, scale=0.5), generic(net, 7)
    cases = {
        "feedback alignment": (rules.FeedbackAlignment(B), lambda params, B: B),
        "Kolen-Pollack": (rules.KolenPollack(B), lambda params, B: B),
        "uniform": (rules.SignSymmetry(scale=0.3), lambda params, B: signs(params, scale=0.3)),
        "frozen": (rules.SignSymmetry(B), signs),
    }
    if net is MLP:  # an f at the output, and widths that all differ
        del cases["feedback alignment"], cases["frozen"]
    else:
        del cases["Kolen-Pollack"], cases["uniform"]

    @jax.jit
    def run(params: Any, B: Any, given: Any) -> Any:
        found = {}
        for name, rule in given.items():
            step = mb.backprop(objective, params, x, y, rule=rule)
            lean = mb.value_and_grad(objective, (0, 1))(params, x, y, rule=rule)[1]
            found[name] = (step.gradients, step.d_x / N), lean, cases[name][1](params, B)
        return found

    theirs = jax.jit(jax.grad(partial(by_lying, net), argnums=(0, 2)))
    for full, lean, feedback in run(params, B, {name: rule for name, (rule, _) in cases.items()}).values():
        assert_close(full, theirs(params, feedback, x, y))
        assert_close(lean, full, 1e-13)


def test_feedback_that_is_the_parameters_is_backpropagation():
    objective, params, x, y = problem(NET)

    @jax.jit
    def both(params: Any) -> Any:
        by_rule = mb.backprop(objective, params, x, y, rule=rules.FeedbackAlignment(params))
        return by_rule, mb.backprop(objective, params, x, y)

    assert_close(*both(params), 0)


@cache
def drawn(net: Any) -> Any:
    return jax.jit(partial(rules.direct_feedback, net))(jax.random.key(2))


def test_direct_feedback_equals_jax_grad_layer_by_layer():
    """Every hidden layer as if alone: jax.grad of <a_l, B_l^T e>, its input and the error held fixed."""
    objective, params, x, y = problem(MLP)
    B = drawn(MLP)
    assert B[-1] is None
    step = stepped(objective, params, x, y, rules.DirectFeedbackAlignment(B))
    output, entered = step.output, (x, step.trace[0].a, step.trace[1].a)
    error = output * (1 - output) * (output - y)  # delta of the output, not dl/do

    @jax.jit
    def alone(params: Any) -> Any:
        return tuple(jax.grad(of_layer)(params[layer], layer) for layer in range(3))

    def of_layer(p: Any, layer: int) -> Any:
        a = autodiff.model.ACTIVATIONS[MLP.nodes[layer].f.name](entered[layer] @ p.W.T + p.b[None])
        return jnp.sum(a * (error @ B[layer])) / N if layer < 2 else 0.5 * jnp.sum((a - y) ** 2) / N

    assert_close(step.gradients, alone(params))


def hidden_widths(feedback: Any) -> Any:
    return jax.tree.map(lambda B: None if B is None else B.shape, feedback, is_leaf=lambda B: B is None)


def test_direct_feedback_is_drawn_for_every_layer_but_the_last_of_any_depth():
    """Also of a Serial that ends a Serial, whose last layer is neither its first nor its second; keys differ."""
    tail = mb.Serial((mb.Dense(5, 4), mb.Dense(4, 4), mb.Dense(4, 6), mb.Dense(6, 2)))
    found = drawn(mb.Serial((mb.Dense(3, 7), mb.Dense(7, 5), tail)))
    assert hidden_widths(found) == ((2, 7), (2, 5), ((2, 4), (2, 4), (2, 6), None))
    assert not np.array_equal(found[2][0], found[2][1])


def test_direct_feedback_through_composites_reaches_every_layer_unmixed():
    """delta_l = f_l'(z_l) * (B_l^T e) for every block of a Repeat, use of a Tied and position."""
    objective, params, x, y = problem(NET, (2,))
    B = drawn(NET)
    step = stepped(objective, params, x, y, rules.DirectFeedbackAlignment(B))
    error = step.output - y

    def softplus_slope(z: Any) -> Any:
        return 1 / (1 + np.exp(-z))

    for block in range(3):
        expected = softplus_slope(step.trace[1].z[block]) * (error @ B[1][block])
        assert_close(step.deltas[1][block], expected)
    for use in range(2):
        assert_close(step.deltas[2][use], (1 - np.tanh(step.trace[2].z[use]) ** 2) * (error @ B[2]))
    assert_close(step.deltas[3], error)


def test_direct_feedback_where_the_last_layer_stands_elsewhere_too():
    """The same layer object, hidden and last: the hidden one hears the error directly all the same."""
    layer = mb.Dense(2, 2, "tanh")
    net = mb.Serial((mb.Dense(3, 2), mb.Serial((layer, layer))))
    objective, params, x, y = problem(net)
    B = drawn(net)
    step = stepped(objective, params, x, y, rules.DirectFeedbackAlignment(B))
    assert B[1][1] is None
    error = (1 - step.output**2) * (step.output - y)
    assert_close(step.deltas[1][0], (1 - jnp.tanh(step.trace[1][0].z) ** 2) * (error @ B[1][0]))


def test_readings_under_another_rule():
    """Norms of feedback alignment's per-example gradients, and their clipped sum."""
    given = problem(NET)

    @jax.jit
    def run(*args: Any) -> tuple[Any, ...]:
        step = mb.backprop(given[0], *args, rule=rules.FeedbackAlignment(generic(NET, 7)))
        at = (NET, step.trace, step.deltas)
        norms = mb.squared_norms(*at)
        bound = jnp.sqrt(jnp.median(norms))
        return mb.per_example_gradients(*at), norms, bound, mb.clipped_gradients(*at, bound)

    each, squared, bound, clipped = run(*given[1:])
    rows = np.concatenate([np.asarray(g).reshape(N, -1) for g in jax.tree.leaves(each)], 1)
    norms = np.linalg.norm(rows, axis=1)
    assert_close(squared, norms**2)
    assert norms.min() < bound < norms.max()
    expected = np.minimum(1, bound / norms) @ rows
    assert_close(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(clipped)]), expected)


def test_kolen_pollack_gives_both_the_same_update_and_its_own_decay():
    import optax

    objective = mb.Objective(MLP, mb.squared_error, mb.Frobenius(0.5))
    _, params, x, y = problem(MLP)
    feedback = generic(MLP, 7)
    optimizer = optax.sgd(0.1)
    step = mb.training.make_kolen_pollack_step(objective, optimizer)
    apart = jax.tree.map(jnp.subtract, params, feedback)
    at = stepped(objective, params, x, y, rules.KolenPollack(feedback))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, at.gradients)
    new, back, _, J = step(*jax.tree.map(jnp.copy, (params, feedback)), optimizer.init((params, feedback)), x, y)
    assert_close((new, J), (expected, at.value))
    for p, B, start in zip(new, back, apart, strict=True):
        assert_close(p.W - B.W, (1 - 0.1 * 0.5) * start.W)


# Edits


def edited(edit: Any, net: Any = MLP, **given: Any) -> tuple[Any, Any]:
    """(step under the edit, step without)."""
    at = problem(net)
    return stepped(*at, rules.on_delta(edit, **given)), stepped(*at, rules.backprop)


def test_top_k_keeps_the_largest():
    found, plain = edited((None, edits.TopK(2), None))
    delta = np.asarray(plain.deltas[1])
    smallest = np.sort(np.abs(delta), axis=1)[:, -2:-1]
    assert_close(found.deltas[1], np.where(np.abs(delta) >= smallest, delta, 0))
    assert ((np.asarray(found.deltas[1]) != 0).sum(1) == 2).all()
    below = (1 - np.tanh(plain.trace[0].z) ** 2) * (found.deltas[1] @ problem(MLP)[1][1].W)
    assert_close(found.deltas[0], below)  # what was edited travels on
    assert_close(found.deltas[2], plain.deltas[2], 0)


def test_freeze_stops_the_layer_and_what_lies_below():
    found, plain = edited((None, edits.freeze, None))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.gradients[:2]))
    assert_close(found.gradients[2], plain.gradients[2], 0)


def test_quantize_rounds_to_the_nearest_of_a_few_levels():
    found, plain = edited((None, None, edits.Quantize(3)))
    levels = np.asarray(found.deltas[2]) / np.abs(plain.deltas[2]).max(1, keepdims=True) * 3
    assert_close(levels, np.round(levels))
    assert (np.abs(levels) < 3.5).all()
    assert (
        np.abs(found.deltas[2] - plain.deltas[2]) <= np.abs(plain.deltas[2]).max(1, keepdims=True) / 6 + 1e-15
    ).all()
    nothing = np.zeros((2, 3))
    of_nothing = jax.jit(lambda delta: edits.Quantize(3)(rules.Site(MLP.nodes[0], plain.trace[0], delta, delta, None)))
    assert not np.any(of_nothing(nothing))


def test_straight_through_is_jaxs_own_idiom():
    """A sign activation, whose derivative is 0: gradient of z + stop_gradient(sign(z) - z), within |z| <= 1."""
    sign = mb.Activation("sign", jnp.sign, lambda z, a: jnp.zeros_like(z))
    net = mb.mlp((3, 5, 2), sign)
    found, plain = edited((edits.StraightThrough(1.0), None), net)
    _, params, x, y = problem(net)
    assert not np.any(plain.gradients[0].W)

    def J(params: Any) -> Any:
        z = x @ params[0].W.T + params[0].b[None]
        bounded = jnp.clip(z, -1, 1)
        a = bounded + jax.lax.stop_gradient(jnp.sign(z) - bounded)
        return 0.5 * jnp.sum((a @ params[1].W.T + params[1].b[None] - y) ** 2) / N

    assert np.any(found.gradients[0].W)
    assert_close(found.gradients, jax.jit(jax.grad(J))(params))


def test_guided_backpropagation_lets_through_what_is_positive():
    net = mb.mlp((3, 6, 6, 2), "relu")
    found, _ = edited((edits.guided, edits.guided, None), net)
    _, params, x, _ = problem(net)
    d_a = found.deltas[2] @ params[2].W
    expected = np.where((np.asarray(found.trace[1].z) > 0) & (np.asarray(d_a) > 0), d_a, 0)
    assert_close(found.deltas[1], expected)
    assert (np.asarray(found.deltas[1]) >= 0).all()


@pytest.mark.evidence
def test_noise_is_of_its_size_and_differs_everywhere():
    """Between layers, blocks, uses of a Tied, and keys; and is the same for the same key."""
    found, plain = edited(edits.Noise(0.5), NET, key=jax.random.key(0))
    other, _ = edited(edits.Noise(0.5), NET, key=jax.random.key(1))
    one, again = (
        edited(edits.Noise(0.5), mb.Dense(3, 2), key=key(0))[0] for key in (jax.random.key, jax.random.PRNGKey)
    )
    assert_close(one.deltas, again.deltas, 0)  # of either kind of key
    assert not np.array_equal(found.deltas[3], other.deltas[3])
    added = found.deltas[3] - plain.deltas[3]
    level = np.sqrt(np.mean(np.square(plain.deltas[3]), axis=1))
    assert 0.2 < np.std(np.asarray(added) / level[:, None]) < 0.9

    seen = []

    def record(site: rules.Site) -> jax.Array:
        return jax.random.normal(site.key, site.delta.shape, site.delta.dtype)

    drawn, _ = edited(record, NET, key=jax.random.key(0))
    for leaf in (drawn.deltas[0], *drawn.deltas[1], *drawn.deltas[2]):
        seen.append(np.asarray(leaf).ravel())
    correlations = np.corrcoef(np.stack(seen)) - np.eye(len(seen))
    assert np.abs(correlations).max() < 0.75  # 24 draws each: equal ones would be at 1


def test_an_edit_above_another_rule():
    objective, params, x, y = problem(MLP)
    B = generic(MLP, 7)
    beneath = rules.FeedbackAlignment(B)
    both = stepped(objective, params, x, y, rules.on_delta((None, edits.TopK(1), None), beneath=beneath))
    alone = stepped(objective, params, x, y, beneath)
    largest = np.abs(alone.deltas[1]) == np.abs(alone.deltas[1]).max(1, keepdims=True)
    assert_close(both.deltas[1], np.where(largest, alone.deltas[1], 0))
    assert_close(both.deltas[0], (1 - np.tanh(alone.trace[0].z) ** 2) * (both.deltas[1] @ B[1].W))


def test_angles():
    """Known angles, to the last digits near 0 and 180, whatever the length; nan where there is no direction."""
    a = np.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1e-200, 0.0], [0.0, 0.0], [3.0, 4.0]])
    b = np.asarray([[0.0, 2.0], [5.0, 5.0], [-1.0, 0.0], [1e200, 1e190], [1.0, 0.0], [6.0, 8.0]])
    found = jax.jit(mb.angle)((a,), (b,))[0]
    expected = [90.0, 45.0, 180.0, np.degrees(1e-10), np.nan, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    narrow = jax.ShapeDtypeStruct(a.shape, "bfloat16")
    assert jax.eval_shape(mb.angle, narrow, narrow).dtype == jnp.float32


def test_bad_input_says_what_is_wrong(without_hook):
    objective, params, x, y = problem(MLP)

    def run(rule: Any) -> Any:
        return jax.eval_shape(partial(mb.backprop, objective, rule=rule), params, x, y)

    B = drawn(MLP)
    with pytest.raises(ValueError, match="feedback has structure"):
        run(rule=rules.FeedbackAlignment(params[:2]))
    with pytest.raises(ValueError, match="feedback\\[0\\].W is \\[3, 5\\], expected \\[5, 3\\] as in params"):
        run(rule=rules.FeedbackAlignment((mb.Affine(params[0].W.T, params[0].b), *params[1:])))
    with pytest.raises(TypeError, match="is float32, expected float64"):
        run(rule=rules.KolenPollack(jax.tree.map(lambda leaf: leaf.astype("float32"), params)))
    with pytest.raises(ValueError, match="magnitudes has structure"):
        run(rule=rules.SignSymmetry(params[:1]))
    with pytest.raises(ValueError, match="scale must be a positive number"):
        rules.SignSymmetry(scale=-1.0)
    with pytest.raises(ValueError, match="one array for every layer, and None for the last"):
        run(rule=rules.DirectFeedbackAlignment((*B[1:],)))
    with pytest.raises(ValueError, match="has the parameters' form; .* rules.direct_feedback\\(net, key\\) draws it"):
        run(rule=rules.DirectFeedbackAlignment(params))
    with pytest.raises(ValueError, match="an array for every other, got None at \\[0, 2\\]"):
        run(rule=rules.DirectFeedbackAlignment((None, *B[1:])))
    with pytest.raises(ValueError, match="feedback is \\[5, 2\\], expected \\[2, 5\\]: \\(M_L, M_l\\)"):
        run(rule=rules.DirectFeedbackAlignment((B[0].T, *B[1:])))
    with pytest.raises(TypeError, match="feedback is float32 but the error terms are float64"):
        run(rule=rules.DirectFeedbackAlignment((B[0].astype("float32"), *B[1:])))
    ends_in_repeat = mb.Serial((mb.Dense(3, 2), mb.Repeat(mb.Dense(2, 2), 2)))
    with pytest.raises(ValueError, match="starts from the delta of the last layer, but the network ends in 2 x"):
        rules.direct_feedback(ends_in_repeat, jax.random.key(0))
    with pytest.raises(ValueError, match="2 edits in a tuple do not mirror"):
        run(rule=rules.on_delta((None, edits.freeze)))
    with pytest.raises(ValueError, match="edits are a function, None, or a tuple"):
        run(rule=rules.on_delta("freeze"))
    with pytest.raises(ValueError, match="the edit made float64\\[6\\] of a delta that is float64\\[6, 2\\]"):
        run(rule=rules.on_delta(lambda site: site.delta[:, 0]))
    with pytest.raises(ValueError, match="give the rule a key"):
        run(rule=rules.on_delta(edits.Noise(0.1)))
    with pytest.raises(TypeError, match="rule must be an instance .*, got the class SignSymmetry"):
        run(rule=rules.SignSymmetry)
    with pytest.raises(TypeError, match="rule must be an instance .*, got str 'fa'"):
        mb.value_and_grad(objective)(params, x, y, rule="fa")
    for edit, bad in ((edits.TopK, 0), (edits.Quantize, 1), (edits.Noise, -1.0), (edits.StraightThrough, 0.0)):
        with pytest.raises(ValueError, match=edit.__name__):
            edit(bad)
    with pytest.raises(ValueError, match="deltas has structure"):
        mb.angle((x,), (x, x))


def test_a_rule_refuses_a_layer_that_it_does_not_know():
    class Odd(Layer):  # not affine, as far as the rule can know
        init, out_shape, net_input = mb.Dense.init, mb.Dense.out_shape, mb.Dense.net_input
        transport, factor, pushforward = mb.Dense.transport, mb.Dense.factor, mb.Dense.pushforward
        d_in, d_out, initializer, bias, __str__ = 4, 2, "glorot", True, mb.Dense.__str__

    net = mb.Serial((mb.Dense(3, 4), Odd()))
    objective, params, x, y = problem(net)
    for rule in (rules.FeedbackAlignment(params), rules.SignSymmetry()):
        with pytest.raises(ValueError, match="does not know the layer Dense\\(4 -> 2, identity\\)"):
            jax.eval_shape(partial(mb.backprop, objective, rule=rule), params, x, y)
