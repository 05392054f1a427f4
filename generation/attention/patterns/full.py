"""Full attention as a pattern."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kinema.generation.attention.grid import Grid, TokenOrder, tile_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import StaticPattern, all_visible


@dataclass(frozen=True)
class Full(StaticPattern):
    """Every token attends to every token."""

    name: ClassVar[str] = "full"

    def order(self, grid: Grid) -> TokenOrder:
        return tile_order(grid, grid.sizes)

    def sees(self, grid: Grid) -> TokenMask:
        return all_visible

    def tables(self, grid: Grid) -> tuple[Tensor, None]:
        return torch.ones(1, 1, 1, dtype=torch.bool), None
