"""Presets: a model and the default settings of its training."""

from typing import Any, TypeVar

from kinema.errors import KinemaError
from kinema.tokenizers.registry import PRESETS, find_preset
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig
from kinema.training.distillation_config import DistillationConfig

Config = TypeVar("Config")

# The first stage of the embedded kl-4x8x8-c16, without its time limit; the learning rate suits Muon. The embedded FSQ
# tokenizer started from its networks (no linear initialization, 30 steps of warm-up), and second stages train decoders
# at 3e-4: their settings are saved beside the weights.
_TOKENIZER: dict[str, Any] = dict(
    init_linear=True, learning_rate=2e-3, betas=(0.9, 0.98), warmup_steps=100, ema_decay=0.998
)

# Changes to `_TOKENIZER` by preset, and for presets that are not listed.
_OF_PRESET: dict[str, dict[str, Any]] = {
    "kl-4x16x16-c32": dict(batch_size=16, kl_weight=1e-5, validation_shape="17x64x64")
}
_OTHERS: dict[str, Any] = dict(batch_size=4, cache_short_side=144)
_FSQ: dict[str, Any] = _OTHERS | dict(entropy_weight=0.01)


def _shapes_of(preset: str) -> tuple[str, ...]:
    """Clip sizes that a preset trains on; a holistic tokenizer takes clips of its one size."""
    config = find_preset(preset).config
    return (f"{config['num_frames']}x{config['size']}x{config['size']}",) if "num_tokens" in config else ("17x64x64",)


TOKENIZER_PRESETS: dict[str, TokenizerTrainingConfig] = {
    name: TokenizerTrainingConfig(
        preset=name,
        shapes=_shapes_of(name),
        **_TOKENIZER,
        **_OF_PRESET.get(name, _FSQ if find_preset(name).config["bottleneck"]["name"] == "fsq" else _OTHERS),
    )
    for name in PRESETS
}

_TOYBOX: dict[str, Any] = dict(
    batch_size=32,
    learning_rate=2e-3,
    betas=(0.9, 0.98),
    warmup_steps=100,
    ema_decay=0.998,
    sample_every=500,
    eval_every=500,
)

DIFFUSION_PRESETS: dict[str, DiffusionTrainingConfig] = {
    config.preset: config
    for config in (
        DiffusionTrainingConfig(preset="tiny", batch_size=16, num_steps=1000, num_clips=1000, learning_rate=2e-3),
        DiffusionTrainingConfig(preset="toybox-xs", **_TOYBOX),
        DiffusionTrainingConfig(preset="toybox-s", **_TOYBOX),
    )
}

# A student begins as its teacher, and has less to learn than a model that begins with nothing.
_DISTILLATION: dict[str, Any] = dict(
    batch_size=8, num_steps=1000, optimizer="adamw", learning_rate=2e-4, warmup_steps=10, ema_decay=0.99,
    schedule="cosine", log_every=10, eval_every=100, sample_every=500, save_every=100,
)  # fmt: skip

DISTILLATION_PRESETS: dict[str, DistillationConfig] = {
    f"{steps}-steps": DistillationConfig(preset=f"{steps}-steps", student_steps=steps, **_DISTILLATION)
    for steps in (4, 8, 2, 1)
}


def select_preset(presets: dict[str, Config], name: str) -> Config:
    """The entry of a table of presets.

    Raises:
        KinemaError: there is none of this name.
    """
    if name not in presets:
        raise KinemaError(f"`preset` (={name}) must be one of {', '.join(presets)}")
    return presets[name]
