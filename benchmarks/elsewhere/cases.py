"""A case: somebody's function or rule, the point to check it at, and what to hold it against."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

ALL = ("float64", "float32", "bfloat16", "float16")
WIDE = ("float64", "float32")
WAYS = ("eager", "jit", "vmap")

Kind = Literal["rule", "formula", "itself"]


@dataclass(frozen=True)
class Draw:
    """An array, always the same: "normal", "uniform" in [low, high], "definite", or of a condition such as "1e3"."""

    kind: str = "normal"
    shape: tuple[int, ...] = (6, 5)
    low: float = 0.3
    high: float = 2.0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        """The array, in float32."""
        match self.kind:
            case "uniform":
                x = rng.uniform(self.low, self.high, self.shape)
            case "definite":
                a = rng.normal(size=self.shape)
                x = a @ a.T / len(a) + np.eye(len(a))
            case "normal":
                x = rng.normal(size=self.shape)
            case condition:  # a matrix with that condition number
                (q, _), (r, _) = (np.linalg.qr(rng.normal(size=self.shape)) for _ in range(2))
                x = q * np.geomspace(1, 1 / float(condition), len(q)) @ r
        return x.astype("float32")


@dataclass(frozen=True)
class Case:
    """Somebody's function or rule.

    Attributes:
        function: what is checked.
        given: its arguments; each `Draw` becomes its array.
        kind: "rule" (a custom rule against its own plain function), "formula" (against one written here from the
            definition), or "itself" (JAX's derivative against JAX's derivative in float64).
        raw: the plain function; None for a rule that holds its own.
        mode: "vjp" or "jvp", which of the two checks.
        dtypes: those that the function takes.
        ways: those of "eager", "jit" and "vmap" that it can do.
        options: further arguments of the check.
        in_double: further ones in float64, where a solver stops at a tolerance of its own before rounding does.
    """

    function: Callable[..., Any]
    given: tuple[Any, ...] = (Draw(),)
    kind: Kind = "itself"
    raw: Callable[..., Any] | None = None
    mode: Literal["vjp", "jvp"] = "vjp"
    dtypes: tuple[str, ...] = ALL
    ways: tuple[str, ...] = WAYS
    options: dict[str, Any] = field(default_factory=dict)
    in_double: dict[str, Any] = field(default_factory=dict)

    def point(self) -> tuple[Any, ...]:
        """The arguments, in float32, always the same; JAX's own arrays, since its functions ask for their `.at`."""
        rng = np.random.default_rng(
            (0, 1)
        )  # with 0 alone, as the checks draw theirs, a cotangent would be the argument
        return tuple(jnp.asarray(x.array(rng)) if isinstance(x, Draw) else x for x in self.given)

    @property
    def plain(self) -> Callable[..., Any] | None:
        """What to give as `raw`."""
        return self.function if self.kind == "itself" else self.raw


def drawn(*shape: int) -> Draw:
    """Normal numbers."""
    return Draw("normal", shape)


def within(low: float, high: float, *shape: int) -> Draw:
    """Uniform numbers in [low, high]."""
    return Draw("uniform", shape, low, high)


def matrix(kind: str = "normal", n: int = 5) -> Draw:
    """A square matrix: "normal", "definite", or of a condition such as "1e3"."""
    return Draw(kind, (n, n))


def normal(function: Callable[[Any], Any], *shape: int, **fields: Any) -> Case:
    """Against itself, at normal numbers."""
    return Case(function, (drawn(*(shape or (6, 5))),), **fields)


def positive(function: Callable[[Any], Any], *shape: int, **fields: Any) -> Case:
    """Against itself, at numbers from 0.3 to 2."""
    return Case(function, (within(0.3, 2, *(shape or (8,))),), **fields)


def between(function: Callable[[Any], Any], low: float, high: float, *shape: int, **fields: Any) -> Case:
    """Against itself, at numbers in [low, high]."""
    return Case(function, (within(low, high, *(shape or (12,))),), **fields)


def square(function: Callable[[Any], Any], kind: str, **fields: Any) -> Case:
    """Against itself, at a matrix; most of linear algebra has no 16 bits."""
    return Case(function, (matrix(kind),), **{"dtypes": WIDE} | fields)


def itself(function: Callable[..., Any], *given: Any, **fields: Any) -> Case:
    """Against itself, at these arguments."""
    return Case(function, given, **fields)


def rule(function: Callable[..., Any], *given: Any, **fields: Any) -> Case:
    """A custom rule against the plain function that it holds."""
    return Case(function, given, "rule", **fields)


def formula(function: Callable[..., Any], raw: Callable[..., Any], *given: Any, **fields: Any) -> Case:
    """Against a formula that was written from the definition."""
    return Case(function, given, "formula", raw, **fields)
