"""LPIPS of clips as a loss and as part of a score."""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_LEAST_SIDE = 64  # pixels


def make_lpips(device: torch.device, net: str = "vgg") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang et al. 2018) of clips, frame by frame; fetches its weights once.

    Args:
        device: where the clips are.
        net: the backbone, "vgg" (the better loss) or "alex" (the better measure, and ten times faster).

    Returns:
        From a reconstruction and the video, `b c t h w` in [-1, 1], to the mean over frames; frames with a side below
        64 pixels are enlarged by a whole factor, since the backbone halves them four times.

    Raises:
        KinemaError: The weights cannot be had.
    """
    from kinema.eval.networks.lpips import load_lpips

    network = load_lpips(net).to(device)

    def distance(reconstruction: Tensor, video: Tensor) -> Tensor:
        frames = [x.transpose(1, 2).flatten(0, 1) for x in (reconstruction, video)]
        least = min(frames[0].shape[-2:])
        if least < _LEAST_SIDE:
            frames = [interpolate(x, scale_factor=float(ceil(_LEAST_SIDE / least)), mode="bilinear") for x in frames]
        return network(*frames).mean()

    return distance


def some_frames(
    clips: tuple[Tensor, Tensor], num_frames: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same frames of two batches `b c t h w`, drawn without repetition; all of them where that is no more."""
    total = clips[0].shape[2]
    if num_frames is None or num_frames >= total:
        return clips
    chosen = torch.randperm(total, generator=generator, device=generator.device)[:num_frames].to(clips[0].device)
    return clips[0][:, :, chosen], clips[1][:, :, chosen]
