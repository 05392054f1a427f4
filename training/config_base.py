"""Options that all trainings share, and the checks of their values."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from kinema.errors import KinemaError
from kinema.training.data.registry import settings_classes

VALIDATION_PREFIXES = ("bunny_", "cat_", "pedestrians_", "splide_")
"""The clips that the embedded tokenizer was not trained on."""

Settings = TypeVar("Settings")
Check = tuple[str, Callable[[Any], bool]]
"""A constraint in words, and whether a value meets it."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options shared by all training runs: paths, duration, optimization, logging and evaluation intervals.

    Attributes:
        hidden: fields that are not command-line flags.
    """

    hidden: ClassVar[tuple[str, ...]] = ("preset", "source_settings")

    preset: str
    """Name of the model and of these default settings."""
    data: tuple[str, ...] = ()
    """Folders of video files, and names of built-in data sources."""
    data_weights: tuple[float, ...] = ()
    """Relative share of clips from each entry of `data` (default: equal shares)."""
    source_settings: tuple[Any, ...] = field(default=(), metadata={"parts": settings_classes})
    """Settings of the data sources, such as `ToyboxSettings` (default: each source's defaults). The command line and
    JSON have their fields among the others."""
    validation: tuple[str, ...] = ()
    """Prefixes of the names of files that are held out from training and used for evaluation."""
    output: Path | None = None
    """The run's folder (default: runs/PRESET)."""
    cache_dir: Path | None = None
    """Folder for decoded clips and precomputed latents (default: `cache` in the run's folder)."""
    init_from: Path | None = None
    """Initialize from the weights in this folder: a tokenizer for a tokenizer (if its bottleneck differs, the networks
    are kept, and the linear path is fitted again and frozen), a pipeline for a transformer."""
    resume: bool = False
    """Resume from the last checkpoint in the run's folder, or start if there is none."""
    seed: int = 0
    """Seed of the weights, the data and the noise."""

    batch_size: int = 8
    """Clips per step and process (or per group of processes that share clips)."""
    num_steps: int = 20_000
    """Total number of optimizer steps."""
    max_minutes: float | None = None
    """Stop and save after this many minutes, over all parts of a resumed run."""
    schedule_on: Literal["steps", "minutes"] = "steps"
    """Progress that the learning-rate schedule follows: steps out of `num_steps`, or minutes out of `max_minutes`,
    which is not reproducible bit for bit."""
    schedule: Literal["trapezoid", "cosine", "constant"] = "trapezoid"
    """Learning-rate schedule after warm-up."""
    decay_fraction: float = 0.3
    """Final fraction of training over which the trapezoid schedule decays to zero."""
    warmup_steps: int = 200
    """Steps of linear learning-rate warm-up."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices and kernels of repeated blocks and AdamW for the rest, or AdamW for everything."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    weight_decay: float = 0.01
    """AdamW's weight decay, applied to matrices and kernels only."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm, for clipping (`inf`: no clipping)."""
    max_skipped_steps: int = 20
    """Steps whose loss or gradient is not finite are skipped; training stops after this many in a row."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is evaluated and saved."""
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    """Autocast type; weights stay in float32. auto: bf16 if the device computes in it, otherwise none."""
    tf32: bool = True
    """Use TF32 for float32 matrix products and convolutions on GPUs: several times as fast, with a 10-bit mantissa."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's repeated blocks (auto: on GPUs). They run uncompiled if there is no compiler."""
    gradient_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
    num_workers: int = 1
    """Threads that prepare batches ahead (0: none)."""
    cpu: bool = False
    """Train on the CPU even if there is an accelerator."""

    log_every: int = 50
    """Steps between log lines."""
    eval_every: int = 1000
    """Steps between evaluations."""
    sample_every: int = 1000
    """Steps between sample clips."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Number of latest checkpoints to keep, besides the best one."""

    def __post_init__(self) -> None:
        given = {type(settings): settings for settings in self.source_settings}
        complete = tuple(given.pop(cls, None) or cls() for cls in settings_classes())
        require(self, "source_settings", not given, "be settings of registered data sources")
        object.__setattr__(self, "source_settings", complete)
        check(self, _FINITE, *(f.name for f in fields(self) if f.name != "max_grad_norm"))
        check(self, at_least(1), "batch_size", "num_steps", "log_every", "eval_every", "sample_every", "save_every")
        check(self, at_least(1), "keep_last", "max_skipped_steps")
        check(self, ("be in (-2^63, 2^63)", lambda value: abs(value) < 2**63), "seed")
        check(self, ("have no empty entry", bool), "data", "validation")
        check(self, at_least(0), "warmup_steps", "num_workers", "weight_decay")
        check(self, above(0), "learning_rate", "max_grad_norm", "max_minutes")
        check(self, ("be in [0, 1)", lambda value: 0 <= value < 1), "ema_decay", "betas")
        check(self, ("be in (0, 1]", lambda value: 0 < value <= 1), "decay_fraction")
        by_steps = self.schedule_on == "steps"
        require(
            self, "schedule_on", by_steps or self.max_minutes is not None, "be 'steps' unless `max_minutes` is given"
        )
        check_shares(self, "data_weights", "data")

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.output or Path("runs") / self.preset

    @property
    def run_cache_dir(self) -> Path:
        """Folder for decoded clips and precomputed latents."""
        return self.cache_dir or self.run_dir / "cache"

    def settings_for(self, cls: type[Settings] | None) -> Settings | None:
        """A data source's settings, of this class; None without a class."""
        if cls is None:
            return None
        return next((settings for settings in self.source_settings if type(settings) is cls), None) or cls()


def parse_shape(text: str, argument: str = "shape") -> tuple[int, int, int]:
    """Frames, height and width from `FRAMESxHEIGHTxWIDTH`.

    Raises:
        KinemaError: the text is not of this form.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(re.fullmatch(r"[1-9][0-9]{0,4}", part) for part in parts):
        raise KinemaError(f"`{argument}` (={text}) must be FRAMESxHEIGHTxWIDTH, for example 17x64x64")
    return int(parts[0]), int(parts[1]), int(parts[2])


def require(config: Any, name: str, holds: bool, constraint: str) -> None:
    """Raises `KinemaError` naming a setting, its value and the constraint, unless the constraint holds."""
    if not holds:
        raise KinemaError(f"`{name}` (={getattr(config, name)}) must {constraint}")


def check(config: Any, constraint: Check, *names: str) -> None:
    """Raises `KinemaError` unless settings meet a constraint: each value that is not None, each element of a tuple."""
    words, holds = constraint
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        require(config, name, all(holds(v) for v in values if v is not None), words)


def check_shares(config: Any, name: str, of: str) -> None:
    """Raises `KinemaError` unless a setting is empty or has one positive number for each entry of another."""
    shares, entries = getattr(config, name), getattr(config, of)
    holds = len(shares) in (0, len(entries)) and all(share > 0 for share in shares)
    require(config, name, holds, f"be one positive number for each of the {len(entries)} entries of `{of}`")


def at_least(bound: float) -> Check:
    """The constraint value >= bound."""
    return f"be at least {bound}", lambda value: value >= bound


def above(bound: float) -> Check:
    """The constraint value > bound."""
    return f"be above {bound}", lambda value: value > bound


IN_UNIT_INTERVAL: Check = ("be in [0, 1]", lambda value: 0 <= value <= 1)
IS_RATE: Check = ("be >= 0.001 and <= 1000", lambda value: 0.001 <= value <= 1000)
_FINITE: Check = ("be finite", lambda value: not isinstance(value, float) or math.isfinite(value))
