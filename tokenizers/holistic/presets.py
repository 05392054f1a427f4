"""Presets of the holistic tokenizer: one row each.

The name gives the bottleneck, the window, the tokens per window, and latent channels or codebook size. GFLOP are for a
clip of 17×256×256, which is 16 windows of 64×64, or 4 of 128×128.
"""

from kinema.tokenizers.presets import BSQ, Config, Cost, kl, preset_table

_17X64X64: Config = dict(
    num_frames=17, size=64, patch=(4, 8, 8),
    encoder_width=384, encoder_depth=6,
    decoder_width=384, decoder_depth=6,
)  # fmt: skip
_17X128X128: Config = dict(
    num_frames=17, size=128, patch=(4, 16, 16),
    encoder_width=512, encoder_depth=8,
    decoder_width=512, decoder_depth=8,
)  # fmt: skip


def _fsq(channels: int) -> Config:
    return dict(name="fsq", levels=(8,) * channels)


# Name, bottleneck, architecture; millions of parameters, GFLOP to encode, GFLOP to decode.
PRESETS = preset_table(
    "HolisticVideoTokenizer",
    ("1d-kl-17x64x64-n64-c16",           kl(16), _17X64X64 | dict(num_tokens=64),    Cost(22, 155, 155)),
    ("1d-fsq-17x64x64-n64-262144",       _fsq(6), _17X64X64 | dict(num_tokens=64),    Cost(22, 155, 155)),
    ("1d-kl-17x128x128-n256-c16",        kl(16), _17X128X128 | dict(num_tokens=256),  Cost(53.9, 142, 142)),
    ("1d-fsq-17x128x128-n512-32768",     _fsq(5), _17X128X128 | dict(num_tokens=512),  Cost(54.1, 217, 217)),
    ("1d-fsq-17x128x128-n512-262144",    _fsq(6), _17X128X128 | dict(num_tokens=512),  Cost(54.1, 217, 217)),
    ("1d-bsq-17x128x128-n512-262144",    BSQ, _17X128X128 | dict(num_tokens=512),  Cost(54.4, 217, 217)),
)  # fmt: skip

TINY: Config = dict(
    bottleneck=kl(4), num_frames=5, size=16, num_tokens=6, patch=(4, 8, 8), head_dim=8,
    encoder_width=16, encoder_depth=2, decoder_width=16, decoder_depth=2,
)  # fmt: skip
