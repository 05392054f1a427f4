"""Any tokenizer by its name: kinema's own, VidTok's checkpoints, and auto-encoders of diffusers."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kinema.errors import KinemaError
from kinema.loading import one_line, quiet_loading
from kinema.tokenizers.interface import VideoTokenizer
from kinema.tokenizers.registry import TOKENIZERS
from kinema.weights import EMBEDDED, embedded_dir

OWN: dict[str, str] = TOKENIZERS | {"VidTokTokenizer": "kinema.tokenizers.published.vidtok"}
"""Tokenizers of kinema by the `_class_name` in their config.json, and where each class is."""

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
"""What files with VidTok's weights end in."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_tokenizer(name: str | Path, device: str | torch.device = "cpu", argument: str = "tokenizer") -> VideoTokenizer:
    """The tokenizer of a name, in float32 and evaluation mode.

    Args:
        name: a folder of kinema's or of diffusers, with its subfolder after a colon if need be; the name of an embedded
            tokenizer (`kl-4x8x8-c16`, `toybox/vae`); a checkpoint file of VidTok; or a hub id, likewise with its
            subfolder (`Wan-AI/Wan2.1-T2V-1.3B-Diffusers:vae`), which is downloaded.
        device: where it is to compute.
        argument: what errors call the name.

    Raises:
        KinemaError: there is no such tokenizer, it is not complete, or of a class that kinema does not know.
    """
    check_name(name, argument)
    try:
        with quiet_loading():
            tokenizer: Any = _load(str(name))
    except KinemaError as error:
        raise KinemaError(f"`{argument}` (={str(name)!r}) must be a complete tokenizer: {error}") from error
    except Exception as error:  # diffusers raises any kind over files that are missing, damaged, or of another model
        raise KinemaError(f"`{argument}` (={str(name)!r}) must be a complete tokenizer: {one_line(error)}") from error
    return tokenizer.to(device).eval()


def check_name(name: str | Path, argument: str = "tokenizer") -> None:
    """Checks, without loading anything, that a name is one that `load_tokenizer` takes.

    Raises:
        KinemaError: There is no such folder or file, and it is no hub id.
    """
    try:
        path = Path(name)
        if not path.is_file():
            _place(str(name))
        elif path.suffix not in CHECKPOINTS:
            raise KinemaError(f"a file must end in one of {', '.join(CHECKPOINTS)}")
    except KinemaError as error:
        raise KinemaError(f"`{argument}` (={str(name)!r}) must be a complete tokenizer: {error}") from error


def _load(name: str) -> Any:
    path = Path(name)
    if path.is_file():
        from kinema.tokenizers.published.vidtok import VidTokTokenizer

        return VidTokTokenizer.from_checkpoint(path)
    place, subfolder = _place(name)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config: Any = AutoencoderKL.load_config(place, **_options(subfolder))
    class_name = config.get("_class_name")
    if class_name in OWN:
        return _load_own(class_name, place, subfolder)
    from kinema.tokenizers.published.diffusers import FAMILIES, DiffusersTokenizer

    if class_name not in FAMILIES:
        raise KinemaError(f"`_class_name` (={class_name!r}) must be one of {', '.join((*OWN, *FAMILIES))}")
    return DiffusersTokenizer.from_pretrained(place, subfolder)


def _place(name: str) -> tuple[str, str | None]:
    """Folder or hub id, and subfolder."""
    if Path(name).is_dir():
        return name, None
    if name.split("/")[0] in EMBEDDED:
        return str(embedded_dir(name.split("/")[0]).joinpath(*name.split("/")[1:])), None
    place, _, subfolder = name.partition(":")
    if Path(place).is_dir() or _HUB_ID.fullmatch(place):
        return place, subfolder or None
    raise KinemaError(
        "there is no such folder or file, and it is no hub id like `owner/name` or `owner/name:subfolder`"
    )


def _load_own(class_name: str, place: str, subfolder: str | None) -> Any:
    cls = getattr(import_module(OWN[class_name]), class_name)
    return cls.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **_options(subfolder))


def _options(subfolder: str | None) -> dict[str, Any]:
    return {"subfolder": subfolder} if subfolder else {}
