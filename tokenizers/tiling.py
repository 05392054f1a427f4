"""Tiled processing of large frames: each tile is read with a margin, and the margin of its output is discarded.

With a margin of the network's spatial receptive field (its context), the tiles equal the whole frame to float32
round-off: there are no seams, and no blending is needed.
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
    """A tile along one axis, in latent cells: `start:stop` is read, `keep_start:keep_stop` is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def spans(size: int, tile: int, context: int, grain: int = 1) -> list[Span]:
    """Divide an axis into the fewest tiles of nearly equal size.

    Args:
        size: Length of the axis, in cells.
        tile: Most cells that a tile keeps, at least `grain`.
        context: Margin that is read on either side, in cells; less at the ends of the axis.
        grain: Tiles begin at multiples of this many cells, so that windows of attention are not cut.
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
    """How frames are divided; see `spans`."""

    tile: int
    context: int
    grain: int = 1

    def parts(self, height: int, width: int) -> Iterator[tuple[Span, Span]]:
        """Tiles of a frame of this size in cells, row by row."""
        for rows in spans(height, self.tile, self.context, self.grain):
            for columns in spans(width, self.tile, self.context, self.grain):
                yield rows, columns


def run_tiled(
    network: Callable[[Tensor, StreamCache | None], Tensor],
    x: Float[Tensor, "b c t h w"],
    tiling: Tiling,
    cell_in: int,
    cell_out: int,
    cache: StreamCache | None,
) -> Float[Tensor, "b d u i j"]:
    """Apply a network tile by tile.

    Args:
        network: Takes a tile and that tile's cache.
        x: Input; height and width are multiples of `cell_in`.
        tiling: How the frame is divided.
        cell_in, cell_out: Size of a latent cell in the input and in the output (1 for latents).
        cache: Of the stream; every tile has a cache of its own in it. None: `x` is a whole clip.
    """
    height, width = x.shape[3] // cell_in, x.shape[4] // cell_in
    out: Tensor | None = None
    for rows, columns in tiling.parts(height, width):
        part = x[..., rows.start * cell_in : rows.stop * cell_in, columns.start * cell_in : columns.stop * cell_in]
        y = network(part, None if cache is None else cache.tile((rows.keep_start, columns.keep_start)))
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
