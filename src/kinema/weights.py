"""Location of the weights that ship with kinema."""

import os
from pathlib import Path

from kinema.errors import KinemaError

EMBEDDED = ("kl-4x8x8-c16", "fsq-4x8x8-32768", "toybox")
"""A continuous and a discrete tokenizer, and a small text- and image-to-video pipeline with its tokenizer."""

_ROOT = Path(__file__).parent / "weights"


def embedded_dir(name: str) -> Path:
    """Return the folder of an embedded model, for `from_pretrained`.

    Args:
        name: One of `EMBEDDED`.

    Raises:
        KinemaError: `name` is not in `EMBEDDED`, or this installation lacks its weights.
    """
    if name not in EMBEDDED:
        raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(EMBEDDED)}")
    folder = _ROOT / name
    if not folder.is_dir():
        raise KinemaError(f"`name` (={name!r}) must be an embedded model, and this installation has no weights for it")
    return folder


def model_dir(path: str | os.PathLike[str] | None, *, embedded: str, name: str = "model") -> Path:
    """Return the user's model folder, or that of an embedded model.

    Args:
        path: The user's folder; None: the embedded model.
        embedded: Name of the embedded model.
        name: Name of the argument in errors.

    Raises:
        KinemaError: `path` is not a folder, or the embedded model is missing.
    """
    if path is None:
        return embedded_dir(embedded)
    folder = Path(path)
    if not folder.is_dir():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a folder made by `save_pretrained`")
    return folder
