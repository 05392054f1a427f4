"""What a pattern plans and a backend executes: which tiles of keys each tile of queries sees.

Shapes: b batch (1: all clips alike), h heads (1: all heads alike), q tiles of queries, k places in the lists of tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kinema.generation.attention.grid import TokenOrder

TokenMask = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key: (head, query token, key token), integer tensors that broadcast, to booleans. Tokens are
numbered in raster order; so are heads, those of the second clip behind those of the first where a layout has clips."""


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Which key tiles each query tile sees, wholly or in part.

    Extra tokens (text, conditions) are no part of it: every backend lets them see, and be seen by, all tokens.

    Attributes:
        order: order of the tokens.
        num_heads: heads that it was planned for.
        num_extra_tokens: tokens behind those of the grid.
        indices: key tiles of each query tile: those seen wholly, then those seen in part; what follows is meaningless.
        full_counts: how many are seen wholly.
        counts: how many are seen at all, at least one.
        mask: what is seen of those seen in part; None: there are none.
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
        """Whether each tile sees itself wholly, and nothing else."""
        if self.indices.shape[-1] != 1 or self.mask is not None:
            return False
        own = torch.arange(self.order.num_tiles, device=self.indices.device)
        return bool((self.indices[..., 0] == own).all() and (self.full_counts == 1).all())

    @cached_property
    def is_full(self) -> bool:
        """Whether every tile sees every tile wholly."""
        tiles = self.order.num_tiles
        return self.indices.shape[-1] == tiles and bool((self.full_counts == tiles).all())

    def tile_density(self) -> float:
        """Share of all pairs of tiles that is computed: the cost, over that of dense attention."""
        return self.counts.double().mean().item() / self.order.num_tiles

    def seen(self) -> tuple[Bool[Tensor, "b h q q"], Bool[Tensor, "b h q q"]]:
        """Tables of tiles: those seen at all, and those seen wholly."""
        places = torch.arange(self.indices.shape[-1], device=self.indices.device)
        shape = (*self.indices.shape[:-1], self.order.num_tiles + 1)
        nowhere = self.order.num_tiles
        tables: list[Tensor] = []
        for counts in (self.counts, self.full_counts):
            where = torch.where(places < counts[..., None], self.indices, nowhere)
            table = torch.zeros(shape, dtype=torch.bool, device=where.device)
            tables.append(table.scatter_(-1, where.long(), True)[..., :-1])
        return tables[0], tables[1]


def layout_from_tables(
    order: TokenOrder,
    num_heads: int,
    num_extra_tokens: int,
    seen: Bool[Tensor, "b h q q"],
    whole: Bool[Tensor, "b h q q"] | None = None,
    mask: TokenMask | None = None,
    most: int | None = None,
) -> BlockLayout:
    """The layout of tables of tiles.

    Args:
        order: order of the tokens.
        num_heads: heads.
        num_extra_tokens: tokens behind those of the grid.
        seen: pairs (query tile, key tile) of which something is seen; each row has one.
        whole: those of which all is seen; None: all that are seen.
        mask: what is seen of the others.
        most: no row of `seen` has more pairs than this; None: it is counted, for which the host waits for the device.
    """
    whole = seen if whole is None else whole & seen
    counts, full_counts = seen.sum(-1), whole.sum(-1)
    if most is None:
        assert bool((counts > 0).all()), "each query tile must see some key tile"
        most = int(counts.max())
    # 2 for those seen wholly, 1 for those seen in part; a stable sort keeps tiles in their order, near ones together.
    rank = whole.to(torch.int8) + seen.to(torch.int8)
    indices = rank.sort(dim=-1, descending=True, stable=True).indices[..., :most]
    if whole is seen:  # by construction: nothing needs to be looked at
        return BlockLayout(order, num_heads, num_extra_tokens, indices.contiguous(), full_counts, counts, None)
    partial = mask if bool((counts > full_counts).any()) else None
    assert partial is not None or bool((counts == full_counts).all()), "tiles seen in part need a mask"
    return BlockLayout(order, num_heads, num_extra_tokens, indices.contiguous(), full_counts, counts, partial)
