"""Find the rule inside a user's function, and give it its arguments as JAX does: by position, defaults filled in."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.checks import faults
from reference.checks.named import BY_POSITION

Rule = jax.custom_vjp | jax.custom_jvp
_CHECKS: dict[Any, str] = {jax.custom_vjp: "check_vjp", jax.custom_jvp: "check_jvp"}


@dataclass(frozen=True, eq=False)
class Held:
    """A custom rule, and what `functools.partial` put in front of a user's arguments and among its keywords.

    Attributes:
        rule: the jax.custom_vjp or jax.custom_jvp.
        before: positional arguments that a partial holds.
        keywords: keyword arguments that a partial holds.
    """

    rule: Any
    before: tuple[Any, ...]
    keywords: Mapping[str, Any]

    @property
    def plain(self) -> Callable[..., Any]:
        """The plain function inside the rule, of the user's arguments."""
        return functools.partial(self.rule.fun, *self.before, **self.keywords)

    @property
    def static(self) -> tuple[int, ...]:
        """The numbers of the user's arguments that the rule declares as not differentiable."""
        return tuple(i - len(self.before) for i in self.rule.nondiff_argnums if i >= len(self.before))

    def bound(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """Every argument of the rule by its name: `args[i]` for the user's own, the parameter's name for any other."""
        everything = (*self.before, *args)
        ours = [f"args[{i - len(self.before)}]" if i >= len(self.before) else "" for i in range(len(everything))]
        try:
            signature = inspect.signature(self.rule.fun)
        except ValueError:  # a function in C has none, and no defaults that Python could know
            return dict(zip((name or f"before[{i}]" for i, name in enumerate(ours)), everything, strict=True))
        found = signature.bind(*everything, **self.keywords)
        found.apply_defaults()
        named = [parameter.name for parameter in signature.parameters.values() if parameter.kind in BY_POSITION]
        names = [*ours, *named[len(ours) :]][: len(found.args)]
        return {name or f"before[{i}]": value for i, (name, value) in enumerate(zip(names, found.args, strict=True))}

    def unseen(self, args: tuple[Any, ...]) -> list[str]:
        """The parameters, left at their defaults or held by a partial, that hold floats and are not differentiated."""
        bound = self.bound(args)
        names = list(bound)
        static = {names[i] for i in self.rule.nondiff_argnums if i < len(names)}
        others = {name: value for name, value in bound.items() if not name.startswith("args[") and name not in static}
        return [name for name, value in others.items() if any(map(_holds_floats, jax.tree.leaves(value)))]


_JITTED: Any = type(jax.jit(lambda: None))


def _holds_floats(leaf: Any) -> bool:
    number = isinstance(leaf, float | np.ndarray | np.generic | jax.Array)
    return number and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def held_rule(f: Any, kind: type, raw: Callable[..., Any] | None) -> Held | None:
    """The rule inside `f`, its jit wrappers and its partials, or None if `raw` is given instead.

    Raises:
        TypeError: there is no rule and no `raw`, or its rules were never defined.
    """
    held: Any = f
    before: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    name = f"jax.{kind.__name__}"
    while not isinstance(held, Rule):
        if isinstance(held, functools.partial):
            held, before, keywords = held.func, (*held.args, *before), {**held.keywords, **keywords}
        elif isinstance(held, _JITTED):  # a vmap or a decorator has a __wrapped__ too, and computes something else
            held = held.__wrapped__
        else:
            break
    if isinstance(held, kind):
        if getattr(held, "fwd", True) is None or getattr(held, "jvp", True) is None:
            raise TypeError(f"{faults.name_of(f)} is a {name} whose rule is not defined yet: call its defvjp or defjvp")
        return Held(held, before, keywords)
    if raw is not None:
        return None
    told = "use check_gradient(fun, grad_fun, ...) for a gradient that is a function, or give raw=, the plain function"
    if isinstance(getattr(held, "__wrapped__", None), kind):
        told = (
            f"it wraps one: check that by itself, or give raw=, the plain function of what {faults.name_of(f)} computes"
        )
    if type(held) in _CHECKS:
        told = f"use {_CHECKS[type(held)]}"
    raise TypeError(f"{faults.name_of(f)} is not a {name}: {told}")
