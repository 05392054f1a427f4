"""Sampler settings: number of steps, and classifier-free guidance within an interval of noise levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinema.errors import KinemaError


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The sampler settings of one pipeline call.

    Attributes:
        num_inference_steps: Number of sampling steps, at least 1.
        guidance_scale: Scale of classifier-free guidance (arXiv:2207.12598, eq. 6): velocity = negative + scale ·
            (positive - negative). At 1 or below, the negative prompt is not used.
        guidance_interval: Half-open interval (lowest, highest] of noise levels in [0, 1] at which guidance is applied
            (arXiv:2404.07724, eq. 5); 1 is pure noise. Other steps evaluate only the prompt and take half the time.

    Raises:
        KinemaError: A value is out of range.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise KinemaError(f"`num_inference_steps` (={self.num_inference_steps}) must be at least 1")
        if not math.isfinite(self.guidance_scale):
            raise KinemaError(f"`guidance_scale` (={self.guidance_scale}) must be a finite number")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise KinemaError(f"`guidance_interval` (={low:g}, {high:g}) must be two rising numbers in [0, 1]")

    def guides(self, noise_level: float) -> bool:
        """Whether guidance applies to a step that starts at this noise level, in [0, 1]."""
        low, high = self.guidance_interval
        # Round, because float32 noise levels differ by one ulp between processors.
        return self.guidance_scale > 1 and low < round(noise_level, 6) <= high


def set_noise_levels(scheduler: Any, num_steps: int, device: Any = None) -> list[float]:
    """Sets a flow-matching scheduler to a number of steps, evenly spaced before it shifts them.

    Its own default would apply the shift to the last step twice.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, or one of its kind.
        num_steps: Steps of the sampler.
        device: Where the scheduler computes.

    Returns:
        The noise levels at which steps begin, falling from 1, and the 0 at which the last one ends.
    """
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps).tolist(), device=device)
    scheduler.set_begin_index(0)
    return scheduler.sigmas.tolist()


def check_clip_settings(sample_size: Sequence[Any], sample_fps: float) -> None:
    """Validate the clip size and frame rate in a pipeline's folder, whose numbers may be of any type.

    Raises:
        KinemaError: `sample_size` is not three integers of at least 1, or `sample_fps` is not in [0.001, 1000].
    """
    if len(sample_size) != 3 or not all(type(number) is int and number >= 1 for number in sample_size):
        raise KinemaError(f"`sample_size` (={tuple(sample_size)}) must be frames, height and width, each at least 1")
    if not isinstance(sample_fps, int | float) or not 0.001 <= sample_fps <= 1000:
        raise KinemaError(f"`sample_fps` (={sample_fps!r}) must be a number from 0.001 to 1000")


def sampler_settings(
    config: Mapping[str, Any],
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: Sequence[float] | None = None,
) -> SamplerSettings:
    """Return sampler settings, taking those that are None from the config.

    Args:
        config: A pipeline's configuration, with `sample_steps`, `sample_guidance_scale`, `sample_guidance_interval`.
        num_inference_steps: See `SamplerSettings`; None: `sample_steps`.
        guidance_scale: See `SamplerSettings`; None: `sample_guidance_scale`.
        guidance_interval: See `SamplerSettings`; None: `sample_guidance_interval`.

    Raises:
        KinemaError: A value is out of range.
    """
    interval = config["sample_guidance_interval"] if guidance_interval is None else guidance_interval
    if len(interval) != 2:
        raise KinemaError(f"`guidance_interval` (={tuple(interval)}) must be two rising numbers in [0, 1]")
    return SamplerSettings(
        num_inference_steps=config["sample_steps"] if num_inference_steps is None else num_inference_steps,
        guidance_scale=config["sample_guidance_scale"] if guidance_scale is None else guidance_scale,
        guidance_interval=(float(interval[0]), float(interval[1])),
    )
