"""Gathers the keys that each tile of queries sees, and attends tile by tile: forward and backward, on any device.

Queries and keys are read, and results written, wherever tokens stand: nothing is put in order before.

Shapes: b batch, h heads, n tokens and extra tokens in the order that they are given in, s slots, d head width, r rows
(tiles of queries that see the same), l lanes (heads and clips) that share rows, q queries of a row, k keys of a row
(extra tokens behind), m slots of a tile, e extra tokens.
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
from kinema.generation.attention.backends.space import Space, Tokens, empty_like, zeros_like
from kinema.generation.attention.grid import TokenOrder
from kinema.generation.attention.layout import BlockLayout
from kinema.machine import as_given, computes_bf16, lasting

# Numbers of gathered keys of a chunk, on a CPU for each thread: more saves calls, less stays in the processor's cache
# (docs/decisions.md).
_CHUNK_CPU = 2**19
_CHUNK_CUDA = 2**26

# What is kept for the next call: numbers for a kind of call, kinds of calls for a layout, indices for ways to stand.
_MOST_KEPT = 2**19
_MOST_CALLS = 4
_MOST_INDICES = 8


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of several lanes, and what is added to their scores: -inf for what a query does not see.

    Attributes:
        lanes: of each row, heads of the second clip behind those of the first.
        own: places of the queries.
        keys: places of the keys.
        bias: what is added; None: nothing.
        twice: queries that stand for another's token, in an empty slot; None: there are none.
    """

    lanes: Int[Tensor, "l r"]
    own: Int[Tensor, "r q"]
    keys: Int[Tensor, "r k"]
    bias: Float[Tensor, "_ r _ k"] | None
    twice: Bool[Tensor, "r q"] | None
    _indices: dict[tuple[str, tuple[int, int, int]], Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Numbers that it holds, about."""
        places = self.lanes.numel() * (self.own.shape[1] + self.keys.shape[1])
        return places + (0 if self.bias is None else self.bias.numel())

    def index(self, kind: Literal["own", "keys"], tokens: Tokens, num_heads: int) -> Int[Tensor, " lrx"]:
        """Where a tensor has the queries or the keys; worked out once for tensors that stand alike."""
        known = self._indices.get((kind, tokens.strides))
        if known is None:
            if len(self._indices) >= _MOST_INDICES:
                self._indices.clear()
            places = self.own if kind == "own" else self.keys
            known = self._indices[kind, tokens.strides] = tokens.index(self.lanes, num_heads, places)
        return known


_kept: CallCache[list[_Chunk]] = CallCache(_MOST_CALLS)


@dataclass(frozen=True, eq=False)
class _Work:
    """One call.

    Attributes:
        layout: what is seen.
        batch: clips.
        heads: heads.
        given: the order that tokens are given in; None: raster.
        places: where the token of each slot stands in it.
        num_video: where extra tokens begin.
        extra: how many there are.
        chunk: numbers of gathered keys at once.
        least: rows at once, where there are as many, whatever their numbers: what keeps all threads busy.
        dtype: the type that is computed in.
        extra_mask: which extra tokens exist as keys.
    """

    layout: BlockLayout
    batch: int
    heads: int
    given: TokenOrder | None
    places: Int[Tensor, " s"]
    num_video: int
    extra: int
    chunk: int
    least: int
    dtype: torch.dtype
    extra_mask: Bool[Tensor, "b e"] | None

    def result(self, query: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Memory for the result. Extra tokens, and empty slots of another order, get nothing."""
        is_ragged = self.given is not None and self.given is not self.layout.order and self.given.is_ragged
        return zeros_like(query) if self.extra or is_ragged else empty_like(query)

    def chunks(self, width: int) -> Iterator[_Chunk]:
        """All rows. Those of a layout that is used again are worked out once, where they are few: there, it is these
        many small operations that take the time."""
        limits = (self.chunk // width, self.least)
        call = (self.given, self.batch, self.heads, self.extra, *limits, self.dtype, self.places.device)
        call = (*call, self.extra_mask is None)
        known = _kept.get(self.layout, call, self.extra_mask)
        if known is not None:
            yield from known
            return
        made: list[_Chunk] = []
        size = 0
        for chunk in self._make(width):
            yield chunk
            size += chunk.size
            made = [*made, chunk] if size < _MOST_KEPT else []
        if size < _MOST_KEPT:
            _kept.put(self.layout, call, self.extra_mask, made)

    def _make(self, width: int) -> Iterator[_Chunk]:
        """So many rows at once that gathered keys keep within the limit; of many lanes before many rows, because
        those share a mask."""
        for planned, further in rows_of(self.layout, self.batch, self.heads, self.places.device):
            numbers = (planned.keys.shape[1] * self.layout.order.tile_size + self.extra) * width
            most = max(self.chunk // numbers, self.least)
            alike = min(most, len(further))
            for part in planned.split(max(most // alike, 1)):
                seen, bias = self._seen(part), None
                first = part.own[:, 0] // self.layout.order.num_tiles
                own, keys = self._places(part.own, 0), self._places(part.keys, self.extra)
                for some in further.split(alike):
                    lanes = first + some[:, None]
                    if bias is None or self.extra_mask is not None:
                        bias = self._bias(self._with_extra(seen, lanes, keys.shape[1] - self.extra))
                    yield _Chunk(lanes, own, keys, bias, self._twice(part))

    def _places(self, tiles: Int[Tensor, "r c"], extra: int) -> Int[Tensor, "r _"]:
        """Places of tokens of tiles, and of the extra tokens."""
        order = self.layout.order
        own = order.tiles_of(self.places)[tiles % order.num_tiles].flatten(1)
        if not extra:
            return own
        behind = torch.arange(self.num_video, self.num_video + extra, device=own.device)
        return torch.cat((own, behind.expand(len(own), -1)), dim=1)

    def _twice(self, rows: Rows) -> Bool[Tensor, "r q"] | None:
        order = self.layout.order.to(rows.own.device)
        if self.given is self.layout.order or not order.is_ragged:
            return None
        return ~order.tiles_of(order.valid)[rows.own % order.num_tiles].flatten(1)

    def _seen(self, rows: Rows) -> Bool[Tensor, "1 r q k"] | None:
        """What each query sees of its row's tiles; None: all of it."""
        if rows.full is None:
            return None
        order = self.layout.order.to(rows.own.device)
        tiles, shape = order.num_tiles, (1, len(rows.own), rows.own.shape[1] * order.tile_size, -1)
        # Half the bytes of long integers; a mask goes through many pairs of tokens.
        tokens, valid = order.tiles_of(order.tokens).int(), order.tiles_of(order.valid)
        exists = valid[rows.keys % tiles].unsqueeze(1)  # r 1 c m
        if rows.rank is None or self.layout.mask is None:
            return exists.expand(-1, shape[2], -1, -1).reshape(shape)
        # What all rows see wholly needs no look at tiles, and what a tile of queries sees wholly none at tokens.
        whole = int(rows.full.min())
        rank, keys = rows.rank[:, :, whole:], rows.keys[:, whole:]
        rest = (rank == 2)[:, :, None, :, None].repeat(1, 1, order.tile_size, 1, order.tile_size)  # r g m c m
        row, own, key = (rank == 1).nonzero(as_tuple=True)
        lane = rows.own[row, own] // tiles
        head = lane if self.layout.indices.shape[0] > 1 else lane % self.heads
        query_tokens, key_tokens = tokens[rows.own[row, own] % tiles], tokens[keys[row, key] % tiles]
        part = self.layout.mask(head[:, None, None], query_tokens[:, :, None], key_tokens[:, None, :])
        rest.transpose(2, 3)[row, own, key] = part
        rest &= exists[:, :, None, whole:]
        seen = exists[:, :, :whole].expand(-1, shape[2], -1, -1).flatten(2)
        return torch.cat((seen, rest.flatten(3).flatten(1, 2)), dim=2).view(shape)

    def _bias(self, seen: Bool[Tensor, "_ r _ k"] | None) -> Float[Tensor, "_ r _ k"] | None:
        if seen is None:
            return None
        with lasting():  # the backward pass saves it
            return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, -torch.inf)

    def _with_extra(
        self, seen: Bool[Tensor, "1 r q k"] | None, lanes: Int[Tensor, "l r"], num_keys: int
    ) -> Bool[Tensor, "_ r _ x"] | None:
        """The mask with extra tokens behind; None: all is seen."""
        if not self.extra or (seen is None and self.extra_mask is None):
            return seen
        if self.extra_mask is None:
            mask = torch.ones(1, 1, 1, self.extra, dtype=torch.bool, device=lanes.device)
        else:
            mask = self.extra_mask[lanes // self.heads][:, :, None, :]
        if seen is None:
            seen = torch.ones(1, 1, 1, num_keys, dtype=torch.bool, device=lanes.device)
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


def _attend(
    bias: Float[Tensor, "_ r _ k"] | None,
    query: Float[Tensor, "l r q d"],
    key: Float[Tensor, "l r k d"],
    value: Float[Tensor, "l r k d"],
) -> Float[Tensor, "l r q d"]:
    if not _multiplies(query.device, query.dtype):
        # Rows stand where heads usually do.
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(value.dtype) @ value


class _Gathered:
    """Tensors of a call, and what of them a chunk needs."""

    def __init__(self, work: _Work, **tensors: Float[Tensor, "b h n d"]) -> None:
        self.work = work
        self.tensors = {name: Tokens.of(x) for name, x in tensors.items()}
        self.space = Space()

    def take(self, name: str, chunk: _Chunk, kind: Literal["own", "keys"]) -> Float[Tensor, "l r x d"]:
        """Rows of a tensor, in the type that is computed in."""
        tokens = self.tensors[name]
        rows = self.space.select(name, tokens.rows, chunk.index(kind, tokens, self.work.heads))
        return self.space.to(f"wide {name}", rows, self.work.dtype).view(*chunk.lanes.shape, -1, rows.shape[1])

    def inputs(self, chunk: _Chunk) -> list[Tensor]:
        """Queries, keys and values."""
        return [self.take(name, chunk, kind) for name, kind in _INPUTS.items()]


_INPUTS: dict[str, Literal["own", "keys"]] = {"query": "own", "key": "keys", "value": "keys"}


class _GatherAttention(torch.autograd.Function):
    """Attention of tiles; extra tokens are keys, and get no result. Nothing that is gathered is kept: the backward pass
    gathers, and attends, once more, so that there are no second derivatives."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, work: _Work):
        ctx.save_for_backward(query, key, value)
        ctx.work = work
        gathered, out = _Gathered(work, query=query, key=key, value=value), work.result(query)
        written = Tokens.of(out)
        for chunk in work.chunks(query.shape[-1]):
            with as_given(query.device):  # as in the backward pass, which autograd runs without autocast
                seen = _attend(chunk.bias, *gathered.inputs(chunk))
            index = chunk.index("own", written, work.heads)
            written.rows.index_copy_(0, index, seen.reshape(len(index), -1).to(out.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        inputs, work = ctx.saved_tensors, ctx.work
        gathered = _Gathered(work, **dict(zip(_INPUTS, inputs, strict=True)), grad=grads[0])
        # Sums in float32 at least: a key is in many tiles' lists.
        sums = [zeros_like(x, torch.promote_types(x.dtype, torch.float32)) for x in inputs]
        totals = [Tokens.of(x) for x in sums]
        for chunk in work.chunks(inputs[0].shape[-1]):
            grad = gathered.take("grad", chunk, "own")
            if chunk.twice is not None:
                grad = grad.masked_fill(chunk.twice[:, :, None], 0)
            leaves = [x.detach().requires_grad_() for x in gathered.inputs(chunk)]
            with torch.enable_grad():
                out = _attend(chunk.bias, *leaves)
            kinds = _INPUTS.values()
            for own, total, kind in zip(torch.autograd.grad(out, leaves, grad), totals, kinds, strict=True):
                index = chunk.index(kind, total, work.heads)
                total.rows.index_add_(0, index, own.reshape(len(index), -1).to(total.rows.dtype))
        return (*(total.to(x.dtype) for total, x in zip(sums, inputs, strict=True)), None)


class Gather(AnyOrder):
    """Gathers key tiles and attends to them; memory is bounded by chunks of rows."""

    name: ClassVar[str] = "gather"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        return None

    def run_from(
        self,
        given: TokenOrder | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        order = layout.order.to(query.device)
        threads = 1 if query.is_cuda else torch.get_num_threads()
        num_video = order.grid.num_tokens if given is None else given.num_slots
        work = _Work(
            layout=layout,
            batch=query.shape[0],
            heads=query.shape[1],
            given=given,
            places=_places(order, None if given is None else given.to(query.device)),
            num_video=num_video,
            extra=query.shape[2] - num_video,
            chunk=_CHUNK_CUDA if query.is_cuda else _CHUNK_CPU * threads,
            least=threads,
            dtype=_computed_in(query),
            extra_mask=extra_mask,
        )
        out: Tensor = _GatherAttention.apply(query, key, value, work)  # pyright: ignore[reportAssignmentType]
        if work.extra:
            out[:, :, num_video:] = attend_extra(query, key, value, given, num_video, extra_mask)
        return out


def _places(order: TokenOrder, given: TokenOrder | None) -> Int[Tensor, " s"]:
    """Where the token of each slot stands in a given order (None: raster)."""
    if given is order:
        return torch.arange(order.num_slots, device=order.tokens.device)
    return order.tokens if given is None else given.slots[order.tokens]
