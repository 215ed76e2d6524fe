"""f'' of every activation, and of every loss its Hessian, the root of that, draws of dl/do, and dl/dy.

The witnesses are jax.grad twice over jax.nn and optax, 50-digit arithmetic in the tails, and moments of draws.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import OPTIMISED, assert_close, batch, generic
from test_activations import (
    DTYPES,
    EXACT_SLOPE,
    ROWS,
    SELU_ALPHA,
    SELU_SCALE,
    _assert_right,
    _sigmoid,
    at_points,
    jumps,
    of_every_row,
    points,
)

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_d2f_keeps_its_tails_in_every_format(row, dtype):
    """Finite and right to rounding, relative to each value, from the smallest normal number to 1e4 (C7)."""
    z, ours = points(dtype)[::2], at_points(dtype)[row.name][2, ::2]
    assert ours.dtype == jnp.dtype(dtype)
    # Where subnormals are flushed to zero they stand on the jump.
    kept = np.abs(np.asarray(z, np.float64)) >= (float(jnp.finfo(dtype).tiny) if row.name in JUMPS else 0)
    _assert_right(ours[kept], EXACT_CURVATURE[row.name], z[kept], dtype)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_exact_curvature_is_the_derivative_of_the_exact_slope(row):
    """Else the test above would hold a formula of ours against itself."""
    for z in ("-7.3", "-1.4", "-0.2", "0.3", "1.5", "6.1"):
        z = mpmath.mpf(z)
        slope = mpmath.diff(EXACT_SLOPE[row.name], z, h=mpmath.mpf(10) ** -15)
        assert abs(slope - EXACT_CURVATURE[row.name](z)) < 1e-14


@cache
def by_jax_nn() -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
    """(f, df and d2f of every row at 102 points, 0 being the last; jax.nn differentiated twice)."""
    z = np.concatenate([np.linspace(-6, 6, 101), [0.0]])

    @jax.jit
    def witness(z: jax.Array) -> dict[str, jax.Array]:
        return {row.name: jax.vmap(jax.grad(jax.grad(model.ACTIVATIONS[row.name])))(z) for row in ROWS}

    return of_every_row(z), witness(z)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_d2f_equals_jax_nn_differentiated_twice_also_where_it_jumps(row):
    ours, witness = (found[row.name] for found in by_jax_nn())
    # Absolute: jax.nn's own tails are less exact than ours, as the test above says.
    np.testing.assert_allclose(ours[2], witness, rtol=0, atol=1e-12)
    if row.name in JUMPS:
        assert float(ours[2, -1]) == pytest.approx(JUMPS[row.name], rel=1e-15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_points_where_slope_or_curvature_jumps_are_those_listed(row):
    z, rise = jumps()
    found = {float(v) for v in np.round(z[rise[row.name][1:].max(axis=0) > 1e-3], 9)}
    assert found == ({0.0} if row.name in JUMPS else set())


@pytest.mark.parametrize("dtype", DTYPES)
def test_d2f_is_finite_as_far_as_the_format_reaches(dtype):
    """Also where jax.grad of jax.nn twice gives nan, as for gelu_tanh from 1e103 on."""
    largest = float(jnp.finfo(dtype).max)
    z = np.asarray([-largest, -(largest**0.5), largest**0.5, largest], jnp.dtype(dtype))
    for name, ours in of_every_row(z).items():
        assert (np.abs(ours[2].astype("float64")) < 1e-4).all(), name


def test_an_activation_without_d2f_goes_on_working_and_d2f_is_a_keyword():
    sine = mb.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z), (), "lecun")
    assert sine.d2f is None
    with pytest.raises(TypeError, match="positional"):
        mb.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z), (), "lecun", lambda z, a: -a)
    assert all(row.d2f is not None for row in ROWS)


# Losses


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def softmax(o: np.ndarray) -> np.ndarray:
    e = np.exp(o - o.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def outputs(loss: mb.Loss, *shape: int, dtype: str = "float64") -> np.ndarray:
    o = np.random.default_rng(3).normal(size=shape or (N, C))
    return (sigmoid(o) if isinstance(loss, losses.BinaryCrossEntropy) else o).astype(jnp.dtype(dtype))


def targets(loss: mb.Loss, o: np.ndarray) -> dict[str, np.ndarray]:
    """Targets of every kind that the loss takes; those of Huber on both sides of its threshold."""
    rng = np.random.default_rng(4)
    if isinstance(loss, losses.SoftmaxCrossEntropy):
        distribution = softmax(rng.normal(size=o.shape))
        labels = rng.integers(0, o.shape[-1], o.shape[:-1])
        sums = (0.3 * distribution).astype(o.dtype)
        return {"labels": labels, "distributions": distribution.astype(o.dtype), "sums of 0.3": sums}
    if isinstance(loss, losses.SquaredError | losses.Huber):
        return {"floats": rng.normal(size=o.shape).astype(o.dtype)}
    soft = rng.uniform(size=o.shape)
    return {"soft": soft.astype(o.dtype), "hard": np.round(soft).astype(o.dtype)}


SHAPES = {len(shape): shape for shape in ((N, C), (2, 3, C))}
CASES = [
    pytest.param(loss, kind, axes, id=f"{name}, {kind}, {axes} axes")
    for name, loss in LOSSES.items()
    for axes, shape in SHAPES.items()
    for kind in targets(loss, outputs(loss, *shape))
]


def hessians(loss: mb.Loss, o: jax.Array, y: jax.Array) -> jax.Array:
    """(N, K, K): d^2 l/do do^T of every example, by jax.hessian of optax's loss."""

    def one(o: jax.Array, y: jax.Array) -> jax.Array:
        return model.losses(loss, o[None], y[None])[0]

    size = o[0].size
    return jax.vmap(jax.hessian(one))(o, y).reshape(len(o), size, size)


