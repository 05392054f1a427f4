"""Bottlenecks between encoder and decoder; a new one is one file and one line in `BOTTLENECKS`."""

from kinema.tokenizers.quantizers.base import Bottleneck, BottleneckOutput
from kinema.tokenizers.quantizers.fsq import FSQ
from kinema.tokenizers.quantizers.kl import KL, DiagonalGaussian

BOTTLENECKS: dict[str, type[Bottleneck]] = {"kl": KL, "fsq": FSQ}

__all__ = ["BOTTLENECKS", "FSQ", "KL", "Bottleneck", "BottleneckOutput", "DiagonalGaussian"]
