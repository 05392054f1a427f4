"""Presets of the transformer tokenizer: one row each, named as in `kinema.tokenizers.causal_vae.presets`."""

from kinema.tokenizers.presets import BSQ, LFQ, VQ, Config, Cost, fsq, kl, preset_table

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

# Name, bottleneck, architecture; millions of parameters, GFLOP to encode, GFLOP to decode.
PRESETS = preset_table(
    "TransformerVideoTokenizer",
    ("vit-kl-4x8x8-c4",         kl(4),       _4X8X8,    Cost(10.9, 46.8, 69.1)),
    ("vit-kl-4x8x8-c16",        kl(16),      _4X8X8,    Cost(10.9, 46.9, 69.2)),
    ("vit-fsq-4x8x8-32768",     fsq(32768),  _4X8X8,    Cost(10.9, 46.8, 69.1)),
    ("vit-fsq-4x8x8-262144",    fsq(262144), _4X8X8,    Cost(10.9, 46.8, 69.1)),
    ("vit-lfq-4x8x8-262144",    LFQ,         _4X8X8,    Cost(10.9, 46.9, 69.2)),
    ("vit-bsq-4x8x8-262144",    BSQ,         _4X8X8,    Cost(10.9, 46.9, 69.2)),
    ("vit-vq-4x8x8-8192",       VQ,          _4X8X8,    Cost(10.9, 47.5, 69.1)),
    ("vit-kl-8x8x8-c16",        kl(16),      _8X8X8,    Cost(24.9, 63.4, 93.2)),
    ("vit-kl-4x16x16-c32",      kl(32),      _4X16X16,  Cost(53.7, 48.4, 92.3)),
    ("vit-fsq-4x16x16-262144",  fsq(262144), _4X16X16,  Cost(53.5, 48.1, 92.1)),
)  # fmt: skip

TINY: Config = dict(
    bottleneck=kl(4), ratio=(4, 8, 8), window=4, temporal_window=3, head_dim=8,
    encoder_width=16, encoder_depth=2, decoder_width=16, decoder_depth=3,
)  # fmt: skip
