"""Readings of (a, delta) against vmap of jax.grad on the reference's objective, against optax and closed forms."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, every_time, generic

import manual_backprop as mb
from manual_backprop.layers import Affine, Dense, Factor
from reference import autodiff

N = 6
WEIGHTS = jnp.asarray([1.0, 0.0, -2.0, 1.0, 0.25, 0.5])
NET = mb.Serial(
    (
        mb.Dense(3, 4, "tanh"),
        mb.Tied(mb.Residual(mb.Serial((mb.Dense(4, 4, "tanh"), mb.Repeat(mb.Dense(4, 4, "sigmoid"), 2)))), 2),
        mb.Repeat(mb.Residual(mb.Dense(4, 4, "softplus")), 3),
        mb.Dense(4, 3),
    )
)
# The same without the blocks in the block that is used twice: enough where positions alone are another way to go.
PLAINER = mb.Serial((NET.nodes[0], mb.Tied(mb.Residual(mb.Serial((mb.Dense(4, 4, "tanh"),))), 2), *NET.nodes[2:]))
NETS = {"vectors": PLAINER, "2 positions": NET, "a 3 x 3 grid": PLAINER}
# With 2 positions the Gram form of the norms is the cheaper one, with 3 x 3 the gradients themselves are.
SHAPES = {"vectors": (N,), "2 positions": (N, 2), "a 3 x 3 grid": (N, 3, 3)}


def raveled(tree: Any) -> jax.Array:
    return jax.flatten_util.ravel_pytree(tree)[0]


def problem(shape: tuple[int, ...], seed: int = 0, net: Any = NET) -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return generic(net), jnp.asarray(rng.normal(size=(*shape, 3))), jnp.asarray(rng.integers(0, 3, shape))


def flat(per_example: Any) -> np.ndarray:
    """(N, P): every example's gradient as a row."""
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(per_example)], 1)


def readings(net: Any, trace: Any, deltas: Any, weights: Any = WEIGHTS) -> dict[str, Any]:
    """All of them at once: one program to compile."""
    at = (net, trace, deltas)
    return {
        "gradients": mb.gradients(*at),
        "weighted": mb.gradients(*at, weights=weights),
        "per_example_gradients": mb.per_example_gradients(*at),
        "squared_norms": mb.squared_norms(*at),
        "by_layer": mb.squared_norms(*at, by_layer=True),
        "clipped_gradients": mb.clipped_gradients(*at, 1.0),
        "clipped_weighted": mb.clipped_gradients(*at, 1.0, weights=weights),
        "second_moment": mb.second_moment(*at),
        "second_moment_weighted": mb.second_moment(*at, weights=weights),
        "gram": mb.gram(*at),
        "noise_scale": mb.noise_scale(*at),
    }


@cache
def computed(name: str) -> dict[str, Any]:
    """Steps by hand on N and on 4 other examples, vmap(grad)'s gradients of all, and every reading: one program."""
    net = NETS[name]
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    params, x, y = problem(SHAPES[name], net=net)
    _, *other = problem((4, *SHAPES[name][1:]), seed=5)

    @jax.jit
    def run(params: Any, x: Any, y: Any, x2: Any, y2: Any) -> dict[str, Any]:
        step, second = mb.backprop(objective, params, x, y), mb.backprop(objective, params, x2, y2)
        theirs = autodiff.per_example_gradients(objective, params, jnp.concatenate([x, x2]), jnp.concatenate([y, y2]))
        at, first = (net, step.trace, step.deltas), jax.tree.map(lambda leaf: leaf[:N], theirs)
        rows = sum(jnp.sum(leaf.reshape(N, -1) ** 2, axis=1) for leaf in jax.tree.leaves(first))
        bounds = jnp.quantile(jnp.sqrt(rows), jnp.asarray([0.0, 0.5, 1.0])) * jnp.asarray([0.9, 1.0, 1.1])
        given = jax.tree.leaves(first)

        def clipped_at(bound: Any) -> Any:
            return mb.clipped_gradients(*at, bound), optax.per_example_global_norm_clip(given, bound)

        return {
            "step": step,
            "theirs": first,
            "theirs of the others": jax.tree.map(lambda leaf: leaf[N:], theirs),
            **readings(*at),
            "at bounds": jax.lax.map(clipped_at, bounds) if name == "2 positions" else None,
            "optax at 1": optax.per_example_global_norm_clip(given, 1.0)[0],
            "between": mb.gram(*at, (second.trace, second.deltas)),
        }

    return run(params, x, y, *other)