def second_order(loss: mb.Loss, o: jax.Array, y: jax.Array, d_o: jax.Array) -> dict[str, jax.Array]:
    """All that is not drawn."""
    found = {"product": loss.hessian_product(o, y, d_o), "root": loss.hessian_root(o, y)}
    return found if jnp.issubdtype(y.dtype, jnp.integer) else {**found, "d_y": loss.target_derivative(o, y)}


@cache
def compared(loss: mb.Loss) -> tuple[dict[Any, tuple[np.ndarray, ...]], dict[Any, Any]]:
    """((o, y, d_o), (ours, ours for two directions at once, Hessian, dl/dy)) of every kind and shape of a loss."""
    rng, given = np.random.default_rng(5), {}
    for axes, shape in SHAPES.items():
        o, d_o = outputs(loss, *shape), rng.normal(size=shape)
        given |= {(kind, axes): (o, y, d_o) for kind, y in targets(loss, o).items()}

    def all_of_it(o: jax.Array, y: jax.Array, d_o: jax.Array) -> Any:
        d_y = None if o.shape != y.shape else jax.grad(lambda y: model.losses(loss, o, y).sum())(y)
        several = jax.vmap(lambda d_o: loss.hessian_product(o, y, d_o))(jnp.stack([d_o, o]))
        return second_order(loss, o, y, d_o), several, hessians(loss, o, y), d_y

    run = jax.jit(lambda given: {case: all_of_it(*arrays) for case, arrays in given.items()})
    return given, jax.tree.map(np.asarray, run(given))


@pytest.mark.parametrize("loss, kind, axes", CASES)
def test_product_root_and_target_derivative_equal_those_by_jax(loss, kind, axes):
    given, found = compared(loss)
    o, _, d_o = given[kind, axes]
    ours, several, exact, d_y = found[kind, axes]
    size = o[0].size
    assert np.abs(exact).max() > 0.01
    for product, direction in ((ours["product"], d_o), *zip(several, (d_o, o), strict=True)):
        by_hessian = np.einsum("nij,nj->ni", exact, direction.reshape(len(o), size)).reshape(o.shape)
        assert_close(product, by_hessian)
    assert ours["root"].shape == (size, *o.shape)
    columns = ours["root"].reshape(size, len(o), size)
    assert_close(np.einsum("kni,knj->nij", columns, columns), exact)
    if kind != "labels":
        assert_close(ours["d_y"], d_y)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_same_without_jit(loss):
    given, found = compared(loss)
    case = next(iter(given))
    assert_close(second_order(loss, *map(jnp.asarray, given[case])), found[case][0])


def test_a_sequence_of_sequences_is_one_example():
    loss, o = mb.softmax_cross_entropy, outputs(mb.softmax_cross_entropy, 2, 2, 2, 3)
    y = np.zeros((2, 2, 2), int)
    root, exact = jax.jit(lambda o, y: (loss.hessian_root(o, y), hessians(loss, o, y)))(o, y)
    root = np.asarray(root).reshape(12, 2, 12)
    assert_close(np.einsum("kni,knj->nij", root, root), exact)


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
    p = softmax(o)
    for t in range(3):
        for c in range(C):
            expected = np.zeros(shape)
            expected[:, t] = np.sqrt(p[:, t, c, None]) * under[c][:, t]
            assert_close(root[t * C + c], expected)


