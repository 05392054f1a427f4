"""Peak signal-to-noise ratio: the one implementation, of frames, of clips and of sums over a file."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair

CEILING = 100.0
"""dB of equal images, where the formula says infinity: nothing that reads or averages numbers can use that."""


def decibels(error: Float[Tensor, "*_"], *, peak: float = 2.0, ceiling: float = CEILING) -> Float[Tensor, "*_"]:
    """PSNR in dB of mean squared errors.

    Args:
        error: Mean squared errors, >= 0.
        peak: Largest possible difference: 2 for pixels in [-1, 1], 255 for levels.
        ceiling: The result is at most this.
    """
    least = peak**2 * 10 ** (-ceiling / 10)
    return 10 * torch.log10(peak**2 / error.clamp_min(least))


def psnr(reference: Clip, clip: Clip) -> Float[Tensor, "b t"]:
    """PSNR of every frame in dB, at most 100.

    Args:
        reference: float in [-1, 1], or uint8.
        clip: The same shape.

    Raises:
        KinemaError: Shapes differ, or values are out of range.
    """
    a, b = as_pair(reference, clip)
    return decibels((a - b).square().mean(dim=(1, 3, 4)))


def clip_psnr(reference: Float[Tensor, "b c t h w"], clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """PSNR of every clip in dB, from its mean squared error over all frames, at most 100.

    It is at most the mean of its frames' PSNR. Unlike the metrics it takes what a network gives: values of `clip`
    outside [-1, 1] are clamped, as writing a file does.

    Args:
        reference: In [-1, 1].
        clip: The same shape.
    """
    return decibels((clip.float().clamp(-1, 1) - reference.float()).square().mean(dim=(1, 2, 3, 4)))


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns `psnr`, which computes where the clips are: `device` is not used."""
    return psnr