@pytest.fixture(params=every_time(SHAPES, "vectors", "2 positions"), ids=SHAPES)
def case(request) -> tuple[Any, Any, np.ndarray, dict[str, Any]]:
    """(step by hand, vmap(grad)'s gradients, the same as rows, every reading)."""
    found = computed(request.param)
    return found["step"], found["theirs"], flat(found["theirs"]), found


def test_per_example_gradients(case):
    _, theirs, _, found = case
    assert_close(found["per_example_gradients"], theirs)


def test_squared_norms_are_those_of_vmap_of_grad(case):
    _, theirs, rows, found = case
    assert_close(found["squared_norms"], (rows**2).sum(1))
    theirs = jax.tree.map(np.asarray, theirs)
    first = flat((theirs[0].W, theirs[0].b))
    assert_close(found["by_layer"][0], (first**2).sum(1))
    blocks = np.stack([flat((theirs[2].W[:, i], theirs[2].b[:, i])) for i in range(3)])
    assert_close(found["by_layer"][2], (blocks**2).sum(2))


def test_tied_parameters_are_summed_over_uses_before_they_are_squared(case):
    """The cross terms are there: adding the norms use by use gives something else."""
    step, theirs, _, found = case
    tied = flat((theirs[1][0].W, theirs[1][0].b))
    layer = NET.nodes[1].block.block.nodes[0]
    saved_and_delta = jax.tree.map(np.asarray, (step.trace[1][0].saved, step.deltas[1][0]))

    @jax.jit
    def of_one_use(saved: Any, delta: Any) -> Any:
        return layer.factor(saved, delta).squared_norms()

    use_by_use = sum(of_one_use(*jax.tree.map(lambda leaf, i=i: leaf[i], saved_and_delta)) for i in range(2))
    assert_close(found["by_layer"][1][0], (tied**2).sum(1))
    assert np.abs(use_by_use - (tied**2).sum(1)).max() > 0.05 * (tied**2).sum(1).max()


def test_clipped_sum_is_that_of_optax(case):
    assert_close(jax.tree.leaves(case[3]["clipped_gradients"]), case[3]["optax at 1"])