@cache
def in_every_dtype(loss: mb.Loss) -> dict[str, tuple[Any, Any]]:
    """(in that format, in float64 from the same numbers)."""

    @jax.jit
    def run(given: Any) -> Any:
        wide = jax.tree.map(lambda array: array.astype("float64"), given)
        return {name: tuple(second_order(loss, *each[name]) for each in (given, wide)) for name in given}

    given = {}
    for dtype in DTYPES:
        o = outputs(loss, 3, 2, C, dtype=dtype)
        given[dtype] = (o, list(targets(loss, o).values())[-1], o[::-1])
    return jax.tree.map(np.asarray, run(given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_dtype_is_kept_and_rounded_once(loss, dtype):
    ours, exact = in_every_dtype(loss)[dtype]
    eps = float(jnp.finfo(dtype).eps)
    for name, wide in exact.items():
        assert ours[name].dtype == jnp.dtype(dtype), name
        # In 16 bits one rounding of the result; in 32 the few of the formula.
        allowed = 0.51 * eps * np.abs(wide) if eps > 1e-6 else 8 * eps * np.abs(wide).max()
        assert np.all(np.abs(np.asarray(ours[name], np.float64) - wide) <= allowed), name
    if not isinstance(loss, mb.Huber):
        o = jax.ShapeDtypeStruct((3, 2, C), dtype)
        drawn = jax.eval_shape(loss.sample_derivative, jax.random.key(0), o)
        assert drawn.dtype == jnp.dtype(dtype)
        assert drawn.shape == o.shape


DRAWN = ["squared_error", "softmax_cross_entropy", "sigmoid_binary_cross_entropy", "binary_cross_entropy"]


DRAWS = 20_000


@cache
def drawn() -> dict[Any, np.ndarray]:
    """DRAWS times dl/do of two examples of six outputs, for every loss in either format."""

    @jax.jit
    def draw(o: Any) -> Any:
        many = {case: jnp.broadcast_to(each, (DRAWS, *each.shape)).reshape(-1, 2, 3) for case, each in o.items()}
        return {case: losses.TABLE[case[0]].sample_derivative(jax.random.key(11), each) for case, each in many.items()}

    cases = [(name, dtype) for name in DRAWN for dtype in ("float64", "bfloat16")]
    found = draw({case: outputs(losses.TABLE[case[0]], 2, 2, 3, dtype=case[1]) for case in cases})
    return {case: np.asarray(s, np.float64).reshape(DRAWS, 2, 6) for case, s in found.items()}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_derivatives_have_mean_zero_and_the_fisher_information_for_second_moment(name, dtype):
    """That is H, which does not depend on y; for probabilities the mean of H over y, 1/(o (1 - o))."""
    s, o = drawn()[name, dtype], outputs(losses.TABLE[name], 2, 2, 3, dtype=dtype).astype("float64")
    p = softmax(o) if name == "softmax_cross_entropy" else sigmoid(o)
    diagonal = {
        "squared_error": np.ones_like(o),
        "softmax_cross_entropy": p,
        "sigmoid_binary_cross_entropy": p * (1 - p),
        "binary_cross_entropy": 1 / (o * (1 - o)),
    }[name]
    fisher = diagonal.reshape(2, 6, 1) * np.eye(6)
    if name == "softmax_cross_entropy":
        same_position = np.kron(np.eye(2), np.ones((3, 3)))
        fisher -= same_position * p.reshape(2, 6, 1) * p.reshape(2, 1, 6)
    # What a 16-bit result rounds is no matter of the draw.
    rounding = 0 if dtype != "bfloat16" else 0.02
    for moment, expected in ((s, np.zeros((2, 6))), (np.einsum("dni,dnj->dnij", s, s), fisher)):
        error = np.abs(moment.mean(axis=0) - expected)
        assert np.all(error <= 5 * moment.std(axis=0) / np.sqrt(DRAWS) + rounding * np.abs(expected) + 1e-12)


def test_a_label_of_probability_1e_8_is_drawn_as_often_as_it_should_in_float32():
    """A uniform float32 has steps of 1.2e-7 and would draw it 12 times too often; 1 - 1e-8 is 1 and would never."""
    loss, turns = mb.sigmoid_binary_cross_entropy, 64
    expected = turns * 2**20 * 1e-8

    @partial(jax.jit, compiler_options=OPTIMISED)  # here running is what costs
    def counted(key: jax.Array, at: jax.Array) -> jax.Array:
        common = loss.derivative(at, jnp.ones_like(at))
        return jax.lax.fori_loop(0, turns, lambda i, rare: rare + jnp.sum(drawn_at(key, i, at) != common), 0)

    def drawn_at(key: jax.Array, i: int, at: jax.Array) -> jax.Array:
        return loss.sample_derivative(jax.random.fold_in(key, i), at)

    at = np.full((2**20, 1), np.log(1e8), np.float32)
    assert 1 <= int(counted(jax.random.key(1), at)) <= expected + 5 * np.sqrt(expected)  # that key gives one at least


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


@cache
def at_ten_thousand() -> Any:
    """What has to be zero, and dl/dy, of both losses with logits in every format."""

    @jax.jit
    def run(given: Any) -> Any:
        found = {}
        for dtype, (o, y) in given.items():
            for loss in (mb.softmax_cross_entropy, mb.sigmoid_binary_cross_entropy):
                ours = second_order(loss, o, y, jnp.ones_like(o))
                zeros = (ours["product"], ours["root"], loss.sample_derivative(jax.random.key(0), o))
                found[type(loss).__name__, dtype] = zeros, ours["d_y"]
        return found

    formats = map(jnp.dtype, DTYPES)
    o, y = np.asarray([[1e4, -1e4], [-1e4, 1e4]]), np.asarray([[1, 0], [1, 0]])
    return jax.tree.map(
        lambda array: np.asarray(array, np.float64), run({str(d): (o.astype(d), y.astype(d)) for d in formats})
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loss", [mb.softmax_cross_entropy, mb.sigmoid_binary_cross_entropy], ids=["softmax", "sigmoid"]
)
def test_logits_of_ten_thousand_give_no_curvature_and_no_nan(loss, dtype):
    zeros, d_y = at_ten_thousand()[type(loss).__name__, dtype]
    assert np.isfinite(d_y).all()
    for array in zeros:
        np.testing.assert_array_equal(array, np.zeros(array.shape))


def test_probabilities_of_zero_and_one():
    """0/0 = 0 where output and target agree, where jax.hessian gives nan; infinite where they do not."""
    loss, sure = mb.binary_cross_entropy, np.asarray([[0.0, 1.0]])
    tiny, one = np.asarray([[1e-22]], np.float32), np.ones((1, 1), np.float32)  # tiny**2 is 0; the product fits

    @jax.jit
    def run(sure: Any, two: Any, tiny: Any, one: Any) -> Any:
        right, wrong = second_order(loss, sure, sure, two), loss.hessian_product(sure, 1 - sure, two)
        return right, wrong, hessians(loss, sure, sure), loss.hessian_product(tiny, one, 1e-10 * one)

    right, wrong, exact, product = run(sure, np.full((1, 2), 2.0), tiny, one)
    np.testing.assert_array_equal(right["product"], [[2.0, 2.0]])
    np.testing.assert_array_equal(right["root"][:, 0], np.eye(2))
    np.testing.assert_array_equal(right["d_y"], [[np.inf, -np.inf]])
    assert np.isinf(wrong).all()
    assert np.isnan(exact).any()
    np.testing.assert_allclose(product, [[1e34]], rtol=1e-6)


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_huber_on_its_threshold_takes_the_quadratic_side(threshold):
    """Ours is 1 there; jax.hessian of optax, a minimum of equals taken twice, 1/4."""
    loss, h = mb.Huber(threshold), 1e-9
    o = np.asarray([[threshold, -threshold, threshold + h, -threshold - h, threshold - h, 0.0]])

    @jax.jit
    def run(o: jax.Array, zeros: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss.hessian_product(o, zeros, 3.0 + zeros), hessians(loss, o, zeros)

    product, exact = run(o, np.zeros_like(o))
    np.testing.assert_array_equal(product, [[3.0, 3.0, 0.0, 0.0, 3.0, 3.0]])
    np.testing.assert_array_equal(np.diagonal(np.asarray(exact)[0]), [0.25, 0.25, 0.0, 0.0, 1.0, 1.0])


def test_a_label_out_of_range_is_nan_under_jit_and_refused_outside_it():
    loss, o, y, probability = mb.softmax_cross_entropy, batch(C), np.full(7, C), np.asarray([[0.5, 1.5]])
    draw = mb.binary_cross_entropy.sample_derivative

    @jax.jit
    def run(o: Any, y: Any, probability: Any) -> Any:
        return loss.hessian_product(o, y, o), loss.hessian_root(o, y), draw(jax.random.key(0), probability)

    product, root, drawn = run(o, y, probability)
    assert np.isnan(product).all()
    assert np.isnan(root).all()
    np.testing.assert_array_equal(np.isnan(drawn), [[False, True]])
    with pytest.raises(ValueError, match=r"labels for 4 logits must lie in 0..3, got 4 to 4"):
        loss.hessian_product(o, jnp.asarray(y), o)
    with pytest.raises(ValueError, match=r"outputs must lie in 0..1, got 0.5 to 1.5"):
        draw(jax.random.key(0), jnp.asarray(probability))


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
    both = jax.jit(lambda *given: (mb.value_and_grad(objective)(*given)[1], jax.grad(objective)(*given)))
    assert_close(*both(generic(objective.net), x, y))
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
