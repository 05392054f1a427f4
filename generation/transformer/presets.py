"""The sizes of the transformer, one line each."""

from typing import Any

_ARGUMENTS = (
    *("in_channels", "dim", "num_layers", "num_heads", "num_refiner_layers"),
    *("patch_size", "text_max_length", "rope_theta"),
)
# fmt: off
_TABLE: dict[str, tuple[Any, ...]] = {
    #            in   dim layers heads refiner patch    text   theta
    "tiny":     ( 4,   32,   2,   2,   1,   (1, 1, 1),   24,   100.0),
    "toybox-s": (32,  256,   8,   4,   1,   (1, 1, 1),   64,   100.0),
    "toybox-m": (16,  384,  12,   6,   2,   (1, 1, 1),   64,   100.0),
    "base":     (16,  768,  16,  12,   2,   (1, 2, 2),  256, 10000.0),
    "large":    (16, 1536,  28,  24,   2,   (1, 2, 2),  512, 10000.0),
}
# fmt: on

PRESETS: dict[str, dict[str, Any]] = {
    name: dict(zip(_ARGUMENTS, values, strict=True)) for name, values in _TABLE.items()
}
"""Arguments of `VideoTransformer` by name of the size; `text_vocab_size` or `text_dim` is still to be given."""
