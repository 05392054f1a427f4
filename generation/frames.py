"""Conversion between user formats (PIL images, arrays, uint8 frames) and the tensors of the pipeline."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.images import rgb_picture

OutputType = Literal["pt", "np", "pil", "latent"]
OUTPUT_TYPES: tuple[str, ...] = ("pt", "np", "pil", "latent")

_EXTREME = 16  # maximum length of an image, in multiples of the requested height or width
_TOLERANCE = 1e-3  # for values outside [0, 1]; less than half an 8-bit level

Image = PIL.Image.Image | np.ndarray | Tensor


def image_tensor(image: object, height: int, width: int, *, name: str = "image") -> Float[Tensor, "1 3 1 h w"]:
    """Convert an image to a one-frame clip, resized to cover the requested size and centre-cropped.

    Args:
        image: a PIL image of any mode that `kinema.images.rgb_picture` takes; an array (h, w), (h, w, c) or a tensor
            (h, w), (c, h, w) of c = 1 to 4 channels: gray, gray and alpha, RGB, RGB and alpha. Levels are uint8,
            uint16, or floats in [0, 1]. Transparent pixels are blended with white.
        height: output height.
        width: output width. An image of the output size is not resampled.
        name: name of the argument in errors.

    Returns:
        Values in [-1, 1].

    Raises:
        KinemaError: `image` is not of a supported type, shape or range.
    """
    if isinstance(image, PIL.Image.Image):
        pixels = _from_array(np.asarray(rgb_picture(image, f"`{name}`")), name)
    elif isinstance(image, np.ndarray):
        pixels = _from_array(image, name)
    elif isinstance(image, Tensor):
        pixels = image if image.ndim != 2 else image[None]
    else:
        raise KinemaError(f"`{name}` (a {type(image).__name__}) must be a PIL image, an array or a tensor")
    pixels = _crop_extremes(_to_rgb(pixels, image, name), height, width)
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    if scale != 1:
        size = (max(round(pixels.shape[1] * scale), height), max(round(pixels.shape[2] * scale), width))
        pixels = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return rearrange(_center_crop(pixels, height, width) * 2 - 1, "c h w -> 1 c 1 h w")


def _center_crop(pixels: Float[Tensor, "3 _ _"], height: int, width: int) -> Float[Tensor, "3 h w"]:
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _crop_extremes(pixels: Float[Tensor, "3 _ _"], height: int, width: int) -> Float[Tensor, "3 _ _"]:
    """Crop extreme aspect ratios before resizing: a 1x20000 image would be enlarged to a huge size and then cropped."""
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    rows, columns = (math.ceil(_EXTREME * wanted / scale) for wanted in (height, width))
    return _center_crop(pixels, min(rows, pixels.shape[1]), min(columns, pixels.shape[2]))


def _from_array(image: np.ndarray, name: str) -> Tensor:
    """Convert an array to a tensor, channels first and in native byte order, which torch requires."""
    if image.dtype.kind not in "bfiu":
        raise KinemaError(f"`{name}` (an array of {image.dtype}) must be of uint8, uint16 or floats")
    if image.dtype.kind == "f" and image.dtype.itemsize > 8:
        image = image.astype(np.float64)
    pixels = torch.from_numpy(image.astype(image.dtype.newbyteorder("="), copy=True))  # the array may be read-only
    return pixels[None] if pixels.ndim < 3 else pixels.movedim(-1, 0)


def _to_rgb(pixels: Tensor, image: Any, name: str) -> Float[Tensor, "3 h w"]:
    """Validate pixels, scale them to [0, 1] and blend transparent ones with white.

    Args:
        pixels: the image, channels first.
        image: the user's image, for errors.
        name: name of the argument in errors.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 2, 3, 4) or 0 in pixels.shape:
        kind, axes = ("tensor", "(channels, height, width)") if isinstance(image, Tensor) else (
            "array", "(height, width, channels)"
        )  # fmt: skip
        raise KinemaError(
            f"`{name}` (of shape {tuple(image.shape)}) must have the axes {axes} of {kind}s, with 1 to 4 channels"
        )
    pixels = _to_unit_range(pixels, name)
    if pixels.shape[0] in (2, 4):
        pixels = pixels[:-1] * pixels[-1:] + (1 - pixels[-1:])
    return pixels.expand(3, -1, -1)


def _to_unit_range(pixels: Tensor, name: str) -> Tensor:
    """Scale pixels to floats in [0, 1]. Other integer types are rejected, because their range is unknown."""
    if pixels.dtype in (torch.uint8, torch.uint16):
        return pixels.float() / (255 if pixels.dtype == torch.uint8 else 65535)
    if pixels.dtype != torch.bool and not pixels.is_floating_point():
        dtype = str(pixels.dtype).removeprefix("torch.")
        raise KinemaError(f"`{name}` (of {dtype}) must be of uint8, uint16, or floats in [0, 1]")
    pixels = pixels.detach().float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also false for NaN
        raise KinemaError(
            f"`{name}` (values {low:.4g} to {high:.4g}) must have values in [0, 1], or be of uint8 or uint16"
        )
    return pixels.clamp(0, 1)


def convert_video(
    video: Float[Tensor, "b 3 t h w"], output_type: str
) -> Float[Tensor, "b t 3 h w"] | np.ndarray | list[list[PIL.Image.Image]]:
    """Convert clips to the requested output type.

    Args:
        video: clips in [-1, 1].
        output_type: "pt": tensor (b, t, 3, h, w) in [0, 1]; "np": array (b, t, h, w, 3) in [0, 1]; "pil": a list of
            images for each clip.
    """
    frames = rearrange((video.float() / 2 + 0.5).clamp(0, 1), "b c t h w -> b t c h w")
    if output_type == "pt":
        return frames
    array = rearrange(frames, "b t c h w -> b t h w c").cpu().numpy()
    if output_type == "np":
        return array
    return [[PIL.Image.fromarray(frame) for frame in clip] for clip in (array * 255).round().astype(np.uint8)]


def images_for_prompts(
    image: Image | Sequence[Image] | None, num_prompts: int, height: int, width: int
) -> Float[Tensor, "b 3 1 h w"] | None:
    """Return a one-frame clip per prompt, from one image for all prompts or one per prompt; None stays None.

    Args:
        image: an image, a list of images, an array (b, h, w, c) or a tensor (b, c, h, w).
        num_prompts: number of prompts.
        height: output height.
        width: output width.

    Raises:
        KinemaError: the number of images is neither 1 nor `num_prompts`, or an image is invalid.
    """
    if image is None:
        return None
    images: Any = image
    is_batch = isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
    is_several = isinstance(image, (list, tuple)) or is_batch
    images = list(images) if is_several else [images]
    if len(images) not in (1, num_prompts):
        raise KinemaError(f"`image` (a list of {len(images)}) must be one image or as many as prompts (={num_prompts})")
    names = [f"image[{number}]" if is_several else "image" for number in range(len(images))]
    clips = [image_tensor(each, height, width, name=each_name) for each, each_name in zip(images, names, strict=True)]
    return torch.cat(clips).expand(num_prompts, -1, -1, -1, -1)
