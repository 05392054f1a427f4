"""Key tiles by how well their means match: VSA's selection, and SSTA's sliding tiles with a selection.

Shapes: b batch, h heads, n tokens, q tiles, d head width.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_number, check_triple, tile_order
from kinema.generation.attention.layout import BlockLayout, layout_from_tables
from kinema.generation.attention.patterns.base import Density
from kinema.generation.attention.patterns.dynamic import DynamicPattern, pick, tile_means, tile_sets
from kinema.generation.attention.patterns.sliding_tile import SlidingTile


@dataclass(frozen=True)
class TileTopK(DynamicPattern):
    """Each tile of queries sees the `k` tiles of keys of the highest score: mean query times mean key.

    The selection of VSA (arXiv 2505.13389), for each clip and head.

    Args:
        k: tiles seen; a larger number than there are means all.
        share: tiles seen as a share of all (rounded up), instead of `k`: the density.
        tile: tokens (t, h, w) of a tile.

    Raises:
        KinemaError: a number is out of its range, or `k` and `share` are both given, or neither.
    """

    name: ClassVar[str] = "tile-top-k"
    k: int | None = None
    share: float | None = None
    tile: tuple[int, ...] = (4, 4, 4)

    def __post_init__(self) -> None:
        check_triple("tile", self.tile)
        if (self.k is None) == (self.share is None):
            raise KinemaError(f"exactly one of `k` (={self.k}) and `share` (={self.share}) must be given")
        if self.k is not None:
            check_number("k", self.k, 1)
        if self.share is not None and not 0 < self.share <= 1:
            raise KinemaError(f"`share` (={self.share}) must lie above 0 and up to 1")

    def order(self, grid: Grid) -> TokenOrder:
        return tile_order(grid, self.tile)

    def number(self, order: TokenOrder) -> int:
        """Tiles that each tile sees."""
        # Less than what a product of floats is off by.
        wanted = self.k if self.k is not None else ceil((self.share or 0) * order.num_tiles - 1e-9)
        return min(max(wanted, 1), order.num_tiles)

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        order = self.order(grid)
        number, tiles, n = self.number(order), order.num_tiles, grid.num_tokens
        largest = order.tiles_of(order.valid).sum(1).sort(descending=True).values
        is_exact = number == tiles or int(largest[0]) == int(largest[-1])
        computed = tiles * number * order.tile_size**2 / n**2
        return (Density("all", int(largest[:number].sum()) / n, computed, is_exact),)

    def plan_slots(
        self,
        order: TokenOrder,
        num_extra_tokens: int,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        step: int | None = None,
        value: Float[Tensor, "b h s d"] | None = None,
    ) -> BlockLayout:
        with torch.no_grad():
            scores = tile_means(query, order) @ tile_means(key, order).mT
            number = self.number(order)
            seen = pick(scores, number)
            return layout_from_tables(order, query.shape[1], num_extra_tokens, seen, most=number)

    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        order = self.order(grid)
        tiles = tile_sets(order)
        mean_queries, mean_keys = (
            torch.stack([x.float()[:, :, tokens].mean(2) for tokens in tiles], dim=2) for x in (query, key)
        )
        seen = torch.zeros(*query.shape[:2], grid.num_tokens, grid.num_tokens, dtype=torch.bool)
        for i, tokens in enumerate(tiles):
            best = (mean_queries[:, :, i, None] * mean_keys).sum(-1).argsort(-1, descending=True)
            for b, h in torch.cartesian_prod(*map(torch.arange, query.shape[:2])).tolist():
                for j in best[b, h, : self.number(order)].tolist():
                    seen[b, h, tokens[:, None], tiles[j]] = True
        return seen


@dataclass(frozen=True)
class SlidingTileTopK(DynamicPattern):
    """Sliding tiles, and for each tile of queries the `k` tiles of keys of the highest score besides (SSTA,
    HunyuanVideo 1.5, arXiv 2511.18870):

        score(q, k) = balance · cos(q, k) - (1 - balance) · mean over k' of cos(k, k')

    with q and k means of tiles of queries and keys: keys which resemble many others count less.

    Args:
        k: tiles by score; they may lie in the window as well.
        balance: weight of the match against that of redundancy.
        tile: tokens (t, h, w) of a tile.
        window: tiles (t, h, w) of the sliding window, odd numbers.

    Raises:
        KinemaError: a number is out of its range.
    """

    name: ClassVar[str] = "sliding-tile-top-k"
    k: int = 64
    balance: float = 0.7
    tile: tuple[int, ...] = (6, 8, 8)
    window: tuple[int, ...] = (3, 3, 3)

    def __post_init__(self) -> None:
        check_triple("window", self.window)  # one for all heads
        SlidingTile(self.tile, self.window)  # raises what it has to say
        check_number("k", self.k, 1)
        if not 0 <= self.balance <= 1:
            raise KinemaError(f"`balance` (={self.balance}) must lie in [0, 1]")

    @property
    def sliding(self) -> SlidingTile:
        """The static part."""
        return SlidingTile(self.tile, self.window)

    def order(self, grid: Grid) -> TokenOrder:
        return self.sliding.order(grid)

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        """The most, which is where no tile of the selection lies in the window, and all are whole."""
        order, (windows, _) = self.order(grid), self.sliding.tables(grid)
        sizes, window = order.tiles_of(order.valid).sum(1), windows[0]
        others = torch.where(window, 0, sizes).sort(-1, descending=True).values[:, : self.k]
        keys = (window * sizes).sum(-1) + others.sum(-1)
        tiles = int((window.sum(-1) + self.k).clamp_max(order.num_tiles).sum())
        is_exact = self.k >= order.num_tiles or bool(window.all())
        dense = grid.num_tokens**2
        return (Density("all", int((keys * sizes).sum()) / dense, tiles * order.tile_size**2 / dense, is_exact),)

    def plan_slots(
        self,
        order: TokenOrder,
        num_extra_tokens: int,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        step: int | None = None,
        value: Float[Tensor, "b h s d"] | None = None,
    ) -> BlockLayout:
        with torch.no_grad():
            queries, keys = (normalize(tile_means(x, order), dim=-1) for x in (query, key))
            # The mean cosine to all keys is the cosine to their mean.
            redundancy = (keys * keys.mean(2, keepdim=True)).sum(-1)
            scores = self.balance * queries @ keys.mT - (1 - self.balance) * redundancy[:, :, None]
            window, _ = self.sliding.tables(order.grid)
            seen = pick(scores, self.k) | window.to(scores.device)
            most = min(order.num_tiles, self.k + _most_near(self.sliding, order.grid))
            return layout_from_tables(order, query.shape[1], num_extra_tokens, seen, most=most)

    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        tiles = tile_sets(self.order(grid))
        mean_queries, mean_keys = (
            torch.stack([x.float()[:, :, tokens].mean(2) for tokens in tiles], dim=2) for x in (query, key)
        )
        cosine = torch.nn.functional.cosine_similarity
        redundancy = cosine(mean_keys[:, :, :, None], mean_keys[:, :, None], dim=-1).mean(-1)
        seen = self.sliding.mask(grid).expand(*query.shape[:2], -1, -1).clone()
        for i, tokens in enumerate(tiles):
            match = cosine(mean_queries[:, :, i, None], mean_keys, dim=-1)
            best = (self.balance * match - (1 - self.balance) * redundancy).argsort(-1, descending=True)
            for b, h in torch.cartesian_prod(*map(torch.arange, query.shape[:2])).tolist():
                for j in best[b, h, : self.k].tolist():
                    seen[b, h, tokens[:, None], tiles[j]] = True
        return seen


@lru_cache(maxsize=64)
def _most_near(sliding: SlidingTile, grid: Grid) -> int:
    """Tiles in the window of the tile that has most."""
    return int(sliding.tables(grid)[0].sum(-1).max())
