"""A pattern for each head."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import Pattern, StaticPattern


@dataclass(frozen=True)
class PerHead(StaticPattern):
    """Static patterns, one for each head, all on the same tiles.

    Args:
        patterns: one for each head.

    Raises:
        KinemaError: there is none, or a dynamic one, or one for several heads; on a grid: their tiles differ.
    """

    name: ClassVar[str] = "per-head"
    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.patterns, tuple) or not self.patterns:
            raise KinemaError(f"`patterns` (={self.patterns!r}) must be a tuple with a pattern for each head")
        for pattern in self.patterns:
            if not isinstance(pattern, StaticPattern):
                raise KinemaError(f"`patterns` (with {pattern!r}) must be static")
            if pattern.num_heads not in (None, 1):
                raise KinemaError(f"`patterns` (with {pattern!r}) must be for one head each")

    @property
    def _static(self) -> list[StaticPattern]:
        return [pattern for pattern in self.patterns if isinstance(pattern, StaticPattern)]

    @property
    def num_heads(self) -> int:
        return len(self.patterns)

    def order(self, grid: Grid) -> TokenOrder:
        orders = [pattern.order(grid) for pattern in self.patterns]
        for pattern, order in zip(self.patterns, orders, strict=True):
            if order is not orders[0]:
                raise KinemaError(
                    f"`patterns` (with {pattern!r}) must have the tiles of the first, {self.patterns[0]!r}"
                )
        return orders[0]

    def sees(self, grid: Grid) -> TokenMask:
        masks = [pattern.sees(grid) for pattern in self._static]

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = torch.zeros((), dtype=torch.bool, device=query.device)
            for index, mask in enumerate(masks):
                seen = seen | ((head == index) & mask(torch.zeros_like(head), query, key))
            return seen

        return sees

    def tables(self, grid: Grid) -> tuple[Bool[Tensor, "h q q"], Bool[Tensor, "h q q"] | None]:
        self.order(grid)
        tables = [pattern.tables(grid) for pattern in self._static]
        seen = torch.cat([table for table, _ in tables])
        if all(whole is None for _, whole in tables):
            return seen, None
        return seen, torch.cat([seen if whole is None else whole for seen, whole in tables])

    def num_pairs(self, grid: Grid) -> list[int]:
        self.order(grid)
        return [pattern.num_pairs(grid)[0] for pattern in self._static]
