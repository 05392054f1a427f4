"""kinema's tokenizers by class name and by preset. Importing this module does not import torch.

A new tokenizer is its package, one line in `TOKENIZERS`, and its table in `PRESETS`; a new preset is one row of a
table.
"""

from copy import deepcopy
from importlib import import_module
from typing import Any

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.presets import PRESETS as CAUSAL
from kinema.tokenizers.holistic.presets import PRESETS as HOLISTIC
from kinema.tokenizers.presets import Preset
from kinema.tokenizers.transformer.presets import PRESETS as TRANSFORMER

TOKENIZERS: dict[str, str] = {
    "CausalVideoTokenizer": "kinema.tokenizers.causal_vae.model",
    "TransformerVideoTokenizer": "kinema.tokenizers.transformer.model",
    "HolisticVideoTokenizer": "kinema.tokenizers.holistic.model",
    "VidTokTokenizer": "kinema.tokenizers.published.vidtok",
}
"""Modules by class name, the `_class_name` in a config.json."""

PRESETS: dict[str, Preset] = {**CAUSAL, **TRANSFORMER, **HOLISTIC}
"""All presets by name."""


def tokenizer_class(name: str) -> type[Any]:
    """Import a tokenizer class.

    Raises:
        KinemaError: `name` is not in `TOKENIZERS`.
    """
    if name not in TOKENIZERS:
        raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(TOKENIZERS)}")
    return getattr(import_module(TOKENIZERS[name]), name)


def find_preset(name: str) -> Preset:
    """Look up a preset.

    Raises:
        KinemaError: `name` is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise KinemaError(f"`preset` (={name!r}) must be one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def make_tokenizer(preset: str) -> Any:
    """Build the untrained tokenizer of a preset.

    Raises:
        KinemaError: `preset` is not in `PRESETS`.
    """
    found = find_preset(preset)
    return tokenizer_class(found.tokenizer)(**deepcopy(dict(found.config)))
