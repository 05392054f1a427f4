"""Folders of video files as training data: decoded once, then cut into random clips.

Every file is decoded once to a memory-mapped array of uint8 frames at a small short side. After that a random clip
costs a copy. Files that cannot be read are skipped, counted and named, never fatal.
"""

import csv
import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path
from kinema.video import VideoReader

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".wmv", ".flv", ".ts")


@dataclass(frozen=True)
class ClipSource:
    """One decoded file.

    Attributes:
        path: the video file.
        cache: its frames, uint8 ``(t, h, w, 3)``, as a `.npy` file.
        shape: ``(t, h, w)`` of the frames.
        caption: its caption, empty when there is none.
    """

    path: Path
    cache: Path
    shape: tuple[int, int, int]
    caption: str = ""

    def frames(self) -> np.ndarray:
        """The frames ``(t, h, w, 3)``, mapped into memory, read only."""
        return np.load(self.cache, mmap_mode="r")


@dataclass
class ClipsReport:
    """What became of the files of a data set.

    Attributes:
        num_files: video files found.
        num_frames: frames decoded from the readable ones.
        unreadable: reason for each file that was skipped.
        cut: files of which only the first frames are used, because they have more than `max_frames_per_file`.
        held_out: files left out because of their name.
    """

    num_files: int = 0
    num_frames: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.num_files} files, {self.num_frames} frames, {len(self.unreadable)} unreadable"]
        lines += [f"  skipped {name}: {reason}" for name, reason in sorted(self.unreadable.items())]
        lines += [f"  only the first frames used: {name}" for name in self.cut]
        return "\n".join(lines)


