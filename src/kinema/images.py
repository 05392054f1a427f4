"""Pictures as RGB, by one reader wherever they come from: files, PIL images, and the pictures of a page in the browser.

Shapes: `h w c` in uint8. What becomes of each kind of picture is in docs/pictures.md.
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
"""Largest picture that is read, 134 million pixels: a small file can ask for any amount of memory."""

# Left out: EPS and WMF, which other programs draw, and kinds that hold measurements rather than pictures.
_FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "SGI", "PCX", "QOI", "DDS",
    "ICO", "PSD",
)  # fmt: skip
_ALMOST_EQUAL = 2
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


class PictureWarning(UserWarning):
    """A part of a picture file is not used: pictures after the first, or a colour profile that is damaged."""


def read_image(path: str | os.PathLike[str], *, name: str = "path") -> UInt8[Tensor, "h w 3"]:
    """Read a picture as it is displayed: in sRGB, upright, on white where it is transparent.

    Args:
        path: The file; of an animation or of several pages the first picture is read.
        name: What errors call the argument.

    Raises:
        KinemaError: The file is missing, empty, truncated or no picture; it has more than `MAX_PIXELS`; or its levels
            have no stated range (32 bits, floats).

    Warns:
        PictureWarning: There are more pictures in the file, or its colour profile cannot be used.
    """
    with _opened(path, name) as (image, argument):
        return torch.from_numpy(np.array(rgb_picture(image, argument)))


def read_image_with_alpha(path: str | os.PathLike[str], *, name: str = "path") -> UInt8[Tensor, "h w 4"]:
    """Read a picture as `read_image` does, but with its transparency as a fourth channel: 255 is opaque."""
    with _opened(path, name) as (image, argument):
        color, alpha = _displayed(image, argument)
        color.putalpha(255 if alpha is None else alpha)
        return torch.from_numpy(np.array(color))


@contextmanager
def _opened(path: str | os.PathLike[str], name: str) -> Iterator[tuple[Image.Image, str]]:
    """A picture file, not read beyond its header, and what errors call it."""
    check_input_file(Path(path), name)
    argument = f"`{name}` (={str(path)!r})"
    Image.init()
    try:
        with _without_warnings():
            image = Image.open(path, formats=[each for each in _FORMATS if each in Image.OPEN])
            # In a JPEG file (MPO) the second picture is a preview.
            is_one_of_many = image.format != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise KinemaError(f"{argument} must have at most {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises a dozen kinds over damaged files
        raise KinemaError(
            f"{argument} must be a picture (PNG, JPEG, WebP, TIFF, ...), complete and readable"
        ) from error
    with image:
        if is_one_of_many:
            _warn(f"{argument} has several pictures, of which the first is taken")
        yield image, argument


def rgb_picture(image: Image.Image, argument: str = "`image`") -> Image.Image:
    """A picture of PIL as it is displayed: RGB with 8 bits in sRGB, upright, on white where it is transparent.

    Args:
        image: A picture of any mode, loaded or not; of an animation, the frame that it stands at.
        argument: What errors call it.

    Raises:
        KinemaError: As of `read_image`.

    Warns:
        PictureWarning: As of `read_image`.
    """
    color, alpha = _displayed(image, argument)
    if alpha is None:
        return color
    color.putalpha(alpha)
    white = Image.new("RGBA", color.size, "white")
    white.alpha_composite(color)
    return white.convert("RGB")


def _displayed(image: Image.Image, argument: str) -> tuple[Image.Image, Image.Image | None]:
    """The colours of a picture as RGB in sRGB, and how opaque they are (L); None for a picture that is opaque."""
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
            if profile and picture.mode != "LAB":  # which needs none, and is sRGB by now
                color = _with_profile(color, profile, notes)
            color = color.convert("RGB")
    except KinemaError:
        raise
    except Exception as error:  # as above
        raise KinemaError(f"{argument} must be a picture, complete and readable") from error
    for note in notes:
        _warn(f"{argument} {note}")
    return color, alpha


def opaque(image: Image.Image) -> Image.Image:
    """A picture in RGB on white: what lies under transparent pixels is chance. Another name of `rgb_picture`."""
    return rgb_picture(image)


def levels_of_16_bits(values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Levels 0 to 65535 as the nearest of 0 to 255."""
    table = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
    return table[values]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns and logs about large pictures, which have a limit here, and about damage, which becomes an error."""
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
    """The transparent colour of a PNG file in the levels that Pillow makes of its pixels.

    Pillow keeps the file's number, whereas it spreads gray of 2 or 4 bits over 0 to 255, and takes the upper 8 of 16
    bits of a colour. What the file had is known only until its pixels are read.
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
    """The box that the first frame of a GIF file fills, where that is not all of it; the rest is transparent."""
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
    except Exception:  # damaged EXIF data says nothing about the orientation
        return image


def _in_eight_bits(image: Image.Image, source: Image.Image, argument: str) -> Image.Image:
    """A picture of 8 bits a channel.

    Args:
        image: The picture.
        source: As it was opened; says of which format it is.
        argument: What errors call it.
    """
    # Pillow holds 16 bits of a PNG or PGM file as 32 in some versions.
    if image.mode == "F" or (image.mode == "I" and source.format not in ("PNG", "PPM")):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise KinemaError(f"{argument} must have 8 or 16 bits a channel, and has {kind}, whose range is not stated")
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
    """The colours of a picture of 8 bits, in L, RGB or CMYK, and how opaque they are."""
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
    """Colours of a profile (Display P3, Adobe RGB, a printer's CMYK) in sRGB.

    Those of the many profiles that are sRGB but for rounding stay what they are.
    """
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if color.mode == "L" and source.profile.xcolor_space.strip() == "RGB":  # left from before it became gray
            color = color.convert("RGB")
        transform = ImageCms.buildTransform(source, _srgb(), color.mode, "RGB")
        probe = _probe(color.mode)
        if probe is not None:
            changed = np.asarray(_transformed(probe, transform), np.int16)
            if np.abs(changed - np.asarray(probe.convert("RGB"), np.int16)).max() <= _ALMOST_EQUAL:
                return color
        return _transformed(color, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("has a colour profile that cannot be used, and is taken as sRGB")
        return color


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # only changes in place give None
    return result


def _probe(mode: str) -> Image.Image | None:
    """Colours from all over the cube of RGB, or all grays."""
    if mode == "CMYK":
        return None
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 8).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))


def write_image(path: str | os.PathLike[str], image: Image.Image, *, overwrite: bool = False) -> None:
    """Write a PNG file, whole or not at all.

    Raises:
        KinemaError: The file exists and `overwrite` is not set.
    """
    check_output_file(path, overwrite=overwrite)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
