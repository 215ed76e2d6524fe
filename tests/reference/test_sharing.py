"""Measurements are shared where the program, its values and the noise are the same, and nowhere else."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.tolerance import rounding, sharing
from reference.tolerance.rounding import Measured, measure

X = np.linspace(-1.0, 2.0, 5)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One entry for every program that was evaluated."""
    seen: list[None] = []
    evaluate = rounding.perturbed
    monkeypatch.setattr(rounding, "perturbed", lambda *given: (seen.append(None), evaluate(*given))[1])
    yield seen


def wave(x: Any) -> dict[str, Any]:
    weights = jnp.asarray([0.5, -1.5, 2.5, 0.1, 0.3])
    return {"sum": jnp.sum(jnp.tanh(x) * weights), "scan": jax.lax.scan(lambda h, v: (h * v, h), x[0], x)[1]}


def same(a: Measured, b: Measured) -> bool:
    return all(
        jax.tree.structure(one) == jax.tree.structure(other)
        and all(np.array_equal(p, q) for p, q in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
        for one, other in ((a.value, b.value), (a.tolerance, b.tolerance))
    )


def test_the_same_is_measured_once_and_each_gets_a_copy(computed: list[None]) -> None:
    apart = measure(wave, X, dtype="float32")
    with sharing.shared({}):
        first = measure(wave, X, dtype="float32")
        second = measure(lambda x: wave(x), X.copy(), dtype="float32")
        assert len(computed) == 2
        assert same(first, apart) and same(second, apart)
        second.tolerance["scan"][:] = 7.0
        assert same(measure(wave, X, dtype="float32"), apart)
    measure(wave, X, dtype="float32")
    assert len(computed) == 3


def test_the_same_results_in_another_tree_are_in_that_tree(computed: list[None]) -> None:
    with sharing.shared({}):
        named = measure(wave, X, dtype="float32")
        plain = measure(lambda x: tuple(jax.tree.leaves(wave(x))), X, dtype="float32")
    assert len(computed) == 1
    assert isinstance(plain.value, tuple) and np.array_equal(plain.value[1], named.value["sum"])


def power(k: Any) -> Callable[..., Any]:
    return lambda x: jnp.sum(jax.lax.integer_pow(x, k))


def plus(constant: Any) -> Callable[..., Any]:
    return lambda x: jnp.sum(x + constant)


def branches(a: float, b: float) -> Callable[..., Any]:
    return lambda x: jax.lax.cond(x[0] > 0, lambda x: jnp.sum(a * x), lambda x: jnp.sum(b * x), x)


LONG = np.arange(5000.0)
NEARLY = LONG.copy()
NEARLY[2500] = np.nextafter(2500.0, 0.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((power(2), X), (power(3), X)),
        ((plus(0.0), X), (plus(-0.0), X)),
        ((plus(X), X), (plus(X[::-1].copy()), X)),
        ((plus(LONG), LONG), (plus(NEARLY), LONG)),  # a text of the program would show neither in full
        ((plus(1.0), LONG), (plus(1.0), NEARLY)),
        ((plus(1.0), np.zeros(2)), (plus(1.0), -np.zeros(2))),
        ((plus(1.0), np.float32(X)), (plus(1.0), X)),
        ((branches(1.0, 2.0), X), (branches(2.0, 1.0), X)),
        ((jax.jit(plus(X)), X), (jax.jit(plus(X + 1)), X)),
        ((lambda x: x - 2 * x[::-1], X), (lambda x: x[::-1] - 2 * x, X)),
        ((jax.random.uniform, jax.random.key(0)), (jax.random.uniform, jax.random.key(1))),
    ],
)
def test_what_differs_is_measured_anew(computed: list[None], one: Any, other: Any) -> None:
    apart = [measure(*given, dtype="float32") for given in (one, other)]
    del computed[:]
    with sharing.shared({}):
        found = [measure(*given, dtype="float32") for given in (one, other, one, other)]
    assert len(computed) == 2
    assert all(map(same, found, apart * 2))


def test_other_noise_is_other_noise(computed: list[None]) -> None:
    with sharing.shared({}):
        for options in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float32", "seed": 1}) * 2:
            measure(wave, X, **options)
        measure(wave, X, dtype="float32", samples=4)
    assert len(computed) == 4


def test_a_program_with_effects_or_another_function_inside_is_not_shared(computed: list[None]) -> None:
    told: list[float] = []

    def telling(x: Any) -> Any:
        jax.debug.callback(lambda v: told.append(float(v)), x[0])
        return x * 2

    def called(factor: float) -> Callable[..., Any]:
        return lambda x: jax.pure_callback(lambda v: np.asarray(v) * factor, jax.ShapeDtypeStruct((5,), X.dtype), x)

    with sharing.shared({}):
        for _ in range(2):
            measure(telling, X, dtype="float32")
        assert len(computed) == 2
        results = [measure(called(factor), X, dtype="float64").value for factor in (2.0, 3.0)]
    assert np.array_equal(results[0], 2 * X) and np.array_equal(results[1], 3 * X)


def test_the_rule_of_a_function_is_not_part_of_what_is_measured(computed: list[None]) -> None:
    with sharing.shared({}):
        for _ in range(2):
            f = jax.custom_jvp(lambda x: jnp.sin(x))
            f.defjvp(lambda p, t: (jnp.sin(p[0]), jnp.cos(p[0]) * t[0]))
            measure(lambda x, f=f: f(x), X, dtype="float32")
    assert len(computed) == 1


def test_a_memo_keeps_so_many_and_no_more(computed: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST", 2)
    memo: sharing.Memo = {}
    with sharing.shared(memo):
        for k in (2, 3, 4, 4, 3, 2):
            measure(power(k), X, dtype="float32")
    assert len(memo) == 2 and len(computed) == 4


def test_what_raises_is_not_kept() -> None:
    memo: sharing.Memo = {}
    with sharing.shared(memo), pytest.raises(ZeroDivisionError):
        sharing.once(lambda: 1 // 0, jax.make_jaxpr(jnp.sin)(1.0), [])  # type: ignore[arg-type,return-value]
    assert memo == {}
    assert sharing._memo.get() is None
