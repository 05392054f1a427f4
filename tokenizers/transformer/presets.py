"""Presets of the transformer tokenizer: one row each, as in `kinema.tokenizers.causal_vae.presets`."""

from kinema.tokenizers.causal_vae.presets import FSQ_LEVELS, Config, Stated

_4X8X8: Config = dict(
    ratio=(4, 8, 8), window=8,
    encoder_width=256, encoder_depth=4,
    decoder_width=256, decoder_depth=6,
)  # fmt: skip
_8X8X8: Config = dict(
    ratio=(8, 8, 8), window=8,
    encoder_width=384, encoder_depth=4,
    decoder_width=384, decoder_depth=6,
)  # fmt: skip
_4X16X16: Config = dict(
    ratio=(4, 16, 16), window=8,
    encoder_width=512, encoder_depth=4,
    decoder_width=512, decoder_depth=8,
)  # fmt: skip


def _kl(channels: int) -> Config:
    return dict(bottleneck="kl", latent_channels=channels)


def _fsq(codes: int) -> Config:
    return dict(bottleneck="fsq", fsq_levels=FSQ_LEVELS[codes])


_BSQ: Config = dict(bottleneck="bsq", codebook_size=2**18)
_LFQ: Config = dict(bottleneck="lfq", codebook_size=2**18)
_VQ: Config = dict(bottleneck="vq", codebook_size=8192, latent_channels=8)

# Name, bottleneck, architecture; millions of parameters, GFLOP to encode, GFLOP to decode.
_TABLE: tuple[tuple[str, Config, Config, Stated], ...] = (
    ("vit-kl-4x8x8-c4",         _kl(4),       _4X8X8,    Stated(10.9, 46.8, 69.1)),
    ("vit-kl-4x8x8-c16",        _kl(16),      _4X8X8,    Stated(10.9, 46.9, 69.2)),
    ("vit-fsq-4x8x8-32768",     _fsq(32768),  _4X8X8,    Stated(10.9, 46.8, 69.1)),
    ("vit-fsq-4x8x8-262144",    _fsq(262144), _4X8X8,    Stated(10.9, 46.8, 69.1)),
    ("vit-lfq-4x8x8-262144",    _LFQ,         _4X8X8,    Stated(10.9, 46.9, 69.2)),
    ("vit-bsq-4x8x8-262144",    _BSQ,         _4X8X8,    Stated(10.9, 46.9, 69.2)),
    ("vit-vq-4x8x8-8192",       _VQ,          _4X8X8,    Stated(10.9, 47.5, 69.1)),
    ("vit-kl-8x8x8-c16",        _kl(16),      _8X8X8,    Stated(24.9, 63.4, 93.2)),
    ("vit-kl-4x16x16-c32",      _kl(32),      _4X16X16,  Stated(53.7, 48.4, 92.3)),
    ("vit-fsq-4x16x16-262144",  _fsq(262144), _4X16X16,  Stated(53.5, 48.1, 92.1)),
)  # fmt: skip

PRESETS: dict[str, Config] = {name: bottleneck | architecture for name, bottleneck, architecture, _ in _TABLE}
"""Arguments of `TransformerVideoTokenizer` by name."""

STATED: dict[str, Stated] = {name: stated for name, _, _, stated in _TABLE}
"""Parameters and GFLOP of each preset."""

TINY: Config = dict(
    bottleneck="kl", latent_channels=4, ratio=(4, 8, 8), window=4, temporal_window=3, head_dim=8,
    encoder_width=16, encoder_depth=2, decoder_width=16, decoder_depth=3,
)  # fmt: skip
