"""Norms over the last axis as functions, with their layers' own backward."""

from typing import Any

from jaxtyping import Array, Float

from manual_backprop.custom_vjp import as_custom_vjp
from manual_backprop.layers import Gain, GainAndBias, Layer, LayerNorm, RMSNorm
from manual_backprop.types import came


def rms_norm(x: Float[Array, "*rows d"], gain: Float[Array, " d"], *, eps: float = 1e-6) -> Float[Array, "*rows d"]:
    """RMS norm over the last axis, x / sqrt(mean(x^2) + eps) * gain, with statistics in float32 or wider.

    Args:
        x: any number of axes in front.
        gain: one for each feature.
        eps: inside the root.

    Raises:
        ValueError: shapes that do not fit, or an eps that is not above 0.
        TypeError: dtypes that differ.
    """
    return _normed(RMSNorm(_features(gain), eps), Gain(gain), x)


def layer_norm(
    x: Float[Array, "*rows d"], gain: Float[Array, " d"], bias: Float[Array, " d"] | None = None, *, eps: float = 1e-6
) -> Float[Array, "*rows d"]:
    """Layer norm over the last axis, (x - mean(x)) / sqrt(var(x) + eps) * gain + bias, and no E[x^2] - E[x]^2.

    Args:
        x: any number of axes in front.
        gain: one for each feature.
        bias: one for each feature, or None.
        eps: inside the root.

    Raises:
        ValueError: shapes that do not fit, or an eps that is not above 0.
        TypeError: dtypes that differ.
    """
    return _normed(LayerNorm(_features(gain), eps, bias is not None), GainAndBias(gain, bias), x)


def _features(gain: Any) -> int:
    if getattr(gain, "ndim", None) != 1:
        raise ValueError(f"gain must be one array with a number for each feature, got {came(gain)}")
    return gain.shape[0]


def _normed(layer: Layer, params: Any, x: Array) -> Array:
    return as_custom_vjp(layer)(params, x[None])[0] if x.ndim == 1 else as_custom_vjp(layer)(params, x)
