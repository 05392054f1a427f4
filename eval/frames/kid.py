"""Kernel inception distance (Bińkowski et al. 2018) of the frames of two sets of clips."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from kinema.errors import KinemaError
from kinema.eval.distributions import kernel_distance
from kinema.eval.frames.interface import SetMeasure
from kinema.eval.summaries import place_state

MOST_FRAMES = 50_000
"""Frames of a side, whose features take 0.4 GB."""


class FrameKID(Metric):
    """KID of frames: cubic kernel, unbiased, over all pairs; near 0 for frames of one kind, also below.

    The usual mean over random subsets estimates the same number with more noise. Features are kept, 8 KB a frame, so
    that their number is limited: `MOST_FRAMES` of a side in a process.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    reference: list[Tensor]
    clip: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("reference", [], dist_reduce_fx="cat")
        self.add_state("clip", [], dist_reduce_fx="cat")

    def update(self, reference: Float[Tensor, "n d"], clip: Float[Tensor, "m d"]) -> None:
        """Keeps the features of frames of both sides, of as many or not.

        Raises:
            KinemaError: There are too many.
        """
        for rows, more in ((self.reference, reference), (self.clip, clip)):
            count = sum(map(len, rows)) + len(more)
            if count > MOST_FRAMES:
                raise KinemaError(
                    f"`frames` (={count} of a side) must be at most {MOST_FRAMES} for KID, which compares all pairs of"
                    " them: take fewer of each clip (`num_frames`, `stride`), or FID"
                )
        self.reference.append(reference.detach().to(self.device, torch.float32))
        self.clip.append(clip.detach().to(self.device, torch.float32))

    def compute(self) -> Float[Tensor, ""]:
        """The distance.

        Raises:
            KinemaError: Fewer than two frames on a side.
        """
        value = kernel_distance(dim_zero_cat(self.reference), dim_zero_cat(self.clip))
        return torch.tensor(value, dtype=torch.float64)


def make(device: torch.device, weights: Path | None = None) -> SetMeasure:
    """Returns the metric, with its features on the GPU if `device` is one, else on the CPU."""
    return place_state(FrameKID(), device)
