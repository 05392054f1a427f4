"""Warping error (Lai et al. 2018): how far a frame is from the one before it, moved along the optical flow."""

from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair


@torch.no_grad()
def warping_error(
    reference: Clip, clip: Clip, *, network: nn.Module, device: torch.device | None = None, pixels: int = 2**18
) -> Float[Tensor, "b t"]:
    """Warping error of every frame of the clip, along the reference's flow.

    `E_t = sum of M_t |y_t - W(y_{t-1})|² / (3 sum of M_t)` over the pixels of a frame with values in [0, 1], where W
    moves the frame before along the flow from frame t of the reference, and the mask M_t leaves out what cannot be
    seen in both frames. The flow is the reference's, as in the paper: a clip that lost its motion does not score well.
    For a generated clip, which has no reference, give the clip twice. The first frame, and one of which nothing can be
    followed, are NaN. What even the reference has (noise, changing light) is in it too: compare with
    `warping_error(reference, reference)`.

    Args:
        reference: float in [-1, 1], or uint8; three colours.
        clip: The same shape.
        network: `n 3 h w` in [-1, 1] twice to the flow `n 2 h w` in pixels, x first, that leads from a place in the
            first to the same thing in the second: `kinema.eval.motion.flow.load_flow`.
        device: Where the network is; None: where the clips are.
        pixels: As many pairs of frames at once as this holds, at least one.

    Raises:
        KinemaError: Shapes differ, or values are out of range.
    """
    a, b = as_pair(reference, clip)
    at_once = max(1, pixels // (clip.shape[-2] * clip.shape[-1]))
    curves = [_curve(x, y, network, device or b.device, at_once) for x, y in zip(a, b, strict=True)]
    return torch.stack(curves).to(clip.device)


def _curve(
    reference: Float[Tensor, "c t h w"],
    clip: Float[Tensor, "c t h w"],
    network: nn.Module,
    device: torch.device,
    at_once: int,
) -> Float[Tensor, " t"]:
    a, b = (rearrange(x, "c t h w -> t c h w") for x in (reference, clip))
    values = [torch.full((1,), float("nan"), device=device)]
    for start in range(0, len(a) - 1, at_once):
        before, after = (slice(start + k, min(start + k + at_once, len(a) - 1 + k)) for k in (0, 1))
        backward = network(a[after].to(device), a[before].to(device)).float()
        forward = network(a[before].to(device), a[after].to(device)).float()
        seen = visible(backward, forward)
        moved, inside = warp(b[before].to(device), backward)
        seen = (seen & inside).unsqueeze(1)
        # [-1, 1] to [0, 1] halves a difference.
        error = ((b[after].to(device) - moved) / 2).square().where(seen, 0.0).mean(1, keepdim=True)
        # 0 / 0, where nothing can be followed, is the NaN that is promised.
        values.append(error.sum(dim=(1, 2, 3)) / seen.sum(dim=(1, 2, 3)))
    return torch.cat(values)


def warp(
    images: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"]
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n h w"]]:
    """`images` read, bilinearly, at every place plus the flow there, and where that lies inside them.

    Args:
        images: Any values.
        flow: In pixels, x first.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    x, y = x + flow[:, 0], y + flow[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    # grid_sample counts from -1, the centre of the first pixel, to 1, that of the last.
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True), inside


def visible(flow: Float[Tensor, "n 2 h w"], back: Float[Tensor, "n 2 h w"]) -> Bool[Tensor, "n h w"]:
    """Where both images show the same thing, by the rules of Ruder, Dosovitskiy and Brox (2016).

    Following the flow and then the other one must lead back, `|w + v|² <= 0.01 (|w|² + |v|²) + 0.5`, and the flow must
    have no edge there, `|grad u|² + |grad v|² <= 0.01 |w|² + 0.002`, because it is least exact at edges.

    Args:
        flow: From the image in question to the other, in pixels.
        back: From the other to this one.
    """
    returned, _ = warp(back, flow)
    length, length_back = flow.square().sum(1), returned.square().sum(1)
    leads_back = (flow + returned).square().sum(1) <= 0.01 * (length + length_back) + 0.5
    right = flow.diff(dim=3, append=flow[..., -1:]).square().sum(1)
    down = flow.diff(dim=2, append=flow[..., -1:, :]).square().sum(1)
    return leads_back & (right + down <= 0.01 * length + 0.002)


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns the metric with its network on `device`.

    Raises:
        KinemaError: The weights are neither in the cache nor can be fetched.
    """
    from kinema.eval.motion.flow import load_flow

    return partial(warping_error, network=load_flow(weights).to(device), device=device)
