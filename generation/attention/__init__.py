"""Sparse attention on the grid of video tokens: patterns as data, backends that run them."""

from kinema.generation.attention.functional import check_backend, sparse_attention
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.layout import BlockLayout
from kinema.generation.attention.patterns import (
    PATTERNS,
    AlternatingGrid,
    Band,
    BlockCausal,
    DynamicPattern,
    Full,
    Pattern,
    PerHead,
    Radial,
    ShiftedWindow,
    SlidingTile,
    SlidingTileTopK,
    Spatial,
    SpatialTemporalHeads,
    StaticPattern,
    Temporal,
    TileTopK,
    Window,
)
from kinema.generation.attention.schedule import PatternSchedule, as_schedule
from kinema.generation.attention.text import parse_pattern, parse_patterns, pattern_text

__all__ = [
    "PATTERNS",
    "AlternatingGrid",
    "Band",
    "BlockCausal",
    "BlockLayout",
    "DynamicPattern",
    "Full",
    "Grid",
    "Pattern",
    "PatternSchedule",
    "PerHead",
    "Radial",
    "ShiftedWindow",
    "SlidingTile",
    "SlidingTileTopK",
    "Spatial",
    "SpatialTemporalHeads",
    "StaticPattern",
    "Temporal",
    "TileTopK",
    "TokenOrder",
    "Window",
    "as_schedule",
    "check_backend",
    "parse_pattern",
    "parse_patterns",
    "pattern_text",
    "sparse_attention",
]
