"""Reading of video files to frames, as a player shows them."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from av.error import FFmpegError
from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.video.cut import is_cut_matroska
from kinema.video.display import Display
from kinema.video.limits import LONGEST_STILL
from kinema.video.source import Media, best_video_stream, decoder_of
from kinema.video.timing import Timing, scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded clip.

    Attributes:
        frames: RGB, `(t, h, w, 3)`.
        fps: Frames per second.
    """

    frames: UInt8[Tensor, "t h w 3"]
    fps: float


class VideoReader:
    """Reads the frames of a video file one at a time, so that long files need little memory.

    Frames are in display order and as a player shows them (docs/video.md): from the stream that players select, with
    square pixels, upright, blended with white where transparent, in BT.709 R'G'B' of standard dynamic range. A reader
    can be iterated several times, but not concurrently.

    Args:
        path: A video file in any format that PyAV decodes.
        allow_truncated: End without an error where a damaged or truncated file cannot be decoded further.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file is missing, empty or not a video; while iterating: it is truncated or damaged, or frames
            differ in size, are too large, or have an unsupported format.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_truncated: bool = False, name: str = "path") -> None:
        self.path = Path(path)
        self.allow_truncated = allow_truncated
        self._name = name
        self._argument = f"`{name}` (={str(path)!r})"
        self._media = Media(self.path, name)
        try:
            self._stream = best_video_stream(self._media.container, self.path, name)
        except KinemaError:
            self.close()
            raise
        self._index = self._stream.index
        self._used = False

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._media.close()

    @cached_property
    def timing(self) -> Timing:
        """Display times of the frames; reads the whole file once, without decoding."""
        with Media(self.path, self._name) as media:
            return scan(media.container, media.container.streams[self._index], self.path)

    @property
    def fps(self) -> float:
        """Frames per second: the exact rate if frames are regular, else the mean rate.

        For files with one frame or without times: the header's rate, else 24.
        """
        return self.timing.fps

    @property
    def is_variable(self) -> bool:
        """Whether frames have different durations."""
        return self.timing.is_variable

    def __iter__(self) -> Iterator[UInt8[Tensor, "h w 3"]]:
        for _, frame in self._decode():
            yield frame

    def timed(self) -> Iterator[tuple[float, UInt8[Tensor, "h w 3"]]]:
        """Yield frames with their time in seconds since the first frame, strictly increasing.

        Raises:
            KinemaError: While iterating: a frame lasts over an hour.
        """
        clock, before = _Clock(self.timing), 0.0
        for stated, frame in self._decode():
            time = clock(stated)
            if time - before > LONGEST_STILL:
                raise KinemaError(
                    f"{self._argument} must not show a frame for {time - before:.0f} s: its times are damaged"
                )
            yield time, frame
            before = time

    def at_rate(self, fps: float) -> Iterator[UInt8[Tensor, "h w 3"]]:
        """Yield frames resampled to a rate: the k-th is the one shown k / fps seconds after the first.

        Frames are repeated or dropped, never blended. Their number is `round(fps * duration)`, at least one, where the
        duration includes the last frame.

        Raises:
            KinemaError: `fps` is not in [0.001, 1000]; while iterating: a frame lasts over an hour.
        """
        if not 0.001 <= fps <= 1000:
            raise KinemaError(f"`fps` (={fps}) must be >= 0.001 and <= 1000")
        # Stored times are rounded: a frame may be stored up to a tick late.
        slack = min(self.timing.tick, 0.25 / fps) + 1e-9
        count, shown, start = 0, None, 0.0
        for time, frame in self.timed():
            while shown is not None and count / fps < time - slack:
                yield shown
                count += 1
            shown, start = frame, time
        if shown is not None:
            total = max(1, round(fps * (start + min(self.timing.last_duration, LONGEST_STILL))))
            for _ in range(total - count):
                yield shown

    def _decode(self) -> Iterator[tuple[float | None, UInt8[Tensor, "h w 3"]]]:
        """Yield displayed frames with the stored time in seconds, or None."""
        if self._used:  # reopen the file to start from the beginning
            self._media.close()
            self._media = Media(self.path, self._name)
            self._stream = self._media.container.streams[self._index]
        self._used = True
        context = decoder_of(self._stream)
        display = Display(self._stream, context, self.path, self._name)
        damaged, decoded, corrupt = False, 0, 0
        packets = self._media.container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.size:
                    damaged = packet.is_corrupt
                frames = context.decode(packet)
            except FFmpegError:
                damaged = True
                packets = iter(())
                frames = []
                with suppress(FFmpegError):
                    frames = context.decode(None)
            for frame in frames:
                decoded += 1
                corrupt += frame.is_corrupt
                # Frames flushed after an error have no time base.
                time = None if frame.pts is None else float(frame.pts * self._stream.time_base)
                yield time, display(frame)
        # A truncated Matroska file ends without an error, but its header tells; a truncated MP4 file fails above.
        if (damaged or is_cut_matroska(self.path)) and not self.allow_truncated:
            raise KinemaError(f"{self._argument} must be a complete video file, and it is truncated or damaged")
        if not self.allow_truncated:
            self._warn_of_damage(decoded, corrupt)

    def _warn_of_damage(self, decoded: int, corrupt: int) -> None:
        """Warn of damage that decoders ignore: partially decoded frames, and packets without frames."""
        missing = max(0, len(self.timing.times) - decoded)
        if self.timing.by_position or missing >= decoded:
            missing = 0  # packets contain fields (half frames), or no frames
        if missing + corrupt:
            logger.warning("%s: it is damaged: %d frames in part, %d altogether", self._argument, corrupt, missing)


class _Clock:
    """Computes the times of decoded frames in sequence, in seconds since the first."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._by_position = timing.by_position
        self._first: float | None = None
        self._last = -1.0
        self._count = 0

    def __call__(self, stated: float | None) -> float:
        """Return the time of the next frame, given its stored time or None."""
        times, usual = self._timing.times, 1 / self._timing.fps
        time = 0.0
        if not len(times):
            self._by_position = True
        if not self._by_position and stated is not None:
            self._first = stated if self._first is None else self._first
            time = stated - self._first
            if not self._timing.is_variable:
                time = round(time * self._timing.fps) / self._timing.fps
            self._by_position = time <= self._last  # not display times
        if self._by_position or stated is None:
            time = float(times[self._count]) if self._count < len(times) else self._last + usual
            if time <= self._last:
                time = self._last + usual / 2
        if self._count == 0:
            time = 0.0
        self._count += 1
        self._last = time
        return time


