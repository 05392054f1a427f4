"""Conversion of pictures to RGB: files, PIL images, and uploads of the web page.

Shapes: `h w c` in uint8. docs/pictures.md describes how each kind of picture is converted.
"""

import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_input_file, check_output_file

MAX_PIXELS = 2**27
"""Maximum pixels of a picture, 134 million: a small compressed file can require any amount of memory."""

# Excluded: EPS and WMF, which need external programs, and formats for measurements rather than pictures.
_FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "SGI", "PCX", "QOI", "DDS",
    "ICO", "PSD",
)  # fmt: skip
_ALMOST_EQUAL = 2  # levels of 255
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


class PictureWarning(UserWarning):
    """A part of a picture file is ignored: pictures after the first, or a damaged colour profile."""


def read_image(path: str | os.PathLike[str], *, name: str = "path") -> UInt8[Tensor, "h w 3"]:
    """Read a picture as displayed: in sRGB, upright, and blended with white where transparent.

    Args:
        path: The file; only the first picture of an animation or multi-page file is read.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file is missing, empty, truncated or not a picture; it has more than `MAX_PIXELS`; or the range
            of its values is unknown (32-bit integers, floats).

    Warns:
        PictureWarning: The file has several pictures, or its colour profile cannot be used.
    """
    with _opened(path, name) as (image, argument):
        return torch.from_numpy(np.array(rgb_picture(image, argument)))


def read_image_with_alpha(path: str | os.PathLike[str], *, name: str = "path") -> UInt8[Tensor, "h w 4"]:
    """Read a picture like `read_image`, but with alpha as a fourth channel (255: opaque)."""
    with _opened(path, name) as (image, argument):
        color, alpha = _displayed(image, argument)
        color.putalpha(255 if alpha is None else alpha)
        return torch.from_numpy(np.array(color))


