"""Distillation of a pipeline into a student that needs few sampling steps and no guidance.

The teacher's steps from noise to clean latents are cut into as many segments as the student has steps. One Euler step
of the student shall do what the guided teacher does in a segment; see `objectives`.
"""

from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.generation.conditioning import Conditioning, given_steps
from kinema.generation.flow import flow_loss
from kinema.generation.guidance import sampler_settings
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import TextFeatures, TransformersTextEncoder
from kinema.tokenizers.interface import latent_shape
from kinema.training.accelerator import make_accelerator
from kinema.training.config import parse_shape
from kinema.training.data.sources import CaptionedClips
from kinema.training.data.toybox.schema import Split
from kinema.training.diffusion import Batch, DiffusionTask
from kinema.training.distillation_config import DistillationConfig
from kinema.training.entry import run_program
from kinema.training.latents_cache import LatentsCache, cached_latents
from kinema.training.loop import train as run_loop
from kinema.training.objectives import OBJECTIVES, Lesson
from kinema.training.presets import DISTILLATION_PRESETS, select_preset
from kinema.training.record import Record, check_depends
from kinema.training.run import open_run
from kinema.training.seeds import step_generator
from kinema.training.task import StepLoss
from kinema.training.teacher import Teacher, follow, predict, teacher_hash
from kinema.training.text import EncodeText, load_pipeline, make_text_encoder

_PATHS_IN_A_SHARD = 64
_AT_ONCE = 8
"""Clips evaluated at once."""


