"""Base class and helpers of patterns that depend on queries and keys.

Shapes: b batch, h heads, n tokens, s slots, q tiles, d head width.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.layout import BlockLayout
from kinema.generation.attention.patterns.base import Pattern
from kinema.machine import autocast_disabled


class DynamicPattern(Pattern):
    """A pattern that depends on queries and keys."""

    @abstractmethod
    def plan_slots(
        self,
        order: TokenOrder,
        num_extra_tokens: int,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        step: int | None = None,
        value: Float[Tensor, "b h s d"] | None = None,
    ) -> BlockLayout:
        """Like `plan`, for tensors in the slots of `order`, without extra tokens."""

    @abstractmethod
    def mask(
        self,
        grid: Grid,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        step: int | None = None,
        value: Float[Tensor, "b h n d"] | None = None,
    ) -> Bool[Tensor, "b h n n"]:
        """Return the mask of all token pairs (query, key) in raster order: a simple reference for testing."""

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
        for name, x in (("query", query), ("key", key)):
            if x is None:
                raise KinemaError(f"`{name}` (=None) must be given: the pattern '{self.name}' depends on it")
            if x.ndim != 4 or x.shape[1] != num_heads or x.shape[2] < grid.num_tokens:
                raise KinemaError(
                    f"`{name}` (of shape {tuple(x.shape)}) must be (b, {num_heads} heads, at least {grid.num_tokens}"
                    f" tokens of the grid {grid}, d)"
                )
        assert query is not None
        assert key is not None
        order = self.order(grid)
        n = grid.num_tokens
        query, key = (order.arrange(x[:, :, :n], dim=2) for x in (query, key))
        value = None if value is None else order.arrange(value[:, :, :n], dim=2)
        with autocast_disabled(query.device):  # scores in a lower precision would tie
            return self.plan_slots(order, num_extra_tokens, query, key, step, value)


def tile_means(x: Float[Tensor, "b h s d"], order: TokenOrder) -> Float[Tensor, "b h q d"]:
    """Return the mean of each tile's valid tokens, in float32: ties in bfloat16 would favour the first tiles."""
    order = order.to(x.device)
    valid = order.tiles_of(order.valid).float()
    tiles = x.unflatten(2, (order.num_tiles, order.tile_size))
    return torch.einsum("bhqsd,qs->bhqd", tiles.float(), valid) / valid.sum(1)[:, None]


def top_k_tiles(scores: Float[Tensor, "b h q q"], number: int) -> Bool[Tensor, "b h q q"]:
    """Return a table of the `number` key tiles with the highest scores in each row."""
    number = min(number, scores.shape[-1])
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(number, dim=-1).indices, True)


def tile_tokens(order: TokenOrder) -> Sequence[Tensor]:
    """Return the tokens of each tile, for the reference masks."""
    return [
        tokens[valid] for tokens, valid in zip(order.tiles_of(order.tokens), order.tiles_of(order.valid), strict=True)
    ]
