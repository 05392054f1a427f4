"""Where clips come from: folders of video files and the Toybox world, mixed."""

import hashlib
import json
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.training.config import DiffusionTrainingConfig, TrainingConfig, parse_shape
from kinema.training.data.clips import ClipsDataset
from kinema.training.data.toybox import Toybox
from kinema.training.data.toybox.schema import Split
from kinema.training.data.toybox.sprites import sprite_names
from kinema.training.seeds import step_generator

TOYBOX = "toybox"


class CaptionedClips:
    """Clips with captions by number, the same ones whenever the configuration is the same.

    Args:
        config: data, weights, size.
        split: "validation" takes held-out files and Toybox's validation split.
    """

    def __init__(self, config: DiffusionTrainingConfig, split: Split = "train") -> None:
        self.config = config
        self.split: Split = split
        self.shape = parse_shape(config.shape)
        weights = source_weights(config).tolist()
        sources = [self._source(name) for name in config.data]
        # A folder without held-out files takes no part in the validation.
        kept = [(s, w) for s, w in zip(sources, weights, strict=True) if isinstance(s, Toybox) or len(s)]
        self.sources = [source for source, _ in kept]
        self.weights = torch.tensor([weight for _, weight in kept], dtype=torch.float64)

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

    def fingerprint(self) -> str:
        """A hash of what the clips come from: files with their sizes and times of change, captions, sprites."""
        parts: list[str] = []
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
                flip=False,  # captions may say left and right
            )
        for number, some in toybox_indices.items():
            source = self.sources[number]
            assert isinstance(source, Toybox)
            batch = source.batch(some)
            clips.update(zip(some, zip(batch.video, batch.captions, strict=True), strict=True))
        return torch.stack([clips[index][0] for index in indices]), [clips[index][1] for index in indices]


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
