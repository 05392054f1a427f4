"""What the presets of all tokenizers share: their type, and the bottlenecks they choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """Size and speed of a preset.

    Attributes:
        parameters: Millions.
        encode, decode: GFLOP for a clip of 17×256×256; 2 per multiply-add of convolutions and matrix products.
    """

    parameters: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        tokenizer: Name of the class.
        config: Arguments of the class.
        cost: As `benchmarks/tokenizer_presets.py` measures it; tests compare.
    """

    tokenizer: str
    config: Mapping[str, Any]
    cost: Cost


def preset_table(tokenizer: str, *rows: tuple[str, Config, Config, Cost]) -> dict[str, Preset]:
    """Presets of one class by name; a row is a name, a `bottleneck`, the other arguments, and the cost."""
    return {
        name: Preset(tokenizer, MappingProxyType({"bottleneck": bottleneck, **architecture}), cost)
        for name, bottleneck, architecture, cost in rows
    }


def kl(channels: int) -> Config:
    """A KL bottleneck."""
    return dict(name="kl", latent_channels=channels)


_LEVELS: dict[int, tuple[int, ...]] = {
    4096: (16, 8, 4, 4, 2),
    32768: (16, 8, 4, 4, 4, 4),
    262144: (16, 16, 8, 8, 4, 4),
}


def fsq(codes: int) -> Config:
    """An FSQ bottleneck with this number of codes.

    The KLT orders channels by importance; the first ones get more levels. At initialisation this gives more than 1 dB
    over 8 levels for each channel (docs/decisions.md).
    """
    return dict(name="fsq", levels=_LEVELS[codes])


LFQ: Config = dict(name="lfq", num_bits=18)
BSQ: Config = dict(name="bsq", num_bits=18)
VQ: Config = dict(name="vq", codebook_size=8192, latent_channels=8)
