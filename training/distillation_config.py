"""The settings of a distillation: those of a diffusion training that it has, and its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kinema.errors import KinemaError
from kinema.training.config import DiffusionTrainingConfig

_OF_DIFFUSION = (
    *("tokenizer", "text_encoder", "text_max_length", "init_from", "attention", "coarse_tile", "anneal_every"),
    *("shift", "uniform_fraction", "loss_weighting", "image_noise", "text_drop", "sample_steps", "guidance_scale"),
)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(DiffusionTrainingConfig):
    """Training of a student that needs few sampling steps and no guidance, from a pipeline that needs many and some."""

    hidden: ClassVar[tuple[str, ...]] = (*DiffusionTrainingConfig.hidden, *_OF_DIFFUSION)
    needs_shape: ClassVar[bool] = False

    teacher: Path | None = None
    """Folder of a pipeline, or the name of the embedded one. The student starts from its transformer and takes its
    tokenizer, its text encoder and its schedule of noise levels."""
    objective: str = "trajectory"
    """What the student learns: `trajectory`, the guided teacher's own paths from noise, or `consistency`, on clips."""
    student_steps: int = 4
    """Sampling steps of the student."""
    teacher_steps: int | None = None
    """Sampling steps of the teacher, a multiple of the student's (default: the smallest one that is not below the
    number in the teacher's folder)."""
    teacher_guidance_scale: float | None = None
    """Guidance of the teacher (default: as in its folder); at 1 it has none."""
    teacher_guidance_interval: tuple[float, float] | None = None
    """Noise levels between which the teacher is guided (default: as in its folder)."""
    segments_per_step: int | None = None
    """Of the student's steps, so many are trained for each clip of a batch, drawn anew each time (default: all). They
    cost memory and time as so many clips would; the teacher's path is computed once for all of them."""

    shape: str = ""
    """Clip size as FRAMESxHEIGHTxWIDTH (default: as in the teacher's folder)."""
    fps: float | None = None
    """Frames a second of clips (default: as in the teacher's folder)."""
    num_clips: int = 0
    """Paths of the teacher (for `consistency`: latents of clips) that are computed once and kept; 0: new ones in each
    step. A path costs twice what training on it does, so that a slow machine gets further with paths that it kept."""
    validation_clips: int = 8
    """Prompts of the score: how far the student ends from the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.student_steps
        if steps < 1:
            raise KinemaError(f"`student_steps` (={steps}) must be at least 1")
        if self.teacher_steps is not None and (self.teacher_steps < steps or self.teacher_steps % steps):
            raise KinemaError(
                f"`teacher_steps` (={self.teacher_steps}) must be a multiple of `student_steps` (={steps})"
            )
        if self.teacher_guidance_scale is not None and self.teacher_guidance_scale < 1:
            raise KinemaError(f"`teacher_guidance_scale` (={self.teacher_guidance_scale}) must be at least 1")
        segments = self.segments_per_step
        if segments is not None and not 1 <= segments <= steps:
            raise KinemaError(
                f"`segments_per_step` (={segments}) must be at least 1 and at most `student_steps` (={steps})"
            )
