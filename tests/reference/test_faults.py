"""What can be wrong besides numbers: named where it is, in words, and never at the cost of the caller's data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.checks import faults
from reference.checks.arguments import chosen, describe, take_apart
from reference.checks.culprit import first_nonfinite
from reference.checks.gradient import check_gradient

X = np.array([2.0, 0.5])


def line_of(text: str) -> int:
    """The number of the line of this file that ends in the comment `# text`."""
    with open(__file__) as file:
        (number,) = [i for i, line in enumerate(file, 1) if line.rstrip().endswith(f"# {text}")]
    return number


def test_the_first_operation_that_makes_a_nan_is_named_with_its_line() -> None:
    def f(x: Any) -> Any:
        y = jnp.log(x - 1.0)  # here: log
        return jnp.sum(jnp.sqrt(y) * 2)

    assert first_nonfinite(f, X).startswith(f"log at {__file__}:{line_of('here: log')}:")
    assert first_nonfinite(jax.jit(f), X).startswith("log at")
    assert first_nonfinite(jax.checkpoint(f), X).startswith("log at")
    assert first_nonfinite(lambda x: jax.vmap(lambda t: jnp.log(t - 1.0))(x), X).startswith("log at")
    assert first_nonfinite(jnp.sin, X) == ""


def test_a_nan_made_of_an_inf_names_both() -> None:
    def f(x: Any) -> Any:
        far = 1 / (x - x)  # here: division
        return jnp.sum(far - far)  # here: subtraction

    text = first_nonfinite(f, X)
    assert text.startswith("sub at") and f":{line_of('here: subtraction')}:" in text
    assert "from an inf of div at" in text and f":{line_of('here: division')}:" in text


def test_the_where_trap_is_found_in_the_gradient_though_the_value_is_finite() -> None:
    def f(x: Any) -> Any:
        return jnp.sum(jnp.where(x > 1, jnp.sqrt(x - 1), 0.0))

    assert np.isfinite(f(X))
    assert np.isnan(jax.grad(f)(X)[1])
    assert "sqrt at" in first_nonfinite(jax.grad(f), X)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_and_branches_are_looked_into(reverse: bool) -> None:
    def step(c: Any, t: Any) -> tuple[Any, Any]:
        return jnp.log(c), c + t

    def scanned(x: Any) -> Any:
        return jax.lax.scan(step, x, jnp.arange(4.0), reverse=reverse)[0]

    assert first_nonfinite(scanned, np.float64(2.0)).startswith("log at")
    found = jax.lax.scan(lambda c, t: (c + t, c * t), 1.0, jnp.arange(1.0, 4.0), reverse=reverse)
    ended = first_nonfinite(  # only if every value inside is right does the last operation alone make the inf
        lambda x: (
            1 / sum_of(jax.lax.scan(lambda c, t: (c + t, c * t), x, jnp.arange(1.0, 4.0), reverse=reverse), found)
        ),
        1.0,
    )
    assert ended.startswith("div at")
    assert first_nonfinite(
        lambda x: jax.lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, jnp.log(c[1])), (0, x))[1], 2.0
    ).startswith("log at")
    assert first_nonfinite(lambda x: jax.lax.cond(x > 0, lambda x: x / 0, jnp.sin, x), 2.0).startswith("div at")
    assert first_nonfinite(lambda x: jax.lax.cond(x > 0, lambda x: x / 0, jnp.sin, x), -2.0) == ""


def sum_of(ours: Any, theirs: Any) -> Any:
    """Zero exactly where two (carry, rows) agree."""
    return jnp.abs(ours[0] - theirs[0]) + jnp.sum(jnp.abs(ours[1] - theirs[1]))


def test_a_call_that_raises_says_on_what_and_chains_the_cause() -> None:
    def f(x: Any, n: Any) -> Any:
        raise KeyError("width")  # here: raise

    with pytest.raises(faults.CallFailed) as caught:
        faults.call(f, (X, 3), "f", "try this")
    assert f"f raised KeyError: 'width' at {__file__}:{line_of('here: raise')} (" in str(caught.value)
    assert str(caught.value).endswith("called on args[0]: float64[2], args[1]: int 3; try this")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyboardInterrupt):
        faults.call(interrupted, (), "f")


def interrupted() -> None:
    raise KeyboardInterrupt


def test_what_a_call_did_to_its_arguments() -> None:
    given = take_apart(({"a": X, "n": np.arange(3)}, jnp.ones(2)), (0, 1), None)

    def harmless(d: Any, y: Any) -> Any:
        return d["a"] + y

    def writes(d: Any, y: Any) -> Any:
        d["n"][1] = 9
        y.delete()  # as donation does, by agreement

    assert faults.watched_call(harmless, given, "f").harm == ()
    assert faults.watched_call(writes, given, "f").harm == ("args[0]['n']",)
    assert given.fresh("data")[0].tolist() == [0, 1, 2]


def test_same_bits_means_bits() -> None:
    assert faults.same_bits([np.nan, X], [np.nan, X.copy()])
    assert not faults.same_bits(np.array(0.0), np.array(-0.0))
    assert not faults.same_bits(np.float32(1), np.float64(1))
    assert not faults.same_bits([X], (X,))


@pytest.mark.parametrize("value", [(1.0,), {"loss": 1.0}, np.ones(1), np.int32(1), None])
def test_only_one_real_number_is_a_scalar(value: Any) -> None:
    with pytest.raises(TypeError, match="must return"):
        faults.require_scalar(value, "f")
    faults.require_scalar(np.float32(1), "f")


def test_structures_that_differ_name_their_leaves_and_both_trees() -> None:
    argument = {"W": X, "f": np.tanh, "n": 3}
    faults.same_structure({"W": X, "f": None, "n": None}, argument, "args[0]")
    faults.same_structure({"W": X, "f": np.tanh, "n": np.zeros((), jax.dtypes.float0)}, argument, "args[0]")
    with pytest.raises(ValueError) as caught:
        faults.same_structure({"V": X, "f": None, "n": None}, argument, "args[0]")
    assert "missing args[0]['W']; not expected args[0]['V']" in str(caught.value)
    assert str(caught.value).count("PyTreeDef") == 2


def test_arguments_are_cast_only_where_they_are_floats() -> None:
    args = (0.5, {"W": X, "i": np.arange(2), "key": jax.random.key(0), "name": "relu"}, 0.25, X)
    given = take_apart(args, (0, 1), "bfloat16")
    assert given.kinds == ("moving", "moving", "data", "fixed", "fixed", "fixed", "data")
    built = given.build(given.fresh("moving"), given.fresh("data"))
    assert built[0].weak_type  # a Python float beside arrays, as JAX has it
    assert [str(built[0].dtype), str(built[1]["W"].dtype), str(built[1]["i"].dtype)] == [
        "float64",
        "bfloat16",
        "int64",
    ]
    assert (built[1]["name"], built[2], str(built[3].dtype)) == ("relu", 0.25, "bfloat16")
    kept = take_apart(args, (1,), None, fixed=(3,))
    assert kept.fresh("moving")[0].dtype == np.float64
    assert kept.kinds[-1] == "fixed"
    assert kept.build(kept.fresh("moving"), kept.fresh("data"))[3] is not X


def test_argnums() -> None:
    assert chosen(-1, 3) == (2,)
    assert chosen((2, 0), 3) == (2, 0)
    with pytest.raises(TypeError, match="True"):
        chosen((True,), 3)
    with pytest.raises(ValueError, match="there are no arguments to differentiate by"):
        chosen(0, 0)


def test_a_long_value_is_cut_in_a_description() -> None:
    assert describe(("x" * 99,)).endswith("...")
    assert len(describe(("x" * 99,))) < 60


def test_arguments_on_another_device_are_refused_by_name() -> None:
    here, there = jax.devices()[:2]
    x = {"x": jax.device_put(np.ones(2), there)}

    def verdict() -> str:
        return check_gradient(lambda p: jnp.sum(p["x"] ** 2), lambda p: {"x": 2 * p["x"]}, x, transforms="jit").verdict

    with jax.default_device(here), pytest.raises(ValueError) as raised:
        verdict()
    refused = str(raised.value)
    assert refused.startswith("p['x'] is on cpu:1, but the default device is cpu:0")
    assert "jax.device_put" in refused
    with jax.default_device(there):
        assert verdict() == "pass"
