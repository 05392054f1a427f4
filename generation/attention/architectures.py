"""The sizes of published video transformers and of kinema's presets, by name."""

from typing import Any

import torch

from kinema.errors import KinemaError
from kinema.generation.attention.architecture import Architecture as Architecture
from kinema.generation.attention.plugin import TRANSFORMER_FAMILIES
from kinema.generation.transformer.layers import SwiGLU
from kinema.generation.transformer.presets import PRESETS


def architectures() -> dict[str, Architecture]:
    """Return sizes by name: those of `TRANSFORMER_FAMILIES`, and the presets of `VideoTransformer`."""
    published = {name: sizes for family in TRANSFORMER_FAMILIES.values() for name, sizes in family.sizes.items()}
    return published | {name: _preset(name) for name in PRESETS}


def find_architecture(name: str) -> Architecture:
    """Return the sizes of a model.

    Raises:
        KinemaError: `name` is not in `architectures`.
    """
    known = architectures()
    if name not in known:
        raise KinemaError(f"`model` (={name!r}) must be one of {', '.join(known)}")
    return known[name]


def _preset(name: str) -> Architecture:
    """Return the sizes of a preset of kinema's `VideoTransformer`."""
    preset: dict[str, Any] = PRESETS[name]
    with torch.device("meta"):
        ffn_dim = SwiGLU(preset["dim"], preset.get("mlp_ratio", 4.0)).down.in_features
    return Architecture(
        dim=preset["dim"],
        num_layers=preset["num_layers"],
        num_heads=preset["num_heads"],
        ffn_dim=ffn_dim,
        text_tokens=preset["text_max_length"],
        ffn_matrices=3,
        patch=preset["patch_size"],
        compression=None,
    )
