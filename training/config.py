"""Training configurations: typed, frozen, saved with the weights.

The values that presets train with are in `presets.py`.
"""

from kinema.training.config_base import VALIDATION_PREFIXES, TrainingConfig, parse_shape
from kinema.training.config_diffusion import DiffusionTrainingConfig
from kinema.training.config_json import from_dict, save_config, to_dict
from kinema.training.config_tokenizer import TokenizerTrainingConfig

__all__ = [
    "VALIDATION_PREFIXES",
    "DiffusionTrainingConfig",
    "TokenizerTrainingConfig",
    "TrainingConfig",
    "from_dict",
    "parse_shape",
    "save_config",
    "to_dict",
]
