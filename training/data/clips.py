"""Folders of video files as training data: decoded once, then cut into random clips.

Each file is decoded once, to a memory-mapped array of uint8 frames with a small short side; a random clip is then a
copy. Files that cannot be read are skipped and reported, never fatal.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.training.data.captions import read_captions
from kinema.training.data.frames import CachedFrames, UnreadableFile, cached_frames, unreadable_otherwise
from kinema.training.data.listing import list_videos_and_others
from kinema.training.data.rates import bounce, clip_frames, rate_without_repeats
from kinema.training.data.report import ClipsReport
from kinema.training.data.resize import cover_frame, resize_frames

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipSource:
    """One decoded file.

    Attributes:
        path: the video file.
        cached: its frames and their times.
        caption: its caption, or an empty string.
    """

    path: Path
    cached: CachedFrames
    caption: str = ""

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return self.cached.times.fps


class ClipsDataset:
    """Random clips from folders of video files.

    Args:
        folders: searched recursively for video files.
        cache_dir: where decoded frames are stored.
        short_side: short side in pixels to which larger frames are scaled, with antialiasing.
        hold_out: prefixes of the names of files to leave out.
        only: prefixes of the names of the only files to use (default: all).
        max_frames_per_file: maximum number of frames decoded from each file.
        captions: whether captions are read.

    Attributes:
        sources: the readable files.
        report: the files found and skipped.

    Raises:
        KinemaError: a folder does not exist or holds no video file, none of the files is readable, captions cannot be
            read, or the cache cannot be written.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        cache_dir: str | Path,
        *,
        short_side: int = 160,
        hold_out: Sequence[str] = (),
        only: Sequence[str] | None = None,
        max_frames_per_file: int = 20_000,
        captions: bool = True,
    ) -> None:
        self.short_side = short_side
        self.max_frames_per_file = max_frames_per_file
        self.report = ClipsReport(with_captions=captions)
        self.sources: list[ClipSource] = []
        wanted: list[tuple[Path, str]] = []
        for folder in map(Path, folders):
            files, others = list_videos_and_others(folder)
            found = read_captions(folder, files) if captions else None
            for file in (*files, *others):
                held_out = file.name.startswith(tuple(hold_out))
                if held_out or (only is not None and not file.name.startswith(tuple(only))):
                    self.report.held_out.append(str(file))
                elif file in others:
                    self._skip(file, others[file])
                else:
                    wanted.append((file, found.of_file.get(file, "") if found else ""))
            if found is not None and only is None:
                self.report.captions_without_file += found.without_file
                self.report.captions_replaced += found.replaced
        for file, caption in tqdm(wanted, desc="videos", unit="file", disable=not sys.stderr.isatty()):
            self._add(file, Path(cache_dir), caption)
        self._bounds = np.cumsum([source.cached.shape[0] for source in self.sources])
        self._log(folders, only is None)

    def _skip(self, file: Path, reason: str) -> None:
        self.report.num_files += 1
        self.report.unreadable[str(file)] = reason.removeprefix(f"`path` (={str(file)!r}) ")

    def _add(self, file: Path, cache_dir: Path, caption: str) -> None:
        try:
            cached = cached_frames(file, cache_dir, self.short_side, self.max_frames_per_file)
        except UnreadableFile as error:
            self._skip(file, str(error))
            return
        self.report.num_files += 1
        self.report.num_frames += cached.shape[0]
        if cached.times.is_cut:
            self.report.cut.append(f"{str(file)!r} ({cached.shape[0]} frames, {cached.times.duration:.0f} s)")
        if not caption:
            self.report.without_caption.append(str(file))
        self.sources.append(ClipSource(file, cached, caption))

    def _log(self, folders: Sequence[str | Path], is_training: bool) -> None:
        """Logs the problems of the data.

        Raises:
            KinemaError: there is no readable file to train on.
        """
        report, names = self.report, ", ".join(map(str, folders))
        without = len(report.without_caption) if report.with_captions and is_training else 0
        if report.unreadable or report.cut or without or report.captions_without_file or report.captions_replaced:
            logger.warning("%s", report)
        if 2 * without > len(self.sources):
            logger.warning(
                "`data` (=%s) has no captions for %d of its %d files: what is trained on it hardly learns to follow"
                " prompts",
                *(names, without, len(self.sources)),
            )
        if not self.sources and is_training:
            first = next(iter(report.unreadable.items()), ("", "all are held out"))
            reason = ": ".join(part for part in first if part)
            raise KinemaError(f"`data` (={names}) must hold at least one readable video file to train on ({reason})")

    def __len__(self) -> int:
        return len(self.sources)

    def random_clip(
        self,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        max_stride: int = 1,
        max_zoom_out: float = 1.0,
        flip: bool = True,
        frame_rates: Sequence[float] = (),
        fps: float | None = None,
    ) -> tuple[Float[Tensor, "3 t h w"], str]:
        """A clip and its caption, with random file (weighted by length), start, frame stride, crop, scale and flip.

        Frames are selected by their timestamps. A file shorter than the clip is played back and forth.

        Args:
            shape: (frames, height, width) of the clip.
            generator: of all random choices.
            max_stride: maximum step between frames at the clip's rate, if the file is long enough. A stride of 2
                doubles the speed of motion.
            max_zoom_out: crops are up to this many times larger than the clip and scaled down; half are not scaled.
            flip: mirror half of the clips.
            frame_rates: frames per second, one drawn for the clip, instead of a stride. If the file is slower, or too
                short, motion is faster in the clip, because no frame is repeated.
            fps: frames per second of the clip (default: those of the file). Frames of slower files are repeated, so
                that motion keeps its speed.

        Returns:
            Pixels in [-1, 1], and the caption.
        """
        draw = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        source = self.sources[int(np.searchsorted(self._bounds, draw[0] * self._bounds[-1], side="right"))]
        _, h, w = source.cached.shape
        times = source.cached.times
        frames, height, width = shape
        stride, rate = 1 + int(draw[1] * max_stride), fps or times.fps
        if frame_rates:
            stride = 1
            rate = rate_without_repeats(times, frame_rates[int(draw[1] * len(frame_rates))], frames)
        index = clip_frames(times, frames, rate, stride=stride, start=draw[2])
        zoom = min(max(1.0, 1 + (2 * draw[3] - 1) * (max_zoom_out - 1)), h / height, w / width)
        crop_h, crop_w = max(1, round(height * zoom)), max(1, round(width * zoom))
        top, left = int(draw[4] * (h - crop_h + 1)), int(draw[5] * (w - crop_w + 1))
        pixels = torch.from_numpy(source.cached.frames()[index, top : top + crop_h, left : left + crop_w])
        clip = resize_frames(pixels, height, width)
        if flip and draw[6] < 0.5:
            clip = clip.flip(-2)
        return clip.permute(3, 0, 1, 2).float() / 127.5 - 1, source.caption


