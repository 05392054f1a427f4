"""How the tokens of one forward pass are ordered, and what each block's self-attention sees.

Shapes: b batch, n tokens in raster order (t h w), s slots of the order, k heads, e head width, g groups of tokens that
share a timestep, d width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.generation.attention.coarse import coarse_attention
from kinema.generation.attention.functional import sparse_attention
from kinema.generation.attention.grid import Grid, TokenOrder, reorder, tile_order
from kinema.generation.attention.patterns import Full, Pattern
from kinema.generation.attention.schedule import PatternSchedule, common_order
from kinema.generation.transformer.context_parallel import ContextParallel, TokenShare

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values ``(b, n, k, e)`` to what the queries see, of that shape."""


def _uncompiled(attention: Attention) -> Attention:
    """Attention that runs uncompiled inside a compiled block: backends compile for themselves."""
    wrapped: Any = torch.compiler.disable(attention)  # pyright: ignore[reportArgumentType]
    return wrapped


class BlockAttention(NamedTuple):
    """What a block's self-attention does.

    Attributes:
        tokens: attention of tokens to tokens; None: all see all.
        coarse: attention between means of tiles, for blocks that have a gate for it; None: there is none.
        share: the slice of the tokens that this process has, where several share a clip; attention is of all tokens.
    """

    tokens: Attention | None = None
    coarse: Attention | None = None
    share: TokenShare | None = None


DENSE = BlockAttention()


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Tokens are put into order once, before the first block, and back behind the last.

    Where processes share a clip, each has its slice of the tokens in between.

    Attributes:
        grid: numbers of tokens along t, h, w.
        patterns: what each block sees.
        order: the order that the blocks work in, that of most patterns; None: raster order.
        backend: name of the backend of sparse attention.
        step: the denoising step, from 0; None: outside of sampling.
        share: the slice of this process; None: it has all tokens.
    """

    grid: Grid
    patterns: tuple[Pattern, ...]
    order: TokenOrder | None
    backend: str
    step: int | None
    share: TokenShare | None

    @classmethod
    def make(
        cls,
        schedule: PatternSchedule | None,
        grid: tuple[int, int, int],
        num_layers: int,
        backend: str = "auto",
        step: int | None = None,
        num_steps: int | None = None,
        parallel: ContextParallel | None = None,
    ) -> "Arrangement":
        """The arrangement of one forward pass.

        Raises:
            KinemaError: the schedule has a layer that does not exist, or needs the number of steps.
        """
        tokens = Grid(*grid)
        layers = range(num_layers)
        patterns: tuple[Pattern, ...] = tuple(Full() for _ in layers)
        if schedule is not None:
            patterns = tuple(schedule.at(layer, num_layers, step, num_steps, tokens) for layer in layers)
        order = common_order(tokens, patterns)
        num_slots = tokens.num_tokens if order is None else order.num_slots
        share = None if parallel is None else TokenShare(parallel, num_slots)
        return cls(tokens, patterns, order, backend, step, share)

    def put(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Something of every token, from raster order into this one."""
        x = x if self.order is None else self.order.arrange(x, dim)
        return x if self.share is None else self.share.own(x, dim)

    def back(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b n d"]:
        """Something of every slot, back into raster order."""
        x = x if self.share is None else self.share.gather(x)
        return x if self.order is None else self.order.restore(x, 1)

    def put_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        """Something of every group of tokens: of the whole clip (g = 1), of every latent step, or of every token."""
        x = self._ordered_groups(x)
        return x if self.share is None else self.share.own_groups(x)

    def _ordered_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        if self.order is None or x.shape[1] == 1:
            return x
        if x.shape[1] == self.grid.num_tokens:
            return self.order.arrange(x, 1)
        firsts = self.order.to(x.device).tokens[:: self.order.run]
        return x.index_select(1, firsts // (self.grid.h * self.grid.w))

    def attention(self, layer: int, coarse_tile: Sequence[int] | None = None) -> BlockAttention:
        """What a block's self-attention does.

        Args:
            layer: the block.
            coarse_tile: tile (t, h, w) of the coarse branch, where blocks have one.
        """
        coarse = None if coarse_tile is None else _uncompiled(partial(self._coarse, tile_order(self.grid, coarse_tile)))
        pattern = self.patterns[layer]
        if isinstance(pattern, Full) and (self.order is None or not self.order.is_ragged):
            return BlockAttention(None, coarse, self.share)
        if self.share is not None and pattern.num_heads is not None:
            pattern = pattern.of_heads(self.share.parallel.heads(pattern.num_heads))
        return BlockAttention(_uncompiled(partial(self._attend, pattern)), coarse, self.share)

    def _attend(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        given = "raster" if self.order is None else self.order
        heads_first: Any = (x.transpose(1, 2) for x in (query, key, value))
        out = sparse_attention(
            *heads_first, pattern=pattern, grid=self.grid, backend=self.backend, order=given, step=self.step
        )
        return out.transpose(1, 2)

    def _coarse(self, tiles: TokenOrder, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        arranged: Any = (reorder(x.transpose(1, 2), self.order, tiles) for x in (query, key, value))
        out = coarse_attention(*arranged, order=tiles)
        return reorder(out, tiles, self.order).transpose(1, 2)
