"""Arguments by the names of the function's parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from reference.checks.gradient import check_gradient
from reference.checks.named import parameter_names
from reference.checks.rule import check_vjp

X = np.arange(1.0, 4.0)


def several(x, /, y, *rest, key):
    """Only the first ones are given by position."""


class Model:
    def loss(self, x):
        """Without self."""


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (several, ["x", "y", "rest[0]", "rest[1]"]),
        (partial(several, 0), ["y", "rest[0]", "rest[1]", "rest[2]"]),
        (partial(several, key=0), ["x", "y", "rest[0]", "rest[1]"]),
        (lambda *args: None, ["args[0]", "args[1]", "args[2]", "args[3]"]),
        (lambda x: None, ["x", "args[1]", "args[2]", "args[3]"]),
        (partial(lambda x, y: None, x=1), ["args[0]", "args[1]", "args[2]", "args[3]"]),
        (jax.jit(lambda v, w: None), ["v", "w", "args[2]", "args[3]"]),
        (Model().loss, ["x", "args[1]", "args[2]", "args[3]"]),
        (max, ["args[0]", "args[1]", "args[2]", "args[3]"]),
    ],
)
def test_a_function_names_what_is_given_by_position(function, names):
    assert parameter_names(function, 4) == names
    assert parameter_names(function, 1) == names[:1]


def test_rows_causes_and_notes_say_the_name_and_the_leaf_within():
    """A key of the tree that is called args, as well."""
    weights = {"args": [X, 0 * X], "b": X}
    report = check_gradient(
        lambda weights, x: jnp.sum(weights["args"][0] * x + weights["args"][1] ** 3),
        lambda weights, x: {"args": [2 * x, 0 * x], "b": 0 * x},
        *(weights, X),
        transforms="eager",
    )
    assert [row.path for row in report.rows if row.kind == "end to end"] == [
        "weights['args'][0]",
        "weights['args'][1]",
        "weights['b']",
    ]
    assert report.summary().count("args[0]") == 0


def test_a_name_that_a_row_has_already_is_left():
    f = jax.custom_vjp(lambda primal, scale: jnp.sin(primal) * scale)
    f.defvjp(lambda x, s: (jnp.sin(x) * s, (x, s)), lambda saved, g: (g * jnp.cos(saved[0]) * saved[1], None))
    report = check_vjp(f, X, X, transforms="eager")
    paths = [row.path for row in report.rows]
    assert paths.count("primal") == 1 and "args[0]" in paths and "scale" in paths
    (failed,) = [row for row in report.failures if row.path == "scale"]
    assert failed.cause.startswith("bwd returns None for scale, which JAX takes for zero")


def test_an_error_that_is_raised_names_the_argument_too():
    def energy(w, b):
        return jnp.sum(w * b)

    x = jnp.ones(2)
    with pytest.raises(TypeError, match=r"b has no float leaf to differentiate by; got w: float64\[2\], b: int 3"):
        reference.check_gradient(energy, lambda w, b: w, x, 3, argnums=1)
    with pytest.raises(reference.CallFailed, match=r"^fun \(short\) raised .* called on first: float64\[2\]"):
        short = lambda first: first[0][0]  # noqa: E731
        short.__qualname__ = "somewhere.<locals>.short"
        reference.check_gradient(short, lambda first: first, x)
