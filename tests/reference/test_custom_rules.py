"""check_vjp and check_jvp: right rules pass, JAX's own among them; each kind of wrong rule fails where it is wrong."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.checks.faults import CallFailed
from reference.checks.rule import check_jvp, check_vjp
from reference.report import Report

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4))
P = {"s": RNG.normal(size=4), "b": RNG.normal(size=4)}
Cotangents = Callable[..., Any]


def norm(x: Any, p: Any, i: Any) -> Any:
    """Layer normalisation with an integer argument and an integer output."""
    centred = x - x.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return {"top": jnp.argmax(y) + i, "y": y * p["s"][None] + p["b"][None]}


def norm_forward(x: Any, p: Any, i: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    r = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return norm(x, p, i), (centred * r, r, p["s"])


def norm_backward(saved: Any, cotangent: Any) -> Any:
    h, r, s = saved
    g = cotangent["y"]
    d = g * s[None]
    d_x = (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True)) * r
    return d_x, {"s": (g * h).sum(0), "b": g.sum(0)}, None


def with_rule(backward: Cotangents, forward: Any = norm_forward) -> Any:
    f = jax.custom_vjp(norm)
    f.defvjp(forward, backward)
    return f


def quickly(backward: Cotangents, **options: Any) -> Report:
    return check_vjp(with_rule(backward), X, P, 3, **{"transforms": ("eager",)} | options)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])  # float32 without x64, below
def test_a_right_rule_passes(dtype: str) -> None:
    report = check_vjp(with_rule(norm_backward), X, P, 3, dtype=dtype)
    assert report.passed, report.summary()
    (row,) = [row for row in report.rows if row.path == "x"]
    assert (row.shape, row.kind) == ((2, 5, 4), "end to end")
    assert {row.path for row in report.rows} >= {
        "primal['y']",
        "the rule's value of primal['y']",
        "under jit: x",
        "under vmap: p['s']",
        "linear in the cotangent: p['b']",
        "zero cotangent",
        "by one argument alone: x",
    }


def changed(number: int, key: str | None, how: Callable[[Any, Any], Any]) -> Cotangents:
    """The right backward rule with one of its cotangents passed through `how`, which is also given the saved values."""

    def backward(saved: Any, cotangent: Any) -> Any:
        result = list(norm_backward(saved, cotangent))
        if key is None:
            result[number] = how(result[number], cotangent)
        else:
            result[number] = result[number] | {key: how(result[number][key], cotangent)}
        return tuple(result)

    return backward


@pytest.mark.parametrize(
    ("backward", "first", "cause"),
    [
        (changed(0, None, lambda g, ct: g.at[4, 3].multiply(1 + 1e-9)), "x", ""),
        (changed(1, "s", lambda g, ct: jnp.flip(g)), "p['s']", ""),
        (changed(1, "b", lambda g, ct: None), "p['b']", "None for p['b'], which JAX takes for zero"),
        (changed(0, None, lambda g, ct: None), "x", "None for x, which JAX takes for zero"),
        (
            changed(0, None, lambda g, ct: g.astype("float32")),
            "type of x",
            "float32[5,4] but the argument is float64",
        ),
        (changed(1, "b", lambda g, ct: g[None]), "type of p['b']", "float64[1,4]"),
        (changed(1, None, lambda g, ct: (g["s"], g["b"])), "type of p", "structure"),
        (changed(2, None, lambda g, ct: jnp.ones((), int)), "type of i", "float0"),
        (lambda saved, ct: norm_backward(saved, ct)[:2], "bwd", "tuple of 3, one cotangent for each argument, got 2"),
        (lambda saved, ct: norm_backward(saved, ct["z"]), "bwd", "KeyError: 'z' at"),
    ],
)
def test_a_wrong_backward_rule_fails_where_it_is_wrong(backward: Cotangents, first: str, cause: str) -> None:
    report = quickly(backward)
    assert report.failures[0].path == first, report.summary()
    assert cause in report.failures[0].cause


def test_the_index_in_front_says_which_cotangent_or_point_it_is() -> None:
    report = check_vjp(with_rule(changed(0, None, lambda g, ct: g.at[4, 3].multiply(2.0))), X, P, 3)
    rows = {row.path: row for row in report.failures}
    row = rows["x"]
    assert row.where[1:] == (4, 3)
    assert f"x[4, 3] for cotangent {row.where[0]} is " in report.summary()
    assert f"4,3 for cotangent {row.where[0]} " in str(report)
    assert "x[4, 3] for cotangent " in rows["under jit: x"].explain()
    assert "x[4, 3] at point " in rows["under vmap: x"].explain()
    assert "x[4, 3] is " in rows["by one argument alone: x"].explain()
    shear = product(
        lambda primals, tangents: (product_rule(primals, tangents)[0], {"o": tangents[0], "q": tangents[1][0]})
    )
    assert re.search(r"tangent of primal\['o'\]\[[0-3]\] for tangent [01] is ", shear.summary())


@pytest.mark.parametrize("check", [check_vjp, check_jvp])
def test_transforms_are_names(check: Any) -> None:
    f = with_rule(norm_backward) if check is check_vjp else jax.nn.relu
    args = (X, P, 3) if check is check_vjp else (X,)
    for bad in ("pmap", ("eager", "pmap"), ()):
        with pytest.raises(ValueError, match="transforms are some of eager, jit, vmap, got"):
            check(f, *args, transforms=bad)
    report = check(f, *args, transforms="eager")
    assert report.passed
    assert not any(row.path.startswith("under ") for row in report.rows)


def test_a_constant_breaks_zero_to_zero_and_an_absolute_value_breaks_linearity() -> None:
    constant = [row.path for row in quickly(changed(1, "b", lambda g, ct: g + 1e-8)).failures]
    assert {"zero cotangent", "linear in the cotangent: p['b']"} <= {*constant}
    bent = [row.path for row in quickly(changed(1, "b", lambda g, ct: jnp.abs(g))).failures]
    assert "linear in the cotangent: p['b']" in bent and "zero cotangent" not in bent
    assert constant[0] == bent[0] == "p['b']"


def test_a_wrong_forward_rule() -> None:
    def offset(x: Any, p: Any, i: Any) -> Any:
        out, saved = norm_forward(x, p, i)
        return out | {"y": out["y"] * (1 + 1e-9)}, saved

    report = check_vjp(with_rule(norm_backward, offset), X, P, 3, transforms=("eager",))
    assert [row.path for row in report.failures] == ["the rule's value of primal['y']"]
    lone = check_vjp(with_rule(norm_backward, lambda x, p, i: norm(x, p, i)["y"]), X, P, 3, transforms=("eager",))
    assert lone.failures[0].path == "fwd" and "(output, residuals)" in lone.failures[0].cause
    broken = check_vjp(with_rule(norm_backward, lambda x, p, i: x["no"]), X, P, 3, transforms=("eager",))
    assert broken.failures[0].path == "fwd"


def test_a_none_that_is_truly_zero_is_a_note() -> None:
    f = jax.custom_vjp(lambda x, y: x * jax.lax.stop_gradient(y))
    f.defvjp(lambda x, y: (x * y, y), lambda y, g: (g * y, None))
    report = check_vjp(f, 2.0, 3.0, transforms=("eager",))
    assert report.passed
    assert "bwd returns None for y; its cotangent is zero here, as None says" in report.notes


def test_a_rule_that_differs_only_under_a_transformation() -> None:
    def traced(saved: Any, cotangent: Any) -> Any:
        right = norm_backward(saved, cotangent)
        return (right[0] * 2, *right[1:]) if isinstance(cotangent["y"], jax.core.Tracer) else right

    report = check_vjp(with_rule(traced), X, P, 3, transforms=("eager", "jit"))
    failed = {row.path for row in report.failures}
    assert "under jit: x" in failed and "x" not in failed

    def refuses(saved: Any, cotangent: Any) -> Any:
        return norm_backward(saved, {"y": cotangent["y"] * float(np.asarray(cotangent["y"]).shape[0] / 5)})

    raised = check_vjp(with_rule(refuses), X, P, 3)  # eager, where it does not fail, is among the ways
    assert {row.path for row in raised.failures} == {"under jit", "under vmap"}
    assert "TracerArrayConversionError" in raised.failures[0].cause


def test_static_arguments_that_the_rule_declares_are_left_alone() -> None:
    @partial(jax.custom_vjp, nondiff_argnums=(0, 2))
    def power(f: Any, x: Any, n: int) -> Any:
        return f(x) ** n

    power.defvjp(
        lambda f, x, n: (f(x) ** n, x), lambda f, n, x, g: (g * n * f(x) ** (n - 1) * (jnp.cos(x) if n % 2 else 0 * x),)
    )
    assert check_vjp(power, jnp.sin, X[0], 3).passed
    assert check_vjp(power, jnp.sin, X[0], 4, transforms=("eager",)).failures[0].path == "x"
    with pytest.raises(ValueError, match="static"):
        check_vjp(power, jnp.sin, X[0], 3, argnums=(1, 2))


def test_symbolic_zeros_are_met_one_argument_at_a_time() -> None:
    def make(fault: float) -> Any:
        f = jax.custom_vjp(lambda x, y: x * jnp.sin(y))

        def forward(x: Any, y: Any) -> Any:
            scale = 1.0 if x.perturbed and y.perturbed else fault
            return x.value * jnp.sin(y.value), (x.value, y.value, scale)

        def backward(saved: Any, g: Any) -> Any:
            x, y, scale = saved
            return g * jnp.sin(y) * scale, g * x * jnp.cos(y)

        f.defvjp(forward, backward, symbolic_zeros=True)
        return f

    assert check_vjp(make(1.0), X[0], X[1]).passed
    wrong = check_vjp(make(2.0), X[0], X[1], transforms=("eager",))
    assert [row.path for row in wrong.failures] == ["by one argument alone: x"]


def test_the_plain_function_is_given_where_jax_cannot_pull_back_through_it() -> None:
    @jax.jit
    def root(x: Any) -> Any:
        return jax.lax.while_loop(lambda r: jnp.any(jnp.abs(r * r - x) > 1e-14 * x), lambda r: (r + x / r) / 2, x)

    f = jax.custom_vjp(root)
    f.defvjp(lambda x: (root(x), root(x)), lambda r, g: (g / (2 * r),))
    x = np.array([2.0, 3.0])
    asked = check_vjp(f, x, transforms=("eager",))
    assert asked.passed and "held against the slopes of its values" in asked.notes[0]
    assert check_vjp(lambda x: f(x), x, raw=jnp.sqrt, transforms=("eager", "vmap")).passed
    assert check_vjp(f, x, raw=lambda x: x**0.5 * 1.01, transforms=("eager",)).failures[0].path == "primal"


def test_a_given_cotangent_is_the_one_pulled_back() -> None:
    ones = {"y": np.ones((5, 4)), "top": None}
    blind = changed(0, None, lambda g, ct: g + jnp.mean(ct["y"] - 1))
    report = quickly(blind, cotangents=ones)
    assert not [row for row in report.failures if row.path == "x"]
    assert quickly(blind).failures[0].path == "x"
    assert next(row for row in report.rows if row.path == "x").shape == (1, 5, 4)


def test_jax_and_its_own_rules_pass() -> None:
    """And relu's, above."""
    report = check_jvp(jax.scipy.special.xlogy, np.abs(X), np.abs(X) + 1)
    assert report.passed, report.summary()


