"""f'' of every activation, and of every loss its Hessian, the root of that, draws of dl/do, and dl/dy.

The witnesses are jax.grad twice over jax.nn and optax, 50-digit arithmetic in the tails, and moments of draws.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import assert_close, batch
from test_activations import DTYPES, EXACT_SLOPE, ROWS, SELU_ALPHA, SELU_SCALE, _assert_right, _sigmoid, points

import manual_backprop as mb
from manual_backprop import losses
from reference import model

C, N = 4, 5
LOSSES = {**losses.TABLE, "huber 0.3": mb.Huber(0.3)}
JUMPS = {"relu": 0.0, "leaky_relu": 0.0, "elu": 1.0, "selu": float(SELU_SCALE * SELU_ALPHA), "softsign": -2.0}
"""f'' or f' jumps at 0: the value of d2f there."""


def _gelu_tanh_curvature(z):
    c, k = 2 * mpmath.sqrt(2 / mpmath.pi), mpmath.mpf("0.044715")
    v, dv, d2v = c * (z + k * z**3), c * (1 + 3 * k * z**2), 6 * c * k * z
    slope = _sigmoid(v) * _sigmoid(-v)
    return slope * (2 * dv + z * d2v) + z * dv**2 * slope * (_sigmoid(-v) - _sigmoid(v))


EXACT_CURVATURE = {
    "identity": lambda z: mpmath.mpf(0),
    "sigmoid": lambda z: -_sigmoid(z) * _sigmoid(-z) * mpmath.tanh(z / 2),
    "tanh": lambda z: -2 * mpmath.tanh(z) * mpmath.sech(z) ** 2,
    "relu": lambda z: mpmath.mpf(0),
    "leaky_relu": lambda z: mpmath.mpf(0),
    "elu": lambda z: mpmath.mpf(0) if z > 0 else mpmath.exp(z),
    "selu": lambda z: mpmath.mpf(0) if z > 0 else SELU_SCALE * SELU_ALPHA * mpmath.exp(z),
    "gelu": lambda z: mpmath.npdf(z) * (2 - z**2),
    "gelu_tanh": _gelu_tanh_curvature,
    "silu": lambda z: _sigmoid(z) * _sigmoid(-z) * (2 + z * (_sigmoid(-z) - _sigmoid(z))),
    "softplus": lambda z: _sigmoid(z) * _sigmoid(-z),
    "softsign": lambda z: -2 * mpmath.sign(z) / (1 + abs(z)) ** 3,
}


