"""Gathers the keys that each tile of queries sees, and attends tile by tile: forward and backward, on any device.

Shapes: b batch, h heads, g = b · h, gt tiles of all of them, s slots and extra tokens, d head width, r rows (tiles of
queries that see the same), n heads and clips that share rows, q queries of a row, k keys of a row, m slots of a tile,
e extra tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention.backends.base import Backend, attend_extra
from kinema.generation.attention.backends.rows import Rows, rows_of
from kinema.generation.attention.backends.space import Space
from kinema.generation.attention.layout import BlockLayout
from kinema.machine import as_given, computes_bf16

# Numbers of gathered keys of a chunk, on a CPU for each thread: more saves calls, less stays in the processor's cache
# (docs/decisions.md).
_CHUNK_CPU = 2**19
_CHUNK_CUDA = 2**26


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of `alike` heads and clips one after the other, and what is added to their scores: -inf for what a query
    does not see, extra tokens last."""

    rows: Rows
    alike: int
    bias: Float[Tensor, "_ r _ k"] | None

    def apart(self, x: Float[Tensor, "nr x d"]) -> Float[Tensor, "n r x d"]:
        """Heads and clips apart from rows, as masks are."""
        return x.unflatten(0, (self.alike, -1))


@dataclass(frozen=True, eq=False)
class _Work:
    """One call: the layout, and the sizes that rows are numbered by."""

    layout: BlockLayout
    heads: int
    chunk: int
    dtype: torch.dtype
    extra_mask: Bool[Tensor, "b e"] | None

    def chunks(self, batch: int, extra: int, width: int, device: torch.device) -> Iterator[_Chunk]:
        """All rows, so many at once that gathered keys keep within the limit; of many heads before many rows, because
        those share a mask."""
        for planned, offsets in rows_of(self.layout, batch, self.heads, device):
            numbers = (planned.keys.shape[1] * self.layout.order.tile_size + extra) * width
            most = max(self.chunk // numbers, 1)
            alike = min(most, len(offsets))
            for part in planned.split(max(most // alike, 1)):
                seen, bias = self._seen(part), None
                for some in offsets.split(alike):
                    rows = part.repeated(some)
                    if bias is None or self.extra_mask is not None:
                        bias = self._bias(self._with_extra(seen, rows, len(some), extra))
                    yield _Chunk(rows, len(some), bias)

    def _seen(self, rows: Rows) -> Bool[Tensor, "1 r q k"] | None:
        """What each query sees of its row's tiles; None: all of it."""
        if rows.full is None:
            return None
        order = self.layout.order.to(rows.own.device)
        tiles, shape = order.num_tiles, (1, len(rows.own), rows.own.shape[1] * order.tile_size, -1)
        tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
        exists = valid[rows.keys % tiles].unsqueeze(1)  # r 1 c m
        # What all rows see wholly needs no look at single tokens.
        whole = rows.keys.shape[1] if self.layout.mask is None else int(rows.full.min())
        seen = exists[:, :, :whole].expand(-1, shape[2], -1, -1).flatten(2)
        if self.layout.mask is not None:
            head = rows.own // tiles if self.layout.indices.shape[0] > 1 else rows.own // tiles % self.heads
            query, key = tokens[rows.own % tiles], tokens[rows.keys[:, whole:] % tiles]
            part = self.layout.mask(head[:, :1, None, None], query.flatten(1)[:, :, None, None], key[:, None])
            places = torch.arange(whole, rows.keys.shape[1], device=rows.own.device)
            part = exists[:, :, whole:] & (part | (places < rows.full[:, None])[:, None, :, None])
            seen = torch.cat((seen, part.flatten(2)), dim=2)
        return seen.view(shape)

    def _bias(self, seen: Bool[Tensor, "_ r _ k"] | None) -> Float[Tensor, "_ r _ k"] | None:
        if seen is None:
            return None
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, -torch.inf)

    def _with_extra(
        self, seen: Bool[Tensor, "1 r q k"] | None, rows: Rows, alike: int, extra: int
    ) -> Bool[Tensor, "_ r _ x"] | None:
        """The mask with extra tokens behind; None: all is seen."""
        if not extra or (seen is None and self.extra_mask is None):
            return seen
        clip = rows.own[:, 0] // (self.layout.order.num_tiles * self.heads)
        if self.extra_mask is None:
            mask = torch.ones(1, 1, 1, extra, dtype=torch.bool, device=rows.own.device)
        else:
            mask = self.extra_mask[clip].view(alike, -1, 1, extra)
        if seen is None:
            keys = rows.keys.shape[1] * self.layout.order.tile_size
            seen = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=rows.own.device)
        sizes = [max(sizes) for sizes in zip(seen.shape[:3], mask.shape[:3], strict=True)]
        return torch.cat([x.expand(*sizes, -1) for x in (seen, mask)], dim=3)


def _computed_in(x: Tensor) -> torch.dtype:
    """The type that attention is computed in: a CPU that would emulate products of a type gets float32's."""
    if x.device.type != "cpu" or _multiplies(x.device, x.dtype):
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)


