"""Feature vectors of frames, once for all metrics that compare sets of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.eval.frames.pixels import Clip, to_levels

_PIXELS_AT_ONCE = 2**24  # networks take frames of any size, as floats


class FrameFeatures:
    """Feature vectors of frames.

    Args:
        network: uint8 `n 3 h w` to `n d`, of images of any size.
        device: Where the network is.
        batch_size: Frames at once.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", batch_size: int = 16) -> None:
        self.network = network
        self.device = torch.device(device)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Float[Tensor, "n d"]:
        """Features of every frame, clip after clip, on the CPU.

        Args:
            clip: float in [-1, 1] (rounded to levels), or uint8.

        Raises:
            KinemaError: Values are out of range.
        """
        images = rearrange(to_levels(clip), "b c t h w -> (b t) c h w")
        batches = images.split(min(self.batch_size, max(1, _PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))))
        return torch.cat([self.network(batch.to(self.device)).float().cpu() for batch in batches])


def _inception(weights: Path | None) -> nn.Module:
    from kinema.eval.networks.inception import load_inception

    return load_inception(weights)


FEATURES: Mapping[str, Callable[[Path | None], nn.Module]] = MappingProxyType({"inception": _inception})
"""Networks that give features of images, by the names of their weights in `kinema weights`."""


def load_features(name: str, device: torch.device | str = "cpu", weights: str | Path | None = None) -> FrameFeatures:
    """Features of a network of `FEATURES`.

    Args:
        name: Which.
        device: Where to compute.
        weights: File of its weights; None: the cache, or where `kinema weights` gets them.

    Raises:
        KinemaError: The weights cannot be had.
    """
    network = FEATURES[name](None if weights is None else Path(weights))
    return FrameFeatures(network.to(device).eval(), device)
