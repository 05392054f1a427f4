"""Gathers the keys that each tile of queries sees, and attends tile by tile: forward and backward, on any device.

Shapes: b batch, h heads, g = b · h, gt tiles of all of them, s slots and extra tokens, d head width, r rows (a tile of
queries of a clip and head), m slots of a tile, c key tiles of a row, e extra tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention.backends.base import Backend, attend_extra
from kinema.generation.attention.layout import BlockLayout

# Numbers of gathered keys of a chunk: more saves calls, less stays in the processor's cache (measured in
# benchmarks/sparse_attention.py).
_CHUNK_CPU = 2**20
_CHUNK_CUDA = 2**26


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that see the same number of key tiles.

    Attributes:
        own: query tile of each row, out of those of all heads and clips.
        keys: its key tiles, likewise.
        full: how many of them are seen wholly; None: all, and no slot of theirs is empty.
    """

    own: Int[Tensor, " r"]
    keys: Int[Tensor, "r c"]
    full: Int[Tensor, " r"] | None

    def split(self, size: int) -> Iterator["_Rows"]:
        """At most so many rows at once."""
        full = [None] * len(self.own) if self.full is None else self.full.split(size)
        for own, keys, part in zip(self.own.split(size), self.keys.split(size), full, strict=False):
            yield _Rows(own, keys, part)


