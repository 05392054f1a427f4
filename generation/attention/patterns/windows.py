"""Patterns that divide the grid into parts with full attention inside each part.

Factorised video transformers (Latte, arXiv 2401.03048) alternate `Spatial` and `Temporal`; W.A.L.T (arXiv 2312.06662)
alternates spatial and spatiotemporal windows; Swin (arXiv 2103.14030) shifts the windows of every other layer; CascadeV
(arXiv 2501.16612) alternates cells that divide time with cells that divide space.
"""

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Axis, Grid, TokenOrder, check_triple, runs, token_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.patterns.base import StaticPattern


class Partition(StaticPattern):
    """Each token attends to the tokens of its part; parts are products of groups of neighbours along the axes."""

    @abstractmethod
    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        """Return the groups along t, h and w."""

    def order(self, grid: Grid) -> TokenOrder:
        return token_order(grid, grid.sizes, self.cuts(grid))

    def sees(self, grid: Grid) -> TokenMask:
        part = torch.zeros(grid.sizes, dtype=torch.long)
        for i, (axis, cut) in enumerate(zip("thw", self.cuts(grid), strict=True)):
            number = torch.empty(grid.sizes[i], dtype=torch.long)
            for index, group in enumerate(cut):
                number[list(group)] = index
            shape = [-1 if axis == other else 1 for other in "thw"]
            part = part * len(cut) + number.view(shape)
        part = part.flatten()

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            parts = part.to(query.device)
            return parts[query] == parts[key]

        return sees

    def tables(self, grid: Grid) -> tuple[Tensor, None]:
        return torch.eye(self.order(grid).num_tiles, dtype=torch.bool)[None], None


@dataclass(frozen=True)
class Spatial(Partition):
    """Each token attends to its frame."""

    name: ClassVar[str] = "spatial"

    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        return runs(grid.t, 1), runs(grid.h, grid.h), runs(grid.w, grid.w)


@dataclass(frozen=True)
class Temporal(Partition):
    """Each token attends to the tokens at its spatial position in all frames."""

    name: ClassVar[str] = "temporal"

    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        return runs(grid.t, grid.t), runs(grid.h, 1), runs(grid.w, 1)


@dataclass(frozen=True)
class Window(Partition):
    """Each token attends to its window; windows at the end of an axis may be smaller.

    Args:
        size: window size in tokens (t, h, w).

    Raises:
        KinemaError: `size` is not three integers of at least 1.
    """

    name: ClassVar[str] = "window"
    size: tuple[int, ...] = (4, 8, 8)

    def __post_init__(self) -> None:
        check_triple("size", self.size)

    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        t, h, w = (runs(n, min(length, n)) for n, length in zip(grid.sizes, self.size, strict=True))
        return t, h, w


@dataclass(frozen=True)
class ShiftedWindow(Partition):
    """Each token attends to its window; borders are shifted by half a window (or `shift`) relative to `Window`.

    The first and last windows of an axis are smaller, which equals Swin's masked cyclic shift. An axis that fits into
    one window is not divided.

    Args:
        size: window size in tokens (t, h, w).
        shift: shift of the borders in tokens (t, h, w); None: half a window.

    Raises:
        KinemaError: `size` is not three integers of at least 1, or a shift is not from 0 to below its window size.
    """

    name: ClassVar[str] = "shifted-window"
    size: tuple[int, ...] = (4, 8, 8)
    shift: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_triple("size", self.size)
        if self.shift is not None and not _is_shift(self.shift, self.size):
            raise KinemaError(f"`shift` (={self.shift}) must be three integers from 0 to below `size` (={self.size})")

    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        shifts = self.shift or [length // 2 for length in self.size]
        t, h, w = (
            runs(n, length, shift) if n > length else runs(n, n)
            for n, length, shift in zip(grid.sizes, self.size, shifts, strict=True)
        )
        return t, h, w


@dataclass(frozen=True)
class AlternatingGrid(Partition):
    """Each token attends to its cell of a coarse grid, as in CascadeV, whose layers alternate (2, 1, 1) and (1, 2, 2).

    This is the pattern of one layer; to alternate, give each layer its own.

    Args:
        cells: number of cells along t, h and w; clipped to the number of tokens.

    Raises:
        KinemaError: `cells` is not three integers of at least 1.
    """

    name: ClassVar[str] = "alternating-grid"
    cells: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        check_triple("cells", self.cells)

    def cuts(self, grid: Grid) -> tuple[Axis, Axis, Axis]:
        t, h, w = (_cells(n, min(number, n)) for n, number in zip(grid.sizes, self.cells, strict=True))
        return t, h, w


def _is_shift(shift: Any, size: tuple[int, ...]) -> bool:
    is_triple = isinstance(shift, tuple) and len(shift) == 3 and all(isinstance(x, int) for x in shift)
    return is_triple and all(0 <= x < length for x, length in zip(shift, size, strict=True))


def _cells(size: int, number: int) -> Axis:
    """Split an axis into `number` groups of nearly equal length."""
    borders = [i * size // number for i in range(number + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(borders))
