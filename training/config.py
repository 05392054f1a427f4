"""Training configurations: typed, frozen, saved with the weights.

The settings that presets train with are in `presets.py`.
"""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from kinema.errors import KinemaError
from kinema.training.config_json import from_dict, save_config, to_dict

VALIDATION_PREFIXES = ("bunny_", "cat_", "pedestrians_", "splide_")
"""The clips that the embedded tokenizer was not trained on."""

__all__ = [
    "VALIDATION_PREFIXES",
    "DiffusionTrainingConfig",
    "TokenizerTrainingConfig",
    "TrainingConfig",
    "from_dict",
    "parse_shape",
    "save_config",
    "to_dict",
]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training has: where data and results are, how long, how fast, how often things are looked at.

    Attributes:
        hidden: settings that no command line has: they are given otherwise.
    """

    hidden: ClassVar[tuple[str, ...]] = ("preset",)

    preset: str
    """Name of the model and of these default settings."""
    data: tuple[str, ...] = ()
    """Folders of video files, and/or the word `toybox`."""
    data_weights: tuple[float, ...] = ()
    """Share of the clips that each entry of `data` gives (default: equal shares)."""
    sprites: Path | None = None
    """Sprite folder of the Toybox world (default: built-in drawn shapes)."""
    toybox_objects: Literal["default", "all"] = "default"
    """Which objects Toybox clips show."""
    toybox_num_objects: tuple[int, int] = (1, 1)
    """Least and largest number of objects in a Toybox clip."""
    validation: tuple[str, ...] = ()
    """Prefixes of file names: these sources are never trained on, and evaluated."""
    output: Path | None = None
    """The run's folder (default: runs/PRESET)."""
    cache_dir: Path | None = None
    """Where decoded clips and latents are kept (default: the folder `cache` of the run)."""
    init_from: Path | None = None
    """Start from the weights in this folder: of a tokenizer for a tokenizer (one with another bottleneck gives its
    networks, and the linear path is fitted anew and frozen), of a pipeline for a transformer."""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder (from the start when there is none)."""
    seed: int = 0
    """Seed of the weights, of the data and of the noise."""

    batch_size: int = 8
    """Clips a step and process (or group of processes that share clips)."""
    num_steps: int = 20_000
    """Optimizer steps of the whole training."""
    max_minutes: float | None = None
    """Stop (and save) after this time, all parts of the run together."""
    schedule_on: Literal["steps", "minutes"] = "steps"
    """What the learning rate follows: steps out of `num_steps`, or time out of `max_minutes` (not bit-exact)."""
    schedule: Literal["trapezoid", "cosine", "constant"] = "trapezoid"
    """Shape of the learning rate after the warm-up."""
    decay_fraction: float = 0.3
    """Last part of the training over which a trapezoid falls to zero."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises from zero."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices and kernels of repeated blocks with AdamW for the rest, or AdamW for all."""
    learning_rate: float = 1e-3
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's two running means."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices and kernels only."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    max_skipped_steps: int = 20
    """A step whose loss or gradient is not finite is left out; this many in a row stop the training."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are what is evaluated and saved."""
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    """Autocast type; the weights themselves stay float32. auto: bf16 where the device computes in it, else none."""
    tf32: bool = True
    """Float32 matrix products and convolutions of a GPU in TF32: 10 bits of mantissa, several times as fast."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the repeated blocks of the model (auto: on a GPU). Where no compiler is found, they run as they are."""
    gradient_checkpointing: bool = False
    """Compute activations of blocks again in the backward pass: less memory, a third more time."""
    num_workers: int = 1
    """Threads that prepare the next batches (0: none)."""
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""

    log_every: int = 50
    """Steps between two lines of the log."""
    eval_every: int = 1000
    """Steps between two evaluations."""
    sample_every: int = 1000
    """Steps between two sample clips."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep_last: int = 2
    """Checkpoints kept besides the best one."""

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("batch_size", "num_steps", "log_every", "eval_every", "sample_every", "save_every", "keep_last"):
            _require(self, name, getattr(self, name) >= 1, "be at least 1")
        _require(self, "max_skipped_steps", self.max_skipped_steps >= 1, "be at least 1")
        _require(self, "seed", abs(self.seed) < 2**63, "be in (-2^63, 2^63)")
        for name in ("data", "validation"):
            _require(self, name, all(getattr(self, name)), "have no empty entry")
        for name in ("warmup_steps", "num_workers", "weight_decay"):
            _require(self, name, getattr(self, name) >= 0, "be at least 0")
        _require(self, "learning_rate", self.learning_rate > 0, "be above 0")
        _require(self, "max_grad_norm", self.max_grad_norm > 0, "be above 0")
        _require(self, "ema_decay", 0 <= self.ema_decay < 1, "be in [0, 1)")
        _require(self, "betas", all(0 <= beta < 1 for beta in self.betas), "be in [0, 1)")
        _require(self, "decay_fraction", 0 < self.decay_fraction <= 1, "be in (0, 1]")
        _require(self, "max_minutes", self.max_minutes is None or self.max_minutes > 0, "be above 0")
        _require(
            self,
            "schedule_on",
            self.schedule_on == "steps" or self.max_minutes is not None,
            "be 'steps' unless `max_minutes` is given",
        )
        _require(
            self,
            "data_weights",
            len(self.data_weights) in (0, len(self.data)) and all(w > 0 for w in self.data_weights),
            f"be one positive number for each of the {len(self.data)} entries of `data`",
        )

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.output or Path("runs") / self.preset

    @property
    def run_cache_dir(self) -> Path:
        """Where decoded clips and latents are kept."""
        return self.cache_dir or self.run_dir / "cache"


_WEIGHTS = (
    *("mse_weight", "l1_weight", "charbonnier_weight", "lpips_weight", "kl_weight", "entropy_weight"),
    *("commitment_weight", "adversarial_weight", "lecam_weight", "image_vae_weight", "image_decode_weight"),
)

_NEEDS = {
    "lpips_frames": "lpips_weight",
    "image_vae_weight": "image_vae",
    "image_decode_weight": "image_vae",
    "lecam_weight": "adversarial_weight",
    "adversarial_adaptive": "adversarial_weight",
    "adversarial_start": "adversarial_weight",
    "discriminator_lead": "adversarial_weight",
    "discriminator_width": "adversarial_weight",
    "discriminator_levels": "adversarial_weight",
    "discriminator_learning_rate": "adversarial_weight",
}
"""Settings that have no effect without another one: given alone, they are a mistake."""


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig(TrainingConfig):
    """Training of a tokenizer.

    In two stages (VidTok, arXiv 2412.13061, trains so): small clips end to end, then the decoder alone on large ones,
    here with the adversarial loss. The second stage is a new run that starts from the first one's result:

        train_tokenizer.py kl-4x8x8-c16 --data clips --shapes 17x64x64 --output runs/one
        train_tokenizer.py kl-4x8x8-c16 --data clips --shapes 17x128x128 1x256x256 --output runs/two
            --init-from runs/one/model --no-init-linear --freeze-encoder --lpips-weight 0.1 --adversarial-weight 0.1

    Every latent, and how latents are normalised, stays bit for bit what it was after the first stage.
    """

    shapes: tuple[str, ...] = ("17x64x64",)
    """Clip sizes as FRAMESxHEIGHTxWIDTH, one drawn for each step; `batch_size` counts clips of the first, other sizes
    get as many clips as make the same number of pixels. One frame is an image: 17x128x128 1x128x128 trains on both."""
    shape_weights: tuple[float, ...] = ()
    """Share of the steps that each entry of `shapes` gets (default: equal shares)."""
    cache_short_side: int = 160
    """Clips are decoded once, scaled to this short side, or the longest side of `shapes` where that is more."""
    max_stride: int = 2
    """Largest step between two frames of a training clip, where `frame_rates` is not given."""
    frame_rates: tuple[float, ...] = ()
    """Frames a second of training clips, one drawn for each clip: frames of the file are left out to get there, by the
    times at which it shows them. A file slower than that gives all its frames. Validation clips have the first of these
    rates. Default: the file's own rate and `max_stride`."""
    max_zoom_out: float = 1.25
    """Crops are up to this many times larger than the clip size, then scaled down; half of them are not scaled."""

    mse_weight: float = 1.0
    """Weight of the mean squared error, pixels in [-1, 1]."""
    l1_weight: float = 0.0
    """Weight of the mean absolute error."""
    charbonnier_weight: float = 0.0
    """Weight of the Charbonnier error."""
    lpips_weight: float = 0.0
    """Weight of LPIPS (fetches the weights of a VGG network)."""
    lpips_frames: int | None = None
    """LPIPS of this many frames of each clip, drawn anew in each step (default: all); it costs most of a step."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence of the posterior."""
    entropy_weight: float = 0.1
    """Weight of the entropy loss of LFQ, BSQ and FSQ (whose presets take less: FSQ uses most codes without)."""
    commitment_weight: float = 0.25
    """Weight of the distance of the encoder's output from its code, of VQ and LFQ."""
    sample_posterior: bool = True
    """Decode a draw from the posterior while training, not its mode."""
    init_linear: bool = False
    """Start from the best linear code (KLT) of some training batches; the linear path then stays as it is, here and in
    trainings that start from the result."""
    freeze_encoder: bool = False
    """Train the decoder alone: latents stay what they are, so that what was trained on them stays valid. A codebook
    and the statistics that normalise latents stay too."""
    latent_balance: float = 0.5
    """How much of its weight in pixels a latent channel keeps when latents are normalised: 0 none, 1 all."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial loss (0: none); a factor of the adaptive weight, where that is on."""
    adversarial_adaptive: bool = True
    """Scale the adversarial loss so that its gradient at the decoder's last layer is as large as that of the other
    reconstruction losses (VQGAN), times `adversarial_weight`."""
    adversarial_start: int = 0
    """First step whose loss has the adversarial term."""
    discriminator_lead: int = 0
    """Steps before `adversarial_start` in which the discriminator trains already, so that no decoder has to please an
    untrained one."""
    discriminator_width: int = 32
    """Channels of the discriminator's first level, doubled at each further one."""
    discriminator_levels: int = 3
    """Levels of the discriminator, each of half the resolution."""
    discriminator_learning_rate: float = 2e-4
    """Highest learning rate of the discriminator; it follows the schedule of the model's."""
    lecam_weight: float = 0.001
    """Weight of LeCAM, which keeps the discriminator unsure where it has seen little; more where data is scarce."""

    image_vae: str | None = None
    """An image VAE of diffusers (`AutoencoderKL`), folder or hub id, whose latents those of single frames shall be
    (CV-VAE, arXiv 2405.20279)."""
    image_vae_weight: float = 1.0
    """Weight of the squared distance of latents of first frames from the image VAE's."""
    image_decode_weight: float = 0.0
    """Weight of the squared error of first frames that the image VAE decodes from this tokenizer's latents."""

    validation_clips: int = 2
    """Clips evaluated for each validation source."""
    validation_shape: str = "17x128x128"
    """Size of the clips evaluated."""
    score_lpips: float | None = None
    """The score that picks the best weights is PSNR in dB less this times LPIPS (default: 50 with the adversarial loss,
    else 0, which is PSNR alone). PSNR alone would pick weights from before the discriminator had any effect."""

    @property
    def lpips_in_score(self) -> float:
        """What `score_lpips` means."""
        return self.score_lpips if self.score_lpips is not None else 50.0 * bool(self.adversarial_weight)

    @property
    def decoded_short_side(self) -> int:
        """What `cache_short_side` means: no clip is scaled up that need not be."""
        return max(self.cache_short_side, *(side for shape in self.shapes for side in parse_shape(shape)[1:]))

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "shapes", len(self.shapes) >= 1, "name at least one size")
        for shape in self.shapes:
            parse_shape(shape, "shapes")
        parse_shape(self.validation_shape, "validation_shape")
        _require(self, "cache_short_side", self.cache_short_side >= 1, "be at least 1")
        _require(self, "validation_clips", self.validation_clips >= 1, "be at least 1")
        _require(self, "latent_balance", 0 <= self.latent_balance <= 1, "be in [0, 1]")
        _require(self, "score_lpips", self.score_lpips is None or self.score_lpips >= 0, "be at least 0")
        _require(self, "max_stride", self.max_stride >= 1, "be at least 1")
        _require(self, "init_from", not (self.init_from and self.init_linear), "not be combined with `init_linear`")
        _require(self, "max_zoom_out", self.max_zoom_out >= 1, "be at least 1")
        for name in _WEIGHTS:
            _require(self, name, getattr(self, name) >= 0, "be at least 0")
        for name in ("discriminator_width", "discriminator_levels"):
            _require(self, name, getattr(self, name) >= 1, "be at least 1")
        for name in ("adversarial_start", "discriminator_lead"):
            _require(self, name, getattr(self, name) >= 0, "be at least 0")
        _require(self, "discriminator_learning_rate", self.discriminator_learning_rate > 0, "be above 0")
        _require(self, "frame_rates", all(map(_is_rate, self.frame_rates)), "be >= 0.001 and <= 1000")
        _require(self, "lpips_frames", self.lpips_frames is None or self.lpips_frames >= 1, "be at least 1")
        _require(
            self,
            "shape_weights",
            len(self.shape_weights) in (0, len(self.shapes)) and all(w > 0 for w in self.shape_weights),
            f"be one positive number for each of the {len(self.shapes)} entries of `shapes`",
        )
        defaults = {field.name: field.default for field in fields(self)}
        for name, needed in _NEEDS.items():
            effect = getattr(self, name) == defaults[name] or bool(getattr(self, needed))
            _require(self, name, effect, f"not be given without `{needed}`")
        _require(
            self, "image_vae", not (self.image_vae and self.freeze_encoder), "not be combined with `freeze_encoder`"
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig(TrainingConfig):
    """Training of a `VideoTransformer` on the latents of a tokenizer.

    Attributes:
        needs_shape: whether the clip size must be given here.
    """

    needs_shape: ClassVar[bool] = True

    tokenizer: Path | None = None
    """Folder of the trained tokenizer, for example `model` in the folder of its run."""
    text_encoder: Path | None = None
    """Folder of a frozen `transformers` text encoder (default: a vocabulary of the captions' words)."""
    text_max_length: int = 64
    """Longest prompt in tokens."""
    shape: str = "17x64x64"
    """Clip size as FRAMESxHEIGHTxWIDTH."""
    fps: float | None = None
    """Frames a second of training clips, and of clips of the trained model. Files of other rates are resampled: frames
    are left out or shown repeatedly, so that everything moves as fast as in the file. Default: 8 with Toybox clips in
    `data`, which have that rate, else the median rate of the files."""
    num_clips: int = 30_000
    """Clips whose latents are computed once and kept; 0: fresh clips, encoded in each step."""
    cache_short_side: int = 160
    """Video files are decoded once, scaled to this short side."""
    max_stride: int = 1
    """Largest step between two frames of a clip of a video file, after resampling to `fps`: clips with a stride of 2
    show everything twice as fast."""
    max_zoom_out: float = 2.0
    """Crops of video files are up to this many times larger than the clip, then scaled down."""

    fsdp: bool = False
    """Split weights, gradients, their average and the optimizer's state over all processes (FSDP2), for models that do
    not fit into one GPU. Evaluations and samples take place in the first process, which needs room for one whole
    model."""
    attention: str | None = None
    """What tokens see, as `kinema attention patterns` lists (default: as the preset says, mostly all)."""
    context_parallel: int = 1
    """Processes that share the tokens of each clip (Ulysses), for clips that do not fit into one GPU: a part of all
    processes, and of the heads. Only a step's work is shared; evaluations and samples are the first process' alone."""
    coarse_tile: tuple[int, int, int] | None = None
    """Tiles (t, h, w) of the gated coarse branch of VSA, beside any attention; default: no such branch."""
    anneal_every: int | None = None
    """VSA's annealing, for `attention` tile-top-k with a `share`: all tiles are seen at first, and every so many steps
    0.03 of them fewer, down to that share (published: 50 steps). Evaluations and samples see that share from the start,
    as the saved model does."""

    shift: float | None = 2.0
    """Shift of the timesteps towards noise (None: from the number of tokens)."""
    uniform_fraction: float = 0.1
    """Share of the timesteps drawn uniformly; the others are logit-normal."""
    loss_weighting: Literal["uniform", "min-snr"] = "uniform"
    """Weight of the velocity's error over time."""
    image_probability: float = 0.25
    """Share of the clips whose first latent step is given, which trains image-to-video."""
    image_noise: float = 0.05
    """Given latents carry noise of a random time up to this."""
    text_drop: float = 0.1
    """Share of the clips trained without their prompt, for guidance."""

    validation_clips: int = 128
    """Clips of the validation loss."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample clips (default: captions of validation clips)."""
    num_samples: int = 6
    """Sample clips, when no prompts are given."""
    sample_steps: int = 20
    """Sampler steps of the sample clips."""
    guidance_scale: float = 3.0
    """Guidance of the sample clips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape or self.needs_shape:
            parse_shape(self.shape)
        _require(self, "fps", self.fps is None or _is_rate(self.fps), "be >= 0.001 and <= 1000")
        for name in ("num_clips", "validation_clips", "num_samples"):
            _require(self, name, getattr(self, name) >= 0, "be at least 0")
        for name in ("cache_short_side", "max_stride", "max_zoom_out", "text_max_length", "sample_steps"):
            _require(self, name, getattr(self, name) >= 1, "be at least 1")
        _require(self, "context_parallel", self.context_parallel >= 1, "be at least 1")
        for name in ("uniform_fraction", "image_probability", "image_noise", "text_drop"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        _require(self, "shift", self.shift is None or self.shift > 0, "be above 0")
        _require(self, "anneal_every", self.anneal_every is None or self.anneal_every >= 1, "be at least 1")


def parse_shape(text: str, argument: str = "shape") -> tuple[int, int, int]:
    """Frames, height and width from `FRAMESxHEIGHTxWIDTH`.

    Raises:
        KinemaError: the text is not of this form.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(re.fullmatch(r"[1-9][0-9]{0,4}", part) for part in parts):
        raise KinemaError(f"`{argument}` (={text}) must be FRAMESxHEIGHTxWIDTH, for example 17x64x64")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _require(config: Any, name: str, holds: bool, constraint: str) -> None:
    if not holds:
        raise KinemaError(f"`{name}` (={getattr(config, name)}) must {constraint}")


def _require_finite(config: Any) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float)]
        if field.name != "max_grad_norm":  # infinity: gradients stay as they are
            _require(config, field.name, all(map(math.isfinite, numbers)), "be finite")


def _is_rate(fps: float) -> bool:
    """Whether clips can have so many frames a second."""
    return 0.001 <= fps <= 1000
