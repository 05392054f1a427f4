"""Selection of key tiles by scores of tile means: top-k as in VSA, and sliding tiles with top-k as in SSTA.

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
from kinema.generation.attention.patterns.dynamic import DynamicPattern, tile_means, tile_tokens, top_k_tiles
from kinema.generation.attention.patterns.sliding_tile import SlidingTile


@dataclass(frozen=True)
class TileTopK(DynamicPattern):
    """Each query tile attends to the `k` key tiles with the highest score: mean query times mean key.

    The selection of VSA (arXiv 2505.13389), made for each clip and head.

    Args:
        k: number of key tiles; clipped to the number of tiles.
        share: number of key tiles as a share of all (rounded up), instead of `k`.
        tile: tile size in tokens (t, h, w).

    Raises:
        KinemaError: a setting is out of range, or not exactly one of `k` and `share` is given.
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
        """Return the number of key tiles per query tile."""
        # 1e-9 absorbs the rounding error of the product.
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
            seen = top_k_tiles(scores, number)
            return layout_from_tables(order, query.shape[1], num_extra_tokens, seen, max_count=number)

    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        order = self.order(grid)
        tiles = tile_tokens(order)
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
    """Each query tile attends to a sliding window, and to the `k` key tiles with the highest score (SSTA,
    HunyuanVideo 1.5, arXiv 2511.18870):

        score(q, k) = balance · cos(q, k) - (1 - balance) · mean over k' of cos(k, k')

    where q and k are means of query and key tiles: keys that resemble many others score lower.

    Args:
        k: number of key tiles selected by score; they may overlap with the window.
        balance: weight of similarity to the query, against redundancy among keys.
        tile: tile size in tokens (t, h, w).
        window: size of the sliding window in tiles (t, h, w), odd numbers.

    Raises:
        KinemaError: a setting is out of range.
    """

    name: ClassVar[str] = "sliding-tile-top-k"
    k: int = 64
    balance: float = 0.7
    tile: tuple[int, ...] = (6, 8, 8)
    window: tuple[int, ...] = (3, 3, 3)

    def __post_init__(self) -> None:
        check_triple("window", self.window)  # the same for all heads
        SlidingTile(self.tile, self.window)  # validates both
        check_number("k", self.k, 1)
        if not 0 <= self.balance <= 1:
            raise KinemaError(f"`balance` (={self.balance}) must lie in [0, 1]")

    @property
    def sliding(self) -> SlidingTile:
        """The static part of the pattern."""
        return SlidingTile(self.tile, self.window)

    def order(self, grid: Grid) -> TokenOrder:
        return self.sliding.order(grid)

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        """Return the upper bound, reached if no selected tile lies in the window."""
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
            seen = top_k_tiles(scores, self.k) | window.to(scores.device)
            max_count = min(order.num_tiles, self.k + _max_window_tiles(self.sliding, order.grid))
            return layout_from_tables(order, query.shape[1], num_extra_tokens, seen, max_count=max_count)

    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        tiles = tile_tokens(self.order(grid))
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
def _max_window_tiles(sliding: SlidingTile, grid: Grid) -> int:
    """Return the maximum number of tiles in a window."""
    return int(sliding.tables(grid)[0].sum(-1).max())