def curvature(row: mb.Activation, z: jax.Array) -> jax.Array:
    return row.d2f(z, row.f(z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_d2f_keeps_its_tails_in_every_format(row, dtype):
    """Finite and right to rounding, relative to each value, from the smallest normal number to 1e4 (C7)."""
    z = points(dtype)[::2]
    if row.name in JUMPS:  # where subnormals are flushed to zero they stand on the jump
        z = z[np.abs(np.asarray(z, np.float64)) >= float(jnp.finfo(dtype).tiny)]
    ours = curvature(row, jnp.asarray(z))
    assert ours.dtype == jnp.dtype(dtype)
    _assert_right(ours, EXACT_CURVATURE[row.name], z, dtype)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_exact_curvature_is_the_derivative_of_the_exact_slope(row):
    """Else the test above would hold a formula of ours against itself."""
    for z in ("-7.3", "-1.4", "-0.2", "0.3", "1.5", "6.1"):
        z = mpmath.mpf(z)
        slope = mpmath.diff(EXACT_SLOPE[row.name], z, h=mpmath.mpf(10) ** -15)
        assert abs(slope - EXACT_CURVATURE[row.name](z)) < 1e-14


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_d2f_equals_jax_nn_differentiated_twice_also_where_it_jumps(row):
    z = jnp.concatenate([jnp.linspace(-6, 6, 101), jnp.asarray([0.0])])
    twice = jax.vmap(jax.grad(jax.grad(model.ACTIVATIONS[row.name])))
    ours, witness = jax.jit(lambda z: (curvature(row, z), twice(z)))(z)
    # Absolute: jax.nn's own tails are less exact than ours, as the test above says.
    np.testing.assert_allclose(ours, witness, rtol=0, atol=1e-12)
    if row.name in JUMPS:
        assert float(ours[-1]) == pytest.approx(JUMPS[row.name], rel=1e-15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_points_where_slope_or_curvature_jumps_are_those_listed(row):
    h = 1e-7
    z = np.linspace(-4, 4, 81)
    both = jax.jit(lambda z: jnp.stack([row.df(z, row.f(z)), row.d2f(z, row.f(z))]))
    rise = np.abs(np.asarray(both(jnp.asarray(z + h)) - both(jnp.asarray(z - h)))).max(axis=0)
    jumps = {float(v) for v in np.round(z[rise > 1e-3], 9)}
    assert jumps == ({0.0} if row.name in JUMPS else set())


@pytest.mark.parametrize("dtype", DTYPES)
def test_d2f_is_finite_as_far_as_the_format_reaches(dtype):
    """Also where jax.grad of jax.nn twice gives nan, as for gelu_tanh from 1e103 on."""
    largest = float(jnp.finfo(dtype).max)
    z = jnp.asarray([-largest, -(largest**0.5), largest**0.5, largest], dtype)
    for name, ours in jax.jit(lambda z: {row.name: curvature(row, z) for row in ROWS})(z).items():
        assert bool((jnp.abs(ours) < 1e-4).all()), name


def test_an_activation_without_d2f_goes_on_working_and_d2f_is_a_keyword():
    sine = mb.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z), (), "lecun")
    assert sine.d2f is None
    with pytest.raises(TypeError, match="positional"):
        mb.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z), (), "lecun", lambda z, a: -a)
    assert all(row.d2f is not None for row in ROWS)


# Losses


def outputs(loss: mb.Loss, *shape: int, dtype: str = "float64") -> jax.Array:
    o = jnp.asarray(np.random.default_rng(3).normal(size=shape or (N, C)), dtype)
    return jax.nn.sigmoid(o) if isinstance(loss, losses.BinaryCrossEntropy) else o


def targets(loss: mb.Loss, o: jax.Array) -> dict[str, jax.Array]:
    """Targets of every kind that the loss takes; those of Huber on both sides of its threshold."""
    rng = np.random.default_rng(4)
    if isinstance(loss, losses.SoftmaxCrossEntropy):
        distribution = jax.nn.softmax(jnp.asarray(rng.normal(size=o.shape), o.dtype))
        labels = jnp.asarray(rng.integers(0, o.shape[-1], o.shape[:-1]))
        return {"labels": labels, "distributions": distribution, "sums of 0.3": 0.3 * distribution}
    if isinstance(loss, losses.SquaredError | losses.Huber):
        return {"floats": jnp.asarray(rng.normal(size=o.shape), o.dtype)}
    soft = rng.uniform(size=o.shape)
    return {"soft": jnp.asarray(soft, o.dtype), "hard": jnp.asarray(np.round(soft), o.dtype)}


CASES = [
    pytest.param(loss, kind, shape, id=f"{name}, {kind}, {len(shape)} axes")
    for name, loss in LOSSES.items()
    for shape in ((N, C), (2, 3, C))
    for kind in targets(loss, outputs(loss))
]


def hessians(loss: mb.Loss, o: jax.Array, y: jax.Array) -> jax.Array:
    """(N, K, K): d^2 l/do do^T of every example, by jax.hessian of optax's loss."""

    def one(o: jax.Array, y: jax.Array) -> jax.Array:
        return model.losses(loss, o[None], y[None])[0]

    size = o[0].size
    return jax.jit(lambda o, y: jax.vmap(jax.hessian(one))(o, y).reshape(len(o), size, size))(o, y)


