"""Attention patterns: which video tokens attend to which. To add one, add a file and a line in `PATTERNS`."""

from kinema.generation.attention.patterns.bands import Band, SpatialTemporalHeads
from kinema.generation.attention.patterns.base import Density as Density
from kinema.generation.attention.patterns.base import Pattern
from kinema.generation.attention.patterns.base import StaticPattern as StaticPattern
from kinema.generation.attention.patterns.block_causal import BlockCausal
from kinema.generation.attention.patterns.dynamic import DynamicPattern as DynamicPattern
from kinema.generation.attention.patterns.full import Full
from kinema.generation.attention.patterns.per_head import PerHead as PerHead
from kinema.generation.attention.patterns.radial import Radial
from kinema.generation.attention.patterns.sliding_tile import SlidingTile
from kinema.generation.attention.patterns.top_k import SlidingTileTopK, TileTopK
from kinema.generation.attention.patterns.windows import AlternatingGrid, ShiftedWindow, Spatial, Temporal, Window

PATTERNS: dict[str, tuple[type[Pattern], str]] = {
    pattern.name: (pattern, main)
    for pattern, main in (
        (Full, ""),
        (Spatial, ""),
        (Temporal, ""),
        (Window, "size"),
        (ShiftedWindow, "size"),
        (AlternatingGrid, "cells"),
        (SlidingTile, "window"),
        (Radial, "decay"),
        (Band, "axis"),
        (SpatialTemporalHeads, "width"),
        (TileTopK, "k"),
        (SlidingTileTopK, "k"),
        (BlockCausal, "chunk"),
    )
}
"""Patterns by name, each with its main setting, whose name may be omitted in text (`sliding-tile:3x3x1`)."""
