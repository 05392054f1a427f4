"""The teacher of a distillation, and the paths that it takes from noise to clips.

Shapes: b batch, z channels, t h w the latent grid, k the student's steps.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from hashlib import sha256
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.conditioning import Conditioning
from kinema.generation.guidance import SamplerSettings, set_noise_levels
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import TextFeatures
from kinema.training.latents_cache import model_hash


class Teacher:
    """A frozen transformer with guidance.

    Args:
        transformer: predicts the flow's velocity.
        scheduler: of its pipeline, which is left as it is.
        settings: steps and guidance.

    Attributes:
        levels: noise levels (steps + 1) of its steps, as its pipeline has them, falling from 1 to 0.
    """

    def __init__(self, transformer: Any, scheduler: Any, settings: SamplerSettings) -> None:
        self.transformer = transformer.eval().requires_grad_(False)
        self.settings = settings
        self.levels: list[float] = set_noise_levels(deepcopy(scheduler), settings.num_inference_steps)
        self._scales = [settings.guidance_scale if settings.guides(level) else 1.0 for level in self.levels]

    def student_levels(self, num_steps: int) -> list[float]:
        """Noise levels (k + 1) of a student, each one of the teacher's.

        Raises:
            KinemaError: the teacher's steps are no multiple of the student's.
        """
        stride, rest = divmod(len(self.levels) - 1, num_steps)
        if rest:
            raise KinemaError(f"`teacher_steps` (={len(self.levels) - 1}) must be a multiple of {num_steps}")
        return self.levels[::stride]

    @torch.no_grad()
    def velocity(
        self,
        latents: Float[Tensor, "b z t h w"],
        steps: Int[Tensor, " b"],
        conditioning: Conditioning,
        text: TextFeatures,
        null: TextFeatures,
    ) -> Float[Tensor, "b z t h w"]:
        """The guided velocity (arXiv:2207.12598, eq. 6) of each clip where one of the teacher's steps begins.

        Args:
            latents: noisy, at the noise level of their step.
            steps: which one, from 0 (noise); on the CPU.
            conditioning: what is given.
            text: the prompts.
            null: the empty prompt, one row.
        """
        t = torch.tensor(self.levels)[steps].to(latents.device)
        timestep = conditioning.grouped_timesteps(t, self.transformer.patch_size)
        scale = torch.tensor(self._scales)[steps]
        towards = predict(self.transformer, latents, timestep, text)
        if not bool((scale > 1).any()):
            return towards
        rows = torch.zeros(len(latents), dtype=torch.int64)
        away = predict(self.transformer, latents, timestep, null.select(rows))
        return away + scale.to(latents.device)[:, None, None, None, None] * (towards - away)

    @torch.no_grad()
    def path(
        self,
        noise: Float[Tensor, "b z t h w"],
        conditioning: Conditioning,
        text: TextFeatures,
        null: TextFeatures,
        num_segments: int = 1,
    ) -> Float[Tensor, "b states z t h w"]:
        """The states at the bounds of segments (segments + 1), from noise to clean latents, given latents in place."""

        def velocity(latents: Tensor, step: int) -> Tensor:
            return self.velocity(latents, torch.full((len(latents),), step), conditioning, text, null)

        states = follow(velocity, noise, self.levels, conditioning)
        return torch.stack(states[:: (len(states) - 1) // num_segments], dim=1)


def predict(
    model: Any, latents: Float[Tensor, "b z t h w"], timestep: Float[Tensor, "b ..."], text: TextFeatures
) -> Float[Tensor, "b z t h w"]:
    """The velocity that a transformer sees, in float32; a timestep is that of `Conditioning.grouped_timesteps`."""
    return model(latents, timestep, text.values, text.mask).sample.float()


def follow(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Float[Tensor, "b z t h w"],
    levels: Sequence[float],
    conditioning: Conditioning,
) -> list[Float[Tensor, "b z t h w"]]:
    """Euler steps down a row of noise levels, as the pipeline takes them.

    Args:
        velocity: from latents and the number of the step.
        noise: where it starts.
        levels: falling, one more than steps.
        conditioning: what is given, and stays in place.

    Returns:
        The states at all levels.
    """
    states = [conditioning.impose(noise)]
    for step, (level, following) in enumerate(pairwise(levels)):
        moved = states[-1] + (following - level) * velocity(states[-1], step)
        states.append(conditioning.impose(moved))
    return states


def teacher_hash(teacher: KinemaPipeline) -> str:
    """A hash of what the teacher's velocity depends on: transformer, text encoder, noise levels."""
    models = [model for model in (teacher.transformer, teacher.text_encoder) if model is not None]
    parts = [model_hash(model, without=("transformers_version",)) for model in models]
    return sha256(f"{parts} {teacher.scheduler.sigmas.tolist()}".encode()).hexdigest()
