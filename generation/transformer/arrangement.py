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
    """

    tokens: Attention | None = None
    coarse: Attention | None = None


DENSE = BlockAttention()


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Tokens are put into order once, before the first block, and back behind the last.

    Attributes:
        grid: numbers of tokens along t, h, w.
        patterns: what each block sees.
        order: the order that the blocks work in, that of most patterns; None: raster order.
        backend: name of the backend of sparse attention.
        step: the denoising step, from 0; None: outside of sampling.
    """

    grid: Grid
    patterns: tuple[Pattern, ...]
    order: TokenOrder | None
    backend: str
    step: int | None

    @classmethod
    def make(
        cls,
        schedule: PatternSchedule | None,
        grid: tuple[int, int, int],
        num_layers: int,
        backend: str = "auto",
        step: int | None = None,
        num_steps: int | None = None,
    ) -> "Arrangement":
        """The arrangement of one forward pass.

        Raises:
            KinemaError: the schedule has a layer that does not exist, or needs the number of steps.
        """
        tokens = Grid(*grid)
        layers = range(num_layers)
        if schedule is None:
            return cls(tokens, tuple(Full() for _ in layers), None, backend, step)
        patterns = tuple(schedule.at(layer, num_layers, step, num_steps, tokens) for layer in layers)
        return cls(tokens, patterns, common_order(tokens, patterns), backend, step)

    def put(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Something of every token, from raster order into this one."""
        return x if self.order is None else self.order.arrange(x, dim)

    def back(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Something of every slot, back into raster order."""
        return x if self.order is None else self.order.restore(x, dim)

    def put_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        """Something of every group of tokens: of the whole clip (g = 1), of every latent step, or of every token."""
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
            return BlockAttention(None, coarse)
        return BlockAttention(_uncompiled(partial(self._attend, pattern)), coarse)

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