def _multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether explicit products of this type are faster than SDPA: where a CPU computes in bfloat16 itself."""
    return device.type == "cpu" and dtype == torch.bfloat16 and computes_bf16(device)


def _keys(
    space: Space, name: str, tiles: Float[Tensor, "gt m d"], extra: Float[Tensor, "g e d"], rows: Rows
) -> Float[Tensor, "r k d"]:
    """Keys (or values) of each row."""
    own = space.select(name, tiles, rows.keys.flatten()).view(len(rows.own), -1, tiles.shape[-1])
    if extra.shape[1]:
        own = space.cat(f"{name} and extra", own, extra[rows.own[:, 0] // (len(tiles) // len(extra))])
    return space.to(f"wide {name}", own, _computed_in(tiles))


def _queries(space: Space, name: str, tiles: Float[Tensor, "gt m d"], rows: Rows) -> Float[Tensor, "r q d"]:
    """Queries (or their gradients) of each row."""
    own = space.select(name, tiles, rows.own.flatten()).view(len(rows.own), -1, tiles.shape[-1])
    return space.to(f"wide {name}", own, _computed_in(tiles))


def _attend(
    chunk: _Chunk, query: Float[Tensor, "nr q d"], key: Float[Tensor, "nr k d"], value: Float[Tensor, "nr k d"]
) -> Float[Tensor, "nr q d"]:
    query, key, value = (chunk.apart(x) for x in (query, key, value))
    if not _multiplies(query.device, query.dtype):
        # Rows stand where heads usually do.
        return scaled_dot_product_attention(query, key, value, attn_mask=chunk.bias).flatten(0, 1)
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    if chunk.bias is not None:
        scores = scores + chunk.bias
    return (scores.softmax(-1).to(value.dtype) @ value).flatten(0, 1)


class _GatherAttention(torch.autograd.Function):
    """Attention of tiles. Nothing that is gathered is kept: the backward pass gathers, and attends, once more, so
    that there are no second derivatives."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, extra_key: Tensor, extra_value: Tensor, work: _Work
    ):
        ctx.save_for_backward(query, key, value, extra_key, extra_value)
        ctx.work = work
        out, space = torch.empty_like(query), Space()
        batch, extra, width = len(extra_key) // work.heads, extra_key.shape[1], query.shape[-1]
        for chunk in work.chunks(batch, extra, width, query.device):
            rows = chunk.rows
            keys, values = _keys(space, "key", key, extra_key, rows), _keys(space, "value", value, extra_value, rows)
            with as_given(query.device):  # as in the backward pass, which autograd runs without autocast
                seen = _attend(chunk, _queries(space, "query", query, rows), keys, values)
            out.index_copy_(0, rows.own.flatten(), seen.reshape(-1, *query.shape[1:]).to(out.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        query, key, value, extra_key, extra_value = ctx.saved_tensors
        work: _Work = ctx.work
        grad_query, space = torch.empty_like(query), Space()
        # float32 sums: a key is in many tiles' lists.
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in (key, value, extra_key, extra_value)]
        batch, extra, width = len(extra_key) // work.heads, extra_key.shape[1], query.shape[-1]
        tiles = len(key) // len(extra_key)
        for chunk in work.chunks(batch, extra, width, query.device):
            rows = chunk.rows
            keys, values = _keys(space, "key", key, extra_key, rows), _keys(space, "value", value, extra_value, rows)
            inputs = _queries(space, "query", query, rows), keys, values
            leaves = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad():
                out = _attend(chunk, *leaves)
            of_query, *others = torch.autograd.grad(out, leaves, _queries(space, "grad", grads[0], rows))
            of_query = of_query.reshape(-1, *query.shape[1:]).to(query.dtype)
            grad_query.index_copy_(0, rows.own.flatten(), of_query)
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
        work = _Work(layout, query.shape[1], chunk, _computed_in(query), extra_mask)
        shape = (-1, order.tile_size, query.shape[-1])
        tiles = (x[:, :, :slots].reshape(shape) for x in (query, key, value))
        extra = (x[:, :, slots:].flatten(0, 1) for x in (key, value))
        out: Tensor = _GatherAttention.apply(*tiles, *extra, work)  # pyright: ignore[reportAssignmentType]
        out = out.view(*query.shape[:2], slots, -1)
        if query.shape[2] == slots:
            return out
        return torch.cat((out, attend_extra(query, key, value, layout, extra_mask)), dim=2)
