"""The grid of video tokens, and token orders that place tokens which attend to each other next to each other.

Shapes: b batch, h heads, n tokens of the grid in raster order (t h w), s slots, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.machine import inference_mode_disabled

Axis = tuple[tuple[int, ...], ...]
"""Positions along one axis, split into groups; each position is in exactly one group."""


@dataclass(frozen=True)
class Grid:
    """Numbers of video tokens along time, height and width.

    Raises:
        KinemaError: a size is not an integer of at least 1.
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        for name, size in zip("thw", self.sizes, strict=True):
            check_number(f"grid.{name}", size, 1)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        return self.t, self.h, self.w

    @property
    def num_tokens(self) -> int:
        """t · h · w."""
        return prod(self.sizes)

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))

    def positions(self, tokens: Int[Tensor, "*any"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the (t, h, w) coordinates of tokens given by raster index."""
        return tokens // (self.h * self.w), tokens // self.w % self.h, tokens % self.w


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """An order of a grid's tokens in equally sized tiles; each tile is a contiguous run of slots.

    Where a tile is cut off by the border of the grid ("ragged"), its unused slots repeat its last token, so that values
    computed there are finite. `valid` is false for them.

    Attributes:
        grid: the grid.
        tile_size: slots per tile.
        tokens: the token of each slot.
        valid: false for unused slots, which repeat another token.
        slots: the slot of each token; the inverse of `tokens`.
        tile_grid: number of tiles along each axis that is divided into tiles, in the order of the tiles.
        run: number of consecutive slots that belong to one latent time step.
        is_ragged: whether any slot is invalid.
        is_raster: whether the order equals raster order, without extra slots.
    """

    grid: Grid
    tile_size: int
    tokens: Int[Tensor, " s"]
    valid: Bool[Tensor, " s"]
    slots: Int[Tensor, " n"]
    tile_grid: tuple[int, ...]
    run: int
    is_ragged: bool
    is_raster: bool
    _copies: dict[torch.device, "TokenOrder"] = field(default_factory=dict, repr=False)

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return len(self.tokens) // self.tile_size

    @property
    def num_slots(self) -> int:
        """Number of slots, including unused ones."""
        return len(self.tokens)

    def to(self, device: torch.device) -> "TokenOrder":
        """Return this order with its tensors on a device. The copy is cached."""
        if self.tokens.device == device:
            return self
        if device not in self._copies:
            with inference_mode_disabled():
                tables = [x.to(device) for x in (self.tokens, self.valid, self.slots)]
            self._copies[device] = replace(self, tokens=tables[0], valid=tables[1], slots=tables[2], _copies={})
        return self._copies[device]

    def arrange(self, x: Tensor, dim: int) -> Tensor:
        """Reorder tokens along `dim` from raster order to slots. Extra tokens stay at the end.

        Raises:
            KinemaError: `x` has fewer tokens than the grid.
        """
        return _reorder(x, dim, self.to(x.device).tokens, self.grid.num_tokens, "tokens")

    def restore(self, x: Tensor, dim: int) -> Tensor:
        """Reorder slots along `dim` back to raster order. Extra tokens stay at the end.

        Raises:
            KinemaError: `x` has fewer slots than this order.
        """
        return _reorder(x, dim, self.to(x.device).slots, self.num_slots, "slots")

    def tiles_of(self, x: Tensor) -> Tensor:
        """Reshape ``(s, ...)`` to ``(tiles, tile_size, ...)``."""
        return x.unflatten(0, (self.num_tiles, self.tile_size))


def _reorder(x: Tensor, dim: int, index: Tensor, size: int, what: str) -> Tensor:
    if x.shape[dim] < size:
        raise KinemaError(f"`x` (of shape {tuple(x.shape)}) must have at least {size} {what} along axis {dim}")
    ordered = x.narrow(dim, 0, size).index_select(dim, index)
    extra = x.shape[dim] - size
    return torch.cat((ordered, x.narrow(dim, size, extra)), dim) if extra else ordered


def reorder(x: Tensor, before: TokenOrder | None, after: TokenOrder | None) -> Tensor:
    """Reorder ``(b, h, n, d)`` from one token order to another (None: raster). Extra tokens stay at the end."""
    if before is after:
        return x
    if before is not None and not before.is_raster:
        x = before.restore(x, 2)
    return x if after is None or after.is_raster else after.arrange(x, 2)


def runs(size: int, length: int, offset: int = 0) -> Axis:
    """Split an axis into groups of `length` neighbours. With a positive `offset`, the first group has that length."""
    starts = sorted({0, *range(offset, size, length)})
    return tuple(tuple(range(a, b)) for a, b in zip(starts, [*starts[1:], size], strict=True))


@lru_cache(maxsize=256)
def token_order(grid: Grid, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> TokenOrder:
    """Return the order whose tiles are the products of groups along the axes. Results are cached.

    Args:
        grid: the grid.
        shape: shape of the raster-ordered tokens, time first: ``grid.sizes``, or (t, h * w).
        axes: the groups along each axis of `shape`.

    Example:
        Tiles 2×8×8: ``token_order(grid, grid.sizes, (runs(grid.t, 2), runs(grid.h, 8), runs(grid.w, 8)))``.
    """
    with inference_mode_disabled():
        return _token_order(grid, shape, axes)


def _token_order(grid: Grid, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> TokenOrder:
    assert prod(shape) == grid.num_tokens
    assert all(
        sorted(x for group in axis for x in group) == list(range(n)) for n, axis in zip(shape, axes, strict=True)
    )
    longest = [max(len(group) for group in axis) for axis in axes]
    tokens, valid = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    numbers: list[int] = []
    for size, axis, length in zip(shape, axes, longest, strict=True):
        places = torch.tensor([[*group, *[group[-1]] * (length - len(group))] for group in axis])
        exists = torch.tensor([[i < len(group) for i in range(length)] for group in axis])
        numbers.append(len(axis))
        # Combine (tiles, slots) so far with (groups, length) of this axis: tiles × groups, slots × length.
        shaped = tokens.view(prod(numbers[:-1]), 1, -1, 1), places.view(1, len(axis), 1, length)
        tokens = (shaped[0] * size + shaped[1]).flatten(2).flatten(0, 1)
        shaped = valid.view(prod(numbers[:-1]), 1, -1, 1), exists.view(1, len(axis), 1, length)
        valid = (shaped[0] & shaped[1]).flatten(2).flatten(0, 1)
    tokens, valid = tokens.flatten(), valid.flatten()
    slots = torch.empty(grid.num_tokens, dtype=torch.long)
    slots[tokens[valid]] = torch.arange(len(tokens))[valid]
    is_ragged = not bool(valid.all())
    is_raster = not is_ragged and bool((slots == torch.arange(grid.num_tokens)).all())
    return TokenOrder(
        grid, prod(longest), tokens, valid, slots, tuple(numbers), prod(longest[1:]), is_ragged, is_raster
    )


def tile_order(grid: Grid, tile: Sequence[int]) -> TokenOrder:
    """Divide the grid into tiles of (t, h, w) tokens; tiles are clipped at the ends of an axis."""
    size = [min(length, n) for length, n in zip(tile, grid.sizes, strict=True)]
    return token_order(grid, grid.sizes, tuple(runs(n, length) for n, length in zip(grid.sizes, size, strict=True)))


def check_number(name: str, value: Any, minimum: int) -> None:
    """Validate an integer argument.

    Raises:
        KinemaError: `value` is not an integer, or below `minimum`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise KinemaError(f"`{name}` (={value}) must be at least {minimum}, and an integer")


def check_triple(name: str, value: Any) -> tuple[int, int, int]:
    """Validate a tuple of three integers of at least 1, and return it.

    Raises:
        KinemaError: `value` is not such a tuple.
    """
    is_triple = isinstance(value, tuple) and len(value) == 3
    if not is_triple or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in value):
        raise KinemaError(f"`{name}` (={value!r}) must be a tuple of three integers of at least 1")
    return value[0], value[1], value[2]
