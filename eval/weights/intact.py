"""Whether a file of weights is still what was written: a hash of its tensors stands in its metadata."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import check_input_file
from kinema.loading import one_line

HASH_KEY = "tensors_sha256"
"""Where the metadata of a file in the cache has `tensors_hash`."""


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names, kinds, shapes and values of tensors, in hexadecimal.

    Args:
        tensors: In the order of their names.
    """
    digest = hashlib.sha256()
    for key, value in tensors:
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_hash(path: str | Path) -> str:
    """`tensors_hash` of a file of safetensors.

    It does not depend on the order of the tensors, nor on what else the file says: the same weights from different
    sources have the same hash.

    Raises:
        KinemaError: The file is not safetensors.
    """
    return _read(path)[0]


def damage_of(path: str | Path) -> str | None:
    """What is wrong with a file of safetensors; None for one that is whole, as far as it can be known.

    Files that were written without a hash can only be read.
    """
    try:
        found, stated = _read(path)
    except KinemaError as error:
        return str(error)
    if stated in (None, found):
        return None
    return f"`weights` (={str(path)!r}) must be as it was written, and is damaged: its tensors have another SHA-256"


def _read(path: str | Path) -> tuple[str, str | None]:
    """The hash of the tensors in a file, and the one in its metadata."""
    check_input_file(path, "weights")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = ((key, file.get_tensor(key)) for key in sorted(file.keys()))
            return tensors_hash(tensors), (file.metadata() or {}).get(HASH_KEY)
    except Exception as error:  # whatever a reader raises over a damaged file
        raise KinemaError(f"`weights` (={str(path)!r}) must be a file of safetensors: {one_line(error)}") from error
