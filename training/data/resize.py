"""Frames of another size."""

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor


def cover_frame(
    frame: UInt8[Tensor, "h w 3"], height: int, width: int, *, crop: bool = True
) -> UInt8[Tensor, "h2 w2 3"]:
    """Scales a frame (with antialiasing) so that it just covers the size, then crops its centre.

    Without `crop` the frame keeps its aspect, and one smaller than the size is not scaled up.
    """
    h, w = frame.shape[:2]
    scale = max(height / h, width / w)
    if scale < 1 or crop:
        frame = resize_frames(frame[None], max(height, round(h * scale)), max(width, round(w * scale)))[0]
    if not crop:
        return frame
    h, w = frame.shape[:2]
    top, left = (h - height) // 2, (w - width) // 2
    return frame[top : top + height, left : left + width].contiguous()


def resize_frames(frames: UInt8[Tensor, "t h w 3"], height: int, width: int) -> UInt8[Tensor, "t h2 w2 3"]:
    """Scales frames with an antialiased bilinear filter."""
    if frames.shape[1:3] == (height, width):
        return frames
    planes = frames.permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1).contiguous()
