"""Sliding tile attention (STA, arXiv 2502.04507): each query tile attends to a window of tiles around it."""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, cast

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_triple, tile_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import StaticPattern

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlidingTile(StaticPattern):
    """Each query tile attends to the window of tiles around it.

    At the border of the grid the window is shifted inwards, so that all windows have the same size; windows larger
    than the grid are clipped to it. With windows of k out of n tiles, a query tile attends to a key tile if
    |c - key tile| <= k // 2 on all axes, where c = clamp(query tile, k // 2, n - 1 - k // 2).

    Args:
        tile: tile size in tokens (t, h, w).
        window: window size in tiles (t, h, w), odd numbers; or one window per head.

    Raises:
        KinemaError: a size is below 1, or a window size is even.
    """

    name: ClassVar[str] = "sliding-tile"
    tile: tuple[int, ...] = (2, 8, 8)
    window: tuple[int, ...] | tuple[tuple[int, ...], ...] = (3, 3, 3)

    def __post_init__(self) -> None:
        check_triple("tile", self.tile)
        if not self.windows:
            raise KinemaError("`window` (=()) must be three odd integers, or three per head")
        for window in self.windows:
            check_triple("window", window)
            if any(length % 2 == 0 for length in window):
                raise KinemaError(f"`window` (={window}) must be odd, so that the query tile is at the centre")

    @property
    def windows(self) -> tuple[tuple[int, ...], ...]:
        """One window per head, or one for all heads."""
        if not self.window or isinstance(self.window[0], int):
            return (cast(tuple[int, ...], self.window),) if self.window else ()
        return cast(tuple[tuple[int, ...], ...], self.window)

    @property
    def num_heads(self) -> int | None:
        return len(self.windows) if len(self.windows) > 1 else None

    def of_heads(self, heads: slice) -> "SlidingTile":
        return self if self.num_heads is None else replace(self, window=self.windows[heads])

    def order(self, grid: Grid) -> TokenOrder:
        return tile_order(grid, self.tile)

    def sees(self, grid: Grid) -> TokenMask:
        numbers = self.order(grid).tile_grid
        # (heads, axes): window sizes, clipped to the grid.
        windows = torch.tensor([[min(k, n) for k, n in zip(each, numbers, strict=True)] for each in self.windows])

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = torch.ones((), dtype=torch.bool, device=query.device)
            lengths = windows.to(query.device)[head if len(windows) > 1 else torch.zeros_like(head)]
            axes = zip(grid.positions(query), grid.positions(key), self.tile, numbers, strict=True)
            for axis, (q, k, length, number) in enumerate(axes):
                first, size = _first(q // length, lengths[..., axis], number), lengths[..., axis]
                seen = seen & (k // length >= first) & (k // length < first + size)
            return seen

        return sees

    def tables(self, grid: Grid) -> tuple[Tensor, None]:
        _log_clamped_once(self, grid)
        numbers = self.order(grid).tile_grid
        heads: list[Tensor] = []
        for window in self.windows:
            seen = torch.ones(1, 1, dtype=torch.bool)
            for number, length in zip(numbers, window, strict=True):
                tiles, size = torch.arange(number), min(length, number)
                first = _first(tiles, torch.tensor(size), number)[:, None]
                axis = (tiles >= first) & (tiles < first + size)
                seen = torch.kron(seen.to(torch.uint8), axis.to(torch.uint8)).bool()
            heads.append(seen)
        return torch.stack(heads), None


def _first(tile: Tensor, window: Tensor, number: int) -> Tensor:
    """Return the first tile of the window around a tile."""
    return (tile - window // 2).clamp_min(0).minimum(number - window)


@lru_cache(maxsize=64)
def _log_clamped_once(pattern: SlidingTile, grid: Grid) -> None:
    numbers = pattern.order(grid).tile_grid
    for window in pattern.windows:
        if any(length > number for length, number in zip(window, numbers, strict=True)):
            logger.warning("`window` (=%s) is larger than the grid of %s tiles, and is clipped to it", window, numbers)