class ClipsDataset:
    """Random clips from folders of video files.

    Args:
        folders: searched for video files, with all their subfolders.
        cache_dir: where decoded frames are kept.
        short_side: frames are scaled (with antialiasing) to this short side; smaller ones stay as they are.
        hold_out: files whose names start with one of these are left out...
        only: ... and if this is given, all others are.
        max_frames_per_file: frames decoded from each file at most.

    Attributes:
        sources: the readable files.
        report: what was found and skipped.

    Raises:
        KinemaError: a folder does not exist or holds no video file, or none of the files is readable.
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
    ) -> None:
        self.short_side = short_side
        self.max_frames_per_file = max_frames_per_file
        self.report = ClipsReport()
        self.sources: list[ClipSource] = []
        for folder in map(Path, folders):
            files = list_videos(folder)
            captions = read_captions(folder)
            for file in files:
                held_out = file.name.startswith(tuple(hold_out))
                if held_out or (only is not None and not file.name.startswith(tuple(only))):
                    self.report.held_out.append(str(file))
                    continue
                self._add(file, Path(cache_dir), captions.get(file.relative_to(folder).as_posix(), ""))
        if self.report.unreadable or self.report.cut:
            logger.warning("%s", self.report)
        if not self.sources and only is None:
            names = ", ".join(map(str, folders))
            raise KinemaError(f"`data` (={names}) must hold at least one readable video file to train on")

    def _add(self, file: Path, cache_dir: Path, caption: str) -> None:
        self.report.num_files += 1
        try:
            cache = cached_frames(file, cache_dir, self.short_side, self.max_frames_per_file)
        except KinemaError as error:
            self.report.unreadable[str(file)] = str(error)
            return
        t, h, w, _ = np.load(cache, mmap_mode="r").shape
        self.report.num_frames += t
        if t == self.max_frames_per_file:  # or exactly as long, which is not known any more
            self.report.cut.append(f"{file} ({t} frames)")
        self.sources.append(ClipSource(file, cache, (t, h, w), caption))

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
    ) -> tuple[Float[Tensor, "3 t h w"], str]:
        """A clip and its caption: a random file (by its length), start, frame stride, crop, scale and flip.

        A file shorter than the clip is repeated back and forth.

        Args:
            shape: (frames, height, width) of the clip.
            generator: source of all the choices.
            max_stride: largest step between frames, where the file is long enough.
            max_zoom_out: crops are up to this much larger than the clip and scaled down; half of them are not scaled.
            flip: mirror half of the clips.
            frame_rates: frames a second, one drawn for the clip, instead of a stride: frames of the file are left out,
                by the rate that it states. No frame is shown twice, so that a file slower than the rate, or too short
                for it, gives a faster clip.

        Returns:
            Pixels in [-1, 1], and the caption.
        """
        draw = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        lengths = np.cumsum([source.shape[0] for source in self.sources])
        source = self.sources[int(np.searchsorted(lengths, draw[0] * lengths[-1], side="right"))]
        t, h, w = source.shape
        frames, height, width = shape
        if frame_rates:
            rate = frame_rates[int(draw[1] * len(frame_rates))]
            stride = min(max(1.0, frame_rate(source.path) / rate), max(1.0, (t - 1) / max(1, frames - 1)))
        else:
            stride = min(1 + int(draw[1] * max_stride), max(1, (t - 1) // max(1, frames - 1)))
        steps = np.rint(stride * np.arange(frames)).astype(np.int64)
        start = int(draw[2] * max(1, t - int(steps[-1])))
        zoom = min(max(1.0, 1 + (2 * draw[3] - 1) * (max_zoom_out - 1)), h / height, w / width)
        crop_h, crop_w = max(1, round(height * zoom)), max(1, round(width * zoom))
        top, left = int(draw[4] * (h - crop_h + 1)), int(draw[5] * (w - crop_w + 1))
        index = bounce(start + steps, t)
        pixels = torch.from_numpy(source.frames()[index, top : top + crop_h, left : left + crop_w])
        clip = resize_frames(pixels, height, width)
        if flip and draw[6] < 0.5:
            clip = clip.flip(-2)
        return clip.permute(3, 0, 1, 2).float() / 127.5 - 1, source.caption

    def random_clips(
        self,
        num_clips: int,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        max_stride: int = 1,
        max_zoom_out: float = 1.0,
        frame_rates: Sequence[float] = (),
    ) -> Float[Tensor, "b 3 t h w"]:
        """A batch of random clips, see `random_clip`."""
        clips = [
            self.random_clip(
                shape, generator, max_stride=max_stride, max_zoom_out=max_zoom_out, frame_rates=frame_rates
            )[0]
            for _ in range(num_clips)
        ]
        return torch.stack(clips)


@cache
def frame_rate(path: Path) -> float:
    """Frames a second that a video file states; 24 where it states none."""
    with VideoReader(path) as reader:
        return reader.fps


def centre_clips(path: Path, num_clips: int, shape: tuple[int, int, int]) -> Float[Tensor, "n 3 t h w"]:
    """Clips at evenly spaced places of a file: frames scaled so that they just cover the size, then cropped at the
    centre. What validation uses.

    Raises:
        KinemaError: the file cannot be read.
    """
    frames, height, width = shape
    with VideoReader(path) as reader:
        length = sum(1 for _ in reader)
    starts = np.linspace(0, max(0, length - frames), num_clips + 2).round().astype(int)[1:-1]
    wanted = [bounce(start + np.arange(frames), length) for start in starts]
    used = {int(i) for index in wanted for i in index}
    # Read a second time, since a long file does not fit into memory.
    with VideoReader(path) as reader:
        kept = {i: cover_frame(frame, height, width) for i, frame in enumerate(reader) if i in used}
    clips = [torch.stack([kept[int(i)] for i in index]) for index in wanted]
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def list_videos(folder: Path) -> list[Path]:
    """Video files in a folder and below, sorted.

    Raises:
        KinemaError: it is no folder, or there is none.
    """
    if not folder.is_dir():
        raise KinemaError(f"`data` (={folder}) must be an existing folder of video files, or `toybox`")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not files:
        raise KinemaError(f"`data` (={folder}) must hold at least one video file ({', '.join(VIDEO_SUFFIXES)})")
    return files


def read_captions(folder: Path) -> dict[str, str]:
    """Captions by file name (relative to the folder): `captions.jsonl` with `file` and `caption` on each line,
    `captions.csv` with these columns, or a `NAME.txt` beside each video. In this order, later ones win.

    Raises:
        KinemaError: a line of a captions file has no `file` or no `caption`.
    """
    rows: list[tuple[str, dict]] = []
    if (table := folder / "captions.csv").is_file():
        with table.open(newline="", encoding="utf-8", errors="replace") as handle:
            rows += [(f"{table}:{n}", row) for n, row in enumerate(csv.DictReader(handle), start=2)]
    if (lines := folder / "captions.jsonl").is_file():
        for n, line in enumerate(lines.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.strip():
                try:
                    rows.append((f"{lines}:{n}", json.loads(line)))
                except json.JSONDecodeError as error:
                    raise KinemaError(f"`captions` (={lines}:{n}) must be one JSON object a line: {error}") from error
    captions: dict[str, str] = {}
    for place, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not isinstance(row.get("caption"), str):
            raise KinemaError(f"`captions` (={place}) must have `file` and `caption`")
        captions[row["file"]] = row["caption"]
    for text in folder.rglob("*.txt"):
        for suffix in VIDEO_SUFFIXES:
            if (video := text.with_suffix(suffix)).is_file():
                captions[video.relative_to(folder).as_posix()] = text.read_text(
                    encoding="utf-8", errors="replace"
                ).strip()
    return captions


def cached_frames(path: Path, cache_dir: Path, short_side: int, max_frames: int) -> Path:
    """The `.npy` file with a video's frames, decoded now if it is not there yet.

    Its name holds the file's size and time of change, so that a changed file is decoded again.

    Raises:
        KinemaError: the file cannot be read.
    """
    stat = path.stat()
    key = f"{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}/{short_side}/{max_frames}"
    target = cache_dir / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if target.is_file():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Frames go to a raw file one by one, so that a long video needs no memory; the shape is known only at the end.
    # Both files have names of their own: another process may be doing the same.
    with tempfile.NamedTemporaryFile(dir=cache_dir, suffix=".raw") as raw, atomic_path(target) as temporary:
        count, shape = 0, None
        with VideoReader(path) as reader:
            for frame in reader:
                small = cover_frame(frame, short_side, short_side, crop=False)
                if shape is not None and small.shape != shape:
                    raise KinemaError(f"`path` (={path}) must have frames of one size")
                shape = small.shape
                raw.write(small.numpy().tobytes())
                count += 1
                if count == max_frames:
                    break
        if shape is None:
            raise KinemaError(f"`path` (={path}) must have a decodable frame")
        raw.flush()
        array = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, *shape))
        array[:] = np.memmap(raw.name, dtype=np.uint8, mode="r", shape=(count, *shape))
        array.flush()
        del array
    return target


def cover_frame(
    frame: UInt8[Tensor, "h w 3"], height: int, width: int, *, crop: bool = True
) -> UInt8[Tensor, "h2 w2 3"]:
    """Scales a frame (with antialiasing) so that it just covers the size, then crops its centre.

    Without `crop` the frame keeps its aspect, and one smaller than the size is not scaled up.
    """
    h, w = frame.shape[:2]
    scale = max(height / h, width / w)
    if scale < 1 or crop:
        frame = resize_frames(frame[None], max(height, round(h * scale)), max(width, round(w * scale)))[0]
    if not crop:
        return frame
    h, w = frame.shape[:2]
    top, left = (h - height) // 2, (w - width) // 2
    return frame[top : top + height, left : left + width].contiguous()


def resize_frames(frames: UInt8[Tensor, "t h w 3"], height: int, width: int) -> UInt8[Tensor, "t h2 w2 3"]:
    """Scales frames with an antialiased bilinear filter."""
    if frames.shape[1:3] == (height, width):
        return frames
    planes = frames.permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1).contiguous()


def bounce(index: np.ndarray, length: int) -> np.ndarray:
    """Indices beyond the end run backwards, and so on."""
    period = max(1, 2 * (length - 1))
    index = index % period
    return np.where(index < length, index, period - index)
