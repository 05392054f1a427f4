"""Presets: one row each. The name gives the bottleneck, the T×H×W ratio, and latent channels or codebook size."""

from kinema.tokenizers.presets import BSQ, LFQ, VQ, Config, Cost, fsq, kl, preset_table

# Architectures by compression ratio. `ratios` are those after the 2×2×2 Haar level; widths and blocks run from half
# resolution down to the latents.
_4X4X4: Config = dict(
    ratios=((2, 2, 2),),
    encoder_widths=(32, 128), encoder_blocks=(1, 2),
    decoder_widths=(32, 128), decoder_blocks=(1, 4),
)  # fmt: skip
_4X8X8: Config = dict(
    ratios=((2, 2, 2), (1, 2, 2)),
    encoder_widths=(24, 96, 192), encoder_blocks=(1, 1, 2),
    decoder_widths=(24, 96, 192), decoder_blocks=(1, 3, 3),
)  # fmt: skip
_8X8X8: Config = dict(
    ratios=((2, 2, 2), (2, 2, 2)),
    encoder_widths=(24, 96, 256), encoder_blocks=(1, 1, 3),
    decoder_widths=(24, 96, 256), decoder_blocks=(1, 3, 4),
)  # fmt: skip
_4X16X16: Config = dict(
    ratios=((2, 2, 2), (1, 2, 2), (1, 2, 2)),
    encoder_widths=(32, 64, 128, 256), encoder_blocks=(0, 1, 1, 2),
    decoder_widths=(32, 64, 128, 256), decoder_blocks=(1, 2, 2, 3),
)  # fmt: skip
_8X16X16: Config = dict(
    ratios=((2, 2, 2), (2, 2, 2), (1, 2, 2)),
    encoder_widths=(24, 96, 192, 384), encoder_blocks=(1, 1, 2, 2),
    decoder_widths=(24, 96, 192, 384), decoder_blocks=(1, 2, 3, 3),
)  # fmt: skip
_8X32X32: Config = dict(
    ratios=((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
    encoder_widths=(24, 96, 192, 384, 768), encoder_blocks=(1, 1, 1, 2, 2),
    decoder_widths=(24, 96, 192, 384, 768), decoder_blocks=(1, 2, 2, 3, 3),
)  # fmt: skip
# For GPUs: about 100 M parameters.
_4X8X8_LARGE: Config = dict(
    ratios=((2, 2, 2), (1, 2, 2)),
    encoder_widths=(96, 384, 768), encoder_blocks=(2, 2, 2),
    decoder_widths=(96, 384, 768), decoder_blocks=(2, 4, 4),
)  # fmt: skip
_8X16X16_LARGE: Config = dict(
    ratios=((2, 2, 2), (2, 2, 2), (1, 2, 2)),
    encoder_widths=(96, 192, 384, 768), encoder_blocks=(1, 2, 2, 2),
    decoder_widths=(96, 192, 384, 768), decoder_blocks=(1, 3, 3, 4),
)  # fmt: skip

# Name, bottleneck, architecture; millions of parameters, GFLOP to encode, GFLOP to decode.
PRESETS = preset_table(
    "CausalVideoTokenizer",
    ("kl-4x4x4-c4",         kl(4),       _4X4X4,    Cost(2.18, 35.3, 63.4)),
    ("kl-4x4x4-c8",         kl(8),       _4X4X4,    Cost(2.18, 35.3, 63.5)),
    ("kl-4x4x4-c16",        kl(16),      _4X4X4,    Cost(2.19, 35.5, 63.6)),
    ("kl-4x4x4-c32",        kl(32),      _4X4X4,    Cost(2.2, 35.8, 63.8)),
    ("fsq-4x4x4-4096",      fsq(4096),   _4X4X4,    Cost(2.18, 35.3, 63.4)),
    ("fsq-4x4x4-32768",     fsq(32768),  _4X4X4,    Cost(2.18, 35.3, 63.5)),
    ("fsq-4x4x4-262144",    fsq(262144), _4X4X4,    Cost(2.18, 35.3, 63.5)),
    ("kl-4x8x8-c4",         kl(4),       _4X8X8,    Cost(4.87, 28.6, 52.3)),
    ("kl-4x8x8-c8",         kl(8),       _4X8X8,    Cost(4.88, 28.6, 52.4)),
    ("kl-4x8x8-c16",        kl(16),      _4X8X8,    Cost(4.89, 28.7, 52.5)),
    ("kl-4x8x8-c32",        kl(32),      _4X8X8,    Cost(4.93, 28.9, 52.6)),
    ("fsq-4x8x8-4096",      fsq(4096),   _4X8X8,    Cost(4.87, 28.6, 52.4)),
    ("fsq-4x8x8-32768",     fsq(32768),  _4X8X8,    Cost(4.87, 28.6, 52.4)),
    ("fsq-4x8x8-262144",    fsq(262144), _4X8X8,    Cost(4.87, 28.6, 52.4)),
    ("kl-8x8x8-c4",         kl(4),       _8X8X8,    Cost(10.9, 38.5, 62.8)),
    ("kl-8x8x8-c8",         kl(8),       _8X8X8,    Cost(10.9, 38.6, 62.9)),
    ("kl-8x8x8-c16",        kl(16),      _8X8X8,    Cost(10.9, 38.7, 63)),
    ("kl-8x8x8-c32",        kl(32),      _8X8X8,    Cost(11, 38.9, 63.1)),
    ("fsq-8x8x8-4096",      fsq(4096),   _8X8X8,    Cost(10.9, 38.5, 62.9)),
    ("fsq-8x8x8-32768",     fsq(32768),  _8X8X8,    Cost(10.9, 38.6, 62.9)),
    ("fsq-8x8x8-262144",    fsq(262144), _8X8X8,    Cost(10.9, 38.6, 62.9)),
    ("kl-4x16x16-c4",       kl(4),       _4X16X16,  Cost(8.59, 15.7, 31.7)),
    ("kl-4x16x16-c8",       kl(8),       _4X16X16,  Cost(8.62, 15.7, 31.7)),
    ("kl-4x16x16-c16",      kl(16),      _4X16X16,  Cost(8.68, 15.8, 31.8)),
    ("kl-4x16x16-c32",      kl(32),      _4X16X16,  Cost(8.79, 16, 31.9)),
    ("fsq-4x16x16-4096",    fsq(4096),   _4X16X16,  Cost(8.6, 15.7, 31.7)),
    ("fsq-4x16x16-32768",   fsq(32768),  _4X16X16,  Cost(8.61, 15.7, 31.7)),
    ("fsq-4x16x16-262144",  fsq(262144), _4X16X16,  Cost(8.61, 15.7, 31.7)),
    ("kl-8x16x16-c4",       kl(4),       _8X16X16,  Cost(21, 32.3, 49.8)),
    ("kl-8x16x16-c8",       kl(8),       _8X16X16,  Cost(21, 32.4, 49.8)),
    ("kl-8x16x16-c16",      kl(16),      _8X16X16,  Cost(21.1, 32.5, 49.9)),
    ("kl-8x16x16-c32",      kl(32),      _8X16X16,  Cost(21.3, 32.6, 50.1)),
    ("fsq-8x16x16-4096",    fsq(4096),   _8X16X16,  Cost(21, 32.3, 49.8)),
    ("fsq-8x16x16-32768",   fsq(32768),  _8X16X16,  Cost(21, 32.4, 49.8)),
    ("fsq-8x16x16-262144",  fsq(262144), _8X16X16,  Cost(21, 32.4, 49.8)),
    ("kl-8x32x32-c128",     kl(128),     _8X32X32,  Cost(90.3, 38.8, 60.9)),
    ("kl-4x8x8-c16-large",  kl(16),     _4X8X8_LARGE, Cost(96.6, 630, 1140)),
    ("kl-8x16x16-c32-large", kl(32),    _8X16X16_LARGE, Cost(98.4, 201, 290)),
    ("lfq-4x8x8-262144",    LFQ,         _4X8X8,    Cost(4.89, 28.7, 52.5)),
    ("bsq-4x8x8-262144",    BSQ,         _4X8X8,    Cost(4.89, 28.7, 52.5)),
    ("vq-4x8x8-8192",       VQ,          _4X8X8,    Cost(4.88, 29.3, 52.4)),
)  # fmt: skip

TINY: Config = dict(
    bottleneck=kl(4), ratios=_4X8X8["ratios"],
    encoder_widths=(8, 8, 16), encoder_blocks=(1, 1, 1),
    decoder_widths=(8, 8, 16), decoder_blocks=(1, 1, 1),
)  # fmt: skip
