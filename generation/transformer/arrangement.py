"""The order of the tokens in one forward pass, and the self-attention of each block.

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
from kinema.generation.transformer.context_parallel import ContextParallel, TokenShard

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps queries, keys and values ``(b, n, k, e)`` to attention outputs of the same shape."""


def _uncompiled(attention: Attention) -> Attention:
    """Exclude attention from the compilation of a block: backends compile their own kernels."""
    wrapped: Any = torch.compiler.disable(attention)  # pyright: ignore[reportArgumentType]
    return wrapped


class BlockAttention(NamedTuple):
    """The attention functions of a block.

    Attributes:
        tokens: attention between tokens; None: full attention.
        coarse: attention between tile means, for blocks with a coarse gate; None: none.
        shard: shard of the tokens in this process under context parallelism; None: all tokens.
    """

    tokens: Attention | None = None
    coarse: Attention | None = None
    shard: TokenShard | None = None


DENSE = BlockAttention()


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Reorders tokens before the first block and restores raster order after the last.

    Under context parallelism, each process has a shard of the tokens in between.

    Attributes:
        grid: number of tokens along t, h, w.
        patterns: the pattern of each block.
        order: the token order in the blocks, the most common one of the patterns; None: raster order.
        backend: name of the sparse attention backend.
        step: index of the denoising step; None: not sampling.
        shard: shard of the tokens in this process; None: all tokens.
    """

    grid: Grid
    patterns: tuple[Pattern, ...]
    order: TokenOrder | None
    backend: str
    step: int | None
    shard: TokenShard | None

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
        """Create the arrangement of one forward pass.

        Raises:
            KinemaError: the schedule names a layer that does not exist, or requires `num_steps`.
        """
        tokens = Grid(*grid)
        layers = range(num_layers)
        patterns: tuple[Pattern, ...] = tuple(Full() for _ in layers)
        if schedule is not None:
            patterns = tuple(schedule.at(layer, num_layers, step, num_steps, tokens) for layer in layers)
        order = common_order(tokens, patterns)
        num_slots = tokens.num_tokens if order is None else order.num_slots
        shard = None if parallel is None else TokenShard(parallel, num_slots)
        return cls(tokens, patterns, order, backend, step, shard)

    def arrange(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Reorder (and shard) per-token values from raster order."""
        x = x if self.order is None else self.order.arrange(x, dim)
        return x if self.shard is None else self.shard.shard(x, dim)

    def restore(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b n d"]:
        """Gather shards and restore raster order."""
        x = x if self.shard is None else self.shard.gather(x)
        return x if self.order is None else self.order.restore(x, 1)

    def arrange_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        """Reorder (and shard) values per group: one per clip (g = 1), per latent step or per token."""
        x = self._ordered_groups(x)
        return x if self.shard is None else self.shard.shard_groups(x)

    def _ordered_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        if self.order is None or x.shape[1] == 1:
            return x
        if x.shape[1] == self.grid.num_tokens:
            return self.order.arrange(x, 1)
        firsts = self.order.to(x.device).tokens[:: self.order.run]
        return x.index_select(1, firsts // (self.grid.h * self.grid.w))

    def attention(self, layer: int, coarse_tile: Sequence[int] | None = None) -> BlockAttention:
        """Return the attention functions of a block.

        Args:
            layer: index of the block.
            coarse_tile: tile size (t, h, w) of the coarse branch; None: no coarse branch.
        """
        coarse = None if coarse_tile is None else _uncompiled(partial(self._coarse, tile_order(self.grid, coarse_tile)))
        pattern = self.patterns[layer]
        if isinstance(pattern, Full) and (self.order is None or not self.order.is_ragged):
            return BlockAttention(None, coarse, self.shard)
        if self.shard is not None and pattern.num_heads is not None:
            pattern = pattern.of_heads(self.shard.parallel.heads(pattern.num_heads))
        return BlockAttention(_uncompiled(partial(self._attend, pattern)), coarse, self.shard)

    def _attend(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        order = "raster" if self.order is None else self.order
        heads_first: Any = (x.transpose(1, 2) for x in (query, key, value))
        out = sparse_attention(
            *heads_first, pattern=pattern, grid=self.grid, backend=self.backend, order=order, step=self.step
        )
        return out.transpose(1, 2)

    def _coarse(self, tiles: TokenOrder, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        arranged: Any = (reorder(x.transpose(1, 2), self.order, tiles) for x in (query, key, value))
        out = coarse_attention(*arranged, order=tiles)
        return reorder(out, tiles, self.order).transpose(1, 2)
