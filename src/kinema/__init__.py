"""kinema: video tokenizers and video diffusion.

Public names are re-exported lazily, so that ``import kinema`` (and ``kinema --help``) does not import torch.
"""

from typing import TYPE_CHECKING

from kinema.lazy import lazy_exports

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

__getattr__ = lazy_exports(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
