"""Kinks: found where they are, named by their line, crossed or stood upon, and the declared slope alone accepted."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manual_backprop import activations
from reference.witnesses.derivatives import forward_mode
from reference.witnesses.differences import finite_differences, one_sided
from reference.witnesses.kinks import crossed, ties

AT = jnp.asarray([0.0, 1.0, 0.3, -0.01])


def bent(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.maximum(x, 0.0)) + jnp.sum(jnp.abs(x - 1))


def line_of(text: str) -> int:
    return 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if text in line)


def test_ties_are_named_with_their_line_and_count() -> None:
    line = line_of("return jnp.sum(jnp.maximum(x, 0.0))")
    assert [str(kink) for kink in ties(bent, AT)] == [
        f"max at test_kinks.py:{line}, 1 of 4 entries",
        f"abs at test_kinks.py:{line}, 1 of 4 entries",
    ]
    assert ties(bent, AT + 0.1) == ()
    for side in (1e-9, -1e-9):
        assert ties(bent, AT + side) == ()  # next to a kink is not on it


def test_a_tie_that_does_not_depend_on_the_arguments_is_none() -> None:
    labels = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    assert ties(lambda x: jnp.sum(jnp.where(labels > 0.0, x, 2 * x)), AT) == ()


def test_crossings_are_counted_between_two_points() -> None:
    one = (jnp.ones(4),)
    assert [(k.primitive, k.entries, k.of) for k in crossed(bent, (AT,), one, 0.02)] == [("max", 2, 4), ("abs", 1, 4)]
    assert crossed(bent, (AT + 0.2,), one, 0.02) == ()


@pytest.mark.parametrize(
    ("fun", "primitive"),
    [
        (lambda x: jnp.sum(jnp.where(x > 0.35, x, 0.0)), "gt"),
        (lambda x: jnp.max(x * jnp.asarray([1.0, 0.0, 3.0, 0.0])), "reduce_max"),
        (lambda x: jnp.sum(jnp.clip(x, -1.0, 0.35)), "min"),
        (lambda x: jnp.sum(jnp.floor(x + 0.65)), "floor"),
        (lambda x: jnp.sum(jnp.sign(x - 0.35)), "sign"),
        (lambda x: jnp.sort(x * jnp.asarray([1.0, 0.0, 3.0, 0.0]))[0], "sort"),
        (lambda x: jax.lax.cond(x[2] > 0.35, lambda v: v[0], lambda v: v[1], x), "cond"),
        (lambda x: jnp.sum(jax.lax.clamp(-1.0, x, 0.35)), "clamp"),
        (lambda x: jnp.sum(x) * jnp.argmax(x * jnp.asarray([1.0, 0.0, 3.0, 0.0])).astype("float64"), "argmax"),
        (lambda x: jax.lax.scan(lambda c, v: (c + jax.nn.relu(v - 0.35), None), 0.0, x)[0], "max"),
        (jax.jit(lambda x: jax.checkpoint(lambda v: jnp.sum(jnp.maximum(v, 0.35)))(x)), "max"),
    ],
)
def test_every_kind_of_branch_is_seen(fun: object, primitive: str) -> None:
    x = jnp.asarray([0.8, 0.1, 0.3, -0.2])
    direction = (jnp.asarray([0.0, 0.0, 1.0, 0.0]),)
    assert crossed(fun, (x,), direction, 0.01) == ()
    assert primitive in [
        kink.primitive for kink in crossed(fun, (x,), direction, 0.1) + crossed(fun, (x,), direction, -0.6)
    ]


@pytest.mark.parametrize("name", [row.name for row in activations.TABLE.values() if row.kinks])
def test_the_slope_an_activation_declares_is_one_of_its_two_sides(name: str) -> None:
    row = activations.get(name)
    for z, declared in row.kinks:
        at = jnp.asarray(z)
        sides = one_sided(row.f, (at,), (jnp.ones(()),))
        accepted, text = sides.judge(float(row.df(at, row.f(at))), declared)
        assert accepted, text
        assert "it is the declared one" in text
        assert abs(sides.left - sides.right) > 0.01
        assert sides.error < 1e-6


def test_a_slope_that_is_not_the_declared_one_fails_wherever_it_lies() -> None:
    sides = one_sided(activations.relu.f, (jnp.zeros(()),), (jnp.ones(()),))
    assert (sides.left, sides.right) == (0.0, 1.0)
    assert sides.judge(0.0, 0.0)[0]
    half, outside = sides.judge(0.5, 0.0), sides.judge(2.0, 0.0)
    assert half == (False, "slope 0.5 is in between, inside [0, 1], the slopes from the two sides; declared is 0")
    assert outside == (False, "slope 2 is outside [0, 1], the slopes from the two sides; declared is 0")
    assert sides.judge(1.0)[0]
    assert not sides.judge(1.1)[0]


def test_what_jax_grad_answers_at_a_tie_of_maximum_is_in_between() -> None:
    def fun(x: jax.Array) -> jax.Array:
        return jnp.maximum(x, 0.0)

    sides = one_sided(fun, (jnp.zeros(()),), (jnp.ones(()),))
    accepted, text = sides.judge(float(jax.grad(fun)(jnp.zeros(()))))
    assert accepted
    assert "slope 0.5 is in between" in text


def test_one_sided_slopes_of_a_curved_function_are_its_one_sided_derivatives() -> None:
    sides = one_sided(
        lambda x, y: jnp.where(x[0] > 0.5, jnp.exp(x[0]) - jnp.exp(0.5), jnp.sin(x[0]) - jnp.sin(0.5)) * y,
        (jnp.asarray([0.5, 9.0]), 2.0),
        (jnp.asarray([1.0, 0.0]), 0.0),
    )
    np.testing.assert_allclose([sides.left, sides.right], [2 * np.cos(0.5), 2 * np.exp(0.5)], atol=sides.error + 1e-12)
    assert sides.error < 1e-6


def test_one_sided_needs_a_scalar() -> None:
    with pytest.raises(ValueError, match="must return a scalar"):
        one_sided(lambda x: x, (jnp.ones(3),), (jnp.ones(3),))


def test_differences_step_around_a_near_kink_and_are_void_on_one() -> None:
    witness = finite_differences(bent, AT)
    np.testing.assert_array_equal(np.isinf(witness.error), [True, True, False, False])
    assert "2 of 4 slopes void: kink crossed between x and x + h" in witness.why
    assert "max at test_kinks.py" in witness.why
    assert "abs at test_kinks.py" in witness.why
    # -0.01 is nearer to its kink than most of the ladder's steps.
    assert np.all(np.abs(witness.value[2:] - [0.0, -1.0]) <= witness.error[2:])
    assert np.all(witness.error[2:] < 1e-9)


def test_forward_mode_is_void_exactly_at_a_kink_and_says_which() -> None:
    witness = forward_mode(bent, AT)
    np.testing.assert_array_equal(np.isinf(witness.error), [True, True, False, False])
    assert "exactly at a kink: max at test_kinks.py" in witness.why


def test_without_x64_outside() -> None:
    with jax.enable_x64(False):
        assert len(ties(bent, np.asarray(AT, "float32"))) == 2
