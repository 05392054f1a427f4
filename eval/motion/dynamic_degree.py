"""Dynamic degree: whether a clip moves at all, by optical flow."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.frames.pixels import Clip, as_float
from kinema.eval.generation.looks import ClipMeasure, Look, Networks

SAMPLED_FPS = 8.0
"""Frames a second that are looked at."""
_FASTEST = 0.05  # share of a frame's pixels that counts: small things may move alone
_PIXELS_AT_256 = 6.0  # motion from one looked-at frame to the next that counts, where the short side has 256 pixels
_LEAST_OF_16 = 4  # pairs of frames that must move, of 16 frames looked at


@torch.no_grad()
def movement(
    clip: Clip, network: nn.Module, *, fps: float = SAMPLED_FPS, device: torch.device | None = None, pixels: int = 2**18
) -> Float[Tensor, "b t"]:
    """How fast the fastest twentieth of the pixels moves, as a multiple of what counts as motion.

    Of every looked-at frame but the first: the mean length of the longest 5 % of the flow from the looked-at frame
    before it, over 6 pixels of a frame whose short side has 256. Other frames are NaN. Frames are looked at so that
    8 a second remain.

    Args:
        clip: float in [-1, 1], or uint8; three colours.
        network: `n 3 h w` in [-1, 1] twice to the flow `n 2 h w` in pixels, from the first to the second:
            `kinema.eval.motion.flow.load_flow`.
        fps: Frames a second of the clip.
        device: Where the network is; None: where the clip is.
        pixels: As many pairs of frames at once as this holds, at least one.

    Raises:
        KinemaError: `fps` is not above 0, fewer than two frames are looked at, or values are out of range.
    """
    stride = _stride(fps)
    num_looked_at = (clip.shape[2] - 1) // stride + 1
    if num_looked_at < 2:
        raise KinemaError(
            f"`clip` (of {clip.shape[2]} frames, {fps:g} a second) must have at least {stride + 1} frames for dynamic"
            " degree"
        )
    video = as_float(clip)
    height, width = video.shape[-2:]
    threshold = _PIXELS_AT_256 * min(height, width) / 256
    fastest = max(1, int(height * width * _FASTEST))
    at_once = max(1, pixels // (height * width))
    result = torch.full((len(video), video.shape[2]), float("nan"))
    for curve, frames in zip(result, rearrange(video, "b c t h w -> b t c h w"), strict=True):
        seen = frames[::stride]
        pairs = zip(seen[:-1].split(at_once), seen[1:].split(at_once), strict=True)
        flow = (network(a.to(device or a.device), b.to(device or b.device)).float() for a, b in pairs)
        lengths = [rearrange(x.square().sum(1).sqrt(), "n h w -> n (h w)").topk(fastest).values.mean(1) for x in flow]
        curve[stride::stride] = torch.cat(lengths).cpu() / threshold
    return result


def is_dynamic(curve: Float[Tensor, "b t"]) -> Bool[Tensor, " b"]:
    """Whether a quarter of the frames looked at are in motion, from `movement`."""
    num_looked_at = 1 + int((~curve[0].isnan()).sum())
    # VBench takes every clip of two frames for a moving one, because a quarter of them rounds to 0: one pair must move.
    needed = max(1, round(_LEAST_OF_16 * num_looked_at / 16))
    return (curve > 1).sum(1) >= needed


def dynamic_degree(
    clip: Clip, network: nn.Module, *, fps: float = SAMPLED_FPS, device: torch.device | None = None
) -> Float[Tensor, " b"]:
    """1 for a clip that moves, 0 for one that does not; a set's dynamic degree is the mean.

    The dynamic degree of VBench (Huang et al. 2024): at least a quarter of the frames looked at, 8 a second, move by
    more than `movement` 1. RAFT here takes torchvision's number of updates (12) instead of 20, and sees frames below
    256 pixels enlarged.

    Args:
        clip: float in [-1, 1], or uint8; three colours.
        network: As for `movement`.
        fps: Frames a second of the clip.
        device: Where the network is; None: where the clip is.

    Raises:
        KinemaError: As `movement`.
    """
    return is_dynamic(movement(clip, network, fps=fps, device=device)).float()


def _stride(fps: float) -> int:
    if not 0 < fps < float("inf"):
        raise KinemaError(f"`fps` (={fps}) must be above 0")
    return max(1, round(fps / SAMPLED_FPS))


def make(networks: Networks) -> ClipMeasure:
    """Returns the metric; its curve is `movement`, above 1 where the clip moves.

    Raises:
        KinemaError: The flow network cannot be had, or `fps` is not above 0.
    """
    network = networks.flow
    stride = _stride(networks.fps)

    def curve(look: Look) -> Float[Tensor, " t"]:
        return movement(look.clip, network, fps=networks.fps, device=networks.device)[0]

    return ClipMeasure(
        curve=curve, value=lambda curve: float(is_dynamic(curve[None])[0]), before=stride, multiple=stride
    )
