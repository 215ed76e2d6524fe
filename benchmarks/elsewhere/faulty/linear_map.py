"""The derivative of a case as a linear map, and a custom rule that has such a map for its derivative.

    pull back: map(args, cotangents of the outputs) = cotangents of args
    push forward: map(args, tangents of args) = tangents of the outputs

A fault is a change to this map; the values of the function stay right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case

Map = Callable[[tuple[Any, ...], Any], Any]
"""(the arguments, what goes in) -> what comes out, linear in what goes in."""
Side = Literal["arguments", "outputs"]


@dataclass(frozen=True)
class Subject:
    """A function of float arrays alone, and its derivative.

    Attributes:
        function: somebody's function or rule, whose derivative is the right one.
        plain: what it should be: the formula, the function that the rule holds, or the function itself.
        mode: "vjp" or "jvp", the way its derivative is taken.
    """

    function: Callable[..., Any]
    plain: Callable[..., Any]
    mode: Literal["vjp", "jvp"]

    def right(self, args: tuple[Any, ...], given: Any) -> Any:
        """The right map: JAX's derivative of the function, by the rule that it has."""
        if self.mode == "vjp":
            return jax.vjp(self.function, *args)[1](given)
        return jax.jvp(self.function, args, given)[1]

    def enters(self, args: tuple[Any, ...]) -> Any:
        """What goes into the map, as shapes and dtypes."""
        return shapes(args) if self.mode == "jvp" else jax.eval_shape(self.function, *args)

    def enters_at(self, side: Side) -> bool:
        """Whether what goes in belongs to the arguments, or to the outputs."""
        return (self.mode == "jvp") == (side == "arguments")

    def with_derivative(self, derivative: Map) -> Callable[..., Any]:
        """The function as a custom rule with that derivative."""
        if self.mode == "vjp":
            ruled = jax.custom_vjp(self.plain)
            ruled.defvjp(lambda *args: (self.function(*args), args), derivative)
            return ruled
        pushed = jax.custom_jvp(self.plain)
        pushed.defjvp(lambda args, tangents: (self.function(*args), derivative(args, tangents)))
        return pushed


def subject_of(case: Case) -> tuple[Subject, tuple[Any, ...]]:
    """The case as a function of its float arrays, one by one as each of the judges takes them, and these in float32."""
    point = case.point()
    moving = [i for i, arg in enumerate(point) if _floats(arg)]
    leaves, structure = jax.tree.flatten([point[i] for i in moving])

    def of_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*arrays: Any) -> Any:
            given = dict(zip(moving, jax.tree.unflatten(structure, arrays), strict=True))
            return function(*(given.get(i, arg) for i, arg in enumerate(point)))

        return applied

    return Subject(of_arrays(case.function), of_arrays(_plain(case)), case.mode), tuple(leaves)


def _plain(case: Case) -> Callable[..., Any]:
    function: Any = case.function
    held = isinstance(function, jax.custom_vjp | jax.custom_jvp)
    return case.raw or (function.fun if held else function)


def _floats(arg: Any) -> bool:
    leaves = jax.tree.leaves(arg)
    return bool(leaves) and all(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) for x in leaves)


def shapes(tree: Any) -> Any:
    """Its shapes and dtypes, without its values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
