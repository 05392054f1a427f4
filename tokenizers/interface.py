"""What every video tokenizer offers: pixels to latents and back, whatever the network behind it.

Shapes: video ``(b, 3, t, h, w)`` in [-1, 1]; latents ``(b, z, t', h', w')`` with ``t' = 1 + ceil((t - 1) / ct)``,
``h' = ceil(h / cs)``, ``w' = ceil(w / cs)``; one frame is an image.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError


@dataclass(kw_only=True)
class TokenizerOutput:
    """What ``encode`` returns.

    Attributes:
        latents: ``(b, z, t', h', w')``, deterministic: the mode of the posterior, or the quantised code.
        latent_dist: the posterior (KL only), with ``.sample(generator)`` and ``.mode()``.
        indices: ``(b, t', h', w')`` code indices (discrete bottlenecks only).
        num_frames, height, width: the size of the video that was given, before padding.
        losses: the bottleneck's loss terms by name, each a scalar.
    """

    latents: Float[Tensor, "b z t h w"]
    num_frames: int
    height: int
    width: int
    latent_dist: Any = None
    indices: Int[Tensor, "b t h w"] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Decoded(Protocol):
    """What ``decode`` returns: ``.sample`` is the video."""

    sample: Tensor


@runtime_checkable
class VideoTokenizer(Protocol):
    """The interface that pipelines, trainers and metrics rely on."""

    @property
    def temporal_compression_ratio(self) -> int: ...

    @property
    def spatial_compression_ratio(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(self, video: Tensor) -> TokenizerOutput: ...

    def decode(
        self, latents: Tensor, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Decoded: ...

    def reconstruct(self, video: Tensor) -> Tensor: ...

    def normalize(self, latents: Tensor) -> Tensor: ...

    def denormalize(self, latents: Tensor) -> Tensor: ...


def latent_shape(num_frames: int, height: int, width: int, ct: int, cs: int) -> tuple[int, int, int]:
    """The latent grid ``(t', h', w')`` that holds a clip of the given size.

    Raises:
        KinemaError: a size is below 1.
    """
    for name, value in (("num_frames", num_frames), ("height", height), ("width", width)):
        if value < 1:
            raise KinemaError(f"`{name}` (={value}) must be at least 1")
    return 1 + ceil((num_frames - 1) / ct), ceil(height / cs), ceil(width / cs)


def pad_to_grid(video: Float[Tensor, "b c t h w"], ct: int, cs: int) -> Float[Tensor, "b c tp hp wp"]:
    """Pads a clip to whole latent steps: the last frame is repeated, the right and bottom edges are replicated."""
    t, h, w = video.shape[2:]
    tl, hl, wl = latent_shape(t, h, w, ct, cs)
    return repeat_ends(video, (1 + (tl - 1) * ct - t, hl * cs - h, wl * cs - w))


def repeat_ends(video: Float[Tensor, "b c t h w"], more: tuple[int, int, int]) -> Float[Tensor, "b c tp hp wp"]:
    """A clip with so many more frames, rows and columns: copies of the last one."""
    for axis, extra in zip((2, 3, 4), more, strict=True):
        if extra:
            end = video.narrow(axis, video.shape[axis] - 1, 1)
            video = torch.cat([video, end.expand(*(extra if a == axis else -1 for a in range(5)))], dim=axis)
    return video
