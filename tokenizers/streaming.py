"""Streams: what a causal network keeps of the past, and how frames are cut into pieces that it takes.

A layer that looks at past time steps takes a `StreamCache` and keeps there what the next piece will need. Without one
it sees a whole clip. Both give the same numbers; nothing is kept on the modules, so that any number of streams may run
at once.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError


class StreamCache:
    """The state of one stream in one direction (encoding or decoding).

    One call may take a whole stream, or several calls with the same cache a part each.

    Attributes:
        first: Whether nothing has passed yet: the next piece begins with the clip's first frame, which stands alone.
        closed: Whether the stream has ended: nothing may follow a last latent step that is not whole, or that `crop`
            was told is the last.
        num_frames: Frames that were decoded so far, before `crop`.
        size: Clips, height and width of what came so far, see `keep_size`; None: nothing has.
        state: What a layer keeps, by layer; sizes do not depend on how much has passed.
        tiles: Caches of the parts of a tiled frame, by position.
    """

    def __init__(self) -> None:
        self.first = True
        self.closed = False
        self.num_frames = 0
        self.size: tuple[int, int, int] | None = None
        self.state: dict[nn.Module, Any] = {}
        self.tiles: dict[tuple[int, int], StreamCache] = {}

    def tile(self, position: tuple[int, int]) -> "StreamCache":
        """The cache of the part of the frame at this position."""
        return self.tiles.setdefault(position, StreamCache())

    def keep_size(self, argument: str, size: tuple[int, int, int]) -> None:
        """Keeps clips, height and width of the stream at its first piece, and compares those of later ones.

        Layers alone would not notice: sizes may be padded to the same cells, and tiles and windows see parts.

        Raises:
            KinemaError: They are others than those before.
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
        """The next decoded frames of the stream, up to its last one.

        Args:
            video: Whole latent steps.
            num_frames: Of the whole stream, which ends in the latent step of its last frame; None: no end is known.
            ct: Frames of a latent step.

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
    """The cache, or a new one where none is given.

    Raises:
        KinemaError: Its stream has ended.
    """
    if cache is not None and cache.closed:
        raise KinemaError("`cache` (=a stream that has ended) must be a new one: nothing follows its last latent step")
    return StreamCache() if cache is None else cache


def is_first(cache: StreamCache | None) -> bool:
    """Whether a piece begins with the first frame of its clip; a whole clip does."""
    return cache is None or cache.first


def with_past(
    x: Float[Tensor, "b t h w c"], layer: nn.Module, num_past: int, cache: StreamCache
) -> Float[Tensor, "b u h w c"]:
    """`x` after the last `num_past` steps that this layer saw (zeros before the first); keeps the new last ones."""
    past = cache.state.get(layer)
    if past is None:
        past = x.new_zeros(x.shape[0], num_past, *x.shape[2:])
    elif past.shape[2:] != x.shape[2:] or past.shape[0] != x.shape[0]:
        raise KinemaError(
            f"a stream's chunk ({x.shape[0]} clips of {tuple(x.shape[2:4])} cells) must have the size of those before "
            f"it ({past.shape[0]} clips of {tuple(past.shape[2:4])} cells)"
        )
    joined = torch.cat([past, x], dim=1)
    # A copy: a view would keep the whole chunk alive.
    cache.state[layer] = joined[:, joined.shape[1] - num_past :].detach().clone()
    return joined


def whole_steps(chunks: Iterable[Tensor], ct: int, max_pixels: int, first: bool = True) -> Iterator[Tensor]:
    """Cuts a lazy sequence of frames, however it is chunked, into pieces of whole latent steps.

    Args:
        chunks: ``(b, c, t, h, w)`` with any number of frames each, none included.
        ct: Frames of a latent step.
        first: Whether the sequence begins with the first frame of its clip, which stands alone.
        max_pixels: Pieces have at most this many pixels (frames · height · width), but at least one latent step.

    Yields:
        Pieces of ``1 + k·ct`` frames first, then of ``k·ct``; the last one may lack frames of its last step.
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
