"""Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), of frames in colour."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair, by_image, check_side

WINDOW = 11
"""Pixels a side, torchmetrics' own."""

MIN_SIDE = WINDOW * 2**4
"""Pixels: the window must fit after four halvings."""


def ms_ssim(reference: Clip, clip: Clip) -> Float[Tensor, "b t"]:
    """MS-SSIM of every frame, in [0, 1], as torchmetrics computes it.

    Five scales with the paper's exponents, pixels in [0, 1]; negative similarities count as 0, because a fractional
    power of them is no number.

    Args:
        reference: float in [-1, 1], or uint8.
        clip: The same shape.

    Raises:
        KinemaError: Shapes differ, values are out of range, or frames are smaller than `MIN_SIDE`, 176 pixels.
    """
    a, b = as_pair(reference, clip)
    check_side(b, MIN_SIDE, "MS-SSIM")
    return by_image(_ms_ssim_of_images, a, b)


def _ms_ssim_of_images(a: Tensor, b: Tensor) -> Tensor:
    return multiscale_structural_similarity_index_measure(
        (b + 1) / 2, (a + 1) / 2, data_range=1.0, reduction="none", normalize="relu"
    )


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns `ms_ssim`, which computes where the clips are: `device` is not used."""
    return ms_ssim
