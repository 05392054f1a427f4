"""Any tokenizer by its name: kinema's own, VidTok's checkpoints, and auto-encoders of diffusers."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from kinema.errors import KinemaError
from kinema.loading import one_line, quiet_loading
from kinema.machine import pick_device
from kinema.tokenizers.interface import VideoTokenizer
from kinema.tokenizers.registry import TOKENIZERS, tokenizer_class
from kinema.weights import EMBEDDED, embedded_dir

DEFAULT = "kl-4x8x8-c16"
"""The embedded tokenizer for general videos."""

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
"""Suffixes of files with VidTok's weights."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_tokenizer(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = "cpu",
    argument: str = "tokenizer",
) -> VideoTokenizer:
    """Load a tokenizer, in float32 and evaluation mode.

    Args:
        name: A folder of kinema or diffusers; an embedded tokenizer (`kl-4x8x8-c16`, `toybox/vae`); a checkpoint file
            of VidTok; or a hub id, which is downloaded. A folder and a hub id may have a subfolder after a colon
            (`Wan-AI/Wan2.1-T2V-1.3B-Diffusers:vae`). None: `DEFAULT`.
        device: None: CUDA if available, else the CPU.
        argument: Name of the argument in errors.

    Raises:
        KinemaError: There is no such tokenizer or device, or the tokenizer is incomplete or of an unknown class.
    """
    device = pick_device(device)  # a mistake is reported before loading
    name = DEFAULT if name is None else os.fspath(name)
    check_name(name, argument)
    try:
        with quiet_loading():
            tokenizer: Any = _load(name)
    except KinemaError as error:
        raise KinemaError(f"`{argument}` (={name!r}) must be a complete tokenizer: {error}") from error
    except Exception as error:  # diffusers raises any type for files that are missing, damaged or of another model
        raise KinemaError(f"`{argument}` (={name!r}) must be a complete tokenizer: {one_line(error)}") from error
    return tokenizer.to(device).eval()


def check_name(name: str | Path, argument: str = "tokenizer") -> None:
    """Check, without loading anything, that `load_tokenizer` accepts a name.

    Raises:
        KinemaError: There is no such folder or file, and it is not a hub id.
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
    if class_name in TOKENIZERS:
        own = tokenizer_class(class_name)
        return own.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **_options(subfolder))
    from kinema.tokenizers.published.diffusers import FAMILIES, DiffusersTokenizer

    if class_name not in FAMILIES:
        raise KinemaError(f"`_class_name` (={class_name!r}) must be one of {', '.join((*TOKENIZERS, *FAMILIES))}")
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
        "there is no such folder or file, and it is not a hub id like `owner/name` or `owner/name:subfolder`"
    )


def _options(subfolder: str | None) -> dict[str, Any]:
    return {"subfolder": subfolder} if subfolder else {}