def test_clipped_sum_is_that_of_optax_at_every_bound():
    """One below, among and above the norms; traced."""
    found = computed("2 positions")
    ours, (expected, clipped) = found["at bounds"]
    assert clipped.tolist() == [N, N // 2, 0]
    assert_close(jax.tree.leaves(ours), expected)
    assert jax.tree.structure(ours) == jax.tree.structure(found["step"].gradients)


def test_weights_come_after_the_clipping(case):
    _, _, rows, found = case
    factors = np.minimum(1, 1 / np.linalg.norm(rows, axis=1)) * np.asarray(WEIGHTS)
    assert_close(raveled(found["clipped_weighted"]), factors @ rows)


def test_an_example_without_gradient_is_not_scaled_by_nan():
    weights = jax.jit(mb.clip_weights)
    assert_close(weights(np.asarray([0.0, 4.0, 1.0]), 1.0), np.asarray([1.0, 0.5, 1.0]), 0)
    assert_close(weights(np.asarray([0.0, 4.0, np.inf]), 0.0), np.asarray([1.0, 0.0, 0.0]), 0)
    assert np.isnan(weights(np.asarray([np.nan, 4.0, 1.0]), 1.0)[0])
    zero = jax.device_put(np.zeros(()))  # its value is known, and zero is allowed
    assert_close(mb.clip_weights(jax.device_put(np.asarray([0.0, 4.0])), zero), np.asarray([1.0, 0.0]), 0)


def test_second_moment(case):
    _, theirs, _, found = case
    squares = jax.tree.map(lambda g: np.asarray(g) ** 2, theirs)
    assert_close(found["second_moment"], jax.tree.map(lambda g: np.mean(g, 0), squares))
    assert_close(found["second_moment_weighted"], jax.tree.map(lambda g: np.tensordot(WEIGHTS, g, 1), squares))


def test_gram_of_one_batch_and_between_two(case):
    _, _, rows, found = case
    assert_close(found["gram"], rows @ rows.T)
    assert_close(found["between"], rows @ flat(found["theirs of the others"]).T)


def test_noise_scale_is_the_trace_of_the_covariance(case):
    """S without bias (McCandlish et al., App. A), and |G|^2 such that |G|^2 + S/N is the batch gradient's."""
    _, _, rows, found = case
    S = np.trace(np.cov(rows.T))
    squared = (rows.mean(0) ** 2).sum() - S / N
    scale = found["noise_scale"]
    assert_close(
        (scale.covariance_trace, scale.squared_gradient, scale.scale),
        (S, squared, S / squared),
    )


def test_gradients_with_weights(case):
    _, _, rows, found = case
    assert_close(raveled(found["gradients"]), rows.mean(0))
    assert_close(raveled(found["weighted"]), np.asarray(WEIGHTS) @ rows)


CHAIN = mb.Serial((mb.Dense(3, 4, "tanh"), mb.Repeat(mb.Dense(4, 4, "tanh"), 3), mb.Dense(4, 3)))


def swept(params: Any, x: Any) -> tuple[Any, Any]:
    """(trace, deltas) of the small network."""
    output, trace = mb.forward(CHAIN, params, x)
    return trace, mb.backward(CHAIN, params, trace, output)[1]


@cache
def chain(shape: tuple[int, ...] = (N,)) -> tuple[Any, jax.Array, Any]:
    """(what the readings take, x, params) of a small network."""
    params, x = generic(CHAIN), problem(shape)[1]
    return (CHAIN, *jax.jit(swept)(params, x)), x, params


@cache
def shapes(shape: tuple[int, ...] = (N,)) -> tuple[Any, ...]:
    """What the readings take, of zeros: enough to be refused, and nothing is compiled."""
    found = jax.eval_shape(swept, generic(CHAIN), jax.ShapeDtypeStruct((*shape, 3), "float64"))
    return CHAIN, *jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape)), found)


@cache
def kronecker(shape: tuple[int, ...]) -> dict[str, Any]:
    (_, *at), _, _ = chain(shape)

    @jax.jit
    def run(*at: Any) -> dict[str, Any]:
        return {shared: mb.kronecker_factors(CHAIN, *at, shared=shared) for shared in ("expand", "reduce")}

    return run(*at)


@pytest.mark.parametrize("shared", ["expand", "reduce"])
@pytest.mark.parametrize("shape", [(N,), (N, 2)], ids=["vectors", "2 positions"])
def test_kronecker_factors_of_the_empirical_fisher(shape, shared):
    """A and G are the second moments of (a, 1) and delta; of positions each by itself, or taken together."""
    at, x, _ = chain(shape)
    factors = kronecker(shape)[shared]
    a, delta = np.asarray(x).reshape(N, -1, 3), np.asarray(at[2][0]).reshape(N, -1, 4)
    a = np.concatenate([a, np.ones((*a.shape[:2], 1))], 2)
    if shared == "reduce":
        a, delta = a.mean(1), delta.sum(1)
    a, delta = a.reshape(-1, 4), delta.reshape(-1, 4)
    assert_close((factors[0].A, factors[0].G), (a.T @ a / len(a), delta.T @ delta / N))
    assert factors[1].A.shape == (3, 5, 5) and factors[1].G.shape == (3, 4, 4)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlainFactor(Factor):
    """A factor that knows its gradient and nothing else."""

    a_in: Any
    delta: Any

    def weighted_sum(self, weights: Any = None) -> Affine:
        weights = jnp.full(self.delta.shape[0], 1 / self.delta.shape[0]) if weights is None else weights
        dW = jnp.einsum("n,n...o,n...i->oi", weights, self.delta, self.a_in)
        return Affine(dW, jnp.einsum("n,n...o->o", weights, self.delta))


class PlainDense(Dense):
    """A new family of layers, without a fast form."""

    def factor(self, saved: Any, delta: Any) -> PlainFactor:
        return PlainFactor(saved, delta)


