"""Clips through a tokenizer and back, whole or, where they are long, piece by piece."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import Frames, LongClip
from kinema.eval.windows import regrouped, window_length
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.interface import VideoTokenizer
from kinema.video import to_float, to_uint8

_STREAMED_BYTES = 2**25  # as floats, and as what a network makes of them, a larger clip would take over 1 GB


def check_length(clip: "Frames | LongReconstruction") -> None:
    """Raise `KinemaError` unless there is a frame."""
    if not len(clip):
        raise KinemaError("`clip` (=0 frames) must be at least one frame")


@torch.no_grad()
def reconstruct_clip(
    tokenizer: VideoTokenizer, frames: UInt8[Tensor, "t h w 3"], *, chunk: int | None = None
) -> UInt8[Tensor, "t h w 3"]:
    """Frames through a tokenizer and back, rounded to levels, `chunk` of them at once.

    Args:
        tokenizer: Works where it is.
        frames: The clip.
        chunk: Frames that go through at once, each chunk for itself; None: the whole clip, which goes through kinema's
            tokenizers as a stream where it is large: the same but for round-off.

    Raises:
        KinemaError: There is no frame.
    """
    check_length(frames)
    if chunk is None and isinstance(tokenizer, LatentTokenizer) and frames.numel() > _STREAMED_BYTES:
        return torch.cat(list(_stream(tokenizer, frames)))
    like = _kind_of(tokenizer)
    pieces = frames.split(chunk or len(frames))
    return torch.cat([to_uint8(tokenizer.reconstruct(to_float(piece).to(**like))[0].cpu()) for piece in pieces])


class LongReconstruction:
    """What comes back of a `LongClip`, made anew for each use: no more than a few frames of it are in memory.

    Args:
        tokenizer: Works where it is.
        clip: What goes through it.
        chunk: Frames that go through at once, each chunk for itself; None: the clip as one stream.

    Raises:
        KinemaError: `chunk` is None, and the tokenizer takes no streams.
    """

    def __init__(self, tokenizer: VideoTokenizer, clip: LongClip, chunk: int | None) -> None:
        if chunk is None and not isinstance(tokenizer, LatentTokenizer):
            raise KinemaError(
                f"`chunk` (=None, the whole clip) must be given for a clip of {len(clip)} frames of"
                f" {clip.shape[1]}x{clip.shape[2]}, which is too long to go through {type(tokenizer).__name__} at once"
            )
        self.tokenizer = tokenizer
        self.clip = clip
        self.chunk = chunk
        self.shape = clip.shape

    def __len__(self) -> int:
        return len(self.clip)

    def split(self, size: int) -> Iterator[UInt8[Tensor, "t h w 3"]]:
        """Pieces of `size` frames; the last one may be shorter."""
        if self.chunk is not None:
            pieces = (reconstruct_clip(self.tokenizer, piece) for piece in self.clip.split(self.chunk))
        else:
            assert isinstance(self.tokenizer, LatentTokenizer)
            pieces = _stream(self.tokenizer, self.clip)
        return regrouped(pieces, size)

    def __getitem__(self, part: slice) -> UInt8[Tensor, "t h w 3"]:
        """The first frames, `[:n]`."""
        assert part.start is part.step is None
        assert part.stop is not None
        return next(self.split(part.stop))


def _stream(tokenizer: LatentTokenizer, clip: Frames) -> Iterator[UInt8[Tensor, "t h w 3"]]:
    num_frames, height, width, _ = clip.shape
    like = _kind_of(tokenizer)
    pieces = (to_float(piece).to(**like) for piece in clip.split(window_length(height, width)))
    latents = tokenizer.encode_stream(pieces)
    for video in tokenizer.decode_stream(latents, num_frames=num_frames, height=height, width=width):
        yield to_uint8(rearrange(video, "1 c t h w -> c t h w").cpu())


def _kind_of(tokenizer: VideoTokenizer) -> dict[str, Any]:
    return {"device": getattr(tokenizer, "device", "cpu"), "dtype": getattr(tokenizer, "dtype", torch.float32)}
