"""PIX: functions of images."""

import dm_pix as pix
import jax
import jax.numpy as jnp

from benchmarks.elsewhere.cases import Case, formula, itself, within

_IMAGE = within(0.1, 0.9, 5, 5, 3)
_LARGE = within(0.1, 0.9, 12, 12, 3)

CASES: dict[str, Case] = {
    "dm_pix.rgb_to_hsv": itself(pix.rgb_to_hsv, _IMAGE),
    "dm_pix.hsv_to_rgb": itself(pix.hsv_to_rgb, _IMAGE),
    "dm_pix.rgb_to_hsl": itself(pix.rgb_to_hsl, _IMAGE),
    "dm_pix.hsl_to_rgb": itself(pix.hsl_to_rgb, _IMAGE),
    "dm_pix.hsv there and back": itself(lambda x: pix.hsv_to_rgb(pix.rgb_to_hsv(x)), _IMAGE),
    "dm_pix.rgb_to_grayscale": itself(pix.rgb_to_grayscale, _IMAGE),
    "dm_pix.adjust_contrast": formula(
        lambda x: pix.adjust_contrast(x, 1.5),
        lambda x: 1.5 * (x - x.mean((0, 1), keepdims=True)) + x.mean((0, 1), keepdims=True),
        _IMAGE,
    ),
    "dm_pix.adjust_gamma": formula(lambda x: pix.adjust_gamma(x, 2.2), lambda x: x**2.2, _IMAGE),
    "dm_pix.adjust_saturation": itself(lambda x: pix.adjust_saturation(x, 0.7), _IMAGE),
    "dm_pix.adjust_hue": itself(lambda x: pix.adjust_hue(x, 0.1), _IMAGE),
    "dm_pix.gaussian_blur": itself(lambda x: pix.gaussian_blur(x, 1.0, 3), _LARGE, dtypes=("float32",)),
    "dm_pix.rotate": itself(lambda x: pix.rotate(x, jnp.asarray(0.3, x.dtype)), _IMAGE),
    "dm_pix.psnr": itself(pix.psnr, _IMAGE, _IMAGE),
    "dm_pix.ssim": itself(lambda x, y: pix.ssim(x, y, filter_size=5), _LARGE, _LARGE),
    "dm_pix.solarize": itself(lambda x: pix.solarize(x, 0.45), _IMAGE),
    "dm_pix.depth_to_space": itself(lambda x: jnp.sin(pix.depth_to_space(x, 2)), within(0.1, 0.9, 3, 3, 4)),
    "dm_pix.mse": formula(pix.mse, lambda x, y: ((x - y) ** 2).mean((-3, -2, -1)), _IMAGE, _IMAGE),
    "dm_pix.simse": itself(lambda x, y: pix.simse(jax.nn.relu(x), y), _IMAGE, _IMAGE),
}
