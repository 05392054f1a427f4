"""Spatial and temporal heads, chosen from queries and keys (Sparse VideoGen, arXiv 2502.01776).

Shapes: b batch, h heads, n tokens, s slots, q tiles, d head width, r sampled rows.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_number, runs, token_order
from kinema.generation.attention.layout import BlockLayout, TokenMask, layout_from_tables
from kinema.generation.attention.patterns.base import Density, StaticPattern, band_pairs
from kinema.generation.attention.patterns.dynamic import DynamicPattern


def _check(width: float, tile: tuple[int, ...]) -> None:
    if not 0 < width <= 1:
        raise KinemaError(f"`width` (={width}) must be above 0 and at most 1")
    is_pair = isinstance(tile, tuple) and len(tile) == 2
    if not is_pair or not all(isinstance(x, int) and x >= 1 for x in tile):
        raise KinemaError(
            f"`tile` (={tile!r}) must be a tuple of two integers of at least 1: latent steps, positions in a frame"
        )


@dataclass(frozen=True)
class Band(StaticPattern):
    """Each token attends to a band around its position in a list of all tokens, and to the first frame.

    For spatial heads the list is ordered frame by frame, so that a token attends to its frame and adjacent ones; for
    temporal heads position by position, so that it attends to nearby positions in all frames.

    Args:
        axis: `spatial` or `temporal`.
        width: band width to either side, as a share of all tokens.
        tile: tile size in latent steps and raster-ordered positions of a frame.

    Raises:
        KinemaError: a setting is out of range.
    """

    name: ClassVar[str] = "band"
    axis: str = "spatial"
    width: float = 0.15
    tile: tuple[int, ...] = (2, 64)

    def __post_init__(self) -> None:
        if self.axis not in ("spatial", "temporal"):
            raise KinemaError(f"`axis` (={self.axis}) must be one of spatial, temporal")
        _check(self.width, self.tile)

    def order(self, grid: Grid) -> TokenOrder:
        frame = grid.h * grid.w
        steps, positions = (min(length, n) for length, n in zip(self.tile, (grid.t, frame), strict=True))
        return token_order(grid, (grid.t, frame), (runs(grid.t, steps), runs(frame, positions)))

    def _reach(self, grid: Grid) -> int:
        return int(self.width * grid.num_tokens)

    def sees(self, grid: Grid) -> TokenMask:
        frame, reach = grid.h * grid.w, self._reach(grid)

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            positions = query, key
            if self.axis == "temporal":
                positions = tuple(x % frame * grid.t + x // frame for x in positions)
            return ((positions[0] - positions[1]).abs() <= reach) | (key < frame)

        return sees

    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        frame, reach = grid.h * grid.w, self._reach(grid)
        steps, positions = (
            torch.tensor([(run[0], run[-1]) for run in runs(n, min(length, n))])
            for length, n in zip(self.tile, (grid.t, frame), strict=True)
        )
        # The distance in the list is outer · size + inner; tiles bound both to ranges.
        outer, inner, size = (steps, positions, frame) if self.axis == "spatial" else (positions, steps, grid.t)
        (outer_low, outer_high), (inner_low, inner_high) = _differences(outer), _differences(inner)
        shape = (len(outer), len(inner), len(outer), len(inner))
        low, high = outer_low[:, None, :, None], outer_high[:, None, :, None]
        below, above = inner_low[None, :, None, :], inner_high[None, :, None, :]
        # |inner| < size, so the nearest pair has the smallest |outer| or the next one.
        nearest = torch.full(shape, torch.iinfo(torch.long).max)
        for step in (-1, 0, 1):
            near = torch.zeros_like(low).maximum(low).minimum(high) + step
            distance = torch.zeros(shape, dtype=torch.long).maximum(near * size + below).maximum(-(near * size + above))
            nearest = torch.where((near >= low) & (near <= high), nearest.minimum(distance), nearest)
        farthest = (low * size + below).abs().maximum((high * size + above).abs())
        tables = [distance <= reach for distance in (nearest, farthest)]
        if self.axis == "temporal":
            tables = [table.permute(1, 0, 3, 2) for table in tables]
        first_seen, first_whole = steps[:, 0] == 0, steps[:, 1] == 0
        seen, whole = (
            (table | sink[None, None, :, None]).flatten(2).flatten(0, 1)
            for table, sink in zip(tables, (first_seen, first_whole), strict=True)
        )
        return seen[None], whole[None]

    def num_pairs(self, grid: Grid) -> list[int]:
        n, reach = grid.num_tokens, self._reach(grid)
        # All tokens attend to the first frame: add the pairs that are not in the band.
        first = torch.arange(grid.h * grid.w) * (1 if self.axis == "spatial" else grid.t)
        near = (first + reach).clamp_max(n - 1) - (first - reach).clamp_min(0) + 1
        return [band_pairs(n, reach) + int((n - near).sum())]


def _differences(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest difference between members of two ranges, for all pairs of ranges."""
    first, last = bounds.unbind(1)
    return first[:, None] - last, last[:, None] - first


