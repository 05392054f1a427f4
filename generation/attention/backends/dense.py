"""Backends that call dense attention: with a mask of all token pairs (the reference), unmasked, or per partition.

Shapes: b batch, h heads, s slots followed by extra tokens, n tokens in any order followed by extra tokens, d head
width, e extra tokens.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.generation.attention.backends.base import AnyOrder, Backend, attend_extra, dense, key_mask
from kinema.generation.attention.grid import TokenOrder
from kinema.generation.attention.layout import BlockLayout


class Masked(Backend):
    """Dense attention with a mask of all token pairs: the reference. As slow as dense attention."""

    name: ClassVar[str] = "masked"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        return None

    def run(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h s d"]:
        order = layout.order.to(query.device)
        seen, whole = (table.to(query.device) for table in layout.seen())
        tokens = order.tokens
        seen, whole = (
            table.repeat_interleave(order.tile_size, -1).repeat_interleave(order.tile_size, -2)
            for table in (seen, whole)
        )
        if layout.mask is not None:
            b, h = (len(query), layout.num_heads) if seen.shape[0] > 1 else (1, layout.num_heads)
            head = torch.arange(b * h, device=query.device).view(b, h, 1, 1)
            seen = whole | (seen & layout.mask(head, tokens[:, None], tokens[None, :]))
        extra = query.shape[2] - order.num_slots
        mask = torch.nn.functional.pad(seen, (0, extra, 0, extra), value=True)
        keys = key_mask(layout.order, query, extra_mask)
        return dense(query, key, value, mask if keys is None else mask & keys[:, None, None, :])


class Dense(AnyOrder):
    """Full attention: one dense call, with a mask only if slots are unused or extra tokens are masked."""

    name: ClassVar[str] = "dense"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        return None if layout.is_full else "it supports only full attention"

    def run_from(
        self,
        input_order: TokenOrder | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        keys = key_mask(input_order, query, extra_mask)  # full attention does not depend on the order
        return dense(query, key, value, None if keys is None else keys[:, None, None, :])


class Parts(Backend):
    """Patterns that divide the grid into parts (frames, pixels over time, windows): dense attention in each part."""

    name: ClassVar[str] = "parts"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        return None if layout.is_block_diagonal else "it supports only patterns that divide the grid into parts"

    def run(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h s d"]:
        order = layout.order.to(query.device)
        batch, heads, _, width = query.shape
        slots, tiles, size = order.num_slots, order.num_tiles, order.tile_size

        def parts(x: Float[Tensor, "b h s d"], with_extra: bool) -> Float[Tensor, "b_tiles h m d"]:
            video = x[:, :, :slots].unflatten(2, (tiles, size)).transpose(1, 2)
            if with_extra and x.shape[2] > slots:
                extra = x[:, None, :, slots:].expand(-1, tiles, -1, -1, -1)
                video = torch.cat((video, extra), dim=3)
            # Contiguous, because gradients of strided parts were wrong in bfloat16 on CUDA with 77 extra tokens.
            return video.flatten(0, 1).contiguous()

        mask = None
        keys = key_mask(layout.order, query, extra_mask)
        if keys is not None:
            video = keys[:, :slots].unflatten(1, (tiles, size))
            extra = keys[:, None, slots:].expand(-1, tiles, -1)
            mask = torch.cat((video, extra), dim=2).flatten(0, 1)[:, None, None, :]
        out = dense(parts(query, False), parts(key, True), parts(value, True), mask)
        out = out.unflatten(0, (batch, tiles)).transpose(1, 2).reshape(batch, heads, slots, width)
        if query.shape[2] == slots:
            return out
        return torch.cat((out, attend_extra(query, key, value, order, slots, extra_mask)), dim=2)
