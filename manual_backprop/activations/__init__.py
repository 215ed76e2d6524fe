"""The activation functions f_l of (F2), their derivatives f_l' of (C7) and f_l'', one row each.

A row is found by its name, `get("tanh")`, or as an attribute of this module. To add one, write f, df
and d2f and append a row to `TABLE`; the tests run over the table.

Every df is right to rounding as far as the format reaches. It is written in a, which the layer above keeps anyway,
where a has the digits, as relu's does. It is written in z, or in a value that f computes too, where the usual
form in a loses the tail: 1 - a**2 is 0 in float32 from z = 9.1 on and wrong by a fifth in bfloat16 at z = 3, while
sech(z)**2 from exp(-2|z|) keeps all digits. So is every d2f: sigmoid'' is -sigmoid'(z) tanh(z/2), where 1 - 2 a
would cancel at 0. For the three functions that saturate at both ends, those digits take a second array beside a.
Their rows have the usual form as well, `short`, for sweeps that show nobody their f'.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manual_backprop.activations.row import TABLE as TABLE
from manual_backprop.activations.row import Activation as Activation
from manual_backprop.activations.row import by_name as by_name
from manual_backprop.activations.row import flat as flat
from manual_backprop.precision import accumulator, compiled, rounded_once
from manual_backprop.types import came

OfBoth = Callable[[Array, Array], Array]
"""A function of (z, a = f(z)), entry by entry."""

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
_LEAKY_SLOPE = 0.01
_GELU_CUBIC = 0.044715


def _of_both(f: Callable[[Array], Array], derivative: OfBoth) -> OfBoth:
    """The derivative as a function of z and a; in 16 bits, where the given a is a rounded one, of z alone."""
    narrow = rounded_once(lambda z: derivative(z, f(z)))
    return lambda z, a: derivative(z, a) if accumulator(z.dtype) == z.dtype else narrow(z)


def _lowest(v: Array) -> float:
    """The v from which on exp(-v) is safely below the largest number of the format."""
    return 1 - math.log(float(jnp.finfo(v.dtype).max))


def _decay(v: Array) -> Array:
    """exp(-v), held where it would overflow."""
    return jnp.exp(-jnp.maximum(v, _lowest(v)))


def _logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)): both tails keep their digits, and where the exponential is held the format has none left."""
    return 1 / (1 + _decay(z))


def _logistic_slope(z: Array) -> Array:
    """Sigmoid's derivative, e / (1 + e)**2 with e = exp(-|z|): both tails kept, where a (1 - a) keeps one."""
    e = jnp.exp(-jnp.abs(z))
    return e / jnp.square(1 + e)


def _sech_squared(z: Array) -> Array:
    """Tanh's derivative, 4 e / (1 + e)**2 with e = exp(-2|z|)."""
    return 4 * _logistic_slope(2 * z)


def _exp_left(z: Array) -> Array:
    """exp(z) for z <= 0 and 1 for z > 0, so that the branch not taken stays finite."""
    return jnp.exp(jnp.minimum(z, 0))


def _exp_left_less_one(z: Array) -> Array:
    """exp(z) - 1 for z <= 0: tanh(z/2) (exp(z) + 1), which is exact near 0 too, as expm1 is, at half its time."""
    return jnp.tanh(0.5 * jnp.minimum(z, 0)) * (_exp_left(z) + 1)


def _bent_left(z: Array, a: Array) -> Array:
    """The bend of exp(z) - 1 for z <= 0, 1, and that of z beyond, 0."""
    return jnp.where(a > 0, 0, jnp.ones_like(a))


def _normal_cdf(z: Array) -> Array:
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * z)


def _normal_pdf(z: Array) -> Array:
    return math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * jnp.square(z))


def _gelu_slope(z: Array, a: Array) -> Array:
    """Phi(z) + z phi(z), with Phi(z) = a / z. The density is spelled as in XLA's erfc, which then computes it once.

    Near 0 Phi is computed anew: XLA may compute z again for a, with another rounding, and a quotient would magnify it.
    """
    x = -math.sqrt(0.5) * z
    rise = z * (math.sqrt(0.5 / math.pi) * jnp.exp(-(x * x)))
    apart = jnp.abs(z) > 0.25
    quotient = a / jnp.where(apart, z, 1)
    return jnp.where(apart, quotient, 0.5 - 0.5 * jax.lax.erf(x)) + rise


def _gelu_curvature(z: Array) -> Array:
    # Beyond |z| = 40 the density is 0 in every format; without the clip z**2 would overflow against it.
    return _normal_pdf(z) * (2 - jnp.square(jnp.clip(z, -40, 40)))


def _gelu_tanh_gate(z: Array) -> Array:
    """The v in 0.5 z (1 + tanh(v/2)) = z sigmoid(v)."""
    return 2 * math.sqrt(2 / math.pi) * (z + _GELU_CUBIC * z * z * z)


def _gated(z: Array, v: Array) -> Array:
    """The product z sigmoid(v), 0 where the exponential in it is held."""
    return jnp.where(v < _lowest(v), 0, z / (1 + _decay(v)))


def _silu_slope(z: Array, a: Array) -> Array:
    """Sigmoid(z) + z sigmoid'(z), which is (1 + a e) / (1 + e) with e = exp(-z): both tails keep their digits."""
    e = _decay(z)
    return (1 + a * e) / (1 + e)


def _gelu_tanh_slope(z: Array, a: Array) -> Array:
    """Sigmoid(v) + z v' sigmoid'(v), as in `_silu_slope`; z = a (1 + e), so that z need not be kept."""
    e = _decay(_gelu_tanh_gate(z))
    near = jnp.clip(a * (1 + e), -30, 30)  # beyond, sigmoid'(v) is 0 in every format and v' might overflow
    dv = 2 * math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * near * near)
    return (1 + dv * a * e) / (1 + e)


