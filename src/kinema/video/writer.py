"""Writing of frames to a video file."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_output_file
from kinema.video.sound import Sound
from kinema.video.source import silence_ffmpeg

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
"""Suffixes of the containers that can be written."""

TICK = Fraction(1, 90000)
"""Resolution in seconds of the times of frames with explicit times."""


class VideoWriter:
    """Writes frames to a video file, which is created when the `with` block ends without an error.

    The codec is H.264, in yuv420p for even sizes (supported by every player), else in yuv444p; optionally lossless RGB.

    Args:
        path: The file to create; missing parent folders are created.
        fps: Frames per second; for frames with explicit times, the mean rate, which the header states.
        lossless: Whether frames read back must be bit-identical.
        overwrite: Whether to replace an existing file.
        start: Seconds from the start of the file to the first frame; for frames without explicit times.
        end: Seconds from the start of the file to the end of the last frame, for frames with explicit times; None: the
            last frame lasts 1 / fps.
        sound: The sound track to write.

    Raises:
        KinemaError: The file exists and `overwrite` is false, its suffix is not in `VIDEO_SUFFIXES`, or `fps` is not in
            [0.001, 1000]; while writing: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        *,
        lossless: bool = False,
        overwrite: bool = False,
        start: float = 0.0,
        end: float | None = None,
        sound: Sound | None = None,
    ) -> None:
        check_output_video(path, overwrite=overwrite)
        if not 0.001 <= fps <= 1000:
            raise KinemaError(f"`fps` (={fps}) must be >= 0.001 and <= 1000")
        self.path = Path(path)
        self.lossless = lossless
        self.start = start
        self._end, self._sound = end, sound
        # A denominator of 1001 represents broadcast rates such as 24000/1001 exactly.
        self._rate = Fraction(fps).limit_denominator(1001)
        self._timed: bool | None = None
        self._tick = Fraction(0)
        self._next = 0  # earliest time of the next frame, in ticks
        self._held: Any = None
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "VideoWriter":
        # Exit order: write the last packets, close the container, rename the file.
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.enter_context(self._reporting())
            options = {"movflags": "+faststart"} if self.path.suffix.lower() != ".mkv" else {}
            # `file:` keeps FFmpeg from interpreting part of the name as a protocol.
            silence_ffmpeg()
            self._container = stack.enter_context(av.open(f"file:{temporary}", "w", options=options))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Convert FFmpeg's errors, such as a full disk, to errors that name the output."""
        try:
            yield
        except FFmpegError as error:
            raise KinemaError(f"`output` (={str(self.path)!r}) could not be written: {error.strerror}") from error

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self._stream is None:
            raise KinemaError("`frames` (=0 of them) must be at least one frame")
        self._mux(self._stream.encode())
        if self._held is not None:
            end = self._held.pts + round(1 / self._rate / self._tick) if self._end is None else self._end / self._tick
            self._release(max(round(end), self._held.pts + 1))
        if self._sound is not None:
            self._sound.finish(self._container)

    def write(self, frames: UInt8[Tensor, "t h w 3"], times: Sequence[float] | None = None) -> None:
        """Append frames, all of the same size.

        Args:
            frames: RGB frames.
            times: Seconds from the start of the file to each frame, increasing over all calls; None in all calls:
                frames are evenly spaced.

        Raises:
            KinemaError: frame sizes differ, `times` does not match `frames` or earlier calls, or writing fails.
        """
        if times is not None and len(times) != len(frames):
            raise KinemaError(f"`times` ({len(times)} of them) must be one for each of the {len(frames)} `frames`")
        with self._reporting():
            if self._stream is None:
                self._timed = times is not None
                self._stream = self._open_stream(int(frames.shape[1]), int(frames.shape[2]))
            if self._timed != (times is not None):
                raise KinemaError("`times` must be given in all calls or in none")
            if (frames.shape[1], frames.shape[2]) != (self._stream.height, self._stream.width):
                wanted = f"{self._stream.height}x{self._stream.width}"
                raise KinemaError(
                    f"`frames` (of {frames.shape[1]}x{frames.shape[2]}) must be {wanted} like earlier frames"
                )
            for index, pixels in enumerate(frames.cpu().numpy()):
                frame = self._encodable(pixels)
                frame.time_base = self._tick
                frame.pts = self._next if times is None else max(self._next, round(times[index] / self._tick))
                self._next = frame.pts + (self._step if times is None else 1)
                self._mux(self._stream.encode(frame))

    def _encodable(self, pixels: np.ndarray) -> Any:
        frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        if self.lossless:
            return frame
        return frame.reformat(
            format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._timed:
                if self._held is not None:
                    self._release(packet.pts)
                self._held = packet
            else:
                self._put(packet)

    def _release(self, end: int) -> None:
        """Write the held packet; `end` is the end of its frame in ticks."""
        self._held.duration = end - self._held.pts
        self._put(self._held)

    def _put(self, packet: Any) -> None:
        if self._sound is not None:  # interleave sound and video by time
            self._sound.write_until(float(packet.dts * packet.time_base), self._container)
        self._container.mux(packet)

    def _open_stream(self, height: int, width: int) -> Any:
        codec, options = ("libx264rgb", {"qp": "0"}) if self.lossless else ("libx264", {"crf": "17"})
        if self._timed:
            options["bf"] = "0"  # packets in display order: the last packet sets the duration of the last frame
        stream: Any = self._container.add_stream(codec, rate=self._rate, options=options)
        stream.height, stream.width = height, width
        context = stream.codec_context
        if self._timed:
            self._tick = TICK
        else:
            # One tick per frame, or finer if the first frame does not start at 0.
            self._step = 1 if self.start == 0 else math.ceil(1 / TICK / self._rate)
            self._tick = 1 / self._rate / self._step
            self._next = round(self.start / self._tick)
        context.time_base = self._tick
        if self.lossless:
            stream.pix_fmt = "rgb24"
        else:
            even = height % 2 == 0 and width % 2 == 0
            stream.pix_fmt = "yuv420p" if even else "yuv444p"
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = context.color_trc = 1  # BT.709 in ITU-T H.273
        if self._sound is not None:
            self._sound.attach(self._container, self.path.suffix)
        return stream


def write_video(
    path: str | os.PathLike[str],
    frames: UInt8[Tensor, "t h w 3"],
    fps: float,
    *,
    lossless: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a clip to a file; arguments and errors as in `VideoWriter`."""
    with VideoWriter(path, fps, lossless=lossless, overwrite=overwrite) as writer:
        writer.write(frames)


def check_output_video(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check that a video file may be written, and that its suffix is in `VIDEO_SUFFIXES`."""
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise KinemaError(f"`output` (={str(path)!r}) must end in one of {', '.join(VIDEO_SUFFIXES)}")
    check_output_file(path, overwrite=overwrite)
