"""The configuration of a diffusion training."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from kinema.training.config_base import (
    IN_UNIT_INTERVAL,
    IS_RATE,
    TrainingConfig,
    above,
    at_least,
    check,
    parse_shape,
)


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig(TrainingConfig):
    """Training of a `VideoTransformer` on the latents of a tokenizer.

    Attributes:
        needs_shape: whether `shape` must be given.
    """

    needs_shape: ClassVar[bool] = True

    tokenizer: Path | None = None
    """Folder of the trained tokenizer, for example `model` in its run's folder."""
    text_encoder: Path | None = None
    """Folder of a frozen `transformers` text encoder (default: embeddings of the captions' words, trained as well)."""
    text_max_length: int = 64
    """Maximum number of prompt tokens."""
    shape: str = "17x64x64"
    """Clip size as FRAMESxHEIGHTxWIDTH."""
    fps: float | None = None
    """Frames per second of training clips and of generated clips. Files with other rates are resampled: frames are
    dropped or repeated, so that motion keeps its speed. Default: the rate of a source that cannot resample (8 for
    Toybox), or else the median rate of the files."""
    num_clips: int = 30_000
    """Number of clips whose latents are computed once and cached; 0: new clips, encoded in each step."""
    cache_short_side: int = 160
    """Short side at which video files are decoded once, in pixels."""
    max_stride: int = 1
    """Maximum step between two frames of a clip from a video file, after resampling to `fps`; a stride of 2 doubles the
    speed of motion."""
    max_zoom_out: float = 2.0
    """Crops of video files are up to this many times larger than the clip, and scaled down."""

    fsdp: bool = False
    """Shard weights, gradients, their average and the optimizer state over all processes (FSDP2), for models that do
    not fit into one GPU. Evaluation and sampling run in the first process, which needs memory for one whole model."""
    attention: str | None = None
    """Attention pattern, see `kinema attention patterns` (default: the preset's, mostly full attention)."""
    context_parallel: int = 1
    """Number of processes that share the tokens of each clip (Ulysses), for clips that do not fit into one GPU. It must
    divide the number of processes and of attention heads. Evaluation and sampling run in the first process alone."""
    coarse_tile: tuple[int, int, int] | None = None
    """Tile size (t, h, w) of VSA's gated coarse branch, which is added to any attention pattern (default: none)."""
    anneal_every: int | None = None
    """Steps between two reductions of the share of tiles that tokens attend to, by 0.03 each, from all tiles to the
    `share` of an `attention` tile-top-k, as in VSA (which uses 50). Evaluation and sampling use the final share, as the
    saved model does."""

    shift: float | None = 2.0
    """Shift of the timesteps towards noise (None: from the number of tokens)."""
    uniform_fraction: float = 0.1
    """Share of timesteps drawn uniformly; the others are logit-normal."""
    loss_weighting: Literal["uniform", "min-snr"] = "uniform"
    """Weight of the velocity's squared error as a function of the timestep."""
    image_probability: float = 0.25
    """Share of clips that are trained as image-to-video, with their first latent frame as the condition."""
    image_noise: float = 0.05
    """Maximum noise level of the condition, drawn for each clip."""
    text_drop: float = 0.1
    """Share of clips trained without their prompt, for classifier-free guidance."""

    validation_clips: int = 128
    """Number of clips of the validation loss."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample clips (default: captions of validation clips)."""
    num_samples: int = 6
    """Number of sample clips, if no prompts are given."""
    sample_steps: int = 20
    """Sampling steps of the sample clips."""
    guidance_scale: float = 3.0
    """Guidance scale of the sample clips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape or self.needs_shape:
            parse_shape(self.shape)
        check(self, IS_RATE, "fps")
        check(self, at_least(0), "num_clips", "validation_clips", "num_samples")
        check(self, at_least(1), "cache_short_side", "max_stride", "max_zoom_out", "text_max_length", "sample_steps")
        check(self, at_least(1), "context_parallel", "anneal_every")
        check(self, IN_UNIT_INTERVAL, "uniform_fraction", "image_probability", "image_noise", "text_drop")
        check(self, above(0), "shift")
