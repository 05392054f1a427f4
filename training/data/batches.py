"""Batches for training a tokenizer: natural clips and Toybox clips, a pure function of (seed, rank, step)."""

import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import displayed
from kinema.training.config import TokenizerTrainingConfig, parse_shape
from kinema.training.data.clips import ClipsDataset, centre_clips
from kinema.training.data.listing import list_videos
from kinema.training.data.report import save_reports
from kinema.training.data.sources import TOYBOX, make_toybox, source_weights
from kinema.training.seeds import step_generator

logger = logging.getLogger(__name__)


class TokenizerBatches:
    """Makes batches of clips.

    Args:
        config: data, shapes, weights.
        rank: number of this process.
        world_size: number of processes.
        device: where Toybox clips are drawn, and batches end.
    """

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.shapes = [parse_shape(shape) for shape in config.shapes]
        shares = torch.tensor(config.shape_weights or [1.0] * len(self.shapes), dtype=torch.float64)
        self.shape_bounds = (shares.cumsum(0) / shares.sum())[:-1]
        self.sources = [None if name == TOYBOX else self._folder(name) for name in config.data]
        self.longest = max(self.shapes, key=lambda shape: (shape[0], _volume(shape)))
        self.toyboxes = {s: make_toybox(config, s, "train") for s in self.shapes if TOYBOX in config.data}
        self.weights = source_weights(config)

    def _folder(self, name: str) -> ClipsDataset:
        config = self.config
        return ClipsDataset(
            [name],
            config.run_cache_dir,
            short_side=config.decoded_short_side,
            hold_out=config.validation,
            captions=False,
        )

    def save_report(self, path: Path) -> None:
        """Writes which files were used and which were not, as JSON."""
        save_reports([source.report for source in self.sources if source is not None], path)

    def __call__(self, step: int, shape: tuple[int, int, int] | None = None) -> Float[Tensor, "b 3 t h w"]:
        """The batch of a step, pixels in [-1, 1]; of one of the shapes, or of the one drawn for the step."""
        config = self.config
        if shape is None:
            # All processes take the same size in a step, so that none waits for another.
            draw = torch.rand(1, generator=step_generator(config.seed, 0, step, "shape")).double()
            shape = self.shapes[int(torch.searchsorted(self.shape_bounds, draw, right=True))]
        first = self.shapes[0]
        num_clips = max(1, round(config.batch_size * _volume(first) / _volume(shape)))

        generator = step_generator(config.seed, self.rank, step, "clips")
        choice = torch.multinomial(self.weights, num_clips, replacement=True, generator=generator)
        parts: list[Tensor] = []
        for number, source in enumerate(self.sources):
            count = int((choice == number).sum())
            if count and source is None:
                parts.append(self._toybox_clips(step, count, shape))
            elif count and source is not None:
                parts.append(
                    source.random_clips(
                        count,
                        shape,
                        generator,
                        max_stride=config.max_stride,
                        max_zoom_out=config.max_zoom_out,
                        frame_rates=config.frame_rates,
                    )
                )
        # Clips of files stay on the CPU, which pins them for their way to the device.
        place = next((part.device for part in parts if part.device.type != "cpu"), torch.device("cpu"))
        return torch.cat([part.to(place) for part in parts])

    def _toybox_clips(self, step: int, count: int, shape: tuple[int, int, int]) -> Tensor:
        most = max(round(self.config.batch_size * _volume(self.shapes[0]) / _volume(s)) for s in self.shapes) + 1
        first = (step * self.world_size + self.rank) * most
        return self.toyboxes[shape].batch(range(first, first + count), self.device).video

    def validation_clips(self) -> dict[str, Float[Tensor, "n 3 t h w"]]:
        """Clips of each validation source by name: held-out files, or Toybox's validation split.

        Files are played at the first of `frame_rates`, or as fast as they are.
        """
        clips: dict[str, Tensor] = {}
        shape = parse_shape(self.config.validation_shape)
        fps = self.config.frame_rates[0] if self.config.frame_rates else None
        for name in self.config.data:
            if name == TOYBOX:
                toybox = make_toybox(self.config, shape, "validation")
                clips[TOYBOX] = toybox.batch(range(4 * self.config.validation_clips)).video
                continue
            for file in list_videos(Path(name)):
                if self.config.validation and file.name.startswith(self.config.validation):
                    try:
                        held_out = centre_clips(file, self.config.validation_clips, shape, fps)
                    except KinemaError as error:
                        logger.warning("skipped %r: %s", str(file), error)
                        continue
                    key = file.stem if file.stem not in clips else file.relative_to(name).as_posix()
                    clips[displayed(key)] = held_out
        return clips


def _volume(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