def second_order(loss: mb.Loss, o: jax.Array, y: jax.Array, d_o: jax.Array) -> dict[str, jax.Array]:
    """All that is not drawn."""
    found = {"product": loss.hessian_product(o, y, d_o), "root": loss.hessian_root(o, y)}
    return found if jnp.issubdtype(y.dtype, jnp.integer) else {**found, "d_y": loss.target_derivative(o, y)}


@pytest.mark.parametrize("loss, kind, shape", CASES)
def test_product_root_and_target_derivative_equal_those_by_jax(loss, kind, shape):
    o = outputs(loss, *shape)
    y, size = targets(loss, o)[kind], o[0].size
    d_o = jnp.asarray(np.random.default_rng(5).normal(size=shape))
    exact = np.asarray(hessians(loss, o, y))
    assert np.abs(exact).max() > 0.01
    ours = jax.jit(lambda *given: second_order(loss, *given))(o, y, d_o)
    product = np.einsum("nij,nj->ni", exact, np.asarray(d_o).reshape(len(o), size)).reshape(shape)
    assert_close(ours["product"], product)
    assert ours["root"].shape == (size, *shape)
    columns = np.asarray(ours["root"]).reshape(size, len(o), size)
    assert_close(np.einsum("kni,knj->nij", columns, columns), exact)
    if kind != "labels":
        assert_close(ours["d_y"], jax.jit(jax.grad(lambda y: model.losses(loss, o, y).sum()))(y))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_same_without_jit_and_under_vmap_over_directions(loss):
    o = outputs(loss)
    y = next(iter(targets(loss, o).values()))
    directions = jnp.stack([o, o[::-1]])
    one_by_one = [second_order(loss, o, y, d_o) for d_o in directions]
    products = jax.jit(jax.vmap(lambda d_o: loss.hessian_product(o, y, d_o)))(directions)
    assert_close(products, jnp.stack([each["product"] for each in one_by_one]))
    assert_close(jax.jit(loss.hessian_root)(o, y), one_by_one[0]["root"])


def test_a_sequence_of_sequences_is_one_example():
    loss, o = mb.softmax_cross_entropy, outputs(mb.softmax_cross_entropy, 2, 2, 2, 3)
    y = jnp.zeros((2, 2, 2), int)
    root = np.asarray(jax.jit(loss.hessian_root)(o, y)).reshape(12, 2, 12)
    assert_close(np.einsum("kni,knj->nij", root, root), hessians(loss, o, y))


def test_integer_labels_have_no_derivative():
    with pytest.raises(TypeError, match="integer labels have no derivative; give target distributions"):
        mb.softmax_cross_entropy.target_derivative(batch(C), jnp.zeros(7, int))


