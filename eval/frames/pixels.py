"""What frame metrics share: clips of either kind as floats in [-1, 1], and work in pieces of bounded memory."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from kinema.errors import KinemaError

Clip = Float[Tensor, "_ _ _ _ _"] | UInt8[Tensor, "_ _ _ _ _"]
"""A batch of clips `b c t h w` as metrics take it: float in [-1, 1], or uint8 in 0..255.

The axes have no names here, so that two clips of different shapes come to `as_pair`, which says what is wrong.
"""


def as_float(clip: Clip, name: str = "clip") -> Float[Tensor, "b c t h w"]:
    """A batch of clips as float32 in [-1, 1].

    Args:
        clip: uint8 0..255, or float in [-1, 1].
        name: What errors call the argument.

    Raises:
        KinemaError: A value is out of range or no number, or there is no pixel.
    """
    if not clip.numel():
        raise KinemaError(f"`{name}` (of shape {tuple(clip.shape)}) must have at least one pixel")
    if clip.dtype == torch.uint8:
        return clip.float() / 127.5 - 1
    clip = clip.detach().float()
    low, high = (float(value) for value in torch.aminmax(clip))
    # NaN compares as false.
    if not (low >= -1 and high <= 1):
        raise KinemaError(f"`{name}` (of values in [{low:g}, {high:g}]) must have values in [-1, 1], or be uint8")
    return clip


def to_levels(clip: Clip, name: str = "clip") -> UInt8[Tensor, "b c t h w"]:
    """A batch of clips in uint8 0..255, rounded; arguments and errors as of `as_float`."""
    if clip.dtype == torch.uint8:
        return clip
    return ((as_float(clip, name) + 1) * 127.5).round().to(torch.uint8)


def as_pair(reference: Clip, clip: Clip) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
    """`as_float` of both.

    Raises:
        KinemaError: As `as_float`, or the shapes differ.
    """
    if reference.shape != clip.shape:
        raise KinemaError(
            f"`clip` (of shape {tuple(clip.shape)}) must have the shape of `reference`, {tuple(reference.shape)}"
        )
    return as_float(reference, "reference"), as_float(clip, "clip")


def check_side(clip: Tensor, least: int, metric: str) -> None:
    """Raise `KinemaError` unless the frames of a clip `b c t h w` measure at least `least` pixels both ways."""
    height, width = clip.shape[-2:]
    if min(height, width) < least:
        raise KinemaError(
            f"`clip` (of {height}x{width} pixels) must be at least {least} pixels high and wide for {metric}"
        )


@torch.no_grad()
def by_image(
    measure: Callable[[Tensor, Tensor], Tensor],
    reference: Float[Tensor, "b c t h w"],
    clip: Float[Tensor, "b c t h w"],
    *,
    pixels: int = 2**20,
) -> Float[Tensor, "b t"]:
    """A measure of pairs of images, for every frame of a pair of clips.

    Args:
        measure: `n c h w` twice to ` n`; images must not influence one another.
        reference: In [-1, 1].
        clip: In [-1, 1].
        pixels: As many frames at once as this holds, at least one: memory does not grow with the clip.
    """
    num_clips, _, num_frames, height, width = clip.shape
    at_once = max(1, pixels // (height * width))
    a, b = (rearrange(x, "b c t h w -> (b t) c h w") for x in (reference, clip))
    values = [measure(x, y) for x, y in zip(a.split(at_once), b.split(at_once), strict=True)]
    return torch.cat(values).float().view(num_clips, num_frames)
