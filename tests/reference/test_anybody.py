"""check_gradient: right gradients pass in every dtype and tree, and each planted fault is named where it is."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reference.checks.faults import CallFailed
from reference.checks.gradient import check_gradient, nearby
from reference.report import GradientMismatch, Report

RNG = np.random.default_rng(0)
PARAMS = {"W": RNG.normal(size=(4, 3)), "b": RNG.normal(size=3)}
X = RNG.normal(size=(5, 4))


def loss(params: Any, x: Any) -> Any:
    return jnp.mean(jnp.square(jnp.tanh(x @ params["W"] + params["b"][None])))


def gradient(params: Any, x: Any) -> Any:
    a = jnp.tanh(x @ params["W"] + params["b"][None])
    d = (2 * a * (1 - a * a) / a.size).astype(a.dtype)
    return {"W": x.T @ d, "b": d.sum(0)}


def in_numpy(params: Any, x: Any) -> Any:
    a = np.tanh(x @ params["W"] + params["b"][None])
    d = 2 * a * (1 - a * a) / a.size
    return {"W": x.T @ d, "b": d.sum(0)}


def paths(report: Report) -> list[str]:
    return [row.path for row in report.rows]


@pytest.mark.parametrize(
    ("dtype", "transforms"),
    [
        ("float64", ("eager",)),
        ("float32", ("eager", "jit", "vmap")),
        ("bfloat16", ("eager", "vmap")),
        ("float16", ("eager", "jit")),
    ],
)
def test_a_right_gradient_passes_in_every_precision_and_in_every_way_it_is_called(
    dtype: str, transforms: tuple[str, ...]
) -> None:
    report = check_gradient(loss, gradient, PARAMS, X, dtype=dtype, transforms=transforms)
    assert report.passed, report.summary()
    assert report.dtype == dtype
    for prefix in ("", *(f"under {name}: " for name in transforms if name != "eager")):
        assert {f"{prefix}params['W']", f"{prefix}params['b']"} <= set(paths(report))
    if "vmap" in transforms:
        (row,) = [row for row in report.rows if row.path == "under vmap: params['W']"]
        assert row.shape == (2, 4, 3)


def test_one_element_wrong_by_one_part_in_ten_thousand_is_found_in_float32() -> None:
    def almost(params: Any, x: Any) -> Any:
        right = gradient(params, x)
        return right | {"W": right["W"].at[2, 1].multiply(1.0001)}

    report = check_gradient(loss, almost, PARAMS, X, dtype="float32", transforms="eager")
    assert report.failures[0].path == "params['W']"
    assert report.failures[0].where == (2, 1)
    with pytest.raises(GradientMismatch, match=r"params\['W'\]\[2, 1\]"):
        report.raise_if_failed()


def test_the_values_it_prints_are_those_of_a_closed_form() -> None:
    tripled = lambda x: 3 * x**2 * np.array([1.0, 1.0, 2.0])  # noqa: E731
    report = check_gradient(lambda x: jnp.sum(x**3), tripled, np.arange(1.0, 4.0), transforms="eager")
    row = report.failures[0]
    assert (row.where, row.manual, row.reference) == ((2,), 54.0, 27.0)


def test_numpy_code_passes_with_a_note_that_jit_was_not_tried() -> None:
    report = check_gradient(loss, in_numpy, PARAMS, X)
    assert report.passed
    assert any("not checked under jit" in note and "TracerArrayConversionError" in note for note in report.notes)
    asked = check_gradient(loss, in_numpy, PARAMS, X, transforms=("eager", "jit"))
    assert [row.path for row in asked.failures] == ["under jit"]


def test_a_fault_at_one_of_two_points_says_which() -> None:
    def wrong_at(params: Any, x: Any) -> Any:
        right = gradient(params, x)
        return right | {"b": jnp.where(params["b"] == PARAMS["b"], right["b"], 2 * right["b"])}

    report = check_gradient(loss, wrong_at, PARAMS, X, transforms="vmap")
    (row,) = report.failures
    assert (row.path, row.where[0]) == ("under vmap: params['b']", 1)
    assert f"params['b'][{row.where[1]}] at point 1 is " in report.summary()


def test_a_fault_that_only_jit_shows_fails_only_there() -> None:
    def wrong_when_traced(params: Any, x: Any) -> Any:
        right = gradient(params, x)
        return jax.tree.map(jnp.negative, right) if isinstance(x, jax.core.Tracer) else right

    report = check_gradient(loss, wrong_when_traced, PARAMS, X, transforms=("eager", "jit"))
    assert {row.path for row in report.failures} == {"under jit: params['W']", "under jit: params['b']"}


def test_several_arguments_and_the_value() -> None:
    def dot(x: Any, n: int, y: Any) -> Any:
        return jnp.sum(x**n * y)

    def by_hand(x: Any, n: int, y: Any) -> Any:
        return dot(x, n, y), (x**n, n * x ** (n - 1) * y)

    args = (X[0], 3, X[1])
    report = check_gradient(dot, by_hand, *args, argnums=(2, 0), value=True)
    assert report.passed, report.summary()
    assert paths(report)[:3] == ["value", "x", "y"]
    wrong = check_gradient(dot, lambda *a: (2 * dot(*a), by_hand(*a)[1]), *args, argnums=(2, 0), value=True)
    assert {row.path for row in wrong.failures} == {"value", "under jit: value"}


def test_an_equinox_model_with_functions_and_static_fields_among_its_leaves() -> None:
    model = eqx.nn.MLP(4, 2, 5, 1, activation=jnp.tanh, key=jax.random.key(0))

    def square(model: Any, x: Any) -> Any:
        return jnp.sum(jax.vmap(model)(x) ** 2)

    def forward_mode(model: Any, x: Any) -> Any:
        """By jax.jacfwd of the arrays alone: not how the check differentiates."""
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        return jax.jit(jax.jacfwd(lambda arrays: square(eqx.combine(arrays, rest), x)))(arrays)

    report = check_gradient(square, forward_mode, model, X, dtype="float32", transforms=("eager", "vmap"))
    assert report.passed, report.summary()
    assert "model.layers[1].bias" in paths(report)
    halved = check_gradient(
        *(square, lambda m, x: jax.tree.map(lambda g: g / 2, forward_mode(m, x)), model, X),
        dtype="float32",
        transforms=["eager"],
    )
    assert halved.failures[0].path == "model.layers[0].weight"


def test_a_flax_state() -> None:
    graph, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))

    def square(state: Any, x: Any) -> Any:
        return jnp.sum(nnx.merge(graph, state)(x) ** 2)

    def by_hand(state: Any, x: Any) -> Any:
        d = 2 * nnx.merge(graph, state)(x)
        kernel, bias = x.T @ d, d.sum(0)
        return jax.tree.map(lambda leaf: kernel if leaf.ndim == 2 else bias, state)

    report = check_gradient(square, by_hand, state, X.astype("float32"), transforms=("eager", "jit"))
    assert report.passed, report.summary()
    assert sum(row.kind == "end to end" for row in report.rows) == 2


def test_a_large_leaf_is_projected_and_the_report_says_what_that_misses() -> None:
    x = RNG.normal(size=600)
    report = check_gradient(
        lambda x, y: jnp.sum(jnp.sin(x)) * y,
        lambda x, y: (y * jnp.cos(x), jnp.sin(x).sum()),
        x,
        2.0,
        argnums=(0, 1),
        max_elements=100,
        transforms="eager",
    )
    assert report.passed, report.summary()
    assert paths(report)[:2] == ["x projected", "y"]
    assert report.rows[0].shape == (4,)
    assert any("x: too large" in note and "miss" in note for note in report.notes)
    one_zero = check_gradient(
        lambda x: jnp.sum(jnp.sin(x)), lambda x: jnp.cos(x).at[77].set(0.0), x, max_elements=100, transforms="eager"
    )
    assert one_zero.failures[0].path == "x projected"


def test_state_and_mutation_are_seen_and_the_callers_arrays_stay() -> None:
    calls: list[int] = []

    def counting(params: Any, x: Any) -> Any:
        calls.append(1)
        return jax.tree.map(lambda g: g * (1 + 1e-17 * len(calls) + 1e-9 * (len(calls) > 1)), gradient(params, x))

    report = check_gradient(loss, counting, PARAMS, X, transforms=("eager",))
    assert [row.path for row in report.failures] == ["second call the same"]
    assert "second call" in report.failures[0].cause

    def writing(params: Any, x: Any) -> Any:
        result = in_numpy(params, x)
        x[0, 0] = 7.0
        params["W"] *= 0
        return result

    before = (X.copy(), PARAMS["W"].copy())
    report = check_gradient(loss, writing, PARAMS, X, transforms=("eager",))
    assert [row.path for row in report.failures] == ["arguments unchanged"]
    assert "params['W'], x" in report.failures[0].cause
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(PARAMS["W"], before[1])

    def popping(params: Any, x: Any) -> Any:
        result = in_numpy(params, x)
        params.pop("b")
        return result

    report = check_gradient(loss, popping, PARAMS, X, transforms=("eager",))
    assert "containers" in report.failures[0].cause
    assert set(PARAMS) == {"W", "b"}


def test_a_gradient_of_another_type_or_shape_fails_and_nothing_broadcasts() -> None:
    def other(params: Any, x: Any) -> Any:
        right = gradient(params, x)
        return {"W": right["W"], "b": right["b"][None]}

    report = check_gradient(loss, other, PARAMS, X, transforms="eager")
    assert [row.path for row in report.failures] == ["type of params['b']"]
    assert "float64[1,3] but the argument is float64[3]" in report.failures[0].cause
    in_float64 = lambda p, x: jax.tree.map(lambda g: np.asarray(g, "float64"), in_numpy(p, x))  # noqa: E731
    wide = check_gradient(loss, in_float64, PARAMS, X, dtype="float32", transforms="eager")
    assert {row.path for row in wide.failures} == {"type of params['W']", "type of params['b']"}


def test_a_gradient_that_is_nan_names_the_operation() -> None:
    report = check_gradient(
        lambda x: jnp.sum(x * x),
        lambda x: 2 * x * jnp.sqrt(x) / jnp.sqrt(x),
        np.array([1.0, -1.0]),
        transforms="eager",
    )
    assert report.failures[0].where == (1,)
    assert "sqrt at" in report.failures[0].cause
    assert "test_anybody.py" in report.failures[0].cause


def test_weak_points_are_noted() -> None:
    args = (np.zeros(2), np.ones(2), np.zeros((0, 3)))
    report = check_gradient(
        lambda a, b, c: jnp.sum(a * b) + 3 * jnp.sum(jnp.sin(a)) + jnp.sum(c),
        lambda a, b, c: (b + 3 * jnp.cos(a), a, jnp.zeros_like(c)),
        *args,
        argnums=(0, 1, 2),
        transforms="eager",
    )
    assert [row.path for row in report.inconclusive] == ["b"]  # zero since a is, so 2 a would pass for a
    assert "zero at this point and not beside it" in report.summary()
    assert "c is empty" in report.notes[0]
    assert "a is all zeros" in report.notes[1]


def test_mixed_precisions_are_held_to_the_narrowest_and_that_is_said() -> None:
    params = {"W": PARAMS["W"].astype("float32"), "b": PARAMS["b"]}

    def mixed(params: Any, x: Any) -> Any:
        return loss(params | {"b": params["b"].astype("float32")} if params["W"].dtype == np.float32 else params, x)

    def by_hand(params: Any, x: Any) -> Any:
        right = gradient(params | {"b": params["b"].astype("float32")}, x)
        return right | {"b": right["b"].astype("float64")}

    report = check_gradient(mixed, by_hand, params, X.astype("float32"))
    assert report.passed, report.summary()
    assert report.dtype == "float32"
    assert any("several dtypes" in note for note in report.notes)


def test_data_of_a_narrower_precision_is_read_in_it() -> None:
    """A right gradient that adds up float32 data is not held to float64, though what it is by is float64."""
    rng = np.random.default_rng(0)
    A, x = jnp.asarray(rng.normal(size=(4, 4)), "float32"), rng.normal(size=4)
    report = check_gradient(
        lambda x, A: 0.5 * x @ A.astype("float64") @ x,
        lambda x, A: (0.5 * (A + A.T)).astype(x.dtype) @ x,
        x,
        A,
        transforms="eager",
    )
    assert report.passed, report.summary()
    assert report.dtype == "float32"
    assert any("several dtypes" in note for note in report.notes)


def test_it_works_for_a_user_without_x64_and_says_what_it_was_run_in() -> None:
    with jax.enable_x64(False):
        assert check_gradient(loss, gradient, PARAMS, X, transforms="eager").dtype == "float64"
        single = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), (PARAMS, X))
        seen: list[Any] = []

        def watching(params: Any, x: Any) -> Any:
            seen.append(jnp.zeros(1).dtype)
            return gradient(params, x)

        report = check_gradient(loss, watching, *single, dtype="float32", transforms="eager")
        assert report.passed and report.dtype == "float32"
        assert set(seen) == {np.dtype("float32")}  # the user's own setting while the user's code runs
        assert check_gradient(loss, watching, *single, transforms="jit").passed
        assert set(seen) == {np.dtype("float32"), np.dtype("float64")}  # and once more in float64


@pytest.mark.parametrize("fault", [1.0, 0.97])
def test_witnesses_agree_with_the_gradient_or_against_it(fault: float) -> None:
    report = check_gradient(
        lambda x: jnp.sum(jnp.sin(x) * x),
        lambda x: fault * jnp.cos(x) * x + jnp.sin(x),
        X[0],
        witnesses="all",
        transforms="eager",
    )
    rows = {row.witness: row.verdict for row in report.rows if row.kind == "witness"}
    assert rows == dict.fromkeys(("forward mode", "complex step", "differences"), "pass" if fault == 1 else "fail")
    assert report.reproduce.endswith("seed=0, transforms=('eager',), witnesses='all')")
    says = "agree" if fault == 1 else "x: manual stands alone"
    assert any(says in note for note in report.notes)


def test_a_rule_inside_fun_that_deceives_jax_grad_is_found_by_the_witnesses() -> None:
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (1.01 * jnp.cos(x) * g,))
    options: dict[str, Any] = {
        "transforms": ("eager",),
        "dtype": "float32",
        "witnesses": ["forward mode", "differences"],
    }
    report = check_gradient(lambda x: jnp.sum(sine(x)), jnp.cos, X[0], **options)
    assert report.passed, report.summary()
    assert any("x: jax.grad stands alone" in note for note in report.notes)
    assert any("is the odd one out" in note for note in report.notes)  # the values alone say so too


def test_witnesses_of_a_large_gradient_take_slopes() -> None:
    x = RNG.normal(size=2100)
    for by_hand, verdict in ((jnp.cos, "pass"), (lambda x: jnp.cos(x).at[99].set(0.0), "fail")):
        report = check_gradient(
            lambda x: jnp.sum(jnp.sin(x)), by_hand, x, witnesses=["forward mode"], transforms="eager"
        )
        (row,) = [row for row in report.rows if row.kind == "witness"]
        assert (row.path, row.verdict) == ("slopes along seeded directions", verdict)


def test_a_witness_that_cannot_answer_is_noted() -> None:
    report = check_gradient(lambda x: jnp.sum(jnp.abs(x)), jnp.sign, X[0], witnesses=["complex step"])
    assert report.passed
    assert any(note.startswith("complex step: not analytic: abs") for note in report.notes)


def test_a_nearby_point_is_nearer_to_zero_by_2_percent_at_most() -> None:
    leaf = np.array([-2.0, 0.0, 1.0])
    (close,) = nearby([leaf], seed=3)
    assert np.all(np.abs(close) >= 0.98 * np.abs(leaf))
    assert np.all(np.sign(close) == np.sign(leaf)) and np.all(np.abs(close) <= np.abs(leaf)) and np.any(close != leaf)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: check_gradient(lambda p, x: x @ p["W"], gradient, PARAMS, X),
            TypeError,
            "one number, got float64[5,3]",
        ),
        (lambda: check_gradient(lambda p, x: (loss(p, x), 1), gradient, PARAMS, X), TypeError, "check_vjp"),
        (lambda: check_gradient(lambda p, x: jnp.int32(1), gradient, PARAMS, X), TypeError, "float to be differ"),
        (
            lambda: check_gradient(loss, lambda p, x: p["W"], PARAMS, X),
            ValueError,
            "missing params['W'], params['b']",
        ),
        (
            lambda: check_gradient(loss, lambda p, x: {"W": p["W"], "b": None}, PARAMS, X),
            ValueError,
            "missing params['b']",
        ),
        (lambda: check_gradient(loss, gradient, PARAMS, X, argnums=2), ValueError, "there are 2 arguments"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, argnums=(0, -2)), ValueError, "twice"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, argnums=()), TypeError, "integer or a sequence"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, argnums=(0, 1)), ValueError, "tuple of as many gradients"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, transforms=("pmap",)), ValueError, "eager, jit, vmap"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, transforms="pmap"), ValueError, "vmap, got 'pmap'"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, dtype="int32"), ValueError, "floating-point type"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, value=True), ValueError, "(value, gradient), got dict"),
        (lambda: check_gradient(loss, gradient, PARAMS, X, witnesses="luck"), ValueError, "'luck'"),
        (lambda: check_gradient(jnp.sum, jnp.ones_like, np.arange(3)), TypeError, "no float leaf"),
        (lambda: check_gradient(jnp.sum, jnp.ones_like, np.ones(3, complex)), TypeError, "complex"),
        (lambda: check_gradient(lambda x: jnp.log(-x), jnp.ones_like, 1.0), ValueError, "first made by log at"),
        (
            lambda: check_gradient(lambda x: jnp.sqrt(x), jnp.ones_like, 0.0),
            ValueError,
            "x (1 of 1 entries are not finite); first made by div at",
        ),
        (lambda: check_gradient(lambda x: x[9], jnp.ones_like, 0.5), CallFailed, "called on x: float64[]"),
        (lambda: check_gradient(jnp.sin, lambda x: {}["no"], 0.5), CallFailed, "KeyError: 'no' at"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_words(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)
    if error is CallFailed:
        assert caught.value.__cause__ is not None


def test_a_function_in_numpy_is_asked_for_its_values() -> None:
    def value(params: Any, x: Any) -> Any:
        return np.mean(np.square(np.tanh(np.asarray(x) @ np.asarray(params["W"]) + np.asarray(params["b"])[None])))

    right = check_gradient(value, in_numpy, PARAMS, X)
    assert right.passed, right.summary()
    assert any(note.startswith("JAX cannot differentiate fun") for note in right.notes)
    wrong = check_gradient(value, lambda p, x: jax.tree.map(lambda g: 1.001 * g, in_numpy(p, x)), PARAMS, X)
    assert [row.path for row in wrong.failures] == ["params['W']", "params['b']"]


def test_arguments_that_are_all_ones_are_noted_unless_there_is_a_second_point() -> None:
    at = np.ones(3)
    cube, square = lambda v: jnp.sum(v**3), lambda v: 3 * v  # a factor of v is forgotten
    report = check_gradient(cube, square, at)
    assert report.passed
    assert "v is all ones: a factor of it too many or too few cannot show; check with other values" in report.notes
    assert check_gradient(cube, square, at, transforms=("eager", "vmap")).verdict == "fail"
