"""Pictures of files, as RGB.

Shapes: `h w c` in uint8.
"""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_input_file, check_output_file


def read_image(path: str | os.PathLike[str], *, name: str = "path") -> UInt8[Tensor, "h w 3"]:
    """Read a picture as RGB, turned as its EXIF data says; what is transparent becomes white.

    Args:
        path: The file.
        name: What errors call the argument.

    Raises:
        KinemaError: The file is missing, empty, truncated or no picture.
    """
    check_input_file(Path(path), name)
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel, which PIL would cut off at 255
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257).round().astype(np.uint8))
            upright = opaque(upright)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a picture, complete and readable") from error
    return torch.from_numpy(np.array(upright))


def opaque(image: Image.Image) -> Image.Image:
    """A picture in RGB on white: what lies under transparent pixels is chance."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def write_image(path: str | os.PathLike[str], image: Image.Image, *, overwrite: bool = False) -> None:
    """Write a PNG file, whole or not at all.

    Raises:
        KinemaError: The file exists and `overwrite` is not set.
    """
    check_output_file(path, overwrite=overwrite)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
