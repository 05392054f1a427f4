"""Presets of the holistic tokenizer: one row each, as in `kinema.tokenizers.causal_vae.presets`.

The name says bottleneck, window, tokens of a window, and latent channels or codebook size. GFLOP are those of a clip of
17×256×256, which is 16 windows of 64×64, or 4 of 128×128.
"""

from kinema.tokenizers.causal_vae.presets import Config, Stated

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


def _kl(channels: int, num_tokens: int) -> Config:
    return dict(bottleneck="kl", latent_channels=channels, num_tokens=num_tokens)


def _fsq(channels: int, num_tokens: int) -> Config:
    return dict(bottleneck="fsq", fsq_levels=(8,) * channels, num_tokens=num_tokens)


def _bsq(bits: int, num_tokens: int) -> Config:
    return dict(bottleneck="bsq", codebook_size=2**bits, num_tokens=num_tokens)


# Name, bottleneck and tokens, architecture; millions of parameters, GFLOP to encode, GFLOP to decode.
_TABLE: tuple[tuple[str, Config, Config, Stated], ...] = (
    ("1d-kl-17x64x64-n64-c16",           _kl(16, 64),   _17X64X64,    Stated(22, 155, 155)),
    ("1d-fsq-17x64x64-n64-262144",       _fsq(6, 64),   _17X64X64,    Stated(22, 155, 155)),
    ("1d-kl-17x128x128-n256-c16",        _kl(16, 256),  _17X128X128,  Stated(53.9, 142, 142)),
    ("1d-fsq-17x128x128-n512-32768",     _fsq(5, 512),  _17X128X128,  Stated(54.1, 217, 217)),
    ("1d-fsq-17x128x128-n512-262144",    _fsq(6, 512),  _17X128X128,  Stated(54.1, 217, 217)),
    ("1d-bsq-17x128x128-n512-262144",    _bsq(18, 512), _17X128X128,  Stated(54.4, 217, 217)),
)  # fmt: skip

PRESETS: dict[str, Config] = {name: tokens | architecture for name, tokens, architecture, _ in _TABLE}
"""Arguments of `HolisticVideoTokenizer` by name."""

STATED: dict[str, Stated] = {name: stated for name, _, _, stated in _TABLE}
"""Parameters and GFLOP of each preset."""

TINY: Config = dict(
    bottleneck="kl", latent_channels=4, num_frames=5, size=16, num_tokens=6, patch=(4, 8, 8), head_dim=8,
    encoder_width=16, encoder_depth=2, decoder_width=16, decoder_depth=2,
)  # fmt: skip
