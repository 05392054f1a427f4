"""What a student learns of its teacher.

Shapes: b batch, n rows of training examples, z channels, t h w the latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.generation.conditioning import Conditioning
from kinema.generation.flow import interpolate
from kinema.generation.text import TextFeatures
from kinema.training.teacher import Teacher, predict


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What examples are made of.

    Attributes:
        teacher: with guidance.
        student: the transformer, as it is now.
        levels: noise levels at the bounds of the student's steps.
        latents: clean latents (b, z, t, h, w), or the teacher's paths (b, bounds, z, t, h, w); see `Objective`.
        conditioning: what is given of each clip.
        text: the prompts.
        null: the empty prompt, one row.
        segments_per_step: of the student's steps, so many are trained for each clip.
    """

    teacher: Teacher
    student: Any
    levels: list[float]
    latents: Float[Tensor, "b ..."]
    conditioning: Conditioning
    text: TextFeatures
    null: TextFeatures
    segments_per_step: int


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What the student sees, and what it shall say.

    Attributes:
        states: noisy latents with the given ones in place.
        t: their noise levels.
        conditioning: what is given, which is no part of the loss.
        text: the prompts.
        target: the velocity.
    """

    states: Float[Tensor, "n z t h w"]
    t: Float[Tensor, " n"]
    conditioning: Conditioning
    text: TextFeatures
    target: Float[Tensor, "n z t h w"]


def trajectory(lesson: Lesson, generator: torch.Generator) -> Examples:
    """Segments of the teacher's own paths, each to be taken in one step (arXiv:2202.00512, alg. 2; arXiv:2405.07510).

    The student's velocity at the bound k is (x_k - x_{k+1}) / (s_k - s_{k+1}), of states x and noise levels s.
    """
    paths, number = lesson.latents, lesson.segments_per_step
    draws = torch.rand(paths.shape[0], paths.shape[1] - 1, generator=generator, device=generator.device)
    chosen = draws.argsort(1)[:, :number].flatten().to(paths.device)
    rows = torch.arange(len(paths), device=paths.device).repeat_interleave(number)
    levels = torch.tensor(lesson.levels, device=paths.device)
    t, end = levels[chosen], levels[chosen + 1]
    states = paths[rows, chosen]
    given = lesson.conditioning
    return Examples(
        states=states,
        t=t,
        conditioning=replace(given, latents=given.latents[rows], mask=given.mask[rows]),
        text=TextFeatures(lesson.text.values[rows], lesson.text.mask[rows]),
        target=(states - paths[rows, chosen + 1]) / _per_row(t - end),
    )


def consistency(lesson: Lesson, generator: torch.Generator) -> Examples:
    """From a noisy clip, where the student would go after one step of the teacher (arXiv:2403.06807, alg. 1).

    All that begins within a segment shall end in one place: the student's step from s to the segment's end leads where
    its step from s' leads, s' being the teacher's next noise level. The target is that of the velocity, the way to
    the end over its length, and has no gradient.
    """
    clean, given, device = lesson.latents, lesson.conditioning, lesson.latents.device
    num_steps = len(lesson.teacher.levels) - 1
    stride = num_steps // (len(lesson.levels) - 1)
    steps = torch.randint(num_steps, (len(clean),), generator=generator, device=generator.device).cpu()
    levels = torch.tensor(lesson.teacher.levels)
    t, after, end = (levels[i].to(device) for i in (steps, steps + 1, (steps // stride + 1) * stride))
    noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(device)
    start = given.impose(interpolate(clean, noise, t))
    between = start - _per_row(t - after) * lesson.teacher.velocity(start, steps, given, lesson.text, lesson.null)
    between = given.impose(between)
    with torch.no_grad():
        timestep = given.grouped_timesteps(after, lesson.student.patch_size)
        ended = between - _per_row(after - end) * predict(lesson.student, between, timestep, lesson.text)
    target = (start - ended) / _per_row(t - end)
    return Examples(states=start, t=t, conditioning=given, text=lesson.text, target=target)


@dataclass(frozen=True)
class Objective:
    """A way to learn.

    Attributes:
        examples: made of a lesson.
        on_clips: whether the lesson's latents are those of clips; else they are the teacher's paths.
    """

    examples: Callable[[Lesson, torch.Generator], Examples]
    on_clips: bool


OBJECTIVES = {
    "trajectory": Objective(trajectory, on_clips=False),
    "consistency": Objective(consistency, on_clips=True),
}


def _per_row(numbers: Float[Tensor, " b"]) -> Tensor:
    return numbers[:, None, None, None, None]
