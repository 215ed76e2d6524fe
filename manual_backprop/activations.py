"""The activation functions f_l of (F2), their derivatives f_l' of (C7) and f_l'', one row each.

A row is found by its name, `get("tanh")`, or as an attribute of this module. To add one, write f, df
and d2f and append a row to `TABLE`; the tests run over the table. Every df is written in terms of z where the
usual short form in a loses the tail: 1 - a**2 is 0 in float32 from z = 9.1 on and wrong by a fifth in
bfloat16 at z = 3, while sech(z)**2 from exp(-2|z|) is right to rounding as far as the format reaches.
So is every d2f: sigmoid'' is -sigmoid'(z) tanh(z/2), where 1 - 2 a would cancel at 0.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manual_backprop.precision import compiled, rounded_once
from manual_backprop.types import came

Elementwise = Float[Array, "*shape"]

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
_LEAKY_SLOPE = 0.01
_GELU_CUBIC = 0.044715


def by_name(value: object) -> str:
    """The repr of a value, in which a function is its name alone, without the address that differs in every run."""
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value)))


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
    """

    name: str
    f: Callable[[Array], Array]
    df: Callable[[Array, Array], Array]
    kinks: tuple[tuple[float, float], ...] = ()
    initializer: str = "glorot"
    d2f: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Activation name must be a str, got {came(self.name)}; the order is Activation(name, f, df)"
            )
        for role, function in (("f", self.f), ("df", self.df), ("d2f", self.d2f)):
            if not callable(function) and not (role == "d2f" and function is None):
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
        if TABLE.get(self.name) is self:
            return f"activations.{self.name}"
        given = [(each.name, getattr(self, each.name), each.default) for each in fields(self)[1:]]
        said = [f"{name}={by_name(value)}" for name, value, default in given if value != default]
        return f"{type(self).__name__}({', '.join([repr(self.name), *said])})"


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments; True where that is not known."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a built-in that tells no signature
        return True
    return True


def _logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)) through exp(-|z|), which cannot overflow and keeps the left tail."""
    e = jnp.exp(-jnp.abs(z))
    return jnp.where(z >= 0, 1, e) / (1 + e)


def _logistic_slope(z: Array) -> Array:
    """Sigmoid's derivative, e / (1 + e)**2 with e = exp(-|z|): both tails kept, where a (1 - a) keeps one."""
    e = jnp.exp(-jnp.abs(z))
    return e / jnp.square(1 + e)


def _logistic_curvature(z: Array) -> Array:
    """Sigmoid's second derivative, sigmoid'(z) (1 - 2 sigmoid(z)): the bracket is -tanh(z/2), exact near 0 too."""
    return -_logistic_slope(z) * jnp.tanh(0.5 * z)


def _sech_squared(z: Array) -> Array:
    """Tanh's derivative, 4 e / (1 + e)**2 with e = exp(-2|z|)."""
    return 4 * _logistic_slope(2 * z)


def _exp_left(z: Array) -> Array:
    """exp(z) for z <= 0 and 1 for z > 0, so that the branch not taken stays finite."""
    return jnp.exp(jnp.minimum(z, 0))


def _normal_cdf(z: Array) -> Array:
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * z)


def _normal_pdf(z: Array) -> Array:
    return math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * jnp.square(z))


def _gelu_curvature(z: Array) -> Array:
    # Beyond |z| = 40 the density is 0 in every format; without the clip z**2 would overflow against it.
    return _normal_pdf(z) * (2 - jnp.square(jnp.clip(z, -40, 40)))


def _gelu_tanh_gate(z: Array) -> Array:
    """The v in 0.5 z (1 + tanh(v/2)) = z sigmoid(v)."""
    return 2 * math.sqrt(2 / math.pi) * (z + _GELU_CUBIC * z * z * z)


def _gelu_tanh_slope(z: Array) -> Array:
    v = _gelu_tanh_gate(z)
    # Beyond |z| = 30 sigmoid'(v) is 0 in every format; without the clip z dv would overflow against it.
    near = jnp.clip(z, -30, 30)
    dv = 2 * math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * near * near)
    return _logistic(v) + near * dv * _logistic_slope(v)


def _gelu_tanh_curvature(z: Array) -> Array:
    """2 v' sigmoid'(v) + z (v'' sigmoid'(v) + v'**2 sigmoid''(v)), with sigmoid'(v) taken out."""
    v = _gelu_tanh_gate(z)
    near = jnp.clip(z, -30, 30)  # as in the slope
    dv = 2 * math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * near * near)
    d2v = 12 * math.sqrt(2 / math.pi) * _GELU_CUBIC * near
    e = jnp.exp(-0.5 * jnp.abs(v))
    root = e / (1 + e * e)  # the root of sigmoid'(v), which itself would underflow before its product with z v'**2
    return root * (root * (2 * dv + near * (d2v - dv * dv * jnp.tanh(0.5 * v))))


