"""The class of a row of the table: an activation function with its derivatives, which refuses wrong shapes."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from manual_backprop.types import came


def by_name(value: object) -> str:
    """The repr of a value, in which a function is its name alone, without the address that differs in every run."""
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value)))


def flat(z: Array, a: Array) -> Array:
    """The bend of a piecewise linear f: 0, at its kinks too."""
    return jnp.zeros_like(z)


@dataclass(frozen=True)
class Activation:
    """One row of the table: an elementwise activation function with its derivative.

    Attributes:
        name: what `mlp(activation=...)` and reports call it.
        f: z -> a, elementwise, same shape and dtype (F2).
        df: (z, a) -> f'(z), elementwise; a = f(z) is offered because some derivatives are cheaper in a (C7).
        kinks: a pair (z, slope) for every point where f has no derivative; slope is the value of df there.
        initializer: the weight initialisation that keeps signals level through this f.
        d2f: (z, a) -> f''(z), elementwise. Where f'' jumps, it is one of the two limits, stated beside the row. At
            a kink the infinite part is left out. If it is None, Hessian-vector products refuse this activation.
        bend: (z, a) -> f''(z) / f'(z), for functions whose f' is zero nowhere: Hessian-vector products then need R{a}
            alone, which the layer above keeps anyway, where f''(z) R{z} needs R{z} too. `flat` where f'' is 0.
        short: the same function with df and d2f from a alone, which lose the tail where a rounds to its limit, as
            jax.grad's do. Sweeps without a trace take it, as long as a has 32 bits: it saves an array for every layer.
            None where nothing would be saved.
    """

    name: str
    f: Callable[[Array], Array]
    df: Callable[[Array, Array], Array]
    kinks: tuple[tuple[float, float], ...] = ()
    initializer: str = "glorot"
    d2f: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)
    bend: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)
    short: "Activation | None" = field(default=None, kw_only=True)

    @property
    def exact(self) -> "Activation":
        """This row without `short`: every sweep keeps the tails of f', at the cost of an array for every layer."""
        return replace(self, short=None)

    def lean(self, dtype: DTypeLike) -> "Activation":
        """The row for a sweep without a trace."""
        keeps = self.short is None or jnp.finfo(dtype).bits < 32 or not self._listed_with("f", "df")
        return self if keeps else self.short  # type: ignore[return-value]

    def _listed_with(self, *names: str) -> bool:
        """Whether these functions are those of the table; a copy with another df or d2f is used as it says."""
        listed = TABLE.get(self.name)
        rows = [row for row in (listed, listed and listed.short) if row is not None]
        return not rows or any(all(getattr(self, name) is getattr(row, name) for name in names) for row in rows)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Activation name must be a str, got {came(self.name)}; the order is Activation(name, f, df)"
            )
        for role, function in (("f", self.f), ("df", self.df), ("d2f", self.d2f), ("bend", self.bend)):
            if not callable(function) and not (role in ("d2f", "bend") and function is None):
                raise TypeError(f"Activation {role} must be a function, got {came(function)}")

    def value(self, z: Array) -> Array:
        """The result of f, a (F2), refused unless it has the shape and dtype of z, since nothing is broadcast or cast.

        Raises:
            ValueError: another shape.
            TypeError: another dtype, no array, or an f that takes other arguments.
        """
        return self._like(z, "f(z)", self.f, z)

    def slope(self, z: Array, a: Array) -> Array:
        """The result of df (C7), refused like that of f."""
        return self._like(z, "df(z, a)", self.df, z, a)

    def curvature(self, z: Array, a: Array) -> Array:
        """The result of d2f, refused like that of f."""
        return self._like(z, "d2f(z, a)", self.d2f, z, a)

    def slope_change(self, z: Array, a: Array, dz: Array, da: Array) -> Array | None:
        """R{f'(z)} = f''(z) R{z}, from R{a} = f'(z) R{z} where `bend` is known; None is a zero that costs nothing."""
        if self.bend is None or not self._listed_with("df", "d2f"):
            return self.curvature(z, a) * dz
        if self.bend is flat:
            return None
        return da * self._like(z, "bend(z, a)", self.bend, z, a)

    def _like(self, z: Array, call: str, function: Any, *given: Array) -> Any:
        try:
            found = function(*given)
        except TypeError as error:
            if not _takes(function, len(given)):
                raise TypeError(f"activation {self.name!r} is called as {call}, got a function of others") from error
            raise
        if not (hasattr(found, "shape") and hasattr(found, "dtype")):
            raise TypeError(f"activation {self.name!r}: {call} must be an array like z, got {came(found)}")
        text = f"activation {self.name!r}: {call} is {found.dtype}{list(found.shape)} but z is {z.dtype}{list(z.shape)}"
        if found.shape != z.shape:
            raise ValueError(f"{text}; it must be elementwise, one value for each entry of z")
        if found.dtype != z.dtype:
            raise TypeError(f"{text}; convert it with .astype(z.dtype)")
        return found

    def __repr__(self) -> str:
        listed = TABLE.get(self.name)
        if listed is not None:
            for name, row in (("", listed), (".exact", listed.exact), (".short", listed.short)):
                if self == row:
                    return f"activations.{self.name}{name}"
        given = [(each.name, getattr(self, each.name), each.default) for each in fields(self)[1:]]
        said = [f"{name}={by_name(value)}" for name, value, default in given if value != default]
        return f"{type(self).__name__}({', '.join([repr(self.name), *said])})"


TABLE: dict[str, Activation] = {}
"""The rows by their names; the package fills it."""


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments; True where that is not known."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a built-in that tells no signature
        return True
    return True
