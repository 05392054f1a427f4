"""The gather backend: gathers the keys of each query tile and attends to them, forward and backward, on any device.

It reads inputs and writes results in the order of the input; tensors are not reordered first.

Shapes: b batch, h heads, n video and extra tokens in input order, s slots, d head width, r rows (query tiles that
attend to the same key tiles), l lanes (heads of all clips) that share rows, q queries of a row, k keys of a row (extra
tokens last), m slots of a tile, e extra tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention.backends.base import AnyOrder, CallCache, attend_extra
from kinema.generation.attention.backends.rows import Rows, rows_of
from kinema.generation.attention.backends.token_rows import Buffers, TokenRows, empty_like, zeros_like
from kinema.generation.attention.grid import TokenOrder
from kinema.generation.attention.layout import BlockLayout
from kinema.machine import autocast_disabled, computes_bf16, inference_mode_disabled

# Gathered key values per chunk (on a CPU: per thread). More saves kernel calls, fewer fit in the CPU's cache
# (docs/decisions.md).
_CHUNK_CPU = 2**19
_CHUNK_CUDA = 2**26

# Cache limits: values per kind of call, kinds of calls per layout, indices per chunk (one for each memory layout).
_MAX_KEPT = 2**19
_MAX_CALLS = 4
_MAX_INDICES = 8


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of several lanes that are computed together.

    Attributes:
        lanes: the lane of each row: heads, numbered clip by clip.
        queries: positions of the queries.
        keys: positions of the keys.
        bias: added to the scores: -inf where a query does not attend to a key; None: no bias.
        duplicate_mask: queries in unused slots, which repeat another token; None: there are none.
    """

    lanes: Int[Tensor, "l r"]
    queries: Int[Tensor, "r q"]
    keys: Int[Tensor, "r k"]
    bias: Float[Tensor, "_ r _ k"] | None
    duplicate_mask: Bool[Tensor, "r q"] | None
    _indices: dict[tuple[str, tuple[int, int, int]], Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Approximate number of values held."""
        positions = self.lanes.numel() * (self.queries.shape[1] + self.keys.shape[1])
        return positions + (0 if self.bias is None else self.bias.numel())

    def index(self, kind: Literal["queries", "keys"], tokens: TokenRows, num_heads: int) -> Int[Tensor, " lrx"]:
        """Return the rows of the queries or keys in `tokens`; cached for tensors with the same strides."""
        known = self._indices.get((kind, tokens.strides))
        if known is None:
            if len(self._indices) >= _MAX_INDICES:
                self._indices.clear()
            positions = self.queries if kind == "queries" else self.keys
            known = self._indices[kind, tokens.strides] = tokens.index(self.lanes, num_heads, positions)
        return known


_kept: CallCache[list[_Chunk]] = CallCache(_MAX_CALLS)


@dataclass(frozen=True, eq=False)
class _Work:
    """The settings of one call.

    Attributes:
        layout: the key tiles of each query tile.
        batch: number of clips.
        heads: number of heads.
        input_order: the order of the input tokens; None: raster.
        positions: position of each slot's token in the input.
        num_video: number of video tokens, which extra tokens follow.
        num_extra: number of extra tokens.
        max_gathered: maximum number of gathered key values per chunk.
        min_rows: Minimum rows per chunk, even above the size limit, so that every thread has work.
        dtype: the dtype to compute in.
        extra_mask: which extra tokens may be attended to.
    """

    layout: BlockLayout
    batch: int
    heads: int
    input_order: TokenOrder | None
    positions: Int[Tensor, " s"]
    num_video: int
    num_extra: int
    max_gathered: int
    min_rows: int
    dtype: torch.dtype
    extra_mask: Bool[Tensor, "b e"] | None

    def result(self, query: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Allocate the result, zeroed if it has extra tokens or unused slots, which are not written here."""
        is_ragged = (
            self.input_order is not None and self.input_order is not self.layout.order and self.input_order.is_ragged
        )
        return zeros_like(query) if self.num_extra or is_ragged else empty_like(query)

    def chunks(self, width: int) -> Iterator[_Chunk]:
        """Yield all chunks. Small plans are cached per layout: making them takes many small operations."""
        limits = (self.max_gathered // width, self.min_rows)
        call = (self.input_order, self.batch, self.heads, self.num_extra, *limits, self.dtype, self.positions.device)
        call = (*call, self.extra_mask is None)
        known = _kept.get(self.layout, call, self.extra_mask)
        if known is not None:
            yield from known
            return
        made: list[_Chunk] = []
        size = 0
        for chunk in self._make_chunks(width):
            yield chunk
            size += chunk.size
            made = [*made, chunk] if size < _MAX_KEPT else []
        if size < _MAX_KEPT:
            _kept.put(self.layout, call, self.extra_mask, made)

    def _make_chunks(self, width: int) -> Iterator[_Chunk]:
        """Yield chunks whose gathered keys fit the limit; batch lanes before rows, because lanes share a mask."""
        for planned, lane_offsets in rows_of(self.layout, self.batch, self.heads, self.positions.device):
            values_per_row = (planned.key_tiles.shape[1] * self.layout.order.tile_size + self.num_extra) * width
            max_rows = max(self.max_gathered // values_per_row, self.min_rows)
            num_lanes = min(max_rows, len(lane_offsets))
            for part in planned.split(max(max_rows // num_lanes, 1)):
                seen, bias = self._seen(part), None
                first = part.query_tiles[:, 0] // self.layout.order.num_tiles
                queries, keys = self._positions(part.query_tiles, 0), self._positions(part.key_tiles, self.num_extra)
                for offsets in lane_offsets.split(num_lanes):
                    lanes = first + offsets[:, None]
                    if bias is None or self.extra_mask is not None:
                        bias = self._bias(self._with_extra(seen, lanes, keys.shape[1] - self.num_extra))
                    yield _Chunk(lanes, queries, keys, bias, self._duplicate_mask(part))

    def _positions(self, tiles: Int[Tensor, "r c"], extra: int) -> Int[Tensor, "r _"]:
        """Return the positions of the tokens of tiles, followed by the extra tokens."""
        order = self.layout.order
        video = order.tiles_of(self.positions)[tiles % order.num_tiles].flatten(1)
        if not extra:
            return video
        extra_positions = torch.arange(self.num_video, self.num_video + extra, device=video.device)
        return torch.cat((video, extra_positions.expand(len(video), -1)), dim=1)

    def _duplicate_mask(self, rows: Rows) -> Bool[Tensor, "r q"] | None:
        order = self.layout.order.to(rows.query_tiles.device)
        if self.input_order is self.layout.order or not order.is_ragged:
            return None
        return ~order.tiles_of(order.valid)[rows.query_tiles % order.num_tiles].flatten(1)

    def _seen(self, rows: Rows) -> Bool[Tensor, "1 r q k"] | None:
        """Return which keys of its row each query attends to; None: all."""
        if rows.full is None:
            return None
        order = self.layout.order.to(rows.query_tiles.device)
        tiles, shape = order.num_tiles, (1, len(rows.query_tiles), rows.query_tiles.shape[1] * order.tile_size, -1)
        # int32 halves the memory traffic of the token mask.
        tokens, valid = order.tiles_of(order.tokens).int(), order.tiles_of(order.valid)
        exists = valid[rows.key_tiles % tiles].unsqueeze(1)  # r 1 c m
        if rows.rank is None or self.layout.mask is None:
            return exists.expand(-1, shape[2], -1, -1).reshape(shape)
        # Evaluate the token mask only for tile pairs that are partial.
        whole = int(rows.full.min())
        rank, keys = rows.rank[:, :, whole:], rows.key_tiles[:, whole:]
        rest = (rank == 2)[:, :, None, :, None].repeat(1, 1, order.tile_size, 1, order.tile_size)  # r g m c m
        row, query, key = (rank == 1).nonzero(as_tuple=True)
        lane = rows.query_tiles[row, query] // tiles
        head = lane if self.layout.indices.shape[0] > 1 else lane % self.heads
        query_tokens, key_tokens = tokens[rows.query_tiles[row, query] % tiles], tokens[keys[row, key] % tiles]
        part = self.layout.mask(head[:, None, None], query_tokens[:, :, None], key_tokens[:, None, :])
        rest.transpose(2, 3)[row, query, key] = part
        rest &= exists[:, :, None, whole:]
        seen = exists[:, :, :whole].expand(-1, shape[2], -1, -1).flatten(2)
        return torch.cat((seen, rest.flatten(3).flatten(1, 2)), dim=2).view(shape)

    def _bias(self, seen: Bool[Tensor, "_ r _ k"] | None) -> Float[Tensor, "_ r _ k"] | None:
        if seen is None:
            return None
        with inference_mode_disabled():  # the backward pass saves it
            return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, -torch.inf)

    def _with_extra(
        self, seen: Bool[Tensor, "1 r q k"] | None, lanes: Int[Tensor, "l r"], num_keys: int
    ) -> Bool[Tensor, "_ r _ x"] | None:
        """Append the extra tokens to the mask; None: all keys are attended to."""
        if not self.num_extra or (seen is None and self.extra_mask is None):
            return seen
        if self.extra_mask is None:
            mask = torch.ones(1, 1, 1, self.num_extra, dtype=torch.bool, device=lanes.device)
        else:
            mask = self.extra_mask[lanes // self.heads][:, :, None, :]
        if seen is None:
            seen = torch.ones(1, 1, 1, num_keys, dtype=torch.bool, device=lanes.device)
        sizes = [max(sizes) for sizes in zip(seen.shape[:3], mask.shape[:3], strict=True)]
        return torch.cat([x.expand(*sizes, -1) for x in (seen, mask)], dim=3)


def _computed_in(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32 on CPUs that would emulate products in the dtype of `x`."""
    if x.device.type != "cpu" or _multiplies(x.device, x.dtype):
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)


def _multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether explicit matrix products are faster than SDPA: in bfloat16 on CPUs that support it natively."""
    return device.type == "cpu" and dtype == torch.bfloat16 and computes_bf16(device)


def _attend(
    bias: Float[Tensor, "_ r _ k"] | None,
    query: Float[Tensor, "l r q d"],
    key: Float[Tensor, "l r k d"],
    value: Float[Tensor, "l r k d"],
) -> Float[Tensor, "l r q d"]:
    if not _multiplies(query.device, query.dtype):
        # The axis of rows takes the place of the heads.
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(value.dtype) @ value


class _Gathered:
    """The input tensors of a call; gathers the tokens of a chunk from them."""

    def __init__(self, work: _Work, **tensors: Float[Tensor, "b h n d"]) -> None:
        self.work = work
        self.tensors = {name: TokenRows.of(x) for name, x in tensors.items()}
        self.buffers = Buffers()

    def take(self, name: str, chunk: _Chunk, kind: Literal["queries", "keys"]) -> Float[Tensor, "l r x d"]:
        """Gather a tensor's tokens for a chunk, in the compute dtype."""
        tokens = self.tensors[name]
        rows = self.buffers.select(name, tokens.rows, chunk.index(kind, tokens, self.work.heads))
        return self.buffers.to(f"wide {name}", rows, self.work.dtype).view(*chunk.lanes.shape, -1, rows.shape[1])

    def inputs(self, chunk: _Chunk) -> list[Tensor]:
        """Gather queries, keys and values."""
        return [self.take(name, chunk, kind) for name, kind in _INPUTS.items()]


_INPUTS: dict[str, Literal["queries", "keys"]] = {"query": "queries", "key": "keys", "value": "keys"}


class _GatherAttention(torch.autograd.Function):
    """Attention of all video queries. Extra tokens serve as keys only.

    To save memory, the backward pass gathers and attends again; second derivatives are not supported.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, work: _Work):
        ctx.save_for_backward(query, key, value)
        ctx.work = work
        gathered, out = _Gathered(work, query=query, key=key, value=value), work.result(query)
        written = TokenRows.of(out)
        for chunk in work.chunks(query.shape[-1]):
            with autocast_disabled(query.device):  # like the backward pass, which autograd runs without autocast
                attended = _attend(chunk.bias, *gathered.inputs(chunk))
            index = chunk.index("queries", written, work.heads)
            written.rows.index_copy_(0, index, attended.reshape(len(index), -1).to(out.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        inputs, work = ctx.saved_tensors, ctx.work
        gathered = _Gathered(work, **dict(zip(_INPUTS, inputs, strict=True)), grad=grads[0])
        # Accumulate in float32 or wider: a key gets gradients from many tiles.
        sums = [zeros_like(x, torch.promote_types(x.dtype, torch.float32)) for x in inputs]
        totals = [TokenRows.of(x) for x in sums]
        for chunk in work.chunks(inputs[0].shape[-1]):
            grad = gathered.take("grad", chunk, "queries")
            if chunk.duplicate_mask is not None:
                grad = grad.masked_fill(chunk.duplicate_mask[:, :, None], 0)
            leaves = [x.detach().requires_grad_() for x in gathered.inputs(chunk)]
            with torch.enable_grad():
                out = _attend(chunk.bias, *leaves)
            kinds = _INPUTS.values()
            for gradient, total, kind in zip(torch.autograd.grad(out, leaves, grad), totals, kinds, strict=True):
                index = chunk.index(kind, total, work.heads)
                total.rows.index_add_(0, index, gradient.reshape(len(index), -1).to(total.rows.dtype))
        return (*(total.to(x.dtype) for total, x in zip(sums, inputs, strict=True)), None)


class Gather(AnyOrder):
    """Gathers key tiles and attends to them, in chunks of bounded size."""

    name: ClassVar[str] = "gather"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        return None

    def run_from(
        self,
        input_order: TokenOrder | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        order = layout.order.to(query.device)
        threads = 1 if query.is_cuda else torch.get_num_threads()
        num_video = order.grid.num_tokens if input_order is None else input_order.num_slots
        work = _Work(
            layout=layout,
            batch=query.shape[0],
            heads=query.shape[1],
            input_order=input_order,
            positions=_positions(order, None if input_order is None else input_order.to(query.device)),
            num_video=num_video,
            num_extra=query.shape[2] - num_video,
            max_gathered=_CHUNK_CUDA if query.is_cuda else _CHUNK_CPU * threads,
            min_rows=threads,
            dtype=_computed_in(query),
            extra_mask=extra_mask,
        )
        out: Tensor = _GatherAttention.apply(query, key, value, work)  # pyright: ignore[reportAssignmentType]
        if work.num_extra:
            out[:, :, num_video:] = attend_extra(query, key, value, input_order, num_video, extra_mask)
        return out


def _positions(order: TokenOrder, input_order: TokenOrder | None) -> Int[Tensor, " s"]:
    """Return the position of each slot's token in `input_order` (None: raster)."""
    if input_order is order:
        return torch.arange(order.num_slots, device=order.tokens.device)
    return order.tokens if input_order is None else input_order.slots[order.tokens]