class DistillationTask(DiffusionTask):
    """A student, its teacher, and what it learns."""

    config: DistillationConfig

    def __init__(self, config: DistillationConfig, accelerator: Accelerator, start: Record | None = None) -> None:
        if config.objective not in OBJECTIVES:
            raise KinemaError(f"`objective` (={config.objective}) must be one of {', '.join(OBJECTIVES)}")
        if config.teacher is None:
            raise KinemaError("`teacher` (=None) must be the folder of a pipeline")
        self.objective = OBJECTIVES[config.objective]
        self.source: KinemaPipeline = load_pipeline(config.teacher, "teacher")
        config = with_teacher(config, self.source)
        self.teacher_hash = teacher_hash(self.source)
        check_depends(config, "teacher", self.teacher_hash, start)
        settings = sampler_settings(
            self.source.config, config.teacher_steps, config.teacher_guidance_scale, config.teacher_guidance_interval
        )
        self.teacher = Teacher(self.source.transformer.to(accelerator.device), self.source.scheduler, settings)
        self.levels = self.teacher.student_levels(config.student_steps)
        super().__init__(config, accelerator, start)
        self.scheduler = self.source.scheduler
        self.sampler = {"sample_steps": config.student_steps, "sample_guidance_scale": 1.0}
        self.score_name = (
            f"error of {config.student_steps} steps against {config.teacher_steps} with guidance"
            f" {config.teacher_guidance_scale:g} on {config.validation_clips} prompts"
        )

    def _make_tokenizer(self) -> Any:
        return self.source.vae

    def _make_clips(self, split: Split) -> CaptionedClips:
        """Clips; their first frames alone where it is the teacher's paths that are learnt."""
        _, height, width = parse_shape(self.config.shape)
        config = self.config if self.objective.on_clips else replace(self.config, shape=f"1x{height}x{width}")
        return CaptionedClips(config, split, self.vae.device)

    def _make_text_encoder(self, start: Record | None) -> tuple[Any, Any, EncodeText]:
        tokenizer, model = self.source.tokenizer, self.source.text_encoder
        length = self.source.transformer.config["text_max_length"]
        if model is not None:
            return tokenizer, model, TransformersTextEncoder(tokenizer, model.to(self.vae.device), length)
        config = replace(self.config, init_from=self.config.teacher, text_max_length=length)
        return make_text_encoder(config, self.clips, start)

    def _make_model(self, start: Record | None) -> Any:
        """The student starts as the teacher."""
        return deepcopy(self.teacher.transformer).requires_grad_(True)

    def depends_on(self) -> dict[str, Any]:
        """What the weights depend on, the teacher included."""
        return super().depends_on() | {"teacher": self.teacher_hash}

    # --- batches: the teacher's paths, and what they start from ---

    def batch(self, step: int) -> Batch:
        """As in a diffusion training; or the teacher's paths (kept ones), or what they start from (fresh ones)."""
        if self.objective.on_clips:
            return super().batch(step)
        numbers = self._clip_numbers(step)
        if self.cache is None:
            return self._starts(numbers, *self.clips(numbers), "train")
        packed, text = self.cache(numbers)
        paths = packed.unflatten(1, (len(self.levels), -1))
        return {"paths": paths, "given": self._are_given(numbers), "text": text.values, "mask": text.mask}

    def _starts(self, numbers: list[int], video: Tensor, captions: list[str], split: Split) -> Batch:
        """Noise, prompts and first frames; each path is a function of its number alone."""
        text = self.encode_text(captions)
        ratios = self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio
        shape = self.vae.latent_channels, *latent_shape(*parse_shape(self.config.shape), *ratios)
        noise = torch.stack([torch.randn(shape, generator=self._generator(n, f"path/{split}")) for n in numbers])
        first = {"first": video[:, :, :1]} if self.config.image_probability else {}
        return {"noise": noise, "given": self._are_given(numbers), "text": text.values, "mask": text.mask} | first

    def _are_given(self, numbers: list[int]) -> Bool[Tensor, " b"]:
        """Whether the first latent step is given, for each path."""
        draws = [torch.rand((), generator=self._generator(number, "given")) for number in numbers]
        return torch.stack(draws) < self.config.image_probability

    def _generator(self, number: int, purpose: str) -> torch.Generator:
        return step_generator(self.config.seed, 0, number, purpose)

    def _conditioning(self, starts: Batch) -> Conditioning:
        """What is given of the clips that paths lead to."""
        if "first" not in starts:
            return Conditioning.nothing(starts["noise"])
        first = self.vae.normalize(self._encode(starts["first"]))
        return given_steps(first, starts["given"], starts["noise"].shape[2])

    def paths(self, starts: Batch) -> Float[Tensor, "b bounds z t h w"]:
        """The guided teacher's states at the bounds of the student's steps, from noise to clean latents."""
        text = TextFeatures(starts["text"], starts["mask"])
        segments = len(self.levels) - 1
        return self.teacher.path(starts["noise"], self._conditioning(starts), text, self.null_text, segments)

    def _cached_latents(self) -> LatentsCache:
        """Paths are kept as latents are, their states side by side along the channels."""
        if self.objective.on_clips:
            return super()._cached_latents()
        names = ("student_steps", "teacher_steps", "teacher_guidance_scale", "teacher_guidance_interval")
        settings = self._cache_settings() | {name: getattr(self.config, name) for name in names}
        settings |= {"teacher": self.teacher_hash, "image_probability": self.config.image_probability}

        def make(numbers: range) -> tuple[Tensor, list[str]]:
            video, captions = self.clips(numbers)
            starts = self._starts(list(numbers), video, captions, "train")
            with self.autocast():
                paths = self.paths({name: value.to(self.vae.device) for name, value in starts.items()})
            return paths.flatten(1, 2), captions

        return cached_latents(
            self.config.run_cache_dir,
            settings,
            self.config.num_clips,
            make,
            lambda paths: paths,
            self.encode_text,
            self.vae.device,
            shard_size=_PATHS_IN_A_SHARD,
            max_length=self.source.transformer.config["text_max_length"],
        )

    # --- learning ---

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StepLoss:
        """The squared error of the student's velocity."""
        examples = self.objective.examples(self._lesson(batch, generator), generator)
        timestep = examples.conditioning.grouped_timesteps(examples.t, self.model.patch_size)
        velocity = predict(model, examples.states, timestep, examples.text)
        return StepLoss(flow_loss(velocity, examples.target, ~examples.conditioning.mask), {})

    def _lesson(self, batch: Batch, generator: torch.Generator) -> Lesson:
        if self.objective.on_clips:
            latents = clean = self.clean_latents(batch)
            draws = torch.rand(len(clean), generator=generator, device=generator.device)
            is_given = (draws < self.config.image_probability).to(clean.device)
        else:
            latents = batch["paths"] if "paths" in batch else self.paths(batch)
            clean, is_given = latents[:, -1], batch["given"]
        given = Conditioning.nothing(clean)
        if self.config.image_probability:
            given = given_steps(clean[:, :, :1], is_given, clean.shape[2])
        return Lesson(
            teacher=self.teacher,
            student=self.model,
            levels=self.levels,
            latents=latents,
            conditioning=given,
            text=TextFeatures(batch["text"], batch["mask"]),
            null=self.null_text,
            segments_per_step=self.config.segments_per_step or self.config.student_steps,
        )

    def _validation_batch(self) -> Batch | None:
        """What paths of validation prompts start from."""
        clips = self._make_clips("validation")
        numbers = list(range(self.config.validation_clips))
        if not clips.sources or not numbers:
            return None
        video, self.validation_prompts = clips(numbers)
        return self._starts(numbers, video, self.validation_prompts, "validation")

    @cached_property
    def _validation_ends(self) -> list[tuple[Batch, Tensor]]:
        """What paths start from, and where the teacher ends."""
        assert self.validation is not None
        parts: list[tuple[Batch, Tensor]] = []
        for rows in torch.arange(self.config.validation_clips).split(_AT_ONCE):
            starts = {name: value[rows].to(self.vae.device) for name, value in self.validation.items()}
            with self.autocast():
                parts.append((starts, self.paths(starts)[:, -1]))
        return parts

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """How far the student's clips are from the guided teacher's, from the same noise.

        The error is the mean square of the difference of their latents over the variance of the teacher's, where no
        latents are given; of clips of prompts alone, and of those that have their first latent step as well.
        """
        if self.validation is None:
            return {}
        self._attend_as_saved(model)
        squares, ends, is_given = [], [], []
        for starts, end in self._validation_ends:
            text, given = TextFeatures(starts["text"], starts["mask"]), self._conditioning(starts)
            with self.autocast():
                clean = self._student_path(model, starts["noise"], given, text)
            wanted = ~given.mask[:, None].expand_as(end)
            squares.append(((clean - end).square() * wanted).flatten(1).sum(1) / wanted.flatten(1).sum(1))
            ends.append(end[wanted])
            is_given.append(starts["given"])
        errors, image = torch.cat(squares) / torch.cat(ends).var(), torch.cat(is_given)
        parts = {"error_text": errors[~image], "error_image": errors[image]}
        return {"score": -float(errors.mean())} | {name: float(e.mean()) for name, e in parts.items() if len(e)}

    def _student_path(self, model: nn.Module, noise: Tensor, given: Conditioning, text: TextFeatures) -> Tensor:
        """Clean latents in the student's steps."""

        def velocity(latents: Tensor, step: int) -> Tensor:
            t = torch.full((len(latents),), self.levels[step], device=latents.device)
            return predict(model, latents, given.grouped_timesteps(t, self.model.patch_size), text)

        return follow(velocity, noise, self.levels, given)[-1]


