"""Networks that turn frames into feature vectors, for STREAM and frame consistency."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from kinema.errors import KinemaError
from kinema.eval.text.clip import LOAD_ERRORS, load_clip

DEFAULT_FRAME_NETWORK = "efficientnet-lite0"
"""ImageNet features that a package index has: STREAM's own are SwAV or DINOv2, VBench's DINO and CLIP."""


def _efficientnet(weights: Path | None) -> nn.Module:
    from kinema.eval.networks.efficientnet import load_efficientnet_lite0

    return load_efficientnet_lite0(weights)


FRAME_NETWORKS: Mapping[str, Callable[[Path | None], nn.Module]] = MappingProxyType(
    {"efficientnet-lite0": _efficientnet}
)
"""Those that `kinema weights` knows, by their names there."""


class PublishedFrameNetwork(nn.Module):
    """A vision model of transformers with its preprocessing: the class token, or else what the model pools.

    Args:
        model: ViT, DINO, DINOv2, ResNet and their like.
        processor: The model's preprocessing.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Feature vectors of pictures of any one size."""
        pixels = self.processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=pixels.to(images.device))
        hidden = output.last_hidden_state
        # Tokens `n l d`, of which the first is the class token, or a map `n d h w`.
        return hidden[:, 0] if hidden.ndim == 3 else output.pooler_output.flatten(1)


class CLIPFrameNetwork(nn.Module):
    """The picture side of a CLIP, as a frame network.

    Args:
        name: Hub id or folder.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.clip = load_clip(name)
        self.model = self.clip.model  # so that it moves with this module

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit vectors of pictures of any one size."""
        self.clip.device = images.device
        return self.clip.image_features(images)


def load_frame_network(name: str, weights: Mapping[str, Path] | None = None) -> nn.Module:
    """A network of frames, uint8 `n 3 h w` to `n d`.

    Args:
        name: One of `FRAME_NETWORKS`, or hub id or folder of a vision model (or a CLIP) in transformers' format, with
            its preprocessing; only safetensors are read.
        weights: Files of weights, by the names of `FRAME_NETWORKS`; others come from the cache.

    Raises:
        KinemaError: There is no such network, on this machine or on a hub that can be reached.
    """
    if name in FRAME_NETWORKS:
        return FRAME_NETWORKS[name]((weights or {}).get(name)).eval()
    try:
        if AutoConfig.from_pretrained(name).model_type == "clip":
            return CLIPFrameNetwork(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(name)
    except LOAD_ERRORS as error:
        raise KinemaError(
            f"`frame_network` (={name!r}) must be one of {', '.join(FRAME_NETWORKS)}, or a vision model with its"
            " preprocessing: a folder, or a hub id that is in the cache or can be downloaded"
        ) from error
    return PublishedFrameNetwork(model.eval().requires_grad_(False), processor)