def product(rule: Callable[..., Any], **options: Any) -> Report:
    f = jax.custom_jvp(lambda x, y: {"o": jnp.sin(x) * y, "q": jnp.sum(x**2)})
    f.defjvp(rule)
    return check_jvp(f, X[0], X[1], **{"transforms": ("eager",)} | options)


def product_rule(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    out = {"o": jnp.sin(x) * y, "q": jnp.sum(x**2)}
    return out, {"o": jnp.cos(x) * y * dx + jnp.sin(x) * dy, "q": 2 * jnp.sum(x * dx)}


def test_a_right_pushforward_passes() -> None:
    report = product(product_rule, dtype="float32", transforms=("eager", "jit", "vmap"))
    assert report.passed, report.summary()
    assert {row.path for row in report.rows} >= {
        "tangent of primal['o']",
        "transposed: y",
        "<u, J v> = <J^T u, v>",
        "zero tangent",
        "sum over arguments: tangent of primal['q']",
        "under vmap: tangent of primal['o']",
    }
    along = product(product_rule, tangents=(np.ones(4), np.zeros(4)))
    (row,) = [row for row in along.rows if row.path == "tangent of primal['o']"]
    assert along.passed and row.shape == (1, 4)


@pytest.mark.parametrize(
    ("spoil", "failing"),
    [
        (lambda out, t, dx: (out, t | {"o": t["o"] * (1 + 1e-9)}), "tangent of primal['o']"),
        (lambda out, t, dx: (out | {"q": out["q"] + 1}, t), "the rule's value of primal['q']"),
        (lambda out, t, dx: (out, t | {"q": jnp.abs(t["q"])}), "linear in the tangent: tangent of primal['q']"),
        (lambda out, t, dx: (out, t | {"q": t["q"] + 1e-8}), "zero tangent"),
        (lambda out, t, dx: (out, t | {"q": t["q"] * jnp.sum(dx * dx) / jnp.sum(dx * dx)}), "transpose"),
    ],
)
def test_a_wrong_pushforward_fails_where_it_is_wrong(spoil: Callable[..., Any], failing: str) -> None:
    report = product(lambda primals, tangents: spoil(*product_rule(primals, tangents), tangents[0]))
    assert failing in [row.path for row in report.failures], report.summary()


def test_a_plain_function_without_a_transpose_is_still_held_against_the_pushforward() -> None:
    @jax.jit
    def doubled(x: Any) -> Any:
        return jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]

    f = jax.custom_jvp(doubled)
    f.defjvp(lambda p, t: (2 * p[0], 2 * t[0]))
    report = check_jvp(f, X[0], transforms=("eager",))
    assert report.passed, report.summary()
    assert any("held against J alone" in note for note in report.notes)


