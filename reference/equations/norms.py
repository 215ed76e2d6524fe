"""The derived rounding bounds of RMS norm and layer norm, and their values under the usual mistakes.

With C x = x or x - mean(x), and s = sqrt(mean((C x)^2) + eps), xhat = C x / s. If C x is off by e, then s is off by at
most the root mean square of e, since s is a norm, and it is never below sqrt(eps). So no bound is of first order only.
Statistics and all between input and rounded result are in the precision of sums. A compiler computes statistics once,
and what is elementwise in a row again where it is used, with other roundings. So the slack of a result has what its own
entry is off and these roundings, but neither those of sums nor what the other entries of the row are off.
"""

from dataclasses import dataclass

import numpy as np

from manual_backprop.layers import LayerNorm, RMSNorm
from reference.equations.bounds import LIBRARY, Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import Family, KnownFlow, Mistakes, family


@family.register(RMSNorm)
@family.register(LayerNorm)
def _(layer: RMSNorm | LayerNorm) -> Family:
    return _Norm(layer.eps, isinstance(layer, LayerNorm))


@dataclass(frozen=True)
class _Rows:
    """C x of some rows, 1/s, the largest 1/s of a right answer, its relative error, and two roundings."""

    centred: Known
    inverse: Wide
    largest: Wide
    relative: Wide
    roundings: float

    @property
    def xhat(self) -> Known:
        return self.divided(self.centred)

    def divided(self, rows: Known) -> Known:
        """Other rows over s."""
        value = rows.value * self.inverse
        bound = rows.bound * self.largest + self.relative * np.abs(value)
        return Known(value, bound, rows.slack * self.largest).further(self.roundings * np.abs(value))


def _mean(rows: Wide) -> Wide:
    return rows.mean(axis=-1, keepdims=True)


@dataclass(frozen=True)
class _Norm(Family):
    eps: float
    centred: bool

    def net_input(self, of: Arithmetic, use: Use, a_in: Known) -> tuple[Known, Mistakes]:
        gain, bias = use.params.gain, getattr(use.params, "bias", None)
        xhat = self.rows(of, a_in).xhat
        scaled, shift = _times(gain, xhat), np.zeros_like(gain) if bias is None else bias
        z = Known(scaled.value + shift, scaled.bound, scaled.slack)
        z = z.further(of.u_sum * (np.abs(scaled.value) + np.abs(z.value)))
        mistakes = {"the gain is missing": xhat.value + shift}
        mistakes |= {} if bias is None else {"the bias is missing": scaled.value}
        if self.centred:
            mistakes["the mean is not subtracted"] = gain * _Norm(self.eps, False).rows(of, a_in).xhat.value + shift
        return of.rounded(z), mistakes

    def transport(self, of: Arithmetic, use: Use, a_in: Known, delta: Known) -> tuple[Known, Mistakes]:
        gain, rows = use.params.gain, self.rows(of, a_in)
        v = _times(gain, delta)
        v = self.less_mean(of, v.further(of.u_sum * np.abs(v.value)))
        xhat, x, size = rows.xhat, np.abs(rows.xhat.value), np.abs(v.value)
        along, rounding = _mean(xhat.value * v.value), of.gamma(size.shape[-1] + 2) * _mean(x * size)
        along_off = _mean(x * v.bound + xhat.bound * (size + v.bound)) + rounding
        inside = Known(
            v.value - xhat.value * along,
            v.bound + x * along_off + xhat.bound * (np.abs(along) + along_off),
            v.slack + xhat.slack * np.abs(along),
        ).further(3 * of.u_sum * (size + x * np.abs(along)))
        d_x = rows.divided(inside)
        mistakes = {
            "the gain is missing": self.through(rows, delta.value),
            "the statistics are taken for constants": rows.inverse * gain * delta.value,
        }
        if self.centred:
            mistakes["the mean is taken for a constant"] = _Norm(self.eps, False).through(rows, gain * delta.value)
        return of.rounded(d_x), mistakes

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[KnownFlow], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        xhat, error = Known.together([self.rows(of, x).xhat for x in a_in]), Known.together(delta)
        gradients = {".gain": _summed(of, xhat, error, shares)}
        if getattr(uses[0].params, "bias", None) is not None:
            gradients[".bias"] = _summed(of, Known.exactly(np.ones_like(error.value)), error, shares)
        return gradients

    def gradient_mistakes(self, use: Use, entered: dict[Use, KnownFlow], shares: Wide, name: str) -> Mistakes:
        if name != ".gain":
            return {}
        x, axes = entered[use].value, tuple(range(use.delta.ndim - 1))
        weighted = shares.reshape(-1, *(1,) * (use.delta.ndim - 1)) * use.delta
        return {"x where the normalised x is meant": (weighted * x).sum(axis=axes)}

    def rows(self, of: Arithmetic, a_in: Known) -> _Rows:
        """The normalised rows of an input, and how far a right answer may be off."""
        centred = self.less_mean(of, a_in)
        s = np.sqrt(_mean(centred.value**2) + self.eps)
        off = np.sqrt(_mean(centred.bound**2))
        largest = 1 / np.maximum(s - off, self.eps**0.5)
        relative = off * largest + of.gamma(a_in.value.shape[-1]) + LIBRARY * of.u_sum
        return _Rows(centred, 1 / s, largest, relative, 2 * of.u_sum)

    def less_mean(self, of: Arithmetic, rows: Known) -> Known:
        """C of rows, which may take them from their first entry before it takes them from their mean."""
        if not self.centred:
            return rows
        value = rows.value - _mean(rows.value)
        spread = np.ptp(rows.value, axis=-1, keepdims=True)  # of an entry and of the mean, less the first entry
        rounding = of.u_sum * (2 * spread + np.abs(value))
        off = rows.bound + _mean(rows.bound) + of.gamma(value.shape[-1]) * _mean(np.abs(rows.value))
        return Known(value, off, rows.slack).further(rounding)

    def through(self, rows: _Rows, v: Wide) -> Wide:
        """J v, exactly."""
        v = v - _mean(v) if self.centred else v
        return rows.inverse * (v - rows.xhat.value * _mean(rows.xhat.value * v))


def _times(gain: Wide, rows: Known) -> Known:
    return Known(gain * rows.value, *(np.abs(gain) * off for off in (rows.bound, rows.slack)))


def _summed(of: Arithmetic, factor: Known, delta: Known, shares: Wide) -> Known:
    """sum_n w_n factor_n * delta_n over examples, positions and uses."""
    axes = tuple(range(delta.value.ndim - 1))
    weights = shares.reshape(-1, *(1,) * (delta.value.ndim - 1))
    terms = weights * factor.value * delta.value
    moved = np.abs(factor.value) * delta.bound + factor.bound * (np.abs(delta.value) + delta.bound)
    count = terms[..., 0].size
    error = (of.gamma(count + 2) * np.abs(terms) + np.abs(weights) * moved).sum(axis=axes)
    return of.rounded(Known.exactly(terms.sum(axis=axes)).further(error + 2 * count * of.eta_sum))
