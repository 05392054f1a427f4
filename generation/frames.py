"""Between what users hold (PIL images, arrays, uint8 frames) and the tensors of the pipeline."""

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
from kinema.video import opaque

OutputType = Literal["pt", "np", "pil", "latent"]
OUTPUT_TYPES: tuple[str, ...] = ("pt", "np", "pil", "latent")

Image = PIL.Image.Image | np.ndarray | Tensor


def image_tensor(image: Image, height: int, width: int) -> Float[Tensor, "1 3 1 h w"]:
    """Makes a one-frame clip of an image; resized to cover the wanted size and cropped at the centre.

    Args:
        image: a PIL image (what is transparent becomes white); an array (h, w, 3), uint8 or float in [0, 1]; or a
            tensor (3, h, w) in [0, 1].
        height: wanted height.
        width: wanted width. An image of the wanted size is not resampled.

    Returns:
        Values in [-1, 1].

    Raises:
        KinemaError: not an image of these kinds.
    """
    pixels = _to_unit_range(image)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise KinemaError(f"`image` (of shape {tuple(pixels.shape)}, channels first) must have three channels")
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    if scale != 1:
        size = (max(round(pixels.shape[1] * scale), height), max(round(pixels.shape[2] * scale), width))
        pixels = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    pixels = pixels[:, top : top + height, left : left + width]
    return rearrange(pixels * 2 - 1, "c h w -> 1 c 1 h w")


def _to_unit_range(image: Any) -> Tensor:
    """Any accepted image as float (c, h, w) in [0, 1]."""
    if isinstance(image, PIL.Image.Image):
        image = np.asarray(opaque(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3:
            raise KinemaError(f"`image` (an array of shape {image.shape}) must have the axes height, width, channel")
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)  # a copy: the array may be read-only
    elif isinstance(image, Tensor):
        pixels = image
    else:
        raise KinemaError(f"`image` (a {type(image).__name__}) must be a PIL image, an array or a tensor")
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    pixels = pixels.float()
    if pixels.numel() and (pixels.min() < 0 or pixels.max() > 1):
        raise KinemaError(
            f"`image` (values {float(pixels.min()):.3g} to {float(pixels.max()):.3g}) must have values in [0, 1]"
        )
    return pixels


def convert_video(
    video: Float[Tensor, "b 3 t h w"], output_type: str
) -> Float[Tensor, "b t 3 h w"] | np.ndarray | list[list[PIL.Image.Image]]:
    """Clips in [-1, 1] as the kind that is asked for.

    Args:
        video: clips.
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
    """One one-frame clip a prompt: an image for all of them, or a list of one each; None stays None.

    Raises:
        KinemaError: a list of another length.
    """
    if image is None:
        return None
    images: Any = image
    is_several = isinstance(image, (list, tuple)) or (isinstance(image, Tensor) and image.ndim == 4)
    images = list(images) if is_several else [images]
    if len(images) not in (1, num_prompts):
        raise KinemaError(f"`image` (a list of {len(images)}) must be one image or as many as prompts (={num_prompts})")
    clips = torch.cat([image_tensor(each, height, width) for each in images])
    return clips.expand(num_prompts, -1, -1, -1, -1)
