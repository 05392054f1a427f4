"""Presets of the transformer, one line each."""

from typing import Any

_ARGUMENTS = (
    *("in_channels", "dim", "num_layers", "num_heads", "num_refiner_layers"),
    *("patch_size", "text_max_length", "rope_theta", "attention"),
)
# CascadeV's public configuration: alternating spatial and temporal cells, full attention in 12 of 28 blocks.
_CASCADE = "alternating-grid:1x4x4+alternating-grid:4x1x1"
_LATE = "+".join((*("spatial",) * 14, *("temporal",) * 14))
_CASCADEV = "+".join((*(_CASCADE,) * 4, *("full",) * 4, *(_CASCADE,) * 4, *("full",) * 8))

# fmt: off
_TABLE: dict[str, tuple[Any, ...]] = {
    #             in   dim layers heads refiner patch    text   theta  attention
    "tiny":      ( 4,   32,   2,   2,   1,   (1, 1, 1),   24,   100.0, None),
    "toybox-xs": (16,  192,   6,   3,   1,   (1, 1, 1),   64,   100.0, None),
    "toybox-s":  (32,  256,   8,   4,   1,   (1, 1, 1),   64,   100.0, None),
    "toybox-m":  (16,  384,  12,   6,   2,   (1, 1, 1),   64,   100.0, None),
    "base":      (16,  768,  16,  12,   2,   (1, 2, 2),  256, 10000.0, None),
    "large":     (16, 1536,  28,  24,   2,   (1, 2, 2),  512, 10000.0, None),
    "xlarge":    (16, 3072,  32,  24,   2,   (1, 2, 2),  512, 10000.0, None),
    # Latte (arXiv 2401.03048), sizes S to XL. Variant 1: alternating blocks; variant 2: the second half temporal;
    # variant 4: half of the heads temporal. Variant 3 has two attention layers per block.
    "latte-s":   (16,  384,  12,   6,   2,   (1, 2, 2),  256, 10000.0, "spatial+temporal"),
    "latte-b":   (16,  768,  12,  12,   2,   (1, 2, 2),  256, 10000.0, "spatial+temporal"),
    "latte-l":   (16, 1024,  24,  16,   2,   (1, 2, 2),  256, 10000.0, "spatial+temporal"),
    "latte-xl":  (16, 1152,  28,  16,   2,   (1, 2, 2),  256, 10000.0, "spatial+temporal"),
    "latte-xl-late": (16, 1152, 28, 16, 2,   (1, 2, 2),  256, 10000.0, _LATE),
    "latte-xl-heads": (16, 1152, 28, 16, 2,  (1, 2, 2),  256, 10000.0, "spatial*8&temporal*8"),
    # W.A.L.T (arXiv 2312.06662): alternating spatial and spatiotemporal windows.
    "walt-b":    (16,  768,  12,  12,   2,   (1, 1, 1),  256, 10000.0, "window:1x16x16+window:5x8x8"),
    # CascadeV (arXiv 2501.16612), with the width and depth of PixArt XL.
    "cascadev":  (16, 1152,  28,  16,   2,   (1, 2, 2),  256, 10000.0, _CASCADEV),
}
# fmt: on

PRESETS: dict[str, dict[str, Any]] = {
    name: dict(zip(_ARGUMENTS, values, strict=True)) for name, values in _TABLE.items()
}
"""Arguments of `VideoTransformer` by preset name; `text_vocab_size` or `text_dim` must be given in addition."""