def test_column_c_of_the_softmax_root_is_the_derivative_under_label_c():
    """By its sqrt(p_c): that is what makes it the Fisher information over all labels."""
    loss, shape = mb.softmax_cross_entropy, (2, 3, C)
    o = outputs(loss, *shape)

    @jax.jit
    def both(o: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        under = [loss.derivative(o, jnp.full(shape[:-1], c)) for c in range(C)]
        return loss.hessian_root(o, jnp.zeros(shape[:-1], int)), under

    root, under = both(o)
    p = np.asarray(jax.nn.softmax(o))
    for t in range(3):
        for c in range(C):
            expected = np.zeros(shape)
            expected[:, t] = np.sqrt(p[:, t, c, None]) * under[c][:, t]
            assert_close(root[t * C + c], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_dtype_is_kept_and_rounded_once(loss, dtype):
    o = outputs(loss, 3, 2, C, dtype=dtype)
    y = list(targets(loss, o).values())[-1]
    given = (o, y, o[::-1])
    ours = jax.jit(lambda *given: second_order(loss, *given))(*given)
    exact = jax.jit(lambda *given: second_order(loss, *given))(*(array.astype("float64") for array in given))
    eps = float(jnp.finfo(dtype).eps)
    for name, wide in exact.items():
        assert ours[name].dtype == jnp.dtype(dtype), name
        # In 16 bits one rounding of the result; in 32 the few of the formula.
        allowed = 0.51 * eps * np.abs(wide) if eps > 1e-6 else 8 * eps * np.abs(wide).max()
        assert np.all(np.abs(np.asarray(ours[name], np.float64) - wide) <= allowed), name
    if not isinstance(loss, mb.Huber):
        drawn = jax.eval_shape(loss.sample_derivative, jax.random.key(0), o)
        assert drawn.dtype == jnp.dtype(dtype)
        assert drawn.shape == o.shape


DRAWN = ["squared_error", "softmax_cross_entropy", "sigmoid_binary_cross_entropy", "binary_cross_entropy"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_derivatives_have_mean_zero_and_the_fisher_information_for_second_moment(name, dtype):
    """That is H, which does not depend on y; for probabilities the mean of H over y, 1/(o (1 - o))."""
    loss, draws, shape = losses.TABLE[name], 20_000, (2, 2, 3)
    o = outputs(loss, *shape, dtype=dtype)
    many = jnp.broadcast_to(o, (draws, *o.shape)).reshape(-1, *o.shape[1:])
    s = jax.jit(loss.sample_derivative)(jax.random.key(11), many)
    s = np.asarray(s, np.float64).reshape(draws, 2, 6)
    wide = o.astype("float64")
    if name == "binary_cross_entropy":
        fisher = np.stack([np.diag(row) for row in np.asarray(1 / (wide * (1 - wide))).reshape(2, 6)])
    else:
        y = jnp.zeros(shape[:-1], int) if name == "softmax_cross_entropy" else jnp.zeros(shape)
        fisher = hessians(loss, wide, y)
    # What a 16-bit result rounds is no matter of the draw.
    rounding = 0 if dtype != "bfloat16" else 0.02
    for moment, expected in ((s, np.zeros((2, 6))), (np.einsum("dni,dnj->dnij", s, s), fisher)):
        error = np.abs(moment.mean(axis=0) - expected)
        assert np.all(error <= 5 * moment.std(axis=0) / np.sqrt(draws) + rounding * np.abs(expected) + 1e-12)


def test_a_label_of_probability_1e_8_is_drawn_as_often_as_it_should_in_float32():
    """A uniform float32 has steps of 1.2e-7 and would draw it 12 times too often; 1 - 1e-8 is 1 and would never."""
    loss, turns = mb.sigmoid_binary_cross_entropy, 64
    at = jnp.full((2**20, 1), np.log(1e8), jnp.float32)
    common = loss.derivative(at, jnp.ones_like(at))

    def count(i: int, rare: jax.Array) -> jax.Array:
        return rare + jnp.sum(loss.sample_derivative(jax.random.fold_in(key, i), at) != common)

    key, expected = jax.random.key(1), turns * 2**20 * 1e-8  # of that key one comes at least
    assert 1 <= int(jax.jit(lambda: jax.lax.fori_loop(0, turns, count, 0))()) <= expected + 5 * np.sqrt(expected)


def test_labels_are_drawn_by_the_finer_of_the_two_gumbel_noises(monkeypatch):
    """The coarser one hardly ever draws p < 1e-8 in float32: too rare to count here."""
    modes, draw = [], jax.random.categorical
    monkeypatch.setattr(jax.random, "categorical", lambda *a, mode=None: modes.append(mode) or draw(*a, mode=mode))
    jax.eval_shape(mb.softmax_cross_entropy.sample_derivative, jax.random.key(0), outputs(mb.softmax_cross_entropy))
    assert modes == ["high"]


def test_sure_logits_keep_their_tails():
    """p = 1 - 2e-9 is 1 in float32, and d - p . d would be 0 where H d is 2e-9."""
    o = jnp.asarray([[20.0, 0.0], [0.0, 20.0]], jnp.float32)
    d_o = jnp.asarray([[1.0, 0.0], [1.0, 0.0]], jnp.float32)
    h = float(_sigmoid(mpmath.mpf(20)) * _sigmoid(mpmath.mpf(-20)))
    product = jax.jit(mb.softmax_cross_entropy.hessian_product)(o, jnp.asarray([0, 0]), d_o)
    np.testing.assert_allclose(product, [[h, -h], [h, -h]], rtol=1e-6)
    o, one = jnp.asarray([[-80.0, 80.0]], jnp.float32), jnp.ones((1, 2), jnp.float32)
    product = jax.jit(mb.sigmoid_binary_cross_entropy.hessian_product)(o, one, one)
    np.testing.assert_allclose(product, np.full((1, 2), float(mpmath.exp(-80))), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loss", [mb.softmax_cross_entropy, mb.sigmoid_binary_cross_entropy], ids=["softmax", "sigmoid"]
)
def test_logits_of_ten_thousand_give_no_curvature_and_no_nan(loss, dtype):
    o, y = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]], dtype), jnp.asarray([[1, 0], [1, 0]], dtype)
    ours = jax.jit(lambda *given: second_order(loss, *given))(o, y, jnp.ones_like(o))
    assert bool(jnp.isfinite(ours["d_y"]).all())
    drawn = jax.jit(loss.sample_derivative)(jax.random.key(0), o)
    for array in (ours["product"], ours["root"], drawn):
        np.testing.assert_array_equal(np.asarray(array, np.float64), np.zeros(array.shape))


