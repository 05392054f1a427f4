"""Conversion between frame layouts, and contact sheets."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kinema.errors import KinemaError


def to_float(frames: UInt8[Tensor, "t h w c"]) -> Float[Tensor, "1 c t h w"]:
    """Convert frames of a file to a batch of one clip for a model: uint8 to [-1, 1]."""
    return rearrange(frames, "t h w c -> 1 c t h w").float() / 127.5 - 1


def to_uint8(video: Float[Tensor, "c t h w"]) -> UInt8[Tensor, "t h w c"]:
    """Convert a clip from a model, clamped to [-1, 1], to frames of a file; the inverse of `to_float`."""
    levels = ((video.float() + 1) * 127.5).round().clamp(0, 255)
    return rearrange(levels, "c t h w -> t h w c").to(torch.uint8).contiguous()


def contact_sheet(clips: Sequence[UInt8[Tensor, "_ _ _ 3"]], labels: Sequence[str], *, columns: int = 6) -> Image.Image:
    """Draw a picture with one row per clip: its label, and `columns` evenly spaced frames.

    Args:
        clips: Clips `(t, h, w, 3)` of any size and length; frames repeat in clips shorter than `columns`.
        labels: One label per clip; truncated to the width.
        columns: Frames per row.

    Raises:
        KinemaError: There is no clip, not one label per clip, or `columns` < 1.
    """
    if not clips or len(clips) != len(labels):
        raise KinemaError(
            f"`labels` ({len(labels)} of them) must be one for each of the `clips` ({len(clips)}), at least one"
        )
    if columns < 1:
        raise KinemaError(f"`columns` (={columns}) must be >= 1")
    gap = 4
    font = ImageFont.load_default(size=14)
    line = 20
    width = gap + max(columns * (clip.shape[2] + gap) for clip in clips)
    height = gap + sum(clip.shape[1] + line + gap for clip in clips)
    sheet = Image.new("RGB", (int(width), int(height)), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for clip, label in zip(clips, labels, strict=True):
        draw.text((gap, top), _fit(label, width - 2 * gap, draw, font), fill="black", font=font)
        top += line
        chosen = torch.linspace(0, clip.shape[0] - 1, columns).round().long()
        for column, frame in enumerate(clip[chosen].cpu().numpy()):
            sheet.paste(Image.fromarray(frame), (gap + column * (clip.shape[2] + gap), top))
        top += clip.shape[1] + gap
    return sheet


def _fit(label: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    label = " ".join(label.split())
    if draw.textlength(label, font=font) <= width:
        return label
    while label and draw.textlength(label + "...", font=font) > width:
        label = label[:-1]
    return label + "..."
