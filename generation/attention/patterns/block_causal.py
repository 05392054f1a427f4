"""Block-causal attention with a sink, for streaming generation (CausVid 2412.07772, LongLive 2509.22622)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kinema.generation.attention.grid import Axis, Grid, TokenOrder, check_number, check_triple, runs, token_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import StaticPattern


@dataclass(frozen=True)
class BlockCausal(StaticPattern):
    """Each token attends to its chunk of latent steps, the `window` chunks before it, and the first `sink` chunks.

    Args:
        chunk: latent time steps per chunk.
        window: number of previous chunks to attend to; None: all.
        sink: number of first chunks that all later chunks attend to.
        tile: tile size in tokens (t, h, w); tiles do not cross chunk borders.

    Raises:
        KinemaError: a setting is out of range.
    """

    name: ClassVar[str] = "block-causal"
    chunk: int = 1
    window: int | None = None
    sink: int = 1
    tile: tuple[int, ...] = (2, 8, 8)

    def __post_init__(self) -> None:
        check_triple("tile", self.tile)
        check_number("chunk", self.chunk, 1)
        check_number("sink", self.sink, 0)
        if self.window is not None:
            check_number("window", self.window, 0)

    def order(self, grid: Grid) -> TokenOrder:
        height, width = (runs(n, min(length, n)) for n, length in zip(grid.sizes[1:], self.tile[1:], strict=True))
        return token_order(grid, grid.sizes, (self._steps(grid), height, width))

    def _steps(self, grid: Grid) -> Axis:
        """Group latent steps by tile: chunks, split if longer than a tile."""
        chunks = runs(grid.t, self.chunk)
        length = self.tile[0]
        return tuple(chunk[i : i + length] for chunk in chunks for i in range(0, len(chunk), length))

    def sees(self, grid: Grid) -> TokenMask:
        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            (q, _, _), (k, _, _) = grid.positions(query), grid.positions(key)
            return self._chunks_see(q // self.chunk, k // self.chunk)

        return sees

    def tables(self, grid: Grid) -> tuple[Tensor, None]:
        chunks = torch.tensor([steps[0] // self.chunk for steps in self._steps(grid)])
        tiles_per_group = self.order(grid).num_tiles // len(chunks)
        chunks = chunks.repeat_interleave(tiles_per_group)
        return self._chunks_see(chunks[:, None], chunks[None, :])[None], None

    def _chunks_see(self, query: Tensor, key: Tensor) -> Tensor:
        recent = key <= query
        if self.window is not None:
            recent = recent & (key >= query - self.window)
        return recent | ((key < self.sink) & (key <= query))
