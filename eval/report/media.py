"""Clips for a page: several side by side as one small video, and its first frame."""

import base64
import io
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from kinema.eval.report.document import Clips
from kinema.training.data.resize import resize_frames
from kinema.video import write_video

LONGEST_SIDE = 256
"""Pixels of a shown clip; larger ones are scaled down."""

MOST_FRAMES = 48
"""Frames of a shown clip; what is longer ends there."""

_GAP = 4


def side_by_side(
    clips: Sequence[UInt8[Tensor, "_ _ _ 3"]],
    labels: Sequence[str],
    title: str,
    *,
    fps: float = 24.0,
    caption: str = "",
) -> Clips:
    """Clips from left to right in one video.

    A clip that is shorter than the longest keeps its last frame; one that is smaller than the largest gets a frame of
    grey. Only what is shown is scaled and cut: never what is measured.

    Args:
        clips: Frames `t h w 3`, at least one clip.
        labels: One a clip.
        title: Of the whole.
        fps: Frames a second.
        caption: A line below.
    """
    assert len(clips) == len(labels) > 0
    small = [_small(clip[:MOST_FRAMES]) for clip in clips]
    length = max(len(clip) for clip in small)
    height = max(clip.shape[1] for clip in small)
    width = max(clip.shape[2] for clip in small)
    cells = [_fill(clip, length, height, width + _GAP * (i + 1 < len(small))) for i, clip in enumerate(small)]
    row = torch.cat(cells, dim=2)
    # Browsers play 4:2:0 alone, which takes even sizes.
    row = _fill(row, length, row.shape[1] + row.shape[1] % 2, row.shape[2] + row.shape[2] % 2)
    return Clips(
        title=title,
        labels=tuple(labels),
        uri=video_uri(row, fps),
        poster=image_uri(row[0]),
        width=int(row.shape[2]),
        caption=caption,
    )


def shown_frames(frames: Iterable[UInt8[Tensor, "h w 3"]]) -> UInt8[Tensor, "t h w 3"]:
    """The first frames of a clip, as small as they are shown; large frames are never in memory together."""
    return torch.cat([_small(frame[None]) for frame in itertools.islice(frames, MOST_FRAMES)])


def difference(reference: UInt8[Tensor, "t h w 3"], clip: UInt8[Tensor, "t h w 3"]) -> UInt8[Tensor, "t h w 3"]:
    """Where a clip differs from its reference: four times the difference around grey."""
    return (128 + 4 * (clip.int() - reference.int())).clamp(0, 255).to(torch.uint8)


def _small(clip: UInt8[Tensor, "t h w 3"]) -> UInt8[Tensor, "t h2 w2 3"]:
    height, width = clip.shape[1:3]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return resize_frames(clip, max(1, round(height * scale)), max(1, round(width * scale)))


def _fill(clip: UInt8[Tensor, "_ _ _ 3"], length: int, height: int, width: int) -> UInt8[Tensor, "_ _ _ 3"]:
    clip = torch.cat([clip, clip[-1:].expand(length - len(clip), -1, -1, -1)])
    margin = (0, 0, 0, width - clip.shape[2], 0, height - clip.shape[1])
    return F.pad(clip, margin, value=128)


def video_uri(frames: UInt8[Tensor, "t h w 3"], fps: float = 24.0) -> str:
    """An MP4 file as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(path, frames, min(max(fps, 1.0), 60.0))
        return data_uri(path.read_bytes(), "video/mp4")


def image_uri(frame: UInt8[Tensor, "h w 3"]) -> str:
    """A JPEG file as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(frame.cpu().numpy()).save(stream, format="JPEG", quality=85)
    return data_uri(stream.getvalue(), "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """A file as a data URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