def test_probabilities_of_zero_and_one():
    """0/0 = 0 where output and target agree, where jax.hessian gives nan; infinite where they do not."""
    loss, sure = mb.binary_cross_entropy, jnp.asarray([[0.0, 1.0]])
    two, run = jnp.full((1, 2), 2.0), jax.jit(lambda *given: second_order(loss, *given))
    right, wrong = run(sure, sure, two), run(sure, 1 - sure, two)
    np.testing.assert_array_equal(right["product"], two)
    np.testing.assert_array_equal(right["root"][:, 0], np.eye(2))
    np.testing.assert_array_equal(right["d_y"], [[jnp.inf, -jnp.inf]])
    assert bool(jnp.isinf(wrong["product"]).all())
    assert bool(jnp.isnan(hessians(loss, sure, sure)).any())
    tiny, one = jnp.asarray([[1e-22]], jnp.float32), jnp.ones((1, 1), jnp.float32)  # tiny**2 is 0; the product fits
    np.testing.assert_allclose(run(tiny, one, 1e-10 * one)["product"], [[1e34]], rtol=1e-6)


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_huber_on_its_threshold_takes_the_quadratic_side(threshold):
    """Ours is 1 there; jax.hessian of optax, a minimum of equals taken twice, 1/4."""
    loss, h = mb.Huber(threshold), 1e-9
    o = jnp.asarray([[threshold, -threshold, threshold + h, -threshold - h, threshold - h, 0.0]])
    product = loss.hessian_product(o, jnp.zeros_like(o), jnp.full_like(o, 3.0))
    np.testing.assert_array_equal(product, [[3.0, 3.0, 0.0, 0.0, 3.0, 3.0]])
    at = np.diagonal(hessians(loss, o, jnp.zeros_like(o))[0])
    np.testing.assert_array_equal(at, [0.25, 0.25, 0.0, 0.0, 1.0, 1.0])


