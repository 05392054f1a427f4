"""Clips in windows, so that memory does not grow with their length.

A measure of frames often looks at neighbours: a window has some frames before and after those that count.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

WINDOW_BYTES = 2**23
"""Pixels of a window in uint8; a measure may hold some ten times as much in floats."""

_LEAST_FRAMES = 3  # of usual frames, so that neighbours are not most of a window

Piece = UInt8[Tensor, "_ _ _ 3"]
"""Some frames of a clip, `t h w 3`."""


def window_length(height: int, width: int, *, multiple: int = 1) -> int:
    """Frames of a size in pixels that are measured at once: `WINDOW_BYTES` or a few, a multiple of `multiple`."""
    frame = 3 * height * width
    length = max(_LEAST_FRAMES if frame <= 4 * WINDOW_BYTES else 1, WINDOW_BYTES // frame)
    return -(-length // multiple) * multiple


def in_windows(
    pieces: Iterable[tuple[Piece, ...]], length: int, *, before: int = 0, after: int = 0
) -> Iterator[tuple[slice, tuple[Piece, ...]]]:
    """Windows of clips that come piece by piece, in step with each other.

    Args:
        pieces: The next frames of each clip, as many of one as of another.
        length: Frames of a window that count. The last window may have fewer, or up to `after` more.
        before: Frames before these, as far as there are any.
        after: Frames after them, likewise.

    Yields:
        Which frames of the window count, and the window of each clip.
    """
    kept: list[tuple[Piece, ...]] = []
    count = lead = 0  # frames that are kept, and those of them that have counted already
    for piece in pieces:
        kept.append(piece)
        count += len(piece[0])
        while count >= lead + length + after:
            whole = _joined(kept)
            yield slice(lead, lead + length), tuple(clip[: lead + length + after] for clip in whole)
            drop = max(0, lead + length - before)
            kept = [tuple(clip[drop:] for clip in whole)]
            count, lead = count - drop, lead + length - drop
    if count > lead:
        yield slice(lead, count), _joined(kept)


def regrouped(pieces: Iterable[Piece], length: int) -> Iterator[Piece]:
    """The same frames in pieces of `length`; the last one may be shorter."""
    for _, (piece,) in in_windows(((piece,) for piece in pieces), length):
        yield piece


def _joined(pieces: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    return pieces[0] if len(pieces) == 1 else tuple(torch.cat(clip) for clip in zip(*pieces, strict=True))
