"""Models for the commands: from the user's folder or embedded, on the best device, with errors of one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import KinemaError
from kinema.lazy import lazy_exports
from kinema.loading import one_line, quiet_loading
from kinema.machine import pick_device
from kinema.weights import model_dir

if TYPE_CHECKING:
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.tokenizers.published.loading import load_tokenizer

__all__ = ["load_pipeline", "load_tokenizer", "pick_device"]

__getattr__ = lazy_exports(__name__, {"load_tokenizer": "kinema.tokenizers.published.loading"})

Model = TypeVar("Model")


def load_pipeline(path: str | os.PathLike[str] | None = None, *, device: str | None = None) -> "KinemaPipeline":
    """The pipeline in a folder, or the embedded one.

    Raises:
        KinemaError: The folder is missing, or a file in it is missing or wrong.
    """
    folder = model_dir(path, embedded="toybox")
    device = pick_device(device)  # a mistake is reported before loading

    from kinema.generation.pipeline import KinemaPipeline

    pipeline: Any = _load(lambda: KinemaPipeline.from_pretrained(str(folder), local_files_only=True), "model", folder)
    return pipeline.to(device)


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
