"""The cache: one folder for all that is downloaded or measured once."""

import os
from pathlib import Path
from typing import Literal

from kinema.errors import KinemaError


def cache_folder(kind: Literal["weights", "statistics"]) -> Path:
    """Where files of a kind are kept; the folder may not exist yet.

    It lies in `$KINEMA_CACHE`, else in `$XDG_CACHE_HOME/kinema`, else in `~/.cache/kinema`.

    Raises:
        KinemaError: None of these is set, and the user has no home.
    """
    try:
        if root := os.environ.get("KINEMA_CACHE"):
            return Path(root).expanduser() / kind
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "kinema" / kind
    except RuntimeError as error:
        raise KinemaError("`KINEMA_CACHE` (not set) must be the folder of the cache, as there is no home") from error


def weights_file(name: str) -> Path:
    """Where the cache keeps the weights `name` of the table, whether they are there or not."""
    return cache_folder("weights") / f"{name}.safetensors"
