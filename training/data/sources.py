"""Where clips come from: folders of video files and the Toybox world, mixed."""

import hashlib
import json
import logging
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.training.config import DiffusionTrainingConfig, TrainingConfig, parse_shape
from kinema.training.data.clips import ClipsDataset
from kinema.training.data.frames import DECODING
from kinema.training.data.rates import describe_rate
from kinema.training.data.report import save_reports
from kinema.training.data.toybox import Toybox
from kinema.training.data.toybox.schema import FPS as TOYBOX_FPS
from kinema.training.data.toybox.schema import Split
from kinema.training.data.toybox.sprites import sprite_names
from kinema.training.seeds import step_generator

logger = logging.getLogger(__name__)

TOYBOX = "toybox"
_MUCH_SLOWER = 0.67  # of the rate of clips: a third of the frames are repeated


class CaptionedClips:
    """Clips with captions by number, the same ones whenever the configuration is the same.

    Args:
        config: data, weights, size.
        split: "validation" takes held-out files and Toybox's validation split.
        device: where Toybox clips are drawn, and all clips end.

    Attributes:
        fps: frames a second of the clips: `config.fps`, or what the data has; files of other rates are resampled.
    """

    def __init__(
        self, config: DiffusionTrainingConfig, split: Split = "train", device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.split: Split = split
        self.shape = parse_shape(config.shape)
        weights = source_weights(config).tolist()
        sources = [self._source(name) for name in config.data]
        # A folder without held-out files takes no part in the validation.
        kept = [(s, w) for s, w in zip(sources, weights, strict=True) if isinstance(s, Toybox) or len(s)]
        self.sources = [source for source, _ in kept]
        self.weights = torch.tensor([weight for _, weight in kept], dtype=torch.float64)
        self.fps = config.fps or rate_of_data(self.sources)
        if split == "train":
            note_rates(self.sources, self.fps)

    def _source(self, name: str) -> Toybox | ClipsDataset:
        config = self.config
        if name == TOYBOX:
            return make_toybox(config, self.shape, self.split)
        held_out = self.split != "train"
        return ClipsDataset(
            [name],
            config.run_cache_dir,
            short_side=config.cache_short_side,
            hold_out=() if held_out else config.validation,
            only=config.validation if held_out else None,
        )

    def words(self) -> list[str]:
        """Every word that a caption can contain, sorted."""
        from kinema.generation.text import split_words

        words: set[str] = set()
        for source in self.sources:
            if isinstance(source, Toybox):
                words.update(source.vocabulary())
            else:
                words.update(word for clip in source.sources for word in split_words(clip.caption))
        return sorted(words)

    def check_captions(self) -> None:
        """Raises `KinemaError` where no clip has a caption."""
        folders = [source for source in self.sources if isinstance(source, ClipsDataset)]
        if len(folders) < len(self.sources) or any(clip.caption for folder in folders for clip in folder.sources):
            return
        lost = [line for folder in folders for line in folder.report.captions_without_file]
        also = f"; {len(lost)} captions fit no file, the first is {lost[0]}" if lost else ""
        raise KinemaError(
            f"`data` (={', '.join(self.config.data)}) must have captions: `captions.jsonl`, `captions.csv`, or NAME.txt"
            f" beside NAME.mp4{also}"
        )

    def save_report(self, path: Path) -> None:
        """Writes which files and captions were used and which were not, as JSON."""
        save_reports([source.report for source in self.sources if isinstance(source, ClipsDataset)], path)

    def fingerprint(self) -> str:
        """A hash of what the clips come from: files with their sizes and times of change, captions, sprites."""
        parts = [str(DECODING)]
        for source in self.sources:
            if isinstance(source, Toybox):
                files = [] if source.sprites is None else sorted(p for p in source.sprites.iterdir() if p.is_file())
                parts += [source.split, *source.objects]
            else:
                files = [clip.path for clip in source.sources]
                parts += [clip.caption for clip in source.sources]
            parts += [f"{file.name}/{file.stat().st_size}/{file.stat().st_mtime_ns}" for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __call__(self, indices: Iterable[int]) -> tuple[Float[Tensor, "b 3 t h w"], list[str]]:
        """The clips with these numbers (>= 0), pixels in [-1, 1], and their captions."""
        indices = list(indices)
        clips: dict[int, tuple[Tensor, str]] = {}
        toybox_indices: dict[int, list[int]] = {}
        for index in indices:
            generator = step_generator(self.config.seed, 0, index, f"clip/{self.split}")
            number = int(torch.multinomial(self.weights, 1, generator=generator))
            source = self.sources[number]
            if isinstance(source, Toybox):
                toybox_indices.setdefault(number, []).append(index)
                continue
            clips[index] = source.random_clip(
                self.shape,
                generator,
                max_stride=self.config.max_stride,
                max_zoom_out=self.config.max_zoom_out,
                fps=self.fps,
                flip=False,  # captions may say left and right
            )
        for number, some in toybox_indices.items():
            source = self.sources[number]
            assert isinstance(source, Toybox)
            batch = source.batch(some, self.device)
            clips.update(zip(some, zip(batch.video, batch.captions, strict=True), strict=True))
        # Clips of files stay on the CPU, which pins them for their way to the device.
        place = self.device if toybox_indices else torch.device("cpu")
        videos, captions = zip(*(clips[index] for index in indices), strict=True)
        return torch.stack([video.to(place) for video in videos]), list(captions)


def rate_of_data(sources: Iterable[Toybox | ClipsDataset]) -> float:
    """The rate of clips where no setting says it: Toybox's where it is among the data, else the median of the files."""
    sources = list(sources)
    rates = sorted(clip.fps for source in sources if isinstance(source, ClipsDataset) for clip in source.sources)
    if len(rates) == 0 or any(isinstance(source, Toybox) for source in sources):
        return TOYBOX_FPS
    return min(1000.0, max(0.001, statistics.median_low(rates)))


def note_rates(sources: Iterable[Toybox | ClipsDataset], rate: float) -> None:
    """Says which rate clips have, and which files have far fewer frames a second."""
    sources = list(sources)
    folders = [source for source in sources if isinstance(source, ClipsDataset)]
    rates = [clip.fps for folder in folders for clip in folder.sources]
    others = [fps for fps in rates if abs(fps / rate - 1) > 0.005]
    if others:
        told = " to ".join(dict.fromkeys(describe_rate(fps) for fps in (min(rates), max(rates))))
        logger.info(
            "clips have %s frames a second; %d of %d video files have another rate (%s) and are resampled, see --fps",
            *(describe_rate(rate), len(others), len(rates), told),
        )
    elif rates:
        logger.info("clips have %s frames a second, as the video files have", describe_rate(rate))
    if len(folders) < len(sources) and rate != TOYBOX_FPS:
        logger.warning(
            "Toybox clips have %g frames a second; at %s everything in them moves %.3g times as fast",
            *(TOYBOX_FPS, describe_rate(rate), rate / TOYBOX_FPS),
        )
    for folder in folders:
        slow = [clip for clip in folder.sources if clip.fps < _MUCH_SLOWER * rate]
        folder.report.slower = [f"{str(clip.path)!r} ({describe_rate(clip.fps)})" for clip in slow]
    slower = [line for folder in folders for line in folder.report.slower]
    if slower:
        logger.warning(
            "%d of %d video files have far fewer than %s frames a second, and their frames are repeated: %s%s",
            *(len(slower), len(rates), describe_rate(rate), ", ".join(slower[:5]), ", ..." if len(slower) > 5 else ""),
        )


def source_weights(config: TrainingConfig) -> Float[Tensor, " n"]:
    """The share of each entry of `data`.

    Raises:
        KinemaError: there is none.
    """
    if not config.data:
        raise KinemaError("`data` (=) must name at least one folder of video files, or `toybox`")
    weights = torch.tensor(config.data_weights or [1.0] * len(config.data), dtype=torch.float64)
    return weights / weights.sum()


def make_toybox(config: TrainingConfig, shape: tuple[int, int, int], split: Split) -> Toybox:
    """The Toybox world for clips of a shape."""
    frames, height, width = shape
    every = None if config.sprites is None else sprite_names(config.sprites)
    return Toybox(
        config.sprites,
        objects=every if config.toybox_objects == "all" else None,
        num_frames=frames,
        height=height,
        width=width,
        seed=config.seed,
        split=split,
        num_objects=config.toybox_num_objects,
    )
