"""Gathers the keys that each tile of queries sees, and attends tile by tile: forward and backward, on any device.

Shapes: b batch, h heads, g = b · h, gt tiles of all of them, s slots and extra tokens, d head width, r rows (tiles of
queries that see the same), q queries of a row, k keys of a row, m slots of a tile, e extra tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention.backends.base import Backend, attend_extra
from kinema.generation.attention.backends.rows import Rows, rows_of
from kinema.generation.attention.layout import BlockLayout
from kinema.machine import computes_bf16

# Numbers of gathered keys of a chunk, on a CPU for each thread: more saves calls, less stays in the processor's cache
# (docs/decisions.md).
_CHUNK_CPU = 2**19
_CHUNK_CUDA = 2**26


@dataclass(frozen=True, eq=False)
class _Work:
    """One call: the layout, and the sizes that rows are numbered by."""

    layout: BlockLayout
    heads: int
    chunk: int
    extra_mask: Bool[Tensor, "b e"] | None

    def mask(self, rows: Rows, extra: int) -> Bool[Tensor, "r q k"] | None:
        """What each query of these rows sees of its keys, extra tokens last."""
        if rows.full is None and self.extra_mask is None:
            return None
        order = self.layout.order.to(rows.own.device)
        tiles, num_queries = order.num_tiles, rows.own.shape[1] * order.tile_size
        tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
        seen = valid[rows.keys % tiles].unsqueeze(1)  # r 1 c m
        if self.layout.mask is not None and rows.full is not None:
            head = rows.own // tiles if self.layout.indices.shape[0] > 1 else rows.own // tiles % self.heads
            query, key = tokens[rows.own % tiles], tokens[rows.keys % tiles]
            part = self.layout.mask(head[:, :1, None, None], query.flatten(1)[:, :, None, None], key[:, None])
            places = torch.arange(rows.keys.shape[1], device=rows.own.device)
            seen = seen & (part | (places < rows.full[:, None])[:, None, :, None])
        seen = seen.expand(-1, num_queries, -1, -1).flatten(2)
        if extra:
            mask = torch.ones(1, extra, dtype=torch.bool, device=seen.device)
            if self.extra_mask is not None:
                mask = self.extra_mask[rows.own[:, 0] // (tiles * self.heads)]
            seen = torch.cat((seen, mask[:, None].expand(len(rows.own), num_queries, -1)), dim=2)
        return seen

    def chunks(self, batch: int, extra: int, width: int, device: torch.device) -> Iterator[Rows]:
        """All rows, so many at once that gathered keys keep within the limit."""
        for rows in rows_of(self.layout, batch, self.heads, device):
            numbers = (rows.keys.shape[1] * self.layout.order.tile_size + extra) * width
            yield from rows.split(max(self.chunk // numbers, 1))


def _gather(tiles: Float[Tensor, "gt m d"], extra: Float[Tensor, "g e d"], rows: Rows) -> Float[Tensor, "r k d"]:
    """Keys (or values) of each row."""
    own = tiles.index_select(0, rows.keys.flatten()).view(len(rows.own), -1, tiles.shape[-1])
    if not extra.shape[1]:
        return own
    return torch.cat((own, extra[rows.own[:, 0] // (len(tiles) // len(extra))]), dim=1)


def _queries(tiles: Float[Tensor, "gt m d"], rows: Rows) -> Float[Tensor, "r q d"]:
    """Queries (or their gradients) of each row."""
    return tiles.index_select(0, rows.own.flatten()).view(len(rows.own), -1, tiles.shape[-1])


def _multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether explicit products of this type are faster than SDPA: where a CPU computes in bfloat16 itself."""
    return dtype == torch.bfloat16 and computes_bf16(device)


def _attend(
    query: Float[Tensor, "r q d"],
    key: Float[Tensor, "r k d"],
    value: Float[Tensor, "r k d"],
    mask: Bool[Tensor, "r q k"] | None,
) -> Float[Tensor, "r q d"]:
    if query.device.type != "cpu" or not _multiplies(query.device, query.dtype):
        # Rows stand where heads usually do. A CPU that would emulate products gets float32's.
        kind = torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype
        mask = None if mask is None else mask[None]
        query, key, whole = (x[None].to(kind) for x in (query, key, value))
        return scaled_dot_product_attention(query, key, whole, attn_mask=mask)[0].to(value.dtype)
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
            seen = _attend(_queries(query, rows), keys, values, work.mask(rows, extra))
            out.index_copy_(0, rows.own.flatten(), seen.reshape(-1, *query.shape[1:]))
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
            inputs = _queries(query, rows), _gather(key, extra_key, rows), _gather(value, extra_value, rows)
            leaves: Any = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad():
                out = _attend(*leaves, mask=work.mask(rows, extra))
            of_query, *others = torch.autograd.grad(out, leaves, _queries(grads[0], rows))
            grad_query.index_copy_(0, rows.own.flatten(), of_query.reshape(-1, *query.shape[1:]))
            for grad, of_tiles, of_extra in zip(others, sums[:2], sums[2:], strict=True):
                own = grad[:, : grad.shape[1] - extra].reshape(-1, *key.shape[1:])
                of_tiles.index_add_(0, rows.keys.flatten(), own.float())
                if extra:
                    of_extra.index_add_(0, rows.own[:, 0] // tiles, grad[:, grad.shape[1] - extra :].float())
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
        chunk = _CHUNK_CUDA if query.is_cuda else _CHUNK_CPU * torch.get_num_threads()
        work = _Work(layout, query.shape[1], chunk, extra_mask)
        shape = (-1, order.tile_size, query.shape[-1])
        tiles = (x[:, :, :slots].reshape(shape) for x in (query, key, value))
        extra = (x[:, :, slots:].flatten(0, 1) for x in (key, value))
        out: Tensor = _GatherAttention.apply(*tiles, *extra, work)  # pyright: ignore[reportAssignmentType]
        out = out.view(*query.shape[:2], slots, -1)
        if query.shape[2] == slots:
            return out
        return torch.cat((out, attend_extra(query, key, value, layout, extra_mask)), dim=2)