def _rows(layout: BlockLayout, batch: int, heads: int, device: torch.device, *, masked: bool) -> Iterator[_Rows]:
    """All rows, grouped by what they need: those of one number of key tiles, with or without a mask."""
    tiles = layout.order.num_tiles
    shape = (batch, heads, tiles)
    indices = layout.indices.to(device).expand(*shape, -1)
    counts, full_counts = (x.to(device).expand(shape).flatten() for x in (layout.counts, layout.full_counts))
    offsets = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1) * tiles
    keys = (indices + offsets).flatten(0, 2)
    needs = torch.full_like(counts, masked, dtype=torch.bool) | (counts > full_counts)
    if layout.order.is_ragged:
        ragged = ~layout.order.tiles_of(layout.order.valid).all(1).to(device)
        places = torch.arange(indices.shape[-1], device=device) < counts[:, None]
        needs |= (ragged[indices.flatten(0, 2)] & places).any(1)
    for kind in torch.unique(counts * 2 + needs).tolist():
        own = (counts * 2 + needs == kind).nonzero()[:, 0]
        yield _Rows(own, keys[own, : kind // 2], full_counts[own] if kind % 2 else None)


@dataclass(frozen=True, eq=False)
class _Work:
    """One call: the layout, and the sizes that rows are numbered by."""

    layout: BlockLayout
    heads: int
    chunk: int
    extra_mask: Bool[Tensor, "b e"] | None

    def mask(self, rows: _Rows, extra: int) -> Bool[Tensor, "r m k"] | None:
        """What each query of these rows sees of its keys, extra tokens last."""
        if rows.full is None:
            return None
        order = self.layout.order.to(rows.own.device)
        tiles = order.num_tiles
        tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
        seen = valid[rows.keys % tiles].unsqueeze(1)  # r 1 c m
        if self.layout.mask is not None:
            head = rows.own // tiles if self.layout.indices.shape[0] > 1 else rows.own // tiles % self.heads
            query, key = tokens[rows.own % tiles], tokens[rows.keys % tiles]
            part = self.layout.mask(head[:, None, None, None], query[:, :, None, None], key[:, None])
            places = torch.arange(rows.keys.shape[1], device=rows.own.device)
            seen = seen & (part | (places < rows.full[:, None])[:, None, :, None])
        seen = seen.expand(-1, order.tile_size, -1, -1).flatten(2)
        if extra:
            mask = torch.ones(1, extra, dtype=torch.bool, device=seen.device)
            if self.extra_mask is not None:
                mask = self.extra_mask[rows.own // (tiles * self.heads)]
            seen = torch.cat((seen, mask[:, None].expand(len(rows.own), order.tile_size, -1)), dim=2)
        return seen

    def chunks(self, batch: int, extra: int, width: int, device: torch.device) -> Iterator[_Rows]:
        """All rows, so many at once that gathered keys keep within the limit."""
        for rows in _rows(self.layout, batch, self.heads, device, masked=self.extra_mask is not None):
            numbers = (rows.keys.shape[1] * self.layout.order.tile_size + extra) * width
            yield from rows.split(max(self.chunk // numbers, 1))


def _gather(tiles: Float[Tensor, "gt m d"], extra: Float[Tensor, "g e d"], rows: _Rows) -> Float[Tensor, "r k d"]:
    """Keys (or values) of each row."""
    own = tiles.index_select(0, rows.keys.flatten()).view(len(rows.own), -1, tiles.shape[-1])
    if not extra.shape[1]:
        return own
    return torch.cat((own, extra[rows.own // (len(tiles) // len(extra))]), dim=1)


def _attend(
    query: Float[Tensor, "r m d"],
    key: Float[Tensor, "r k d"],
    value: Float[Tensor, "r k d"],
    mask: Bool[Tensor, "r m k"] | None,
) -> Float[Tensor, "r m d"]:
    if query.device.type != "cpu" or query.dtype == torch.float32:
        # Rows stand where heads usually do.
        mask = None if mask is None else mask[None]
        return scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)[0]
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value


class _GatherAttention(torch.autograd.Function):
    """Attention of tiles. Nothing that is gathered is kept: the backward pass gathers, and attends, once more."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, extra_key: Tensor, extra_value: Tensor, work: _Work
    ):
        ctx.save_for_backward(query, key, value, extra_key, extra_value)
        ctx.work = work
        out = torch.empty_like(query)
        batch, extra, width = len(extra_key) // work.heads, extra_key.shape[1], query.shape[-1]
        for rows in work.chunks(batch, extra, width, query.device):
            keys, values = _gather(key, extra_key, rows), _gather(value, extra_value, rows)
            out[rows.own] = _attend(query[rows.own], keys, values, work.mask(rows, extra))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, extra_key, extra_value = ctx.saved_tensors
        work: _Work = ctx.work
        grad_query = torch.empty_like(query)
        # float32 sums: a key is in many tiles' lists.
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in (key, value, extra_key, extra_value)]
        batch, extra, width = len(extra_key) // work.heads, extra_key.shape[1], query.shape[-1]
        tiles = len(key) // len(extra_key)
        for rows in work.chunks(batch, extra, width, query.device):
            inputs = query[rows.own], _gather(key, extra_key, rows), _gather(value, extra_value, rows)
            inputs = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad():
                out = _attend(*inputs, work.mask(rows, extra))
            of_query, *others = torch.autograd.grad(out, inputs, grads[0][rows.own])
            grad_query[rows.own] = of_query
            for grad, of_tiles, of_extra in zip(others, sums[:2], sums[2:], strict=True):
                own = grad[:, : grad.shape[1] - extra].reshape(-1, *key.shape[1:])
                of_tiles.index_add_(0, rows.keys.flatten(), own.float())
                if extra:
                    of_extra.index_add_(0, rows.own // tiles, grad[:, grad.shape[1] - extra :].float())
        return (
            grad_query,
            *(total.to(x.dtype) for total, x in zip(sums, (key, value, extra_key, extra_value), strict=True)),
            None,
        )


class Gather(Backend):
    """Gathers key tiles and attends to them; memory is bounded by chunks of rows."""

    name: ClassVar[str] = "gather"

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
        order, slots = layout.order, layout.order.num_slots
        chunk = _CHUNK_CUDA if query.is_cuda else _CHUNK_CPU
        work = _Work(layout, query.shape[1], chunk, extra_mask)
        shape = (-1, order.tile_size, query.shape[-1])
        tiles = (x[:, :, :slots].reshape(shape) for x in (query, key, value))
        extra = (x[:, :, slots:].flatten(0, 1) for x in (key, value))
        out: Tensor = _GatherAttention.apply(*tiles, *extra, work)  # pyright: ignore[reportAssignmentType]
        out = out.view(*query.shape[:2], slots, -1)
        if query.shape[2] == slots:
            return out
        return torch.cat((out, attend_extra(query, key, value, layout, extra_mask)), dim=2)