@dataclass(frozen=True)
class SpatialTemporalHeads(DynamicPattern):
    """Each head of each clip is spatial or temporal, whichever is closer to dense attention on sampled queries.

    Args:
        width: band width to either side, as a share of all tokens; see `Band`.
        num_rows: number of sampled queries.
        tile: tile size in latent steps and positions of a frame.
        seed: seed of the sample.

    Raises:
        KinemaError: a setting is out of range.
    """

    name: ClassVar[str] = "spatial-temporal-heads"
    width: float = 0.15
    num_rows: int = 64
    tile: tuple[int, ...] = (2, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.width, self.tile)
        check_number("num_rows", self.num_rows, 1)

    @property
    def candidates(self) -> tuple[Band, Band]:
        """The spatial and the temporal band."""
        return Band("spatial", self.width, self.tile), Band("temporal", self.width, self.tile)

    def order(self, grid: Grid) -> TokenOrder:
        return self.candidates[0].order(grid)

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        (spatial,), (temporal,) = (band.densities(grid) for band in self.candidates)
        most = max(spatial.density, temporal.density), max(spatial.tile_density, temporal.tile_density)
        return (Density("all", *most, is_exact=spatial == temporal),)

    def plan_slots(
        self,
        order: TokenOrder,
        num_extra_tokens: int,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        step: int | None = None,
        value: Float[Tensor, "b h s d"] | None = None,
    ) -> BlockLayout:
        grid = order.grid
        with torch.no_grad():
            raster = (order.restore(x, 2) for x in (query, key))
            temporal = self.is_temporal(grid, *raster, value=None if value is None else order.restore(value, 2))
        (spatial_seen, spatial_whole), (temporal_seen, temporal_whole) = (x.tables(grid) for x in self.candidates)
        choice = temporal.cpu()[:, :, None, None]
        seen = torch.where(choice, temporal_seen, spatial_seen)
        whole = torch.where(choice, temporal_whole, spatial_whole)
        sees_spatial, sees_temporal = (x.sees(grid) for x in self.candidates)
        flat = temporal.flatten()

        def sees(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return torch.where(flat[head], sees_temporal(head, query, key), sees_spatial(head, query, key))

        return layout_from_tables(order, query.shape[1], num_extra_tokens, seen, whole, sees)

    def is_temporal(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h"]:
        """Return which heads are temporal: those for which the temporal band has the smaller squared error to dense
        attention, on sampled outputs (without `value`: attention weights)."""
        rows = torch.randperm(grid.num_tokens, generator=torch.Generator().manual_seed(self.seed))[: self.num_rows]
        rows, tokens = rows.to(query.device), torch.arange(grid.num_tokens, device=query.device)
        scores = query[:, :, rows].float() @ key.float().mT * query.shape[-1] ** -0.5

        def output(scores: Tensor) -> Tensor:
            weights = scores.softmax(-1)
            return weights if value is None else weights @ value.float()

        dense = output(scores)
        errors: list[Tensor] = []
        for band in self.candidates:
            seen = band.sees(grid)(tokens[0], rows[:, None], tokens[None, :])
            errors.append((output(scores.masked_fill(~seen, -torch.inf)) - dense).square().mean((-1, -2)))
        return errors[1] < errors[0]

    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        spatial, temporal = (band.mask(grid) for band in self.candidates)
        return torch.where(self.is_temporal(grid, query, key, value)[:, :, None, None].cpu(), temporal, spatial)
