"""The noise of Monte Carlo arithmetic: how far each operation of a precision may round, in every sample."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from reference.jaxprs import float_types
from reference.tolerance.formats import Format, unit_roundoff
from reference.tolerance.side_by_side import is_float

WIDENED = 4.0  # factor by which the spread of a comparison's operands is widened
BLOCK = 1 << 12  # entries of every sample that are rounded at a time
TABLE = 1 << 14  # noise is drawn once, and every operation reads it at another offset


@dataclass(frozen=True)
class Noise:
    """The noise of all samples: a table that every operation reads at its own offset, and the format's rounding.

    Attributes:
        table: [samples, entries], uniform in [-1, 1]; the first sample is 0, which is the function itself.
        format: the precision under test.
        turn: added to every offset, so that each turn of a loop has other noise.
        widened: factor by which the spread of a comparison's operands is widened.
        given: unit roundoff of the program's widest input as it is traced; types of more round as such. inf: none does.
    """

    table: np.ndarray
    format: Format
    turn: int = 0
    widened: float = WIDENED
    given: float = math.inf

    def of_results(self, equation: JaxprEqn) -> "Noise":
        """The noise of an equation's results; see `of`."""
        if equation.primitive.name == "reduce_precision":
            return self._in(_of_bits(equation.params["exponent_bits"], equation.params["mantissa_bits"]))
        return self.of(equation.outvars[0].aval) if equation.outvars else self

    def of(self, value: Any) -> "Noise":
        """The noise of values of a type, which is this one unless the type is narrower than the inputs'."""
        return self if self.given == math.inf else self._in(_of(getattr(value, "dtype", None)))

    def _in(self, format: Format | None) -> "Noise":
        if format is None or format.u <= max(self.given, self.format.u):
            return self
        return replace(self, format=format)

    def rounded(
        self, site: int, x: np.ndarray, factor: float = 1.0, terms: float | int = 0, size: np.ndarray | None = None
    ) -> np.ndarray:
        """The results of one operation, rounded in every sample as the module says.

        Args:
            site: the operation's number, for noise of its own.
            x: exact results.
            factor: how many roundings a library function may be off.
            terms: of a sum; they err by its root times u_sum times `size`.
            size: of a sum, the sum of its terms' magnitudes; of another operation, the scale of a further, absolute
                error. Of every sample, or of the first, which is near enough.
        """
        if not self.format.u:
            return x
        format, count, root = self.format, math.prod(x.shape[1:]), terms**0.5
        flat, results = x.reshape(len(x), count), np.empty((len(self.table), count), x.dtype)
        sizes = None if size is None else size.reshape(len(size), count)
        for start in range(0, count, BLOCK):  # block by block, since a processor's cache is small
            part = (slice(None), slice(start, start + BLOCK))
            magnitude = np.abs(flat[part])
            reach = factor * format.u * magnitude
            reach += np.minimum(magnitude, format.eta)
            if sizes is not None:
                reach = reach + root * format.u_sum * sizes[part] + np.minimum(sizes[part], root * format.eta)
            offset = (site * 7919 + self.turn + start) % TABLE
            noisy = self._drawn(offset, reach.shape[1], x.dtype) * reach
            results[part] = noisy + flat[part]
            if not np.all(magnitude <= format.largest):
                results[part] = np.where(magnitude <= format.largest, results[part], flat[part] * np.inf)
        results[0] = flat[0]
        return results.reshape(len(results), *x.shape[1:])

    def _drawn(self, offset: int, count: int, dtype: np.dtype[Any]) -> np.ndarray:
        """So many entries of the table from there on; of complex numbers both parts are rounded."""
        real = self.table[:, offset : offset + count]
        if dtype.kind != "c":
            return real
        other = (offset + TABLE // 2) % TABLE
        return real + 1j * self.table[:, other : other + count]


def types_inside(program: ClosedJaxpr, format: Format) -> tuple[str, ...]:
    """The names of the types in a program that are narrower than its inputs and the format, and round as such."""
    least = max(_unit(program), format.u)
    formats = {str(dtype): _of(dtype) for dtype in float_types(program.jaxpr)}
    return tuple(sorted(name for name, inner in formats.items() if inner is not None and inner.u > least))


def _unit(program: ClosedJaxpr) -> float:
    """The unit roundoff of the widest input of a program."""
    return min((unit_roundoff(aval.dtype) for aval in program.in_avals if is_float(aval)), default=math.inf)


def noises(format: Format, samples: int, seed: int, program: ClosedJaxpr | None = None) -> Noise:
    """`samples` samples of noise, and in front one without noise.

    Args:
        format: the precision under test.
        samples: how many.
        seed: of the noise.
        program: where what is narrower than its inputs rounds as such; None where it is evaluated in `format` alone.
    """
    table = np.random.default_rng(seed).uniform(-1, 1, (samples + 1, TABLE))
    table[0] = 0.0
    twice = np.concatenate([table, table], axis=1)  # so that no read wraps around
    return Noise(twice, format, given=math.inf if program is None else _unit(program))


@cache
def _of(dtype: Any) -> Format | None:
    return Format.of(dtype) if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else None


_of_bits = cache(Format.of_bits)
