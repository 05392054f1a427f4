"""Motion smoothness: how well every second frame can be told from its neighbours."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.frames.pixels import Clip, as_float
from kinema.eval.frames.warping_error import warp
from kinema.eval.generation.looks import ClipMeasure, Look, Networks, mean_of_defined


@torch.no_grad()
def midpoint(
    before: Float[Tensor, "n 3 h w"], after: Float[Tensor, "n 3 h w"], network: nn.Module
) -> Float[Tensor, "n 3 h w"]:
    """The picture halfway between two, in [-1, 1], if everything moves on straight lines at an even pace.

    Flow from the middle to either side as in Jiang et al. 2018, "Super SloMo", equation 4 at t = 1/2; both sides are
    read along it and averaged, a side where the flow leads out of the picture only if the other leads out too.

    Args:
        before: In [-1, 1].
        after: In [-1, 1].
        network: As for `motion_smoothness`.
    """
    forward, backward = network(before, after).float(), network(after, before).float()
    to_before, to_after = (backward - forward) / 4, (forward - backward) / 4
    first, inside_first = warp(before, to_before)
    second, inside_second = warp(after, to_after)
    neither = ~(inside_first | inside_second)
    weight_first = (inside_first | neither).unsqueeze(1).float()
    weight_second = (inside_second | neither).unsqueeze(1).float()
    return (weight_first * first + weight_second * second) / (weight_first + weight_second)


@torch.no_grad()
def motion_smoothness(
    clip: Clip, network: nn.Module, *, device: torch.device | None = None, pixels: int = 2**18
) -> Float[Tensor, "b t"]:
    """1 minus the mean absolute difference between every second frame and the `midpoint` of its neighbours, in [0, 1].

    The definition is that of VBench's motion smoothness (Huang et al. 2024); a clip's score is the mean over those
    frames. VBench interpolates with AMT-S, a network trained to paint what becomes visible; the midpoint here is warped
    along optical flow alone, so that edges of things that move over others count a little, and values lie somewhat
    lower: compare them with one another, not with VBench's. Frames 0, 2, 4, ... and a last one without a successor are
    NaN.

    Args:
        clip: float in [-1, 1], or uint8; three colours.
        network: `n 3 h w` in [-1, 1] twice to the flow `n 2 h w` in pixels, x first, from the first to the second:
            `kinema.eval.motion.flow.load_flow`.
        device: Where the network is; None: where the clip is.
        pixels: As many frames at once as this holds, at least one.

    Raises:
        KinemaError: Fewer than three frames, or values out of range.
    """
    if clip.shape[2] < 3:
        raise KinemaError(f"`clip` (of {clip.shape[2]} frames) must have at least 3 frames for motion smoothness")
    video = rearrange(as_float(clip), "b c t h w -> b t c h w")
    at_once = max(1, pixels // (video.shape[-2] * video.shape[-1]))
    result = torch.full(video.shape[:2], float("nan"))
    for curve, frames in zip(result, video, strict=True):
        given = frames[::2].split(1)
        middle = frames[1::2][: len(given) - 1]
        scores = []
        for start in range(0, len(middle), at_once):
            wanted = middle[start : start + at_once].to(device or frames.device)
            ends = torch.cat(given[start : start + len(wanted) + 1]).to(wanted.device)
            made = midpoint(ends[:-1], ends[1:], network)
            scores.append(1 - (made - wanted).abs().mean(dim=(1, 2, 3)) / 2)
        curve[1 : 2 * len(middle) : 2] = torch.cat(scores).cpu()
    return result


def make(networks: Networks) -> ClipMeasure:
    """Returns the metric.

    Raises:
        KinemaError: The flow network cannot be had.
    """
    network = networks.flow

    def curve(look: Look) -> Float[Tensor, " t"]:
        return motion_smoothness(look.clip, network, device=networks.device)[0]

    # Odd frames have a number, which both neighbours decide. A last window of one frame needs two before it.
    return ClipMeasure(curve=curve, value=mean_of_defined, before=2, after=1, multiple=2)