def plain(net: Any) -> Any:
    """The same network of `PlainDense`."""
    if isinstance(net, mb.Serial):
        return mb.Serial(tuple(map(plain, net.nodes)))
    if isinstance(net, mb.Residual):
        return mb.Residual(plain(net.block))
    if isinstance(net, mb.Repeat | mb.Tied):
        return type(net)(plain(net.block), net.n)
    return PlainDense(net.d_in, net.d_out, net.activation)


def test_a_family_without_a_fast_form_gets_every_reading():
    """With positions, of which the general form must know nothing."""
    net, known = plain(NET), computed("2 positions")
    general = jax.jit(partial(readings, net))(known["step"].trace, known["step"].deltas)
    for name in general:
        assert_close(general[name], known[name])


def test_kronecker_factors_refuse_a_family_that_is_no_outer_product():
    net, *at = shapes()
    with pytest.raises(TypeError, match="outer product \\(Dense\\), got PlainFactor"):
        mb.kronecker_factors(plain(net), *at)
    trace, columns = at[0], jax.tree.map(lambda leaf: leaf[None], at[1])
    with pytest.raises(TypeError, match="outer product \\(Dense\\), got PlainFactor"):
        mb.kronecker_factors(plain(net), trace, columns, columns=True)


def test_readings_without_jit():
    net, rng = mb.Dense(3, 3, "tanh"), np.random.default_rng(6)
    trace = mb.forward(net, generic(net), problem((N,))[1])[1]
    at = (trace, jnp.asarray(rng.normal(size=(N, 3))))
    eager, compiled = readings(net, *at), jax.jit(partial(readings, net))(*at)
    for name in eager:
        assert_close(eager[name], compiled[name])


NARROW = ["float32", "bfloat16", "float16"]


@cache
def narrow_norms() -> dict[str, Any]:
    """Squared norms in every narrow format."""
    _, x, params = chain()

    @jax.jit
    def run(given: Any) -> Any:
        return {dtype: mb.squared_norms(CHAIN, *swept(*each)) for dtype, each in given.items()}

    return run({d: jax.tree.map(lambda leaf, d=d: np.asarray(leaf, jnp.dtype(d)), (params, x)) for d in NARROW})


@pytest.mark.parametrize("dtype", NARROW)
def test_readings_keep_the_dtype_and_sum_in_float32(dtype):
    _, *given = chain()
    x, params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), given)

    def narrow(params: Any, x: Any, weights: Any) -> Any:
        return readings(CHAIN, *swept(params, x), weights)

    found = jax.eval_shape(narrow, params, x, jax.ShapeDtypeStruct((N,), "float32"))
    for name, value in found.items():
        gradient = "gradient" in name or name == "clipped_weighted" or name == "weighted"
        expected = jnp.dtype(dtype) if gradient else jnp.dtype("float32")
        assert {leaf.dtype for leaf in jax.tree.leaves(value)} == {expected}, name
    right, norms = flat_norms(), np.asarray(narrow_norms()[dtype], np.float64)
    assert np.abs(norms / right - 1).max() < 30 * float(jnp.finfo(dtype).eps)


@cache
def flat_norms() -> np.ndarray:
    (_, *at), _, _ = chain()
    return np.asarray(jax.jit(partial(mb.squared_norms, CHAIN))(*at))


def test_private_noise_is_of_the_deviation_that_was_asked_for():
    noise, zero = (
        mb.training.private_noise(2.0, 1.5, jax.random.key(0)),
        {"W": np.zeros((200, 100)), "b": np.zeros(100)},
    )

    @jax.jit
    def run(zero: Any) -> tuple[Any, Any]:
        first, state = noise.update(zero, noise.init(zero))
        return first["W"], noise.update(zero, state)[0]["W"]

    with jax.numpy_dtype_promotion("standard"):  # optax divides a float by its integer count
        first, second = map(np.asarray, run(zero))
    assert abs(first.std() / 3.0 - 1) < 0.03
    assert abs(first.mean()) < 0.1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.04


