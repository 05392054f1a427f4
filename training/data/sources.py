"""The clips of a training: its data sources, mixed by weight."""

import hashlib
import json
import logging
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path
from kinema.training.config import DiffusionTrainingConfig, TrainingConfig, parse_shape
from kinema.training.data.frames import DECODING
from kinema.training.data.rates import describe_rate, slow_files
from kinema.training.data.registry import SOURCES, source_class
from kinema.training.data.source import CaptionedSource, Shape, SourceRequest, Split
from kinema.training.seeds import step_generator

logger = logging.getLogger(__name__)

_DEFAULT_FPS = 8.0


class SourceMixture:
    """The sources that `data` names, and the share of each.

    Args:
        config: data, weights, and the sources' own settings.
        shapes: every (frames, height, width) in which clips will be requested.
        options: further fields of each `SourceRequest`.

    Attributes:
        requests: one for each entry of `data`.
        sources: the sources that have clips.
        weights: the share of each source.

    Raises:
        KinemaError: `data` is empty, or a source cannot be opened.
    """

    def __init__(self, config: TrainingConfig, shapes: Sequence[Shape], **options: Any) -> None:
        weights = source_weights(config).tolist()
        self.requests = [
            SourceRequest(
                name=name,
                data=config.data,
                shapes=tuple(shapes),
                seed=config.seed,
                cache_dir=config.run_cache_dir,
                settings=config.settings_for(source_class(name).settings_class),
                hold_out=config.validation,
                **options,
            )
            for name in config.data
        ]
        opened = [source_class(request.name)(request) for request in self.requests]
        # A folder without held-out files takes no part in the validation.
        kept = [(s, w) for s, w in zip(opened, weights, strict=True) if len(s)]
        self.sources = [source for source, _ in kept]
        self.weights = torch.tensor([weight for _, weight in kept], dtype=torch.float64)

    def contents(self) -> dict[str, list[Any]]:
        """The files or parts of the data, see `CaptionedSource.contents`."""
        return {name: entry for source in self.sources for name, entry in source.contents().items()}

    def save_report(self, path: Path) -> None:
        """Writes what each source reports, as JSON: a folder's files and captions that are used and that are not.

        Names that are not UTF-8 are escaped.
        """
        reports = [{"source": source.request.name} | source.report() for source in self.sources]
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(reports, indent=2) + "\n", encoding="ascii")


