"""Base classes of attention patterns.

Shapes: b batch, h heads, n video tokens followed by extra tokens, d head width, q tiles.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.layout import BlockLayout, TokenMask, layout_from_tables
from kinema.machine import inference_mode_disabled

_CHUNK = 2**24  # token pairs that are counted at once


def all_visible(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Token mask in which every query attends to every key."""
    return torch.ones((), dtype=torch.bool, device=query.device).expand(torch.broadcast_shapes(query.shape, key.shape))


@dataclass(frozen=True)
class Density:
    """The fraction of token pairs that a head attends to and that backends compute.

    Attributes:
        heads: `all`, or the index of a head.
        density: fraction of all token pairs that attend.
        tile_density: computed pairs relative to dense attention; partial tiles and unused slots count fully, so that
            it may exceed 1. The gather backend may compute more, where larger rows are faster.
        is_exact: false if the pattern depends on queries and keys; both densities are then upper bounds.
    """

    heads: str
    density: float
    tile_density: float
    is_exact: bool = True


_MAX_TEXT = 80  # characters of a pattern in an error message


class Pattern(ABC):
    """Defines which tokens attend to which on any grid. Subclasses are frozen dataclasses of a few settings.

    Attributes:
        name: name on the command line and in configs, for patterns in `PATTERNS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def order(self, grid: Grid) -> TokenOrder:
        """Return the token order of the pattern: tokens that attend to each other are next to each other."""

    @abstractmethod
    def plan(
        self,
        grid: Grid,
        num_heads: int,
        num_extra_tokens: int = 0,
        query: Tensor | None = None,
        key: Tensor | None = None,
        step: int | None = None,
        value: Tensor | None = None,
    ) -> BlockLayout:
        """Return the layout: which key tiles each query tile attends to.

        Args:
            grid: the grid of video tokens.
            num_heads: number of heads.
            num_extra_tokens: number of extra tokens, which attend to all and are attended to by all.
            query: queries ``(b, h, n, d)`` in raster order; required by dynamic patterns.
            key: keys, same shape; required by dynamic patterns.
            step: the denoising step, for patterns that depend on it.
            value: values, same shape; patterns that compare attention outputs compare attention weights without them.

        Raises:
            KinemaError: the pattern does not support this grid or number of heads, or `query` or `key` is missing.
        """

    @abstractmethod
    def densities(self, grid: Grid) -> tuple[Density, ...]:
        """Return the density of each head, or a single one if all heads are alike; independent of queries and keys."""

    @property
    def num_heads(self) -> int | None:
        """Number of heads that the pattern requires; None: any number."""
        return None

    def of_heads(self, heads: slice) -> "Pattern":
        """Return the pattern for a subset of the heads, for context parallelism.

        Raises:
            KinemaError: the pattern differs between heads and does not implement this method.
        """
        if self.num_heads is not None:
            raise KinemaError(f"`pattern` (={self.name}) must implement `of_heads` for context parallelism")
        return self

    def check_heads(self, num_heads: int) -> None:
        """Validate the number of heads.

        Raises:
            KinemaError: `num_heads` is below 1, or the pattern requires another number.
        """
        if num_heads < 1:
            raise KinemaError(f"`num_heads` (={num_heads}) must be at least 1")
        if self.num_heads not in (None, num_heads):
            from kinema.generation.attention.text import pattern_text  # imports all patterns

            pattern: Any = self
            text = pattern_text(pattern)
            text = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
            raise KinemaError(
                f"`pattern` (={text}) is for {self.num_heads} heads, and must be for as many as there are: {num_heads}"
            )


class StaticPattern(Pattern):
    """A pattern that depends on the grid alone, not on queries and keys."""

    @abstractmethod
    def sees(self, grid: Grid) -> TokenMask:
        """Return the token mask that defines the pattern, as a function of (head, query token, key token)."""

    @abstractmethod
    def tables(self, grid: Grid) -> tuple[Bool[Tensor, "h q q"], Bool[Tensor, "h q q"] | None]:
        """Return tables of tile pairs that attend at all, and fully (None: the same); one head if all are alike."""

    def plan(
        self,
        grid: Grid,
        num_heads: int,
        num_extra_tokens: int = 0,
        query: Tensor | None = None,
        key: Tensor | None = None,
        step: int | None = None,
        value: Tensor | None = None,
    ) -> BlockLayout:
        self.check_heads(num_heads)
        return _static_plan(self, grid, num_heads, num_extra_tokens)

    def mask(self, grid: Grid, head: int = 0) -> Bool[Tensor, "n n"]:
        """Return the mask of all token pairs (query, key) in raster order: the reference for testing backends."""
        tokens = torch.arange(grid.num_tokens)
        sees = self.sees(grid)
        return sees(torch.tensor(head), tokens[:, None], tokens[None, :]).expand(len(tokens), -1).clone()

    def density(self, grid: Grid) -> float:
        """Return the fraction of all token pairs that attend, averaged over heads. Exact."""
        pairs = self.num_pairs(grid)
        return sum(pairs) / len(pairs) / grid.num_tokens**2

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        order, pairs = self.order(grid), self.num_pairs(grid)
        slots = self.tables(grid)[0].sum((1, 2)) * order.tile_size**2
        names = [str(head) for head in range(len(pairs))] if self.num_heads is not None else ["all"]
        dense = grid.num_tokens**2
        return tuple(
            Density(name, attended / dense, computed / dense)
            for name, attended, computed in zip(names, pairs, slots.tolist(), strict=True)
        )

    def num_pairs(self, grid: Grid) -> list[int]:
        """Return the number of token pairs that attend, for each head of `tables`. Exact.

        Partial tiles are counted token by token; subclasses override this if they can compute the number directly.
        """
        order, (seen, whole) = self.order(grid), self.tables(grid)
        sizes = order.tiles_of(order.valid).sum(1).double()
        # One head at a time, because the tables become eight times as large in float64.
        pairs = [int(sizes @ (table.double() @ sizes)) for table in (seen if whole is None else whole)]
        if whole is not None:
            mask = self.sees(grid)
            pairs = [n + _count(order, mask, seen[i] & ~whole[i], i) for i, n in enumerate(pairs)]
        return pairs


def _count(order: TokenOrder, mask: TokenMask, partial: Bool[Tensor, "q q"], head: int) -> int:
    """Count the token pairs that attend within partial tile pairs."""
    tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
    total = 0
    for pairs in partial.nonzero().split(max(_CHUNK // order.tile_size**2, 1)):
        q, k = pairs.unbind(1)
        seen = mask(torch.tensor(head), tokens[q][:, :, None], tokens[k][:, None, :])
        total += int((seen & valid[q][:, :, None] & valid[k][:, None, :]).sum())
    return total


def band_pairs(length: int, reach: int) -> int:
    """Count the pairs of positions in a list of `length` that are at most `reach` apart; 0 if `reach` is negative."""
    reach = min(reach, length - 1)
    # Each of the distances 1..reach occurs length - distance times, in either direction.
    return length + 2 * reach * length - reach * (reach + 1) if reach >= 0 else 0


@lru_cache(maxsize=256)
def _static_plan(pattern: StaticPattern, grid: Grid, num_heads: int, num_extra_tokens: int) -> BlockLayout:
    with inference_mode_disabled():
        seen, whole = pattern.tables(grid)
        mask = None if whole is None else pattern.sees(grid)
        whole = None if whole is None else whole[None]
        return layout_from_tables(pattern.order(grid), num_heads, num_extra_tokens, seen[None], whole, mask)
