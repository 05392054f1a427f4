"""kinema: video tokenizers and video diffusion.

The public names are re-exported lazily, so that ``import kinema`` (and ``kinema --help``) does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "CausalVideoTokenizer": "kinema.tokenizers.causal_vae.model",
    "VideoTransformer": "kinema.generation.transformer.model",
    "KinemaPipeline": "kinema.generation.pipeline",
}

if TYPE_CHECKING:
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.generation.transformer.model import VideoTransformer
    from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer

__all__ = ["CausalVideoTokenizer", "KinemaPipeline", "VideoTransformer", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'kinema' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