class CaptionedClips(SourceMixture):
    """Captioned clips by number, the same ones whenever the configuration is the same.

    Args:
        config: data, weights, size.
        split: "validation" takes held-out files, and the validation split of sources such as Toybox.
        device: where clips are rendered.

    Attributes:
        fps: frames per second of the clips: `config.fps`, or the rate of the data. Files of other rates are resampled.
    """

    def __init__(
        self, config: DiffusionTrainingConfig, split: Split = "train", device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.split: Split = split
        self.shape = parse_shape(config.shape)
        # Clips are not mirrored: captions may say left and right.
        super().__init__(
            config,
            [self.shape],
            split=split,
            short_side=config.cache_short_side,
            max_stride=config.max_stride,
            max_zoom_out=config.max_zoom_out,
        )
        self.fps = config.fps or rate_of_data(self.sources)
        for source in self.sources:
            source.use_rate(self.fps)
        if split == "train":
            log_rates(self.sources, self.fps)

    def words(self) -> list[str]:
        """Every word that a caption can contain, sorted."""
        return sorted({word for source in self.sources for word in source.vocabulary()})

    def check_captions(self) -> None:
        """Raises `KinemaError` if no clip has a caption."""
        if any(source.has_captions() for source in self.sources):
            return
        lost = [line for source in self.sources for line in source.report().get("captions_without_file", [])]
        also = f"; {len(lost)} captions fit no file, the first is {lost[0]}" if lost else ""
        raise KinemaError(
            f"`data` (={', '.join(self.config.data)}) must have captions: `captions.jsonl`, `captions.csv`, or NAME.txt"
            f" beside NAME.mp4{also}"
        )

    def fingerprint(self) -> str:
        """A hash of what the clips depend on, see `CaptionedSource.fingerprint`."""
        parts = [str(DECODING), *(part for source in self.sources for part in source.fingerprint())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __call__(self, indices: Iterable[int]) -> tuple[Float[Tensor, "b 3 t h w"], list[str]]:
        """The clips with these numbers (>= 0), pixels in [-1, 1], and their captions."""
        indices = list(indices)
        generators = {i: step_generator(self.config.seed, 0, i, f"clip/{self.split}") for i in indices}
        by_source: dict[int, list[int]] = {}
        for index, generator in generators.items():
            number = int(torch.multinomial(self.weights, 1, generator=generator))
            by_source.setdefault(number, []).append(index)
        clips: dict[int, tuple[Tensor, str]] = {}
        for number, some in by_source.items():
            made = self.sources[number].clips(some, self.shape, [generators[i] for i in some], self.device)
            clips.update(zip(some, made, strict=True))
        videos, captions = zip(*(clips[index] for index in indices), strict=True)
        return stack_clips(videos), list(captions)


def stack_clips(clips: Sequence[Float[Tensor, "3 t h w"]]) -> Float[Tensor, "b 3 t h w"]:
    """A batch of clips, on the device if any of them is.

    Clips that are all on the CPU stay there; they are pinned for the transfer to the device.
    """
    place = next((clip.device for clip in clips if clip.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([clip.to(place) for clip in clips])


def rate_of_data(sources: Iterable[CaptionedSource]) -> float:
    """The clips' rate if `fps` is not given: that of a source that cannot resample, or the median of the files."""
    sources = list(sources)
    native = [source.native_fps for source in sources if source.native_fps is not None]
    rates = sorted(fps for source in sources for _, fps in source.file_rates())
    if native or not rates:
        return native[0] if native else _DEFAULT_FPS
    return min(1000.0, max(0.001, statistics.median_low(rates)))


def log_rates(sources: Iterable[CaptionedSource], rate: float) -> None:
    """Logs the rate of the clips, and warns about files and sources with far fewer or other frames per second."""
    sources = list(sources)
    files = [file for source in sources for file in source.file_rates()]
    rates = [fps for _, fps in files]
    others = [fps for fps in rates if abs(fps / rate - 1) > 0.005]
    if others:
        told = " to ".join(dict.fromkeys(describe_rate(fps) for fps in (min(rates), max(rates))))
        logger.info(
            "clips have %s frames a second; %d of %d video files have another rate (%s) and are resampled, see --fps",
            *(describe_rate(rate), len(others), len(rates), told),
        )
    elif rates:
        logger.info("clips have %s frames a second, as the video files have", describe_rate(rate))
    for name, native in {source.request.name: source.native_fps for source in sources}.items():
        if native is not None and native != rate:
            logger.warning(
                "%s clips have %g frames a second; at %s everything in them moves %.3g times as fast",
                *(name.capitalize(), native, describe_rate(rate), rate / native),
            )
    if slower := slow_files(files, rate):
        logger.warning(
            "%d of %d video files have far fewer than %s frames a second, and their frames are repeated: %s%s",
            *(len(slower), len(rates), describe_rate(rate), ", ".join(slower[:5]), ", ..." if len(slower) > 5 else ""),
        )


def source_weights(config: TrainingConfig) -> Float[Tensor, " n"]:
    """The share of each entry of `data`.

    Raises:
        KinemaError: `data` is empty.
    """
    if not config.data:
        names = ", ".join(f"`{name}`" for name in SOURCES)
        raise KinemaError(f"`data` (=) must name at least one folder of video files or built-in source ({names})")
    weights = torch.tensor(config.data_weights or [1.0] * len(config.data), dtype=torch.float64)
    return weights / weights.sum()
