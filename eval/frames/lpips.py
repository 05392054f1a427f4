"""Learned perceptual image patch similarity (Zhang et al. 2018): distance of deep features of frames."""

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair, by_image


def lpips(
    reference: Clip, clip: Clip, *, network: nn.Module, device: torch.device | None = None
) -> Float[Tensor, "b t"]:
    """LPIPS of every frame, >= 0.

    Args:
        reference: float in [-1, 1], or uint8.
        clip: The same shape.
        network: `n 3 h w` in [-1, 1] twice to ` n`: `kinema.eval.networks.lpips.load_lpips`.
        device: Where the network is; None: where the clips are.

    Raises:
        KinemaError: Shapes differ, or values are out of range.
    """
    a, b = as_pair(reference, clip)
    place = device or b.device
    # The first layers of VGG hold 64 numbers a pixel, several times over.
    return by_image(lambda x, y: network(x.to(place), y.to(place)).to(b.device), a, b, pixels=2**18)


def make(device: torch.device, weights: Path | None = None, *, net: Literal["alex", "vgg"]) -> FrameMeasure:
    """Returns the metric with its network on `device`.

    Raises:
        KinemaError: The weights are neither in the cache nor can be fetched.
    """
    from kinema.eval.networks.lpips import load_lpips

    network = load_lpips(net, weights).to(device).eval()
    return partial(lpips, network=network, device=device)
