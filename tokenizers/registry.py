"""kinema's tokenizers by class name and by preset; classes are imported when they are asked for.

A new tokenizer is its package, one line in `TOKENIZERS`, and one in `_TABLES`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae import presets as causal
from kinema.tokenizers.causal_vae.presets import Config, Stated
from kinema.tokenizers.holistic import presets as holistic
from kinema.tokenizers.transformer import presets as transformer

TOKENIZERS: dict[str, str] = {
    "CausalVideoTokenizer": "kinema.tokenizers.causal_vae.model",
    "TransformerVideoTokenizer": "kinema.tokenizers.transformer.model",
    "HolisticVideoTokenizer": "kinema.tokenizers.holistic.model",
}
"""Classes by name, the `_class_name` in a config.json, and the module where each is."""

_TABLES: dict[str, tuple[Mapping[str, Config], Mapping[str, Stated]]] = {
    "CausalVideoTokenizer": (causal.PRESETS, causal.STATED),
    "TransformerVideoTokenizer": (transformer.PRESETS, transformer.STATED),
    "HolisticVideoTokenizer": (holistic.PRESETS, holistic.STATED),
}

PRESETS: dict[str, str] = {preset: name for name, (presets, _) in _TABLES.items() for preset in presets}
"""Names of the classes by preset."""

assert len(PRESETS) == sum(len(presets) for presets, _ in _TABLES.values()), "a preset is there twice"


def tokenizer_class(name: str) -> type[Any]:
    """The class of a name.

    Raises:
        KinemaError: there is none.
    """
    if name not in TOKENIZERS:
        raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(TOKENIZERS)}")
    return getattr(import_module(TOKENIZERS[name]), name)


def preset_config(preset: str) -> Config:
    """The arguments of a preset's class, a copy.

    Raises:
        KinemaError: there is no such preset.
    """
    return dict(_TABLES[_class_of(preset)][0][preset])


def stated(preset: str) -> Stated:
    """Parameters and GFLOP of a preset.

    Raises:
        KinemaError: there is no such preset.
    """
    return _TABLES[_class_of(preset)][1][preset]


def make_tokenizer(preset: str) -> Any:
    """An untrained tokenizer of a preset.

    Raises:
        KinemaError: there is no such preset.
    """
    config = preset_config(preset)
    return tokenizer_class(PRESETS[preset])(**config)


def _class_of(preset: str) -> str:
    if preset not in PRESETS:
        raise KinemaError(f"`preset` (={preset!r}) must be one of {', '.join(sorted(PRESETS))}")
    return PRESETS[preset]
