"""Bottlenecks between encoder and decoder; a new one is one file and one line in `BOTTLENECKS`."""

from collections.abc import Sequence

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers.base import Bottleneck, BottleneckOutput, DiscreteBottleneck
from kinema.tokenizers.quantizers.bsq import BSQ
from kinema.tokenizers.quantizers.fsq import FSQ
from kinema.tokenizers.quantizers.kl import KL, DiagonalGaussian
from kinema.tokenizers.quantizers.lfq import LFQ
from kinema.tokenizers.quantizers.usage import CodebookUsage
from kinema.tokenizers.quantizers.vq import VQ

BOTTLENECKS: dict[str, type[Bottleneck]] = {"kl": KL, "fsq": FSQ, "lfq": LFQ, "bsq": BSQ, "vq": VQ}


def make_bottleneck(
    bottleneck: str,
    *,
    latent_channels: int | None = None,
    fsq_levels: Sequence[int] | None = None,
    codebook_size: int | None = None,
) -> Bottleneck:
    """The bottleneck of a tokenizer's options.

    Args:
        bottleneck: a key of `BOTTLENECKS`.
        latent_channels: channels of the latents; needed by "kl" and "vq".
        fsq_levels: levels per channel; needed by "fsq", and by no other.
        codebook_size: number of codes; needed by "vq", and a power of 2 for "lfq" and "bsq".

    Options that follow from others (the channels of "fsq", "lfq" and "bsq") may be left out, or must agree.

    Raises:
        KinemaError: the bottleneck is unknown, or an option is missing, does not fit, or is of no use to it.
    """
    if bottleneck not in BOTTLENECKS:
        raise KinemaError(f"`bottleneck` (={bottleneck!r}) must be one of {', '.join(BOTTLENECKS)}")
    return BOTTLENECKS[bottleneck].from_options(latent_channels, fsq_levels, codebook_size)


__all__ = [
    "BOTTLENECKS",
    "BSQ",
    "FSQ",
    "KL",
    "LFQ",
    "VQ",
    "Bottleneck",
    "BottleneckOutput",
    "CodebookUsage",
    "DiagonalGaussian",
    "DiscreteBottleneck",
    "make_bottleneck",
]
