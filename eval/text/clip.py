"""Any CLIP, by hub id or path: unit vectors of frames and of prompts.

kinema ships none, and no package index holds one: its name or folder is always the user's choice.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, CLIPModel, CLIPProcessor

from kinema.errors import KinemaError

logger = logging.getLogger(__name__)

LOAD_ERRORS = (OSError, ValueError, ImportError, KeyError)
"""What transformers raises for a name or a folder that holds no model of the kind asked for."""


class CLIPEncoder:
    """A CLIP (Radford et al. 2021) with its preprocessing: pictures and texts to unit vectors of one space.

    Args:
        model: The two towers.
        processor: Their preprocessing, of pictures and of texts.
        device: Where to compute.
        batch_size: Pictures at once.
        name: What reports call it.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPProcessor,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        name: str = "clip",
    ) -> None:
        self.device = torch.device(device)
        # transformers' decorated `to` hides its type from checkers.
        self.model: Any = model.eval().requires_grad_(False)
        self.model.to(self.device)
        self.processor: Any = processor
        self.batch_size = batch_size
        self.name = name
        self.max_tokens: int = self.model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def image_features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit vectors of pictures, on the CPU.

        Args:
            images: RGB of any one size; the model's own preprocessing resizes, crops and normalises them.
        """
        vectors = []
        # The preprocessing makes floats of frames before it makes them small.
        at_once = min(self.batch_size, max(1, 2**24 // (images.shape[2] * images.shape[3])))
        for batch in images.cpu().split(at_once):
            pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
            vectors.append(_pooled(self.model.get_image_features(pixel_values=pixels.to(self.device))).float().cpu())
        return normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of texts, on the CPU.

        A text longer than the model reads is cut, with a warning; its end mark, where CLIP reads the vector, stays.
        """
        tokens = self.processor(text=list(texts), return_tensors="pt", padding=True, verbose=False)
        length = tokens["input_ids"].shape[1]
        if length > self.max_tokens:
            logger.warning(
                "a prompt has %d tokens, %s reads %d: the rest is left out", length, self.name, self.max_tokens
            )
            tokens = self.processor(
                text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens
            )
        inputs = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        return normalize(_pooled(self.model.get_text_features(**inputs)).float().cpu(), dim=-1)


def load_clip(
    model: str | os.PathLike[str], *, device: torch.device | str = "cpu", batch_size: int = 32
) -> CLIPEncoder:
    """A CLIP in transformers' format; only safetensors are read.

    Args:
        model: Hub id, as `openai/clip-vit-large-patch14`, or a folder that holds the model and its processor.
        device: Where to compute.
        batch_size: Pictures at once.

    Raises:
        KinemaError: There is no CLIP by that name, on this machine or on a hub that can be reached.
    """
    name = os.fspath(model)
    wanted = (
        f"`clip` (={name!r}) must be a CLIP: a folder with its safetensors and preprocessing, or a hub id, as"
        " 'openai/clip-vit-large-patch14', that is in the cache or can be downloaded"
    )
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        # Else transformers would fill a CLIP with random numbers, and say so in the log alone.
        if kind != "clip":
            raise KinemaError(f"{wanted}; this is a model of type {kind!r}")
        towers = CLIPModel.from_pretrained(name, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(name)
    except KinemaError:
        raise
    except LOAD_ERRORS as error:
        raise KinemaError(wanted) from error
    return CLIPEncoder(towers, processor, device=device, batch_size=batch_size, name=name)


def _pooled(output: Any) -> Tensor:
    """The projected vectors, which transformers gives bare before 5 and inside an output since."""
    return output if isinstance(output, Tensor) else output.pooler_output
