"""The block layout that a pattern plans and a backend executes: the key tiles that each query tile attends to.

Shapes: b batch (1: shared by all clips), h heads (1: shared by all heads), q query tiles, k listed key tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kinema.generation.attention.grid import TokenOrder

TokenMask = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps (head, query token, key token), integer tensors that broadcast, to whether the query attends to the key. Tokens
are raster indices. Where a layout has a batch axis, heads are numbered clip by clip."""


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """The key tiles that each query tile attends to, fully or partially.

    Extra tokens (text, conditions) are not included: in every backend they attend to all tokens, and all to them.

    Attributes:
        order: order of the tokens.
        num_heads: number of heads.
        num_extra_tokens: number of tokens after the video tokens.
        indices: key tiles of each query tile: full ones, then partial ones; entries from `counts` on are meaningless.
        full_counts: number of full key tiles.
        counts: number of full and partial key tiles, at least one.
        mask: token mask of the partial tiles; None: there are none.
    """

    order: TokenOrder
    num_heads: int
    num_extra_tokens: int
    indices: Int[Tensor, "b h q k"]
    full_counts: Int[Tensor, "b h q"]
    counts: Int[Tensor, "b h q"]
    mask: TokenMask | None = None

    @cached_property
    def is_block_diagonal(self) -> bool:
        """Whether each tile attends fully to itself, and to no other tile."""
        if self.indices.shape[-1] != 1 or self.mask is not None:
            return False
        diagonal = torch.arange(self.order.num_tiles, device=self.indices.device)
        return bool((self.indices[..., 0] == diagonal).all() and (self.full_counts == 1).all())

    @cached_property
    def is_full(self) -> bool:
        """Whether every tile attends fully to every tile."""
        tiles = self.order.num_tiles
        return self.indices.shape[-1] == tiles and bool((self.full_counts == tiles).all())

    def tile_density(self) -> float:
        """Fraction of all tile pairs that is computed: the cost relative to dense attention."""
        return self.counts.double().mean().item() / self.order.num_tiles

    def seen(self) -> tuple[Bool[Tensor, "b h q q"], Bool[Tensor, "b h q q"]]:
        """Return two tables of tile pairs: those attended to at all, and those attended to fully."""
        entries = torch.arange(self.indices.shape[-1], device=self.indices.device)
        shape = (*self.indices.shape[:-1], self.order.num_tiles + 1)
        unused = self.order.num_tiles
        tables: list[Tensor] = []
        for counts in (self.counts, self.full_counts):
            tiles = torch.where(entries < counts[..., None], self.indices, unused)
            table = torch.zeros(shape, dtype=torch.bool, device=tiles.device)
            tables.append(table.scatter_(-1, tiles.long(), True)[..., :-1])
        return tables[0], tables[1]


def layout_from_tables(
    order: TokenOrder,
    num_heads: int,
    num_extra_tokens: int,
    seen: Bool[Tensor, "b h q q"],
    whole: Bool[Tensor, "b h q q"] | None = None,
    mask: TokenMask | None = None,
    max_count: int | None = None,
) -> BlockLayout:
    """Build a layout from tables of tile pairs.

    Args:
        order: order of the tokens.
        num_heads: number of heads.
        num_extra_tokens: number of tokens after the video tokens.
        seen: pairs (query tile, key tile) that attend at all; each row has at least one.
        whole: pairs that attend fully; None: all pairs in `seen`.
        mask: token mask of the partial pairs.
        max_count: upper bound on the pairs in a row of `seen`; None: counted, which synchronises with the device.
    """
    whole = seen if whole is None else whole & seen
    counts, full_counts = seen.sum(-1), whole.sum(-1)
    if max_count is None:
        assert bool((counts > 0).all()), "each query tile must attend to some key tile"
        max_count = int(counts.max())
    # Rank 2: full, 1: partial. A stable sort keeps tiles in their order, so that near ones stay together.
    rank = whole.to(torch.int8) + seen.to(torch.int8)
    indices = rank.sort(dim=-1, descending=True, stable=True).indices[..., :max_count]
    if whole is seen:  # full by construction: no values to check
        return BlockLayout(order, num_heads, num_extra_tokens, indices.contiguous(), full_counts, counts, None)
    partial = mask if bool((counts > full_counts).any()) else None
    assert partial is not None or bool((counts == full_counts).all()), "partial tiles need a mask"
    return BlockLayout(order, num_heads, num_extra_tokens, indices.contiguous(), full_counts, counts, partial)
