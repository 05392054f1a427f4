"""Models for the commands: from the user's folder or the embedded one, on the best device, with errors of one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import KinemaError
from kinema.loading import one_line, quiet_loading
from kinema.weights import model_dir

if TYPE_CHECKING:
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.tokenizers.interface import VideoTokenizer

Model = TypeVar("Model")


def pick_device(name: str | None = None) -> str:
    """The device to compute on.

    Args:
        name: What the user asked for; None takes CUDA where there is one, else the CPU.

    Raises:
        KinemaError: torch knows no such device, or this machine has none.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KinemaError(f"`device` (={name!r}) must be a device of this machine, like cpu or cuda") from error
    return name


def load_pipeline(path: str | os.PathLike[str] | None = None, *, device: str | None = None) -> "KinemaPipeline":
    """The pipeline in a folder, or the embedded one.

    Raises:
        KinemaError: The folder is missing, or a file in it is missing or wrong.
    """
    folder = model_dir(path, embedded="toybox")
    device = pick_device(device)  # a mistake is named before the loading

    from kinema.generation.pipeline import KinemaPipeline

    pipeline: Any = _load(lambda: KinemaPipeline.from_pretrained(str(folder), local_files_only=True), "model", folder)
    return pipeline.to(device)


def load_tokenizer(name: str | os.PathLike[str] | None = None, *, device: str | None = None) -> "VideoTokenizer":
    """The video tokenizer of a name, or the embedded general one.

    Args:
        name: A folder, an embedded name, a checkpoint or a hub id, as `kinema.tokenizers.published.loading` takes it.
        device: What the user asked for; None takes CUDA where there is one, else the CPU.

    Raises:
        KinemaError: There is no such tokenizer, or a file of it is missing or wrong.
    """
    device = pick_device(device)  # a mistake is named before the loading

    from kinema.tokenizers.published.loading import load_tokenizer as load

    return load(os.fspath(name) if name is not None else "kl-4x8x8-c16", device)


def _load(load: Callable[[], Model], name: str, folder: Path) -> Model:
    from safetensors import SafetensorError

    try:
        with quiet_loading():
            return load()
    except KinemaError:
        raise
    # What diffusers, transformers and safetensors raise over files that are missing, cut short, or of another model.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise KinemaError(f"`{name}` (={str(folder)!r}) must be a complete model folder: {one_line(error)}") from error
