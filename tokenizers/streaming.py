"""Streaming: the state that a causal network carries from piece to piece, and how a clip is cut into pieces.

A layer with a temporal receptive field stores in a `StreamCache` what the next piece needs. Without a cache, its input
is a whole clip. Both give the same result to float32 round-off, and the same gradients. Modules hold no state, so any
number of streams can run at once.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError


class StreamCache:
    """The state of one stream in one direction (encoding or decoding).

    Several calls with the same cache continue the stream.

    Attributes:
        first: Whether the next piece begins with the clip's first frame, which is a latent step of its own.
        closed: Whether the stream has ended: after an incomplete latent step, or after the last frame (`crop`).
        num_frames: Frames decoded so far, before `crop`.
        size: Batch, height and width of the stream, see `keep_size`; None before the first piece.
        state: By layer; its size does not depend on the length of the stream.
        tiles: Caches of the tiles of a frame, by position.
    """

    def __init__(self) -> None:
        self.first = True
        self.closed = False
        self.num_frames = 0
        self.size: tuple[int, int, int] | None = None
        self.state: dict[nn.Module, Any] = {}
        self.tiles: dict[tuple[int, int], StreamCache] = {}

    def tile(self, position: tuple[int, int]) -> "StreamCache":
        """The cache of the tile at this position."""
        tile = self.tiles.setdefault(position, StreamCache())
        tile.first = self.first
        return tile

    def keep_size(self, argument: str, size: tuple[int, int, int]) -> None:
        """Record batch, height and width of the first piece, and check that later pieces have the same.

        Layers would not notice a difference that padding, tiles or windows hide.

        Raises:
            KinemaError: They differ.
        """
        if self.size is None:
            self.size = size
        if size != self.size:
            (b, h, w), (b0, h0, w0) = size, self.size
            raise KinemaError(
                f"`{argument}` (of batch {b} and size {h}x{w}) must have those of the stream so far: batch {b0} and "
                f"size {h0}x{w0}"
            )

    def crop(self, video: Float[Tensor, "b c t h w"], num_frames: int | None, ct: int) -> Float[Tensor, "b c u h w"]:
        """Crop the next decoded frames at the end of the stream.

        Args:
            video: Whole latent steps.
            num_frames: Length of the whole stream, which must end in its last latent step; None if unknown.
            ct: Temporal compression ratio.

        Raises:
            KinemaError: The stream should have ended in an earlier latent step.
        """
        self.num_frames += video.shape[2]
        if num_frames is None:
            return video
        if num_frames <= max(self.num_frames - ct, 0):
            raise KinemaError(f"`num_frames` (={num_frames}) must end in the last latent step, and more came")
        self.closed = num_frames <= self.num_frames
        return video[:, :, : video.shape[2] - max(self.num_frames - num_frames, 0)]


def open_stream(cache: StreamCache | None) -> StreamCache:
    """Return the cache, or a new one if it is None.

    Raises:
        KinemaError: The cache's stream has ended.
    """
    if cache is not None and cache.closed:
        raise KinemaError("`cache` (=a stream that has ended) must be a new one: nothing follows its last latent step")
    return StreamCache() if cache is None else cache


def is_first(cache: StreamCache | None) -> bool:
    """Whether the input begins with the first frame of its clip."""
    return cache is None or cache.first


def with_past(
    x: Float[Tensor, "b t h w c"], layer: nn.Module, num_past: int, cache: StreamCache
) -> Float[Tensor, "b u h w c"]:
    """Prepend the last `num_past` time steps that this layer saw (zeros at the start), and store the new last ones."""
    past = cache.state.get(layer)
    if past is None:
        past = x.new_zeros(x.shape[0], num_past, *x.shape[2:])
    elif past.shape[2:] != x.shape[2:] or past.shape[0] != x.shape[0]:
        raise KinemaError(
            f"a stream's chunk ({x.shape[0]} clips of {tuple(x.shape[2:4])} cells) must have the size of those before "
            f"it ({past.shape[0]} clips of {tuple(past.shape[2:4])} cells)"
        )
    joined = torch.cat([past, x], dim=1)
    # A copy, since a view would keep the whole chunk in memory.
    cache.state[layer] = joined[:, joined.shape[1] - num_past :].clone()
    return joined


def whole_steps(chunks: Iterable[Tensor], ct: int, max_pixels: int, first: bool = True) -> Iterator[Tensor]:
    """Regroup a lazy sequence of chunks into pieces of whole latent steps.

    Args:
        chunks: ``(b, c, t, h, w)`` with any number of frames each, also 0.
        ct: Temporal compression ratio.
        max_pixels: Most pixels of a piece (frames · height · width); a piece has at least one latent step.
        first: Whether the sequence begins with the first frame of its clip, which is a latent step of its own.

    Yields:
        Pieces of ``1 + k·ct`` frames at the start, then ``k·ct``; the last one may end within a latent step.
    """
    held: Tensor | None = None
    for chunk in chunks:
        if chunk.shape[2] == 0:
            continue
        held = chunk if held is None else torch.cat([held, chunk], dim=2)
        max_frames = max_pixels // (held.shape[3] * held.shape[4])
        while held.shape[2] >= (1 if first else ct):
            lead = 1 if first else 0
            room = max((max_frames - lead) // ct, 0 if first else 1)
            length = lead + ct * min((held.shape[2] - lead) // ct, room)
            yield held[:, :, :length]
            held, first = held[:, :, length:], False
    if held is not None and held.shape[2]:
        yield held