def with_teacher(config: DistillationConfig, teacher: KinemaPipeline) -> DistillationConfig:
    """The settings, with the teacher's own where they are left out.

    Raises:
        KinemaError: the student has more steps than the teacher, or the teacher's are no multiple of the student's.
    """
    own: Any = teacher.config
    steps, default = config.student_steps, own["sample_steps"]
    if config.teacher_steps is None and steps > default:
        raise KinemaError(
            f"`student_steps` (={steps}) must be at most the {default} steps of `teacher` (={config.teacher}), unless"
            " `teacher_steps` is given"
        )
    scale = config.teacher_guidance_scale
    return replace(
        config,
        shape=config.shape or "x".join(map(str, own["sample_size"])),
        fps=config.fps or own["sample_fps"],
        teacher_steps=config.teacher_steps or -(-default // steps) * steps,
        teacher_guidance_scale=float(max(1.0, own["sample_guidance_scale"]) if scale is None else scale),
        teacher_guidance_interval=config.teacher_guidance_interval
        or tuple(map(float, own["sample_guidance_interval"])),
        shift=float(teacher.scheduler.config["shift"]),
        sample_steps=steps,
        guidance_scale=1.0,
    )


def train(config: DistillationConfig) -> Path:
    """Trains a student and returns the folder of its pipeline.

    Raises:
        KinemaError: the configuration, the teacher, the data or the run's folder does not allow it.
    """
    select_preset(DISTILLATION_PRESETS, config.preset)
    accelerator = make_accelerator(config)
    with open_run(config, accelerator) as run:
        task = DistillationTask(run.config, accelerator, run.start)
        return run_loop(task, replace(run, config=task.config), accelerator)


def main(argv: list[str] | None = None, program: str = "train_distillation") -> None:
    """Entry point: PRESET and settings from the command line.

    Raises:
        KinemaError: what the command line asks for is not allowed.
    """
    run_program(train, DISTILLATION_PRESETS, argv, program)
