"""What a pattern is.

Shapes: b batch, h heads, n tokens of the grid and extra tokens behind them, d head width, q tiles.
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
from kinema.machine import lasting

_CHUNK = 2**24  # pairs of tokens looked at at once


def everything(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask that hides nothing."""
    return torch.ones((), dtype=torch.bool, device=query.device).expand(torch.broadcast_shapes(query.shape, key.shape))


@dataclass(frozen=True)
class Density:
    """How much of all pairs of tokens heads see.

    Attributes:
        heads: which heads: `all`, or a head's number.
        density: share of all pairs of tokens that is seen.
        tile_density: what backends compute, over what dense attention computes: tiles of which a part is seen count
            wholly, and so do the empty slots of ragged tiles. It may exceed 1. Gathering computes more for tiles seen
            in part, where rows that neighbours share are faster all the same.
        is_exact: false where queries and keys decide: then both are the most that it can be.
    """

    heads: str
    density: float
    tile_density: float
    is_exact: bool = True


_LONGEST = 80  # characters of a pattern in a message


class Pattern(ABC):
    """Which tokens see which, on any grid. A piece of data: a frozen dataclass with a few numbers.

    Attributes:
        name: the name on the command line and in configs, for those in `PATTERNS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def order(self, grid: Grid) -> TokenOrder:
        """The order of the tokens in which what a token sees lies together."""

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
        """Plans which key tiles each query tile sees.

        Args:
            grid: the grid.
            num_heads: heads.
            num_extra_tokens: tokens behind those of the grid; they see and are seen by all.
            query: queries ``(b, h, n, d)`` in raster order, for a dynamic pattern.
            key: keys likewise.
            step: the denoising step, for a pattern that changes with it.
            value: values likewise, where a pattern judges by outputs; without them it judges by attention weights.

        Raises:
            KinemaError: the pattern cannot be on this grid or with these heads, or a dynamic one lacks queries or keys.
        """

    @abstractmethod
    def densities(self, grid: Grid) -> tuple[Density, ...]:
        """How much each head sees, without a look at queries and keys; one for all where they are alike."""

    @property
    def num_heads(self) -> int | None:
        """Heads that the pattern is for; None: any number."""
        return None

    def of_heads(self, heads: slice) -> "Pattern":
        """The pattern of some of the heads, where they are computed apart from the others.

        Raises:
            KinemaError: the pattern is for a number of heads, and does not say what each of them sees.
        """
        if self.num_heads is not None:
            raise KinemaError(f"`pattern` (={self.name}) must have `of_heads` for heads that are computed apart")
        return self

    def check_heads(self, num_heads: int) -> None:
        """Raises an error where the pattern is for another number of heads."""
        if num_heads < 1:
            raise KinemaError(f"`num_heads` (={num_heads}) must be at least 1")
        if self.num_heads not in (None, num_heads):
            from kinema.generation.attention.text import pattern_text  # which knows all patterns

            pattern: Any = self
            text = pattern_text(pattern)
            text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
            raise KinemaError(
                f"`pattern` (={text}) is for {self.num_heads} heads, and must be for as many as there are: {num_heads}"
            )


class StaticPattern(Pattern):
    """A pattern that the grid alone decides."""

    @abstractmethod
    def sees(self, grid: Grid) -> TokenMask:
        """The definition: whether a query sees a key, by (head, query token, key token) in raster order."""

    @abstractmethod
    def tables(self, grid: Grid) -> tuple[Bool[Tensor, "h q q"], Bool[Tensor, "h q q"] | None]:
        """Pairs of tiles of which something is seen, and all (None: the same); one head for all heads alike."""

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
        """What each query (row) sees, tokens in raster order: the reference that backends are checked against."""
        tokens = torch.arange(grid.num_tokens)
        sees = self.sees(grid)
        return sees(torch.tensor(head), tokens[:, None], tokens[None, :]).expand(len(tokens), -1).clone()

    def density(self, grid: Grid) -> float:
        """Share of all pairs of tokens that is seen, over all heads. Exact."""
        pairs = self.num_pairs(grid)
        return sum(pairs) / len(pairs) / grid.num_tokens**2

    def densities(self, grid: Grid) -> tuple[Density, ...]:
        order, pairs = self.order(grid), self.num_pairs(grid)
        slots = self.tables(grid)[0].sum((1, 2)) * order.tile_size**2
        names = [str(head) for head in range(len(pairs))] if self.num_heads is not None else ["all"]
        dense = grid.num_tokens**2
        return tuple(
            Density(name, own / dense, computed / dense)
            for name, own, computed in zip(names, pairs, slots.tolist(), strict=True)
        )

    def num_pairs(self, grid: Grid) -> list[int]:
        """Pairs of tokens seen, for each head of `tables`. Exact.

        Tiles seen in part are looked at token by token; a pattern that knows their numbers by arithmetic says so here.
        """
        order, (seen, whole) = self.order(grid), self.tables(grid)
        sizes = order.tiles_of(order.valid).sum(1).double()
        # A head at a time: tables of numbers are eight times as large as tables of what is seen.
        pairs = [int(sizes @ (table.double() @ sizes)) for table in (seen if whole is None else whole)]
        if whole is not None:
            mask = self.sees(grid)
            pairs = [own + _count(order, mask, seen[i] & ~whole[i], i) for i, own in enumerate(pairs)]
        return pairs


def _count(order: TokenOrder, mask: TokenMask, partial: Bool[Tensor, "q q"], head: int) -> int:
    """Pairs of tokens seen in pairs of tiles that are seen in part."""
    tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
    total = 0
    for pairs in partial.nonzero().split(max(_CHUNK // order.tile_size**2, 1)):
        q, k = pairs.unbind(1)
        seen = mask(torch.tensor(head), tokens[q][:, :, None], tokens[k][:, None, :])
        total += int((seen & valid[q][:, :, None] & valid[k][:, None, :]).sum())
    return total


def band_pairs(length: int, reach: int) -> int:
    """Pairs of places in a list of `length` at most `reach` apart; none where `reach` is negative."""
    reach = min(reach, length - 1)
    # Each of the distances 1..reach occurs length - distance times, in either direction.
    return length + 2 * reach * length - reach * (reach + 1) if reach >= 0 else 0


@lru_cache(maxsize=256)
def _static_plan(pattern: StaticPattern, grid: Grid, num_heads: int, num_extra_tokens: int) -> BlockLayout:
    with lasting():
        seen, whole = pattern.tables(grid)
        mask = None if whole is None else pattern.sees(grid)
        whole = None if whole is None else whole[None]
        return layout_from_tables(pattern.order(grid), num_heads, num_extra_tokens, seen[None], whole, mask)
