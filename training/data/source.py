"""The interface of a data source: what an entry of `data` names, and what a training asks of it.

A new source is one file with a subclass of `CaptionedSource`, and one line in `kinema.training.data.registry.SOURCES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.training.seeds import step_generator

Split = Literal["train", "validation", "test"]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a training asks of a source when it opens it.

    Attributes:
        name: the entry of `data`: the source's registered name, or a folder.
        data: all entries of `data`.
        shapes: every (frames, height, width) in which clips will be requested.
        seed: the training's seed.
        cache_dir: where decoded files are kept.
        settings: an instance of the source's `settings_class`, if it has one.
        split: "train", or the held-out clips.
        hold_out: prefixes of file names that are held out from training.
        captions: whether the training reads captions.
        short_side: files are decoded at this short side, in pixels.
        max_stride: largest step between two frames of a clip.
        max_zoom_out: crops are up to this many times larger than the clip.
        frame_rates: frames per second of the clips, one drawn for each clip; empty for the files' own rates.
        flip: whether half of the clips are mirrored.
    """

    name: str
    data: tuple[str, ...]
    shapes: tuple[Shape, ...]
    seed: int
    cache_dir: Path
    settings: Any = None
    split: Split = "train"
    hold_out: tuple[str, ...] = ()
    captions: bool = True
    short_side: int = 160
    max_stride: int = 1
    max_zoom_out: float = 1.0
    frame_rates: tuple[float, ...] = ()
    flip: bool = False


class CaptionedSource(ABC):
    """A source of captioned training clips, opened as `Source(request)`. Subclass it to inherit the defaults.

    `clip` and `clips` are called from several threads and must not change the source.

    Attributes:
        help: a few words for the command line's help.
        settings_class: a frozen dataclass of the source's own settings, all with defaults. They become flags of the
            command line and keys of `config.json`, so their names must differ from all other settings.
        native_fps: frames per second, for a source that cannot resample its clips.
        request: what the source was opened with.
        fps: frames per second of the clips, for sources that resample; None for each file's own.
    """

    help: ClassVar[str] = ""
    settings_class: ClassVar[type[Any] | None] = None
    native_fps: ClassVar[float | None] = None

    def __init__(self, request: SourceRequest) -> None:
        self.request = request
        self.fps: float | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of distinct clips or files (`sys.maxsize` if unlimited); a source without any is left out."""

    @abstractmethod
    def clip(self, index: int, shape: Shape, generator: torch.Generator) -> tuple[Float[Tensor, "3 t h w"], str]:
        """A clip with pixels in [-1, 1], and its caption: a pure function of the arguments.

        Args:
            index: number of the clip (>= 0, without upper bound), for sources that number their clips.
            shape: (frames, height, width), one of `request.shapes`.
            generator: CPU generator, for sources that draw their clips at random.
        """

    def clips(
        self, indices: Sequence[int], shape: Shape, generators: Sequence[torch.Generator], device: torch.device
    ) -> list[tuple[Float[Tensor, "3 t h w"], str]]:
        """A batch of clips, by default one after the other on the CPU.

        A source that renders on `device` overrides this to render the batch at once, as Toybox does.

        Args:
            indices: see `clip`.
            shape: see `clip`.
            generators: one for each clip; may be the same object, which is then used in order.
            device: the training's device; clips may be on it or on the CPU.
        """
        return [self.clip(index, shape, generator) for index, generator in zip(indices, generators, strict=True)]

    @abstractmethod
    def vocabulary(self) -> Sequence[str]:
        """Every word that a caption can contain."""

    @abstractmethod
    def fingerprint(self) -> list[str]:
        """Strings that change whenever the clips or captions do; kept latents depend on them."""

    def has_captions(self) -> bool:
        """Whether any clip has a caption."""
        return True

    def contents(self) -> dict[str, list[Any]]:
        """The parts of the data, to find changes when a run resumes.

        Returns:
            Name of a file or part -> its size in bytes and, if the training reads captions, its caption.
        """
        return {f"{self.request.name}/{part}": [0] for part in self.fingerprint()}

    def report(self) -> dict[str, Any]:
        """The source's entry in `data_report.json`."""
        return {"num_clips": len(self)}

    def file_rates(self) -> list[tuple[str, float]]:
        """Path and frames per second of each file, for sources that resample."""
        return []

    def use_rate(self, fps: float) -> None:
        """Sets the frames per second of all clips; called once, before the first clip."""
        self.fps = fps

    @classmethod
    def validation_clips(cls, request: SourceRequest, num_clips: int) -> dict[str, Float[Tensor, "n 3 t h w"]]:
        """Clips on which a tokenizer is evaluated, by the name that their scores get.

        By default, four times `num_clips` of the validation split, under the source's name.

        Args:
            request: has the evaluation's one shape.
            num_clips: clips per validation file.
        """
        source = cls(replace(request, split="validation"))
        indices = range(min(4 * num_clips, len(source)))
        generators = [step_generator(request.seed, 0, index, "clip/validation") for index in indices]
        clips = source.clips(indices, request.shapes[0], generators, torch.device("cpu"))
        return {request.name: torch.stack([clip for clip, _ in clips])} if clips else {}
