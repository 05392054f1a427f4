"""The work of a layout as rows: tiles of queries that see the same tiles of keys, grouped by size.

Shapes: b batch, h heads, q tiles of queries, r rows, g tiles of queries of a row, c tiles of keys of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kinema.generation.attention.layout import BlockLayout

# Tiles of queries of one row, at most. Many queries at once keep the kernels busy; a CPU's has its largest blocks from
# 768 queries on.
_MOST_TILES = 16


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one size. Tiles are numbered head by head, clip by clip.

    Attributes:
        own: tiles of queries of each row.
        keys: the tiles of keys that they see.
        full: how many of those are seen wholly; None: all of them, and none has an empty slot.
    """

    own: Int[Tensor, "r g"]
    keys: Int[Tensor, "r c"]
    full: Int[Tensor, " r"] | None

    def split(self, size: int) -> Iterator["Rows"]:
        """At most so many rows at once."""
        full = [None] * len(self.own) if self.full is None else self.full.split(size)
        for own, keys, part in zip(self.own.split(size), self.keys.split(size), full, strict=False):
            yield Rows(own, keys, part)

    def repeated(self, offsets: Int[Tensor, " n"]) -> "Rows":
        """The same rows for heads and clips whose tiles begin at these numbers, one after the other."""
        own, keys = ((x + offsets[:, None, None]).flatten(0, 1) for x in (self.own, self.keys))
        return Rows(own, keys, None if self.full is None else self.full.repeat(len(offsets)))


def rows_of(
    layout: BlockLayout, batch: int, heads: int, device: torch.device
) -> Iterator[tuple[Rows, Int[Tensor, " n"]]]:
    """All rows of a call, as the layout plans them, and where the tiles of each further head or clip that shares them
    begin (`Rows.repeated`)."""
    own_batch, own_heads, tiles, _ = layout.indices.shape
    if own_heads not in (1, heads) or own_batch > 1 == own_heads:
        own_heads = heads
    repeats = batch * heads // (own_batch * own_heads)
    offsets = torch.arange(repeats, device=device) * own_batch * own_heads * tiles
    for rows in _planned(layout, own_batch, own_heads, device):
        yield rows, offsets


_plans: WeakKeyDictionary[BlockLayout, dict[torch.device, list[Rows]]] = WeakKeyDictionary()
"""Rows of layouts that are in use; those of a static pattern are used again and again."""


def _planned(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> list[Rows]:
    plans = _plans.setdefault(layout, {})
    if device not in plans:
        plans[device] = list(_plan(layout, batch, heads, device))
    return plans[device]


def _plan(layout: BlockLayout, batch: int, heads: int, device: torch.device) -> Iterator[Rows]:
    tiles = layout.order.num_tiles
    shape = (batch, heads, tiles)
    counts, full = (x.to(device).expand(shape).flatten() for x in (layout.counts, layout.full_counts))
    offsets = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1) * tiles
    indices = layout.indices.to(device).expand(*shape, -1)
    listed = torch.arange(indices.shape[-1], device=device) < counts[:, None]
    keys = torch.where(listed, (indices + offsets).flatten(0, 2), -1)
    masked = counts > full
    if layout.order.is_ragged:
        ragged = ~layout.order.tiles_of(layout.order.valid).all(1).to(device)
        masked |= (ragged[indices.flatten(0, 2)] & listed).any(1)
    same = _alike(keys, counts > full)
    group, place = same.unique(return_inverse=True)
    sizes = torch.bincount(place, minlength=len(group))
    first = torch.full_like(group, len(same)).scatter_reduce(0, place, torch.arange(len(same), device=device), "amin")
    members = place.argsort(stable=True).split(sizes.tolist())
    kinds: dict[tuple[int, int, bool], list[Tensor]] = {}
    for index, count, is_masked in zip(members, counts[first].tolist(), masked[first].tolist(), strict=True):
        for part in index.split(_MOST_TILES):
            kinds.setdefault((len(part), count, is_masked), []).append(part)
    for (_, count, is_masked), parts in kinds.items():
        own = torch.stack(parts)
        yield Rows(own, keys[own[:, 0], :count], full[own[:, 0]] if is_masked else None)


def _alike(keys: Int[Tensor, "n c"], alone: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A number for each list of keys; lists that are alike have the same, but for those that must stay alone."""
    numbers = keys.unique(dim=0, return_inverse=True)[1]
    return torch.where(alone, len(keys) + torch.arange(len(keys), device=keys.device), numbers)
