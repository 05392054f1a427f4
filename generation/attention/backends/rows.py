"""The work of a layout as rows: tiles of queries that see the same tiles of keys, or nearly so, grouped by size.

Shapes: b batch, h heads, a heads of all clips, q tiles, r rows, g tiles of queries of a row, c tiles of keys of a row.
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
from kinema.machine import lasting

# Tiles of queries of one row, at most. Many queries at once keep the kernels busy; a CPU's has its largest blocks from
# 768 queries on.
_MOST_TILES = 16

# What a row costs (docs/decisions.md): the part of its full rate that SDPA reaches, under a mask, with fewer queries
# than a limit, and the queries whose time the copies of keys and values take.
_RATES = ((192, 0.6), (768, 0.8), (inf, 0.95))
_COPY = 40


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one size. Tiles are numbered head by head, clip by clip.

    Attributes:
        own: tiles of queries of each row.
        keys: the tiles of keys that they see.
        full: how many of those, the first ones, all queries see wholly; None: all, and none has an empty slot.
        rank: what each tile of queries sees of each of them: 0 nothing, 1 a part, 2 all; None: all of all.
    """

    own: Int[Tensor, "r g"]
    keys: Int[Tensor, "r c"]
    full: Int[Tensor, " r"] | None
    rank: Int[Tensor, "r g c"] | None = None

    def split(self, size: int) -> Iterator["Rows"]:
        """At most so many rows at once."""
        for first in range(0, len(self.own), size):
            some = slice(first, first + size)
            full, rank = (None if x is None else x[some] for x in (self.full, self.rank))
            yield Rows(self.own[some], self.keys[some], full, rank)


def rows_of(
    layout: BlockLayout, batch: int, heads: int, device: torch.device
) -> Iterator[tuple[Rows, Int[Tensor, " n"]]]:
    """All rows of a call, as the layout plans them, and for each n heads or clips that share them by how many heads
    they are away; heads of the second clip stand behind those of the first."""
    own_batch, own_heads, _, _ = layout.indices.shape
    if own_heads not in (1, heads) or own_batch > 1 == own_heads:
        own_heads = heads
    repeats = batch * heads // (own_batch * own_heads)
    away = torch.arange(repeats, device=device) * own_batch * own_heads
    for rows in _planned(layout, own_batch, own_heads, device):
        yield rows, away


_plans: WeakKeyDictionary[BlockLayout, dict[torch.device, list[Rows]]] = WeakKeyDictionary()
"""Rows of layouts that are in use; those of a static pattern are used again and again."""


def _planned(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> list[Rows]:
    plans = _plans.setdefault(layout, {})
    if device not in plans:
        make = _alike if layout.mask is None else _neighbours
        with lasting():
            plans[device] = list(make(layout, batch, heads, device))
    return plans[device]


def _alike(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> Iterator[Rows]:
    """Tiles of queries of a head that see the same tiles, all wholly, make a row, wherever they stand."""
    tiles, most = layout.indices.shape[2:]
    shape = (batch, heads, tiles)
    counts = layout.counts.to(device).expand(shape).flatten()
    first = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1) * tiles
    listed = torch.arange(most, device=device) < counts[:, None]
    keys = torch.where(listed, (layout.indices.to(device).expand(*shape, -1) + first).flatten(0, 2), -1)
    place = keys.unique(dim=0, return_inverse=True)[1]
    members = place.argsort(stable=True).split(torch.bincount(place).tolist())
    own = [part for index in members for part in index.split(_MOST_TILES)]
    firsts = torch.stack([part[0] for part in own])
    yield from _collated(layout, own, keys[firsts], counts[firsts], counts[firsts])


def _neighbours(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> Iterator[Rows]:
    """Neighbouring tiles make a row that sees what any of them sees, in part: as many as is fastest."""
    seen, whole = (x.to(device).expand(batch, heads, -1, -1).flatten(0, 1) for x in layout.seen())
    tiles, size = seen.shape[1], _fastest(seen, layout.order.tile_size)
    heads_own = torch.arange(len(seen) * tiles, device=device).split(tiles)
    own = [part for tiles_own in heads_own for part in tiles_own.split(size)]
    rank = _by_groups(seen.to(torch.int8) + whole.to(torch.int8), size, 0).flatten(0, 1)
    seen = _by_groups(seen, size, False).any(2).flatten(0, 1)
    whole = _by_groups(whole, size, True).all(2).flatten(0, 1)
    # Those that all see wholly come first; a stable sort keeps tiles in their order, near ones together.
    keys = (seen.to(torch.int8) + whole.to(torch.int8)).sort(dim=1, descending=True, stable=True).indices
    rank = rank.gather(2, keys[:, None].expand_as(rank))
    first = torch.stack([part[0] for part in own]) // tiles * tiles
    yield from _collated(layout, own, keys + first[:, None], seen.sum(1), whole.sum(1), rank)


def _by_groups(table: Shaped[Tensor, "a q k"], size: int, fill: int) -> Shaped[Tensor, "a r g k"]:
    """Groups of neighbouring tiles of queries; the last one is filled up."""
    return pad(table, (0, 0, 0, -table.shape[1] % size), value=fill).unflatten(1, (-1, size))


def _fastest(seen: Bool[Tensor, "a q q"], tile_size: int) -> int:
    """How many neighbours should make a row: large blocks of queries run fast, but see what only some of them need."""

    def cost(size: int) -> float:
        rate = next(rate for limit, rate in _RATES if size * tile_size < limit)
        return _by_groups(seen, size, False).any(2).sum().item() * (size * tile_size / rate + _COPY)

    return min(range(1, min(_MOST_TILES, seen.shape[1]) + 1), key=cost)


def _collated(
    layout: BlockLayout,
    own: list[Tensor],
    keys: Int[Tensor, "r c"],
    counts: Int[Tensor, " r"],
    full: Int[Tensor, " r"],
    rank: Int[Tensor, "r g c"] | None = None,
) -> Iterator[Rows]:
    """Rows of one size together, of lists of which so many count."""
    masked = counts > full
    if layout.order.is_ragged:
        ragged = ~layout.order.tiles_of(layout.order.valid).all(1).to(keys.device)
        listed = torch.arange(keys.shape[1], device=keys.device) < counts[:, None]
        masked |= (ragged[keys % layout.order.num_tiles] & listed).any(1)
    kinds: dict[tuple[int, int, bool], list[int]] = {}
    for row, kind in enumerate(zip(map(len, own), counts.tolist(), masked.tolist(), strict=True)):
        kinds.setdefault(kind, []).append(row)
    for (size, count, is_masked), rows in kinds.items():
        index = torch.tensor(rows, device=keys.device)
        seen = rank[index, :size, :count] if is_masked and rank is not None else None
        yield Rows(
            torch.stack([own[row] for row in rows]), keys[index, :count], full[index] if is_masked else None, seen
        )
