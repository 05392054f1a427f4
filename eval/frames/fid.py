"""Fréchet inception distance (Heusel et al. 2017) of the frames of two sets of clips."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from kinema.eval.distributions import GaussianStatistics, frechet_distance
from kinema.eval.frames.interface import SetMeasure
from kinema.eval.summaries import place_state


class FrameFID(Metric):
    """FID of frames, >= 0, and 0 for the same frames; memory does not grow with their number.

    Sums are float64 and reduced over processes by torchmetrics. FID grows where there are few frames (some thousands
    are usual), and frames of one clip are much alike, so that they count for less than their number says.

    Args:
        dim: Length of a feature vector.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    def __init__(self, dim: int = 2048) -> None:
        super().__init__()
        for side in ("reference", "clip"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reference: Float[Tensor, "n d"], clip: Float[Tensor, "m d"]) -> None:
        """Counts the features of frames of both sides, of as many or not."""
        for side, features in (("reference", reference), ("clip", clip)):
            values = features.detach().to(self.device, torch.float64)
            setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(values))
            setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + values.sum(0))
            setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + values.T @ values)

    def compute(self) -> Float[Tensor, ""]:
        """The distance.

        Raises:
            KinemaError: Fewer than two frames on a side.
        """
        value = frechet_distance(self._statistics("reference"), self._statistics("clip"))
        return torch.tensor(value, dtype=torch.float64)

    def _statistics(self, side: str) -> GaussianStatistics:
        count, total, outer = (getattr(self, f"{side}_{part}") for part in ("count", "sum", "outer"))
        return GaussianStatistics(int(count), total, outer)


def make(device: torch.device, weights: Path | None = None) -> SetMeasure:
    """Returns the metric, with its sums on the GPU if `device` is one, else on the CPU."""
    return place_state(FrameFID(), device)