def _row(
    name: str,
    f: Callable[[Array], Array],
    df: Callable[[Array, Array], Array],
    d2f: Callable[[Array, Array], Array],
    kinks: tuple[tuple[float, float], ...] = (),
    initializer: str = "glorot",
) -> Activation:
    f, df, d2f = (compiled(rounded_once(function)) for function in (f, df, d2f))
    return Activation(name, f, df, kinks, initializer, d2f=d2f)


identity = _row("identity", lambda z: z, lambda z, a: jnp.ones_like(z), lambda z, a: jnp.zeros_like(z))
sigmoid = _row("sigmoid", _logistic, lambda z, a: _logistic_slope(z), lambda z, a: _logistic_curvature(z))
tanh = _row("tanh", jnp.tanh, lambda z, a: _sech_squared(z), lambda z, a: -2 * a * _sech_squared(z))
relu = _row(
    "relu",
    lambda z: jnp.maximum(z, 0),
    lambda z, a: jnp.where(z > 0, jnp.ones_like(z), 0),
    lambda z, a: jnp.zeros_like(z),  # 0 at the kink too
    kinks=((0.0, 0.0),),
    initializer="he",
)
leaky_relu = _row(
    "leaky_relu",
    lambda z: jnp.where(z >= 0, z, _LEAKY_SLOPE * z),
    lambda z, a: jnp.where(z >= 0, jnp.ones_like(z), _LEAKY_SLOPE),
    lambda z, a: jnp.zeros_like(z),  # 0 at the kink too
    kinks=((0.0, 1.0),),
    initializer="he",
)
elu = _row(
    "elu",
    lambda z: jnp.where(z > 0, z, jnp.expm1(jnp.minimum(z, 0))),
    lambda z, a: _exp_left(z),
    lambda z, a: jnp.where(z > 0, 0, _exp_left(z)),  # jumps from 1 to 0 at 0: the left limit, 1, there
    initializer="he",
)
selu = _row(
    "selu",
    lambda z: _SELU_SCALE * jnp.where(z > 0, z, _SELU_ALPHA * jnp.expm1(jnp.minimum(z, 0))),
    lambda z, a: _SELU_SCALE * jnp.where(z > 0, jnp.ones_like(z), _SELU_ALPHA * _exp_left(z)),
    # At the kink the left limit, scale alpha, as the slope.
    lambda z, a: jnp.where(z > 0, 0, _SELU_SCALE * _SELU_ALPHA * _exp_left(z)),
    kinks=((0.0, _SELU_SCALE * _SELU_ALPHA),),
    initializer="lecun",
)
gelu = _row(
    "gelu",
    lambda z: z * _normal_cdf(z),
    lambda z, a: _normal_cdf(z) + z * _normal_pdf(z),
    lambda z, a: _gelu_curvature(z),
    initializer="he",
)
gelu_tanh = _row(
    "gelu_tanh",
    lambda z: z * _logistic(_gelu_tanh_gate(z)),
    lambda z, a: _gelu_tanh_slope(z),
    lambda z, a: _gelu_tanh_curvature(z),
    initializer="he",
)
silu = _row(
    "silu",
    lambda z: z * _logistic(z),
    lambda z, a: _logistic(z) + z * _logistic_slope(z),
    lambda z, a: _logistic_slope(z) * (2 - z * jnp.tanh(0.5 * z)),
    initializer="he",
)
softplus = _row(
    "softplus",
    lambda z: jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))),
    lambda z, a: _logistic(z),
    lambda z, a: _logistic_slope(z),
)
softsign = _row(
    "softsign",
    lambda z: z / (1 + jnp.abs(z)),
    lambda z, a: 1 / jnp.square(1 + jnp.abs(z)),
    # Jumps from 2 to -2 at 0: the right limit, -2, there.
    lambda z, a: jnp.where(z >= 0, -2.0, 2.0) / (1 + jnp.abs(z)) ** 3,
)

TABLE: dict[str, Activation] = {
    row.name: row
    for row in (
        identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, gelu_tanh, silu, softplus, softsign,
    )
}  # fmt: skip


def get(activation: str | Activation) -> Activation:
    """Return the row of that name; a row is returned unchanged.

    Raises:
        ValueError: no row has that name.
        TypeError: neither a name nor a row.
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        name = getattr(activation, "__name__", "")
        known = f"write '{name}'" if name in TABLE else "one of your own is a row, mb.Activation(name, f, df)"
        raise TypeError(f"activation must be a name or an Activation row, got {came(activation)}; {known}")
    if activation not in TABLE:
        raise ValueError(f"no activation is called {activation!r}; there are {', '.join(TABLE)}")
    return TABLE[activation]
