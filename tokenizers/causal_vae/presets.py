"""Presets: one row each. The name says bottleneck, T×H×W ratio, and latent channels or codebook size."""

from typing import Any

_TO_4X8X8 = ((2, 2, 2), (1, 2, 2))
_TO_4X16X16 = ((2, 2, 2), (1, 2, 2), (1, 2, 2))

# widths and blocks run from half resolution (after the Haar level) down to the latents.
PRESETS: dict[str, dict[str, Any]] = {
    "kl-4x8x8-c16": dict(
        bottleneck="kl", latent_channels=16, ratios=_TO_4X8X8,
        encoder_widths=(24, 96, 192), encoder_blocks=(1, 1, 2),
        decoder_widths=(24, 96, 192), decoder_blocks=(1, 3, 3),
    ),
    "fsq-4x8x8-32768": dict(
        bottleneck="fsq", fsq_levels=(8, 8, 8, 8, 8), ratios=_TO_4X8X8,
        encoder_widths=(24, 96, 192), encoder_blocks=(1, 1, 2),
        decoder_widths=(24, 96, 192), decoder_blocks=(1, 3, 3),
    ),
    "kl-4x16x16-c32": dict(
        bottleneck="kl", latent_channels=32, ratios=_TO_4X16X16,
        encoder_widths=(32, 64, 128, 256), encoder_blocks=(0, 1, 1, 2),
        decoder_widths=(32, 64, 128, 256), decoder_blocks=(1, 2, 2, 3),
    ),
}  # fmt: skip

TINY: dict[str, Any] = dict(
    bottleneck="kl", latent_channels=4, ratios=_TO_4X8X8,
    encoder_widths=(8, 8, 16), encoder_blocks=(1, 1, 1),
    decoder_widths=(8, 8, 16), decoder_blocks=(1, 1, 1),
)  # fmt: skip
