"""Where the weights that kinema ships are."""

import os
from pathlib import Path

from kinema.errors import KinemaError

EMBEDDED = ("kl-4x8x8-c16", "fsq-4x8x8-32768", "toybox")
"""General tokenizers, continuous and discrete, and a small pipeline (text or image to video) with its own tokenizer."""

_ROOT = Path(__file__).parent / "weights"


def embedded_dir(name: str) -> Path:
    """The folder of an embedded model, as `from_pretrained` takes it.

    Args:
        name: One of `EMBEDDED`.

    Raises:
        KinemaError: No such model, or its folder is not in this installation.
    """
    if name not in EMBEDDED:
        raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(EMBEDDED)}")
    folder = _ROOT / name
    if not folder.is_dir():
        raise KinemaError(f"`name` (={name!r}) must be an embedded model, and this installation has no weights for it")
    return folder


def model_dir(path: str | os.PathLike[str] | None, *, embedded: str, name: str = "model") -> Path:
    """The model folder that the user named, or the embedded one.

    Args:
        path: A folder given by the user, or None.
        embedded: The name of the embedded model that None stands for.
        name: What errors call the argument.

    Raises:
        KinemaError: `path` is no folder, or the embedded model is missing.
    """
    if path is None:
        return embedded_dir(embedded)
    folder = Path(path)
    if not folder.is_dir():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a folder made by `save_pretrained`")
    return folder
