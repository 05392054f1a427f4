"""Batches for training a tokenizer: a pure function of (seed, rank, step)."""

import math
from dataclasses import replace
from pathlib import PurePosixPath

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.files import displayed
from kinema.training.config import TokenizerTrainingConfig, parse_shape
from kinema.training.data.registry import source_class
from kinema.training.data.source import Shape
from kinema.training.data.sources import SourceMixture, stack_clips
from kinema.training.seeds import step_generator


class TokenizerBatches(SourceMixture):
    """Makes batches of clips.

    Args:
        config: data, shapes, weights.
        rank: index of this process.
        world_size: number of processes.
        device: where clips are rendered.
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
        self.longest = max(self.shapes, key=lambda shape: (shape[0], math.prod(shape)))
        super().__init__(
            config,
            self.shapes,
            short_side=config.decoded_short_side,
            captions=False,
            max_stride=config.max_stride,
            max_zoom_out=config.max_zoom_out,
            frame_rates=config.frame_rates,
            flip=True,
        )

    def _num_clips(self, shape: Shape) -> int:
        """The number of clips that have about as many pixels as `batch_size` clips of the first shape."""
        return round(self.config.batch_size * math.prod(self.shapes[0]) / math.prod(shape))

    def __call__(self, step: int, shape: Shape | None = None) -> Float[Tensor, "b 3 t h w"]:
        """The batch of a step, pixels in [-1, 1], in one of the shapes (default: the one drawn for the step)."""
        config = self.config
        if shape is None:
            # All processes take the same size in a step, so that none waits for another.
            draw = torch.rand(1, generator=step_generator(config.seed, 0, step, "shape")).double()
            shape = self.shapes[int(torch.searchsorted(self.shape_bounds, draw, right=True))]
        num_clips = max(1, self._num_clips(shape))
        generator = step_generator(config.seed, self.rank, step, "clips")
        choice = torch.multinomial(self.weights, num_clips, replacement=True, generator=generator)
        first = (step * self.world_size + self.rank) * (max(map(self._num_clips, self.shapes)) + 1)
        clips: list[Tensor] = []
        for number, source in enumerate(self.sources):
            count = int((choice == number).sum())
            if count:
                made = source.clips(range(first, first + count), shape, [generator] * count, self.device)
                clips += [clip for clip, _ in made]
        return stack_clips(clips)

    def validation_clips(self) -> dict[str, Float[Tensor, "n 3 t h w"]]:
        """Clips of each held-out file, and of each source with a validation split, by name.

        Files are played at the first of `frame_rates`, or at their own rate.
        """
        clips: dict[str, Tensor] = {}
        shape = parse_shape(self.config.validation_shape)
        for request in self.requests:
            source, request = source_class(request.name), replace(request, shapes=(shape,))
            for path, held_out in source.validation_clips(request, self.config.validation_clips).items():
                stem = PurePosixPath(path).stem
                clips[displayed(stem if stem not in clips else path)] = held_out
        return clips
