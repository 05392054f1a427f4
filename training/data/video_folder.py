"""A folder of video files as a data source."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.words import split_words
from kinema.training.data.clips import ClipsDataset, centre_clips
from kinema.training.data.listing import list_videos
from kinema.training.data.rates import slow_files
from kinema.training.data.source import CaptionedSource, Shape, SourceRequest
from kinema.training.data.stamps import file_size, file_stamps

logger = logging.getLogger(__name__)


class VideoFolder(CaptionedSource):
    """Random clips of the video files in a folder; the clips' numbers have no effect.

    Attributes:
        dataset: the decoded files.

    Raises:
        KinemaError: see `ClipsDataset`.
    """

    def __init__(self, request: SourceRequest) -> None:
        super().__init__(request)
        held_out = request.split != "train"
        self.dataset = ClipsDataset(
            [request.name],
            request.cache_dir,
            short_side=request.short_side,
            hold_out=() if held_out else request.hold_out,
            only=request.hold_out if held_out else None,
            captions=request.captions,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def clip(self, index: int, shape: Shape, generator: torch.Generator) -> tuple[Float[Tensor, "3 t h w"], str]:
        request = self.request
        return self.dataset.random_clip(
            shape,
            generator,
            max_stride=request.max_stride,
            max_zoom_out=request.max_zoom_out,
            frame_rates=request.frame_rates,
            flip=request.flip,
            fps=self.fps,
        )

    def vocabulary(self) -> Sequence[str]:
        return sorted({word for clip in self.dataset.sources for word in split_words(clip.caption)})

    def fingerprint(self) -> list[str]:
        files = self.dataset.sources
        return [*(clip.caption for clip in files), *file_stamps(clip.path for clip in files)]

    def has_captions(self) -> bool:
        return any(clip.caption for clip in self.dataset.sources)

    def contents(self) -> dict[str, list[Any]]:
        """Files by their names within the folder, which may have moved when the run resumes, after the folder's
        position in `data` if that has several entries.
        """
        data, contents = self.request.data, {}
        for clip in self.dataset.sources:
            number, folder = next((n, f) for n, f in enumerate(data) if clip.path.is_relative_to(f))
            name = clip.path.relative_to(folder).as_posix()
            name = name if len(data) == 1 else f"{number}/{name}"
            contents[name] = [file_size(clip.path), *([clip.caption] if self.request.captions else [])]
        return contents

    def report(self) -> dict[str, Any]:
        return asdict(self.dataset.report)

    def file_rates(self) -> list[tuple[str, float]]:
        return [(str(clip.path), clip.fps) for clip in self.dataset.sources]

    def use_rate(self, fps: float) -> None:
        super().use_rate(fps)
        self.dataset.report.slower = slow_files(self.file_rates(), fps)

    @classmethod
    def validation_clips(cls, request: SourceRequest, num_clips: int) -> dict[str, Float[Tensor, "n 3 t h w"]]:
        """Clips of each held-out file by its path within the folder, at the first of `frame_rates` if there are any.

        A file that cannot be read is skipped, with a warning.
        """
        fps = request.frame_rates[0] if request.frame_rates else None
        clips: dict[str, Tensor] = {}
        for file in list_videos(Path(request.name)):
            if request.hold_out and file.name.startswith(request.hold_out):
                try:
                    clips[file.relative_to(request.name).as_posix()] = centre_clips(
                        file, num_clips, request.shapes[0], fps
                    )
                except KinemaError as error:
                    logger.warning("skipped %r: %s", str(file), error)
        return clips