def centre_clips(
    path: Path, num_clips: int, shape: tuple[int, int, int], fps: float | None = None
) -> Float[Tensor, "n 3 t h w"]:
    """Validation clips, evenly spaced in a file: frames are scaled to just cover the size and cropped at the centre.

    Args:
        path: the file.
        num_clips: number of clips.
        shape: (frames, height, width) of each.
        fps: frames per second of the clips (default and maximum: those of the file).

    Raises:
        KinemaError: the file cannot be read.
    """
    from kinema.video import VideoReader

    with unreadable_otherwise(path), VideoReader(path) as reader:
        rate = min(fps or reader.fps, reader.fps)
        length = max(1, round(reader.timing.duration * rate))
        while True:
            starts = np.linspace(0, max(0, length - shape[0]), num_clips + 2).round().astype(int)[1:-1]
            wanted = [bounce(start + np.arange(shape[0]), length) for start in starts]
            used = {int(i) for index in wanted for i in index}
            kept: dict[int, Tensor] = {}
            count = 0
            for frame in reader.at_rate(rate):
                if count in used:
                    kept[count] = cover_frame(frame, *shape[1:])
                count += 1
            if count == length or not count:
                break
            length = count  # the file has other frames than it states
    if not count:
        raise KinemaError(f"`path` (={str(path)!r}) must have a decodable frame")
    clips = [torch.stack([kept[int(i)] for i in index]) for index in wanted]
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
