"""Radial attention (arXiv 2506.19852): a spatial band that narrows with the distance in time."""

from dataclasses import dataclass
from math import floor, inf
from typing import ClassVar

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_number, runs, token_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import StaticPattern, band_pairs


@dataclass(frozen=True)
class Radial(StaticPattern):
    """Each token attends to a band around its position, which narrows with the distance in time.

    With d = |i - j| and L = 2^bits(tokens of a frame) / 2^bits(d), the token at index r of frame i attends to index c
    of frame j if

        d <= 1, or j = 0 (all tokens attend to the first frame),
        or |r - c| <= max(L · decay, `min_width`), where frames with L < `min_width` count only if d is a multiple of
        int(`min_width` / L).

    Indices are in raster order within a frame; bits(x) is the number of binary digits of x, as in the public code.
    The rule holds exactly, token by token.

    Args:
        decay: relative width of the bands; published: 0.2 for Wan 2.1, 0.8 for Wan 2.2, 0.95 for HunyuanVideo.
        min_width: minimum band width, in tokens to either side.
        tile_size: tile size in consecutive tokens of a frame.

    Raises:
        KinemaError: a setting is not above 0.
    """

    name: ClassVar[str] = "radial"
    decay: float = 0.2
    min_width: int = 128
    tile_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.decay < inf:
            raise KinemaError(f"`decay` (={self.decay}) must be above 0, and finite")
        for name in ("min_width", "tile_size"):
            check_number(name, getattr(self, name), 1)

    def order(self, grid: Grid) -> TokenOrder:
        frame = grid.h * grid.w
        return token_order(grid, (grid.t, frame), (runs(grid.t, 1), runs(frame, min(self.tile_size, frame))))

    def reach(self, grid: Grid) -> Tensor:
        """Return the band width to either side at distances of 0, 1, ... frames; -1: not attended to."""
        frame = grid.h * grid.w
        reach: list[int] = []
        for distance in range(grid.t):
            length = 2.0 ** (frame.bit_length() - distance.bit_length())
            hidden = length < self.min_width and distance % int(self.min_width / length) != 0
            reach.append(frame if distance <= 1 else -1 if hidden else floor(max(length * self.decay, self.min_width)))
        return torch.tensor(reach)

    def sees(self, grid: Grid) -> TokenMask:
        frame, reach = grid.h * grid.w, self.reach(grid)

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = (query // frame - key // frame).abs()
            width = reach.to(query.device, query.dtype)[distance]
            return ((query % frame - key % frame).abs() <= width) | (key < frame)

        return sees

    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        frame, reach = grid.h * grid.w, self.reach(grid)
        first = torch.arange(0, frame, min(self.tile_size, frame))
        last = (first + min(self.tile_size, frame)).clamp_max(frame) - 1
        nearest = (first[:, None] - last).maximum(first - last[:, None]).clamp_min(0)
        farthest = (last[:, None] - first).maximum(last - first[:, None])
        times = torch.arange(grid.t)
        width = reach[(times[:, None] - times).abs()][:, None, :, None]
        sink = (times == 0)[None, None, :, None]
        tables = [(((far[:, None, :] <= width) | sink).flatten(2).flatten(0, 1)) for far in (nearest, farthest)]
        return tables[0][None], tables[1][None]

    def num_pairs(self, grid: Grid) -> list[int]:
        frame = grid.h * grid.w
        bands = [band_pairs(frame, int(reach)) for reach in self.reach(grid)]
        # All frames attend to the first one fully.
        others = (bands[abs(query - key)] for query in range(grid.t) for key in range(1, grid.t))
        return [grid.t * frame**2 + sum(others)]