def test_a_label_out_of_range_is_nan_under_jit_and_refused_outside_it():
    loss, o, y = mb.softmax_cross_entropy, batch(C), jnp.full(7, C)
    assert bool(jnp.isnan(jax.jit(loss.hessian_product)(o, y, o)).all())
    assert bool(jnp.isnan(jax.jit(loss.hessian_root)(o, y)).all())
    with pytest.raises(ValueError, match=r"labels for 4 logits must lie in 0..3, got 4 to 4"):
        loss.hessian_product(o, y, o)
    probability = jnp.asarray([[0.5, 1.5]])
    with pytest.raises(ValueError, match=r"outputs must lie in 0..1, got 0.5 to 1.5"):
        mb.binary_cross_entropy.sample_derivative(jax.random.key(0), probability)
    drawn = jax.jit(mb.binary_cross_entropy.sample_derivative)(jax.random.key(0), probability)
    np.testing.assert_array_equal(jnp.isnan(drawn), [[False, True]])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_does_not_fit_is_refused(loss, without_hook):
    o = outputs(loss)
    y = next(iter(targets(loss, o).values()))
    float_y = list(targets(loss, o).values())[-1]
    with pytest.raises(ValueError, match=r"d_o is \[4\] but the outputs are \[5, 4\]; reshape d_o"):
        loss.hessian_product(o, y, o[0])
    with pytest.raises(TypeError, match="d_o is float32 but the outputs are float64; convert d_o with .astype"):
        loss.hessian_product(o, y, o.astype("float32"))
    for call in (lambda y: loss.hessian_product(o, y, o), lambda y: loss.hessian_root(o, y)):
        with pytest.raises(ValueError, match=r"\[5, 4\]"):
            call(y[:-1])
        with pytest.raises(TypeError, match="outputs must be floats, got int64; convert them with .astype"):
            loss.hessian_root(jnp.ones((N, C), int), y)
    with pytest.raises(ValueError, match=r"y is \[4, 4\] but the outputs are \[5, 4\]; reshape y"):
        loss.target_derivative(o, float_y[:-1])
    with pytest.raises(TypeError, match="y is float32 but the outputs are float64; convert y with .astype"):
        loss.target_derivative(o, float_y.astype("float32"))
    if not isinstance(loss, mb.Huber):
        with pytest.raises(TypeError, match="outputs must be floats, got int64"):
            loss.sample_derivative(jax.random.key(0), jnp.ones((N, C), int))


def test_huber_refuses_to_draw_and_says_what_to_use_instead():
    with pytest.raises(NotImplementedError, match="take hessian_product or hessian_root at the targets, or derivative"):
        mb.huber.sample_derivative(jax.random.key(0), batch(C))


class Quartic(mb.Loss):
    """A user's loss, with what a gradient needs and no more."""

    def value(self, o, y):
        return jnp.sum((o - y) ** 4, axis=1)

    def derivative(self, o, y):
        return 4 * (o - y) ** 3


def test_a_loss_with_value_and_derivative_alone_goes_on_working_and_says_what_it_lacks():
    loss, x, y = Quartic(), batch(3), batch(C, seed=2)
    objective = mb.Objective(mb.mlp((3, C)), loss)
    params = objective.net.init(jax.random.key(0), "float64")
    _, ours = jax.jit(mb.value_and_grad(objective))(params, x, y)
    assert_close(ours, jax.jit(jax.grad(objective))(params, x, y))
    calls = {
        "hessian_product": (lambda: loss.hessian_product(y, y, y), "Hessian- and Gauss-Newton-vector products"),
        "hessian_root": (lambda: loss.hessian_root(y, y), "exact Gauss-Newton diagonals and Kronecker factors"),
        "sample_derivative": (lambda: loss.sample_derivative(jax.random.key(0), y), "Monte Carlo Fisher information"),
        "target_derivative": (lambda: loss.target_derivative(y, y), "derivatives with respect to targets"),
    }
    for method, (call, asked_by) in calls.items():
        with pytest.raises(NotImplementedError) as refused:
            call()
        message = str(refused.value)
        assert message.startswith(f"Quartic has no {method}, which {asked_by} ask for; write Quartic.{method}(self, ")
