"""Large frames in parts: each part is computed with its surroundings, and its middle is kept.

Where a network's outputs depend on their neighbours within a known distance (its context), surroundings of that size
make the parts equal to the whole frame: there is no seam, and nothing to blend.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.tokenizers.streaming import StreamCache


@dataclass(frozen=True)
class Span:
    """A part of one axis, in latent cells: `start:stop` is read, `keep_start:keep_stop` of the axis is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def spans(size: int, tile: int, context: int, grain: int = 1) -> list[Span]:
    """Parts of an axis of `size` cells: as few as `tile` cells each allow, of nearly equal sizes.

    Args:
        size: Cells of the axis.
        tile: Most cells that a part keeps, at least `grain`.
        context: Cells that are read on either side, fewer at the ends of the axis.
        grain: Parts are read from multiples of this many cells (windows of attention must not be cut elsewhere).
    """
    grains = ceil(size / grain)
    count = ceil(grains / max(tile // grain, 1))
    edges = [grains * k // count * grain for k in range(count)] + [size]
    return [
        Span(max(0, (low - context) // grain * grain), min(size, high + context), low, high)
        for low, high in pairwise(edges)
    ]


@dataclass(frozen=True)
class Tiling:
    """How frames are cut.

    Attributes:
        tile: Most cells of a part along either axis.
        context: Cells read around a part.
        grain: See `spans`.
    """

    tile: int
    context: int
    grain: int = 1

    def parts(self, height: int, width: int) -> Iterator[tuple[Span, Span]]:
        """Parts of a frame of so many cells, row by row."""
        for rows in spans(height, self.tile, self.context, self.grain):
            for columns in spans(width, self.tile, self.context, self.grain):
                yield rows, columns


def run_tiled(
    network: Callable[[Tensor, StreamCache], Tensor],
    x: Float[Tensor, "b c t h w"],
    tiling: Tiling,
    cell_in: int,
    cell_out: int,
    cache: StreamCache,
) -> Float[Tensor, "b d u i j"]:
    """A network over a frame in parts.

    Args:
        network: Takes a part and that part's cache.
        x: Its input; height and width are multiples of `cell_in`.
        tiling: How the frame is cut.
        cell_in, cell_out: Pixels of a latent cell in the input and in the output (1 for latents).
        cache: Of the stream; every part has a cache of its own in it.
    """
    height, width = x.shape[3] // cell_in, x.shape[4] // cell_in
    out: Tensor | None = None
    for rows, columns in tiling.parts(height, width):
        part = x[..., rows.start * cell_in : rows.stop * cell_in, columns.start * cell_in : columns.stop * cell_in]
        own = cache.tile((rows.keep_start, columns.keep_start))
        own.first = cache.first
        y = network(part, own)
        if out is None:
            out = torch.empty(*y.shape[:3], height * cell_out, width * cell_out, dtype=y.dtype, device=y.device)
        kept = y[..., _inside(rows, cell_out), _inside(columns, cell_out)]
        out[..., _kept(rows, cell_out), _kept(columns, cell_out)] = kept
    assert out is not None
    return out


def _kept(span: Span, cell: int) -> slice:
    return slice(span.keep_start * cell, span.keep_stop * cell)


def _inside(span: Span, cell: int) -> slice:
    return slice((span.keep_start - span.start) * cell, (span.keep_stop - span.start) * cell)
