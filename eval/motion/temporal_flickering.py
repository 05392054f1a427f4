"""Temporal flickering: how little pixels change from frame to frame."""

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.frames.pixels import Clip, as_float
from kinema.eval.generation.looks import ClipMeasure, Networks, mean_of_defined


def temporal_flickering(clip: Clip) -> Float[Tensor, "b t"]:
    """1 minus the mean absolute difference of every frame from the one before, in [0, 1]; 1 is a still picture.

    The temporal flickering of VBench (Huang et al. 2024), (255 - mean |difference in levels|) / 255; a clip's score is
    the mean of its frames'. VBench measures it on prompts for still scenes, and leaves out clips that move: in others
    motion counts as flickering. The first frame is NaN.

    Args:
        clip: float in [-1, 1], or uint8.

    Raises:
        KinemaError: Fewer than two frames, or values out of range.
    """
    if clip.shape[2] < 2:
        raise KinemaError(f"`clip` (of {clip.shape[2]} frames) must have at least 2 frames for temporal flickering")
    # [-1, 1] is twice as wide as [0, 1].
    change = as_float(clip).diff(dim=2).abs().mean(dim=(1, 3, 4)) / 2
    return torch.cat([change.new_full((len(change), 1), float("nan")), 1 - change], dim=1)


def make(networks: Networks) -> ClipMeasure:
    """Returns the metric, which needs no network."""
    return ClipMeasure(curve=lambda look: temporal_flickering(look.clip)[0], value=mean_of_defined, before=1)