def test_a_private_step_is_optaxs_without_its_vmap():
    """Clipped sum, noise, division by N: with noise 0, equal to optax's aggregate of per-example gradients."""
    (net, *at), _, params = chain()
    key = jax.random.key(3)
    ours = optax.chain(mb.training.private_noise(1.0, 0.0, key), optax.scale(1 / N))
    theirs = optax.contrib.differentially_private_aggregate(1.0, 0.0, key)

    @jax.jit
    def both(*at: Any) -> tuple[Any, Any]:
        update, _ = ours.update(mb.clipped_gradients(net, *at, 1.0), ours.init(params))
        return update, theirs.update(mb.per_example_gradients(net, *at), theirs.init(params))[0]

    with jax.numpy_dtype_promotion("standard"):
        assert_close(*both(*at))


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_a_clip_that_is_negative_or_nan_is_refused(bad):
    at = shapes()
    with pytest.raises(ValueError, match=f"max_norm must be >= 0, got {bad}"):
        mb.clipped_gradients(*at, bad)
    with pytest.raises(ValueError, match="max_norm must be >= 0"):
        mb.clipped_gradients(*at, jnp.asarray(bad))
    with pytest.raises(ValueError, match="max_norm must be finite and >= 0"):
        mb.training.private_noise(bad, 1.0, jax.random.key(0))
    with pytest.raises(ValueError, match="noise_multiplier must be finite and >= 0"):
        mb.training.private_noise(1.0, bad, jax.random.key(0))


def test_bad_input_says_what_is_wrong():
    net, trace, deltas = shapes()
    _, *one = shapes((1,))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        mb.noise_scale(net, *one)
    with pytest.raises(ValueError, match="delta is float64\\[1, 4\\] but z is float64\\[6, 4\\]"):
        mb.squared_norms(net, trace, one[1])
    with pytest.raises(ValueError, match="deltas has structure"):
        mb.gram(net, trace, deltas[:2])
    with pytest.raises(TypeError, match="the trace holds .*; readings take \\(net, trace, deltas\\)"):
        mb.gram(net, deltas, deltas)
    with pytest.raises(ValueError, match="weights are \\[5\\], expected \\[6\\]"):
        mb.second_moment(net, trace, deltas, weights=jnp.ones(5))
    with pytest.raises(ValueError, match="weights are \\[1\\], expected \\[6\\]"):
        mb.clipped_gradients(net, trace, deltas, 1.0, weights=jnp.ones(1))
    with pytest.raises(TypeError, match="weights are float32 but the deltas are float64"):
        mb.gradients(net, trace, deltas, weights=jnp.ones(6, "float32"))
    with pytest.raises(ValueError, match='shared must be "expand" or "reduce"'):
        mb.kronecker_factors(net, trace, deltas, shared="mean")
    with pytest.raises(ValueError, match="delta is float64\\[4\\] but z is float64\\[6, 4\\]"):  # no columns in front
        mb.kronecker_factors(mb.Serial(net.nodes[::2]), trace[::2], deltas[::2], columns=True)
    with pytest.raises(ValueError, match="deltas has structure"):
        mb.kronecker_factors(net, trace, jax.tree.map(lambda leaf: leaf[None], deltas[:2]), columns=True)
    with pytest.raises(TypeError, match="max_norm is float32, expected float64"):
        mb.clipped_gradients(net, trace, deltas, jnp.float32(1))
    with pytest.raises(ValueError, match="the other batch's deltas has structure"):
        mb.gram(net, trace, deltas, (trace[:2], deltas[:2]))


def test_a_traced_clip_that_is_negative_gives_nan():
    at = chain()[0]
    clipped = jax.jit(lambda bound: mb.clipped_gradients(*at, bound))(jnp.asarray(-1.0))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(clipped))


def test_what_is_no_network_and_no_number_is_refused(without_hook):
    net, trace, deltas = shapes()
    with pytest.raises(TypeError, match="got Objective for the network; its network is objective.net"):
        mb.squared_norms(mb.Objective(net, mb.squared_error), trace, deltas)
    for other in ((net, trace, deltas), trace):
        with pytest.raises(TypeError, match="must be the pair \\(trace, deltas\\) of a second batch"):
            mb.gram(net, trace, deltas, other)
    with pytest.raises(TypeError, match="max_norm must be a number, got str '1'"):
        mb.clipped_gradients(net, trace, deltas, "1")


def test_a_bound_that_is_no_scalar_is_refused(without_hook):
    with pytest.raises(ValueError, match="max_norm is \\[2\\], expected a scalar"):
        mb.clipped_gradients(*shapes(), jnp.ones(2))