def read_video(
    path: str | os.PathLike[str],
    *,
    max_frames: int | None = None,
    start: int = 0,
    fps: float | None = None,
    allow_truncated: bool = False,
    name: str = "path",
) -> Video:
    """Decode a video file.

    Args:
        path: The file.
        max_frames: Maximum number of frames; None: all.
        start: Number of frames to skip first.
        fps: Rate to resample to, see `VideoReader.at_rate`; `start` and `max_frames` count resampled frames. None: the
            frames of the file.
        allow_truncated: Return what can be decoded of a damaged file.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file is missing, empty, not a video, truncated, or has no frame at `start`.
    """
    if start < 0:
        raise KinemaError(f"`start` (={start}) must be >= 0")
    if max_frames is not None and max_frames < 1:
        raise KinemaError(f"`max_frames` (={max_frames}) must be >= 1")
    frames: list[Tensor] = []
    with VideoReader(path, allow_truncated=allow_truncated, name=name) as reader:
        for index, frame in enumerate(reader if fps is None else reader.at_rate(fps)):
            if index < start:
                continue
            frames.append(frame)
            if len(frames) == max_frames:
                break
        rate = reader.fps if fps is None else fps
    if not frames:
        raise KinemaError(f"`{name}` (={str(path)!r}) must have a decodable frame after the first {start}")
    return Video(frames=torch.stack(frames), fps=float(rate))