@contextmanager
def _opened(path: str | os.PathLike[str], name: str) -> Iterator[tuple[Image.Image, str]]:
    """Open a picture file and read its header; also yield its name for errors."""
    check_input_file(Path(path), name)
    argument = f"`{name}` (={str(path)!r})"
    Image.init()
    try:
        with _without_warnings():
            image = Image.open(path, formats=[each for each in _FORMATS if each in Image.OPEN])
            # The second picture of an MPO file (JPEG) is a preview.
            is_one_of_many = image.format != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise KinemaError(f"{argument} must have at most {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises many exception types for damaged files
        raise KinemaError(
            f"{argument} must be a picture (PNG, JPEG, WebP, TIFF, ...), complete and readable"
        ) from error
    with image:
        if is_one_of_many:
            _warn(f"{argument} has several pictures, of which the first is used")
        yield image, argument


def rgb_picture(image: Image.Image, argument: str = "`image`") -> Image.Image:
    """Convert a PIL image to what is displayed: 8-bit sRGB, upright, and blended with white where transparent.

    Args:
        image: An image of any mode, loaded or not; for an animation, its current frame.
        argument: Name of the argument in errors.

    Raises:
        KinemaError: As in `read_image`.

    Warns:
        PictureWarning: As in `read_image`.
    """
    color, alpha = _displayed(image, argument)
    if alpha is None:
        return color
    color.putalpha(alpha)
    white = Image.new("RGBA", color.size, "white")
    white.alpha_composite(color)
    return white.convert("RGB")


def _displayed(image: Image.Image, argument: str) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours of a picture in sRGB, and its alpha channel (L), or None if it is opaque."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise KinemaError(f"{argument} must have at most {MAX_PIXELS} pixels, and has {width}x{height}")
    notes: list[str] = []
    try:
        with _without_warnings():
            _correct_transparent_color(image)
            covered = _covered_part(image)
            image.load()
            picture = _in_eight_bits(_upright(image), image, argument)
            color, alpha = _split_alpha(picture)
            if covered is not None:
                alpha = _only_within(covered, alpha, color.size)
            profile = image.info.get("icc_profile")
            if profile and picture.mode != "LAB":  # LAB is converted to sRGB already
                color = _with_profile(color, profile, notes)
            color = color.convert("RGB")
    except KinemaError:
        raise
    except Exception as error:  # see _opened
        raise KinemaError(f"{argument} must be a picture, complete and readable") from error
    for note in notes:
        _warn(f"{argument} {note}")
    return color, alpha


def opaque(image: Image.Image) -> Image.Image:
    """Blend a picture with white; an alias of `rgb_picture`. The colours of transparent pixels are arbitrary."""
    return rgb_picture(image)


def levels_of_16_bits(values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Round levels from 0 to 65535 to levels from 0 to 255."""
    table = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
    return table[values]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings and log, about large pictures (limited here) and damage (an error here)."""
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _warn(message: str) -> None:
    warnings.warn(message, PictureWarning, stacklevel=3)


def _correct_transparent_color(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG file like Pillow scales its pixels.

    Pillow keeps the stored value, although it scales 2-bit and 4-bit gray to 0 to 255, and takes the upper 8 of 16 bits
    of a colour. The stored bit depth is known only until the pixels are read.
    """
    color = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    if image.format != "PNG" or color is None or not tiles:
        return
    raw_mode = tiles[0][3]
    if raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = color * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in color)


def _covered_part(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of a GIF's first frame if smaller than the picture, which is transparent elsewhere."""
    tiles: Any = getattr(image, "tile", None)
    if image.format != "GIF" or not tiles or image.tell() != 0:
        return None
    return None if tiles[0][1] == (0, 0, *image.size) else tiles[0][1]


def _only_within(box: tuple[int, int, int, int], alpha: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    within = Image.new("L", size, 0)
    within.paste(255 if alpha is None else alpha.crop(box), box)
    return within


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: orientation unknown
        return image


def _in_eight_bits(image: Image.Image, source: Image.Image, argument: str) -> Image.Image:
    """Convert a picture to 8 bits per channel.

    Args:
        image: The picture.
        source: The picture as opened, which knows its format.
        argument: Name of the argument in errors.
    """
    # Some versions of Pillow store 16-bit PNG and PGM files in 32 bits.
    if image.mode == "F" or (image.mode == "I" and source.format not in ("PNG", "PPM")):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise KinemaError(f"{argument} must have 8 or 16 bits a channel, and has {kind}, whose range is unknown")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode != "I" and values.dtype.byteorder == ">":
        values = values.byteswap().view(values.dtype.newbyteorder())
    values = values.clip(0, 2**16 - 1).astype(np.uint16)
    tags: Any = getattr(source, "tag_v2", {})
    if tuple(tags.get(_BITS_PER_SAMPLE, ())) == (12,):
        values = (values.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        values = 65535 - values
    levels = Image.fromarray(levels_of_16_bits(values))
    transparent = source.info.get("transparency")
    if transparent is not None:
        levels.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return levels


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an 8-bit picture into colours in L, RGB or CMYK, and alpha or None."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    elif image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        image = _transformed(image, ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB"))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif "transparency" in image.info and image.mode in ("1", "L", "RGB"):
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    return image, None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _with_profile(color: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """Convert colours from a profile (Display P3, Adobe RGB, a printer's CMYK) to sRGB.

    Many profiles equal sRGB up to rounding; colours are then unchanged.
    """
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if (
            color.mode == "L" and source.profile.xcolor_space.strip() == "RGB"
        ):  # a profile kept when the picture was converted to gray
            color = color.convert("RGB")
        transform = ImageCms.buildTransform(source, _srgb(), color.mode, "RGB")
        probe = _probe(color.mode)
        if probe is not None:
            changed = np.asarray(_transformed(probe, transform), np.int16)
            if np.abs(changed - np.asarray(probe.convert("RGB"), np.int16)).max() <= _ALMOST_EQUAL:
                return color
        return _transformed(color, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("has a colour profile that cannot be used, and is treated as sRGB")
        return color


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # None only for in-place transforms
    return result


def _probe(mode: str) -> Image.Image | None:
    """Return sample colours to test a transform: a grid of the RGB cube, or all grays; None for CMYK."""
    if mode == "CMYK":
        return None
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 8).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))


def write_image(path: str | os.PathLike[str], image: Image.Image, *, overwrite: bool = False) -> None:
    """Write a PNG file atomically.

    Raises:
        KinemaError: The file exists and `overwrite` is false, or cannot be written.
    """
    check_output_file(path, overwrite=overwrite)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
