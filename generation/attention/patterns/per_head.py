"""A separate pattern for each head."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import Density, Pattern, StaticPattern


@dataclass(frozen=True)
class PerHead(StaticPattern):
    """One static pattern per head. Heads with different tiles are computed separately (see `groups`).

    Args:
        patterns: one pattern per head.

    Raises:
        KinemaError: `patterns` is empty, or one is dynamic or for several heads; in `plan`: their tiles differ.
    """

    name: ClassVar[str] = "per-head"
    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.patterns, tuple) or not self.patterns:
            raise KinemaError(f"`patterns` (={self.patterns!r}) must be a tuple with one pattern per head")
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

    def of_heads(self, heads: slice) -> "PerHead":
        return PerHead(self.patterns[heads])

    def groups(self, grid: Grid) -> list[tuple[StaticPattern, list[int]]]:
        """Group heads by tiles; return each group's joint pattern and heads, largest group first."""
        heads: dict[TokenOrder, list[int]] = {}
        for head, pattern in enumerate(self.patterns):
            heads.setdefault(pattern.order(grid), []).append(head)
        groups: list[tuple[StaticPattern, list[int]]] = []
        for group in sorted(heads.values(), key=len, reverse=True):
            patterns = [self._static[head] for head in group]
            is_one = len(set(patterns)) == 1 and patterns[0].num_heads in (None, len(group))
            groups.append((patterns[0] if is_one else PerHead(tuple(patterns)), group))
        return groups

    def order(self, grid: Grid) -> TokenOrder:
        return Counter(pattern.order(grid) for pattern in self.patterns).most_common(1)[0][0]

    def _check_tiles(self, grid: Grid) -> None:
        for pattern in self.patterns:
            if pattern.order(grid) is not self.patterns[0].order(grid):
                raise KinemaError(
                    f"`patterns` (with {pattern!r}) must have the tiles of the first, {self.patterns[0]!r}, to be"
                    " planned together; plan its `groups` instead"
                )

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        densities = (pattern.densities(grid)[0] for pattern in self.patterns)
        return tuple(replace(density, heads=str(head)) for head, density in enumerate(densities))

    def sees(self, grid: Grid) -> TokenMask:
        masks = [pattern.sees(grid) for pattern in self._static]

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = torch.zeros((), dtype=torch.bool, device=query.device)
            for index, mask in enumerate(masks):
                seen = seen | ((head == index) & mask(torch.zeros_like(head), query, key))
            return seen

        return sees

    def tables(self, grid: Grid) -> tuple[Bool[Tensor, "h q q"], Bool[Tensor, "h q q"] | None]:
        self._check_tiles(grid)
        tables = [pattern.tables(grid) for pattern in self._static]
        seen = torch.cat([table for table, _ in tables])
        if all(whole is None for _, whole in tables):
            return seen, None
        return seen, torch.cat([seen if whole is None else whole for seen, whole in tables])

    def num_pairs(self, grid: Grid) -> list[int]:
        return [pattern.num_pairs(grid)[0] for pattern in self._static]
