"""Structural similarity (Wang et al. 2004), of frames in colour."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair, by_image, check_side

MIN_SIDE = 11
"""Pixels: the side of the Gaussian window."""


def ssim(reference: Clip, clip: Clip) -> Float[Tensor, "b t"]:
    """SSIM of every frame, at most 1, as torchmetrics computes it.

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, mean over the three colours, and over the whole
    frame, reflected at its border (other programs leave the border out). SSIM divides by means, so that it depends on
    where zero is: pixels are in [0, 1] here, as it is defined.

    Args:
        reference: float in [-1, 1], or uint8.
        clip: The same shape.

    Raises:
        KinemaError: Shapes differ, values are out of range, or frames are smaller than the window.
    """
    a, b = as_pair(reference, clip)
    check_side(b, MIN_SIDE, "SSIM")
    return by_image(_ssim_of_images, a, b)


def _ssim_of_images(a: Tensor, b: Tensor) -> Tensor:
    values = structural_similarity_index_measure((b + 1) / 2, (a + 1) / 2, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns `ssim`, which computes where the clips are: `device` is not used."""
    return ssim
