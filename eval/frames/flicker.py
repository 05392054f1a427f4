"""Flicker: change from frame to frame that the reference does not have."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair


def flicker(reference: Clip, clip: Clip) -> Float[Tensor, "b t"]:
    """Mean of |(y_t - y_{t-1}) - (x_t - x_{t-1})| over the pixels of a frame, in levels of 255.

    Here x is the reference and y the clip, so that a constant error counts nothing, and what moves in the reference
    counts nothing either: this is the part of the error that comes and goes from frame to frame. The first frame has
    no predecessor: NaN.

    Args:
        reference: float in [-1, 1], or uint8.
        clip: The same shape.

    Raises:
        KinemaError: Shapes differ, or values are out of range.
    """
    a, b = as_pair(reference, clip)
    change = (b - a).diff(dim=2).abs().mean(dim=(1, 3, 4)) * 127.5
    return torch.cat([change.new_full((len(change), 1), float("nan")), change], dim=1)


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns `flicker`, which computes where the clips are: `device` is not used."""
    return flicker
