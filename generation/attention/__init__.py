"""Sparse attention on the grid of video tokens: patterns as data, backends that run them."""

from kinema.generation.attention.coarse import annealed_share, coarse_attention
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
from kinema.generation.attention.plugin import apply_sparse_attention, remove_sparse_attention
from kinema.generation.attention.reduction import TokenReduction
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
    "TokenReduction",
    "Window",
    "annealed_share",
    "apply_sparse_attention",
    "as_schedule",
    "check_backend",
    "coarse_attention",
    "parse_pattern",
    "parse_patterns",
    "pattern_text",
    "remove_sparse_attention",
    "sparse_attention",
]