def integers(x: Any) -> Any:
    return jnp.argmax(x)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: check_vjp(norm, X, P, 3), TypeError, "norm is not a jax.custom_vjp: use check_gradient"),
        (lambda: check_vjp(jax.nn.relu, X), TypeError, "use check_jvp"),
        (lambda: check_jvp(with_rule(norm_backward), X, P, 3), TypeError, "use check_vjp"),
        (lambda: check_vjp(jax.custom_vjp(norm), X, P, 3), TypeError, "not defined yet"),
        (lambda: check_jvp(jax.custom_jvp(norm), X, P, 3), TypeError, "not defined yet"),
        (lambda: check_vjp(with_rule(norm_backward), X, P), CallFailed, "missing 1 required positional argument"),
        (lambda: check_vjp(with_rule(norm_backward), np.arange(3)), TypeError, "no float leaf"),
        (lambda: quickly(norm_backward, cotangents=np.ones(4)), ValueError, "must have the structure of f's output"),
        (lambda: quickly(norm_backward, cotangents={"top": None, "y": np.ones(4)}), ValueError, "float64[5,4]"),
        (
            lambda: quickly(norm_backward, cotangents={"top": None, "y": np.ones((5, 4), "float32")}),
            ValueError,
            "cotangents['y'] must be float64[5,4] as f's output is, got float32[5,4]",
        ),
        (
            lambda: product(product_rule, tangents=(np.ones(4),)),
            ValueError,
            "structure of the differentiated arguments",
        ),
        (lambda: check_vjp(lambda x: x, X, raw=integers), TypeError, "returns no float to differentiate: int64[]"),
        (lambda: check_vjp(lambda x: x, -1.0, raw=jnp.log), ValueError, "is nan in primal"),
        (lambda: check_vjp(lambda x: x, 0.0, raw=jnp.sqrt), ValueError, "the reference is"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_words(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def test_another_primal_than_the_plain_functions() -> None:
    report = check_vjp(lambda x: (x, 1), X[0], raw=lambda x: (x, 2), transforms=("eager",))
    assert [row.path for row in report.failures] == ["type of primal"]
    assert "not a float differs" in report.failures[0].cause
    report = check_vjp(lambda x: [x], X[0], raw=lambda x: (x,), transforms=("eager",))
    assert report.failures[0].path == "type of primal"


def test_without_x64_a_rule_runs_in_the_users_precision() -> None:
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: leaf.astype("float32"), (X, P))
        report = check_vjp(with_rule(norm_backward), *single, 3, transforms="eager")
        assert report.passed and report.dtype == "float32"


def test_a_rule_with_a_state_and_one_that_needs_all_outputs_at_once() -> None:
    calls: list[int] = []

    def backward(saved: Any, cotangent: Any) -> Any:
        calls.append(1)
        right = norm_backward(saved, cotangent)
        return right[0] * (1 + 1e-15 * len(calls)), *right[1:]

    assert "second call the same" in [row.path for row in quickly(backward).failures]

    f = jax.custom_vjp(lambda x: (jnp.sin(x), jnp.cos(x)))
    f.defvjp(
        lambda x: ((jnp.sin(x), jnp.cos(x)), x),
        lambda x, g: (jnp.where(jnp.any(g[0] != 0), g[0] * jnp.cos(x) - g[1] * jnp.sin(x), 0 * x),),
    )
    report = check_vjp(f, X[0], transforms=("eager",))
    assert [row.path for row in report.failures] == ["sum over outputs: x"]


def test_a_rule_is_called_before_anything_traces_it() -> None:
    """What it makes on its first call and keeps are then numbers: kept by a trace, they would be of no use outside."""
    kept: list[jax.Array] = []

    def backward(x: Any, g: Any) -> Any:
        if not kept:
            kept.append(jnp.arange(1, 5, dtype=x.dtype))
        return (g * kept[0],)

    def plain(x: Any) -> Any:
        return x * jnp.arange(1, 5, dtype=x.dtype)

    f = jax.custom_vjp(plain)
    f.defvjp(lambda x: (plain(x), x), backward)
    assert check_vjp(f, X[0]).passed

    kept.clear()
    _, pull = jax.vjp(jax.jit(f), X[0])  # the control
    pull(X[0])
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.vjp(f, X[0])[1](X[0])


def scaled(x: Any, gain: Any, bias: Any) -> Any:
    return jnp.tanh(x) * gain + bias


def backward_of_scaled(saved: Any, g: Any, gain: Any = None) -> Any:
    x, own = saved
    return g * (own if gain is None else gain) * (1 - jnp.tanh(x) ** 2), g * jnp.tanh(x), g


def test_exchanged_cotangents_are_named() -> None:
    def exchanged(saved: Any, g: Any) -> Any:
        d_x, d_gain, d_bias = backward_of_scaled(saved, g)
        return d_x, d_bias, d_gain

    f = jax.custom_vjp(scaled)
    f.defvjp(lambda x, gain, bias: (scaled(x, gain, bias), (x, gain)), exchanged)
    report = check_vjp(f, X[0], X[1], X[2], transforms="eager")
    causes = {row.path: row.cause for row in report.failures}
    assert causes["gain"] == "it is the cotangent of bias: two are exchanged, or one is returned for both"
    assert causes["bias"].startswith("it is the cotangent of gain")
    assert "x" not in causes


def test_a_factor_of_one_shows_at_a_second_point_without_vmap() -> None:
    f = jax.custom_vjp(scaled)
    f.defvjp(lambda *args: (scaled(*args), args[:2]), partial(backward_of_scaled, gain=1.0))
    report = check_vjp(f, X[0], np.ones(4), X[2], transforms="eager")
    assert [row.path for row in report.failures] == ["at a second point: x"]
    assert "at a second point: x" not in [row.path for row in check_vjp(f, X[0], np.ones(4), X[2]).rows]  # vmap has it


def test_the_call_to_see_it_again_has_every_option() -> None:
    f = jax.custom_vjp(scaled)
    f.defvjp(lambda *args: (scaled(*args), args[:2]), lambda saved, g: backward_of_scaled(saved, 2 * g))
    report = check_vjp(f, X[0], X[1], X[2], raw=scaled, argnums=0, transforms=("eager", "jit"), dtype="float32")
    call = (
        "check_vjp(scaled, x, gain, bias, argnums=0, raw=scaled, transforms=('eager', 'jit'), dtype='float32', seed=0)"
    )
    assert report.reproduce == call


def test_what_jax_cannot_batch_either_is_a_note_and_no_fault() -> None:
    """ragged_dot has batching for its rows alone; a rule that alone cannot be batched fails."""
    sizes = jnp.asarray([1, 2])
    a, b = np.ones((3, 2), "float32") * np.arange(3, dtype="float32")[:, None], np.ones((2, 2, 2), "float32")

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(a, b, sizes)

    report = check_vjp(product, a, b, raw=product, dtype="float32")
    assert report.passed, report.summary()
    assert any(note.startswith("under vmap: left out, since JAX cannot batch the plain fun") for note in report.notes)

    def double(x: jax.Array) -> jax.Array:
        return 2 * x

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (2 * jax.lax.ragged_dot(g, jnp.eye(2, dtype=g.dtype)[None], jnp.asarray([len(g)])),)

    rule = jax.custom_vjp(double)
    rule.defvjp(lambda x: (double(x), None), backward)
    report = check_vjp(rule, a, dtype="float32")
    assert [row.path for row in report.failures] == ["under vmap"]
