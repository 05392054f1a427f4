"""Groups the query tiles of a layout into rows: tiles that attend to (nearly) the same key tiles.

Shapes: b batch, h heads, a heads of all clips, q tiles, r rows, g query tiles of a row, c key tiles of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from kinema.generation.attention.layout import BlockLayout
from kinema.machine import inference_mode_disabled

# Maximum query tiles per row. Kernels are faster with many queries; on a CPU, SDPA uses its largest blocks from 768.
_MAX_TILES = 16

# Cost model of a row (docs/decisions.md): the fraction of peak speed that masked SDPA reaches below a number of
# queries, and the cost of copying keys and values, in queries.
_RATES = ((192, 0.6), (768, 0.8), (inf, 0.95))
_COPY_COST = 40


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one size. Tiles are numbered consecutively over heads and clips.

    Attributes:
        query_tiles: query tiles of each row.
        key_tiles: key tiles of each row, those that all queries attend to fully first.
        full: number of these full key tiles; None: all are full, without unused slots.
        rank: how each query tile attends to each key tile: 0 not, 1 partially, 2 fully; None: all fully.
    """

    query_tiles: Int[Tensor, "r g"]
    key_tiles: Int[Tensor, "r c"]
    full: Int[Tensor, " r"] | None
    rank: Int[Tensor, "r g c"] | None = None

    def split(self, size: int) -> Iterator["Rows"]:
        """Yield parts of at most `size` rows."""
        for first in range(0, len(self.query_tiles), size):
            part = slice(first, first + size)
            full, rank = (None if x is None else x[part] for x in (self.full, self.rank))
            yield Rows(self.query_tiles[part], self.key_tiles[part], full, rank)


def rows_of(
    layout: BlockLayout, batch: int, heads: int, device: torch.device
) -> Iterator[tuple[Rows, Int[Tensor, " n"]]]:
    """Yield all rows of a call, each with the offsets of the n lanes (heads of all clips) that share them."""
    layout_batch, layout_heads, _, _ = layout.indices.shape
    if layout_heads not in (1, heads) or layout_batch > 1 == layout_heads:
        layout_heads = heads
    repeats = batch * heads // (layout_batch * layout_heads)
    lane_offsets = torch.arange(repeats, device=device) * layout_batch * layout_heads
    for rows in _cached_rows(layout, layout_batch, layout_heads, device):
        yield rows, lane_offsets


_plans: WeakKeyDictionary[BlockLayout, dict[torch.device, list[Rows]]] = WeakKeyDictionary()
"""Cached rows by layout and device; the layouts of static patterns are reused."""


def _cached_rows(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> list[Rows]:
    plans = _plans.setdefault(layout, {})
    if device not in plans:
        make = _rows_of_equal_tiles if layout.mask is None else _rows_of_neighbours
        with inference_mode_disabled():
            plans[device] = list(make(layout, batch, heads, device))
    return plans[device]


def _rows_of_equal_tiles(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> Iterator[Rows]:
    """Group query tiles of a head with equal lists of key tiles, all full, into rows."""
    tiles, max_count = layout.indices.shape[2:]
    shape = (batch, heads, tiles)
    counts = layout.counts.to(device).expand(shape).flatten()
    first = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1) * tiles
    listed = torch.arange(max_count, device=device) < counts[:, None]
    keys = torch.where(listed, (layout.indices.to(device).expand(*shape, -1) + first).flatten(0, 2), -1)
    place = keys.unique(dim=0, return_inverse=True)[1]
    members = place.argsort(stable=True).split(torch.bincount(place).tolist())
    query_tiles = [part for index in members for part in index.split(_MAX_TILES)]
    firsts = torch.stack([part[0] for part in query_tiles])
    yield from _grouped_by_size(layout, query_tiles, keys[firsts], counts[firsts], counts[firsts])


def _rows_of_neighbours(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> Iterator[Rows]:
    """Group neighbouring query tiles into rows that gather the union of their key tiles, masked."""
    seen, whole = (x.to(device).expand(batch, heads, -1, -1).flatten(0, 1) for x in layout.seen())
    tiles, size = seen.shape[1], _fastest_row_size(seen, layout.order.tile_size)
    tiles_by_head = torch.arange(len(seen) * tiles, device=device).split(tiles)
    query_tiles = [part for head_tiles in tiles_by_head for part in head_tiles.split(size)]
    rank = _split_queries(seen.to(torch.int8) + whole.to(torch.int8), size, 0).flatten(0, 1)
    seen = _split_queries(seen, size, False).any(2).flatten(0, 1)
    whole = _split_queries(whole, size, True).all(2).flatten(0, 1)
    # Full tiles come first; a stable sort keeps tiles in their order, so that near ones stay together.
    keys = (seen.to(torch.int8) + whole.to(torch.int8)).sort(dim=1, descending=True, stable=True).indices
    rank = rank.gather(2, keys[:, None].expand_as(rank))
    first = torch.stack([part[0] for part in query_tiles]) // tiles * tiles
    yield from _grouped_by_size(layout, query_tiles, keys + first[:, None], seen.sum(1), whole.sum(1), rank)


def _split_queries(table: Shaped[Tensor, "a q k"], size: int, fill: int) -> Shaped[Tensor, "a r g k"]:
    """Split the query tiles into groups of neighbours; the last group is padded with `fill`."""
    return pad(table, (0, 0, 0, -table.shape[1] % size), value=fill).unflatten(1, (-1, size))


def _fastest_row_size(seen: Bool[Tensor, "a q q"], tile_size: int) -> int:
    """Return the cheapest number of query tiles per row: larger rows run faster, but gather unneeded keys."""

    def cost(size: int) -> float:
        rate = next(rate for limit, rate in _RATES if size * tile_size < limit)
        return _split_queries(seen, size, False).any(2).sum().item() * (size * tile_size / rate + _COPY_COST)

    return min(range(1, min(_MAX_TILES, seen.shape[1]) + 1), key=cost)


def _grouped_by_size(
    layout: BlockLayout,
    query_tiles: list[Tensor],
    keys: Int[Tensor, "r c"],
    counts: Int[Tensor, " r"],
    full: Int[Tensor, " r"],
    rank: Int[Tensor, "r g c"] | None = None,
) -> Iterator[Rows]:
    """Yield rows grouped by size; the first `counts` key tiles of each row are valid."""
    masked = counts > full
    if layout.order.is_ragged:
        ragged = ~layout.order.tiles_of(layout.order.valid).all(1).to(keys.device)
        listed = torch.arange(keys.shape[1], device=keys.device) < counts[:, None]
        masked |= (ragged[keys % layout.order.num_tiles] & listed).any(1)
    kinds: dict[tuple[int, int, bool], list[int]] = {}
    for row, kind in enumerate(zip(map(len, query_tiles), counts.tolist(), masked.tolist(), strict=True)):
        kinds.setdefault(kind, []).append(row)
    for (size, count, is_masked), rows in kinds.items():
        index = torch.tensor(rows, device=keys.device)
        seen = rank[index, :size, :count] if is_masked and rank is not None else None
        yield Rows(
            torch.stack([query_tiles[row] for row in rows]),
            keys[index, :count],
            full[index] if is_masked else None,
            seen,
        )