def _gelu_tanh_curvature(z: Array) -> Array:
    """2 v' sigmoid'(v) + z (v'' sigmoid'(v) + v'**2 sigmoid''(v)), with sigmoid'(v) taken out."""
    v = _gelu_tanh_gate(z)
    near = jnp.clip(z, -30, 30)  # as in the slope
    dv = 2 * math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * near * near)
    d2v = 12 * math.sqrt(2 / math.pi) * _GELU_CUBIC * near
    twice_cosh = jnp.exp(0.5 * v) + jnp.exp(-0.5 * v)  # sigmoid'(v) = 1 / its square, which might underflow by itself
    return (2 * dv + near * (d2v - dv * dv * jnp.tanh(0.5 * v))) / twice_cosh * (1 / twice_cosh)


def _row(
    name: str,
    f: Callable[[Array], Array],
    df: OfBoth,
    *,
    bend: OfBoth | None = None,
    d2f: OfBoth | None = None,
    kinks: tuple[tuple[float, float], ...] = (),
    initializer: str = "glorot",
    short: tuple[OfBoth, OfBoth] | None = None,
) -> Activation:
    """A row, compiled and rounded once; where the bend is given, d2f is bend times df."""

    def bent(z: Array, a: Array) -> Array:
        return bend(z, a) * df(z, a)  # type: ignore[misc]

    brief = None if short is None else _row(name, f, short[0], bend=short[1], kinks=kinks, initializer=initializer)
    slope, curvature = (compiled(_of_both(f, g)) for g in (df, d2f or bent))
    rule = bend if bend is None or bend is flat else compiled(_of_both(f, bend))
    value = compiled(rounded_once(f))
    return Activation(name, value, slope, kinks, initializer, d2f=curvature, bend=rule, short=brief)


identity = _row("identity", lambda z: z, lambda z, a: jnp.ones_like(z), bend=flat)
sigmoid = _row(
    "sigmoid",
    _logistic,
    lambda z, a: _logistic_slope(z),
    bend=lambda z, a: -jnp.tanh(0.5 * z),
    # The absolute value is the same number. Without it XLA multiplies in another order, and keeps 1 - a as well.
    short=(lambda z, a: jnp.abs(a * (1 - a)), lambda z, a: 1 - 2 * a),
)
tanh = _row(
    "tanh",
    jnp.tanh,
    lambda z, a: _sech_squared(z),
    bend=lambda z, a: -2 * a,
    short=(lambda z, a: 1 - a * a, lambda z, a: -2 * a),
)
relu = _row(
    "relu",
    lambda z: jnp.where(z <= 0, 0, z),
    lambda z, a: jnp.where(a > 0, jnp.ones_like(a), 0),
    bend=flat,
    kinks=((0.0, 0.0),),
    initializer="he",
)
leaky_relu = _row(
    "leaky_relu",
    # Never -0 for z = -0, so that the sign of a tells the side even where slope * z underflows.
    lambda z: jnp.where(z >= 0, jnp.abs(z), _LEAKY_SLOPE * z),
    lambda z, a: jnp.where(jnp.signbit(a), _LEAKY_SLOPE, jnp.ones_like(a)),
    bend=flat,
    kinks=((0.0, 1.0),),
    initializer="he",
)
elu = _row(
    "elu",
    lambda z: jnp.where(z > 0, z, _exp_left_less_one(z)),
    lambda z, a: _exp_left(z),
    bend=_bent_left,  # f'' jumps from 1 to 0 at 0: the left limit, 1, there
    initializer="he",
)
selu = _row(
    "selu",
    lambda z: jnp.where(z > 0, _SELU_SCALE * z, _SELU_SCALE * _SELU_ALPHA * _exp_left_less_one(z)),
    lambda z, a: jnp.where(a > 0, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA * _exp_left(z)),
    bend=_bent_left,  # at the kink f'' is the left limit, scale alpha, as the slope
    kinks=((0.0, _SELU_SCALE * _SELU_ALPHA),),
    initializer="lecun",
)
gelu = _row(
    "gelu",
    lambda z: z * _normal_cdf(z),
    _gelu_slope,
    d2f=lambda z, a: _gelu_curvature(z),
    initializer="he",
)
gelu_tanh = _row(
    "gelu_tanh",
    lambda z: _gated(z, _gelu_tanh_gate(z)),
    _gelu_tanh_slope,
    d2f=lambda z, a: _gelu_tanh_curvature(z),
    initializer="he",
)
silu = _row(
    "silu",
    lambda z: _gated(z, z),
    _silu_slope,
    d2f=lambda z, a: _logistic_slope(z) * (2 - z * jnp.tanh(0.5 * z)),
    initializer="he",
)
softplus = _row(
    "softplus",
    lambda z: jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))),
    lambda z, a: _logistic(z),
    bend=lambda z, a: jnp.exp(-a),
)
softsign = _row(
    "softsign",
    lambda z: z / (1 + jnp.abs(z)),
    lambda z, a: 1 / jnp.square(1 + jnp.abs(z)),
    # f'' jumps from 2 to -2 at 0: the right limit, -2, there.
    bend=lambda z, a: jnp.where(z >= 0, -2.0, 2.0) / (1 + jnp.abs(z)),
    short=(
        lambda z, a: jnp.square(1 - jnp.abs(a)),
        lambda z, a: jnp.where(a >= 0, -2.0, 2.0) * (1 - jnp.abs(a)),
    ),
)

TABLE.update(
    (row.name, row)
    for row in (
        identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, gelu_tanh, silu, softplus, softsign,
    )
)  # fmt: skip


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
