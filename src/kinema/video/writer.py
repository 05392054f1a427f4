"""Frames to a video file."""

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
"""The containers that are written; any that PyAV knows is read."""

TICK = Fraction(1, 90000)
"""Seconds; how finely frames with times of their own are placed."""


class VideoWriter:
    """Writes frames to a video file that appears, complete, when the `with` block ends without an error.

    H.264 in a `.mp4`, `.mkv` or `.mov` file: yuv420p where the size is even (what every player plays), else yuv444p;
    RGB without any loss on request.

    Args:
        path: The file to make; missing folders above it are made too.
        fps: Frames a second; where frames have times of their own, their mean rate, which the file states.
        lossless: What is read back is bit for bit what was written.
        overwrite: Replace an existing file.
        start: Seconds from the start of the file to the first frame; for frames without times of their own.
        end: Seconds from the start of the file to the end of the last frame, for frames with times of their own; None
            shows the last frame for 1 / fps.
        sound: The sound track to write beside the frames.

    Raises:
        KinemaError: The file exists and `overwrite` is not set, its suffix is none of `VIDEO_SUFFIXES`, or `fps` is not
            in [0.001, 1000]; later: the file cannot be written.
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
        # 1001 keeps the broadcast rates, 24000/1001 and its like, exact.
        self._rate = Fraction(fps).limit_denominator(1001)
        self._timed: bool | None = None
        self._tick = Fraction(0)
        self._next = 0  # ticks, the earliest time that the next frame may have
        self._held: Any = None
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "VideoWriter":
        # Left in this order: the last packets, the end of the container, then the file takes its place.
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.enter_context(self._reporting())
            options = {"movflags": "+faststart"} if self.path.suffix.lower() != ".mkv" else {}
            # `file:` keeps FFmpeg from taking a part of the name for a protocol.
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
        """Turn FFmpeg's errors, a full disk among them, into one that names the output."""
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
        """Append frames, all of one size.

        Args:
            frames: RGB.
            times: Seconds from the start of the file to each frame, increasing over all calls; None, in all calls,
                spaces frames evenly.
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
                    f"`frames` (of {frames.shape[1]}x{frames.shape[2]}) must be {wanted} like those before"
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
        """Write the packet that was held back until the end of its frame, in ticks, was known."""
        self._held.duration = end - self._held.pts
        self._put(self._held)

    def _put(self, packet: Any) -> None:
        if self._sound is not None:  # sound and pictures of one time lie side by side in the file
            self._sound.write_until(float(packet.dts * packet.time_base), self._container)
        self._container.mux(packet)

    def _open_stream(self, height: int, width: int) -> Any:
        codec, options = ("libx264rgb", {"qp": "0"}) if self.lossless else ("libx264", {"crf": "17"})
        if self._timed:
            options["bf"] = "0"  # packets in display order: the last one states how long the last frame is shown
        stream: Any = self._container.add_stream(codec, rate=self._rate, options=options)
        stream.height, stream.width = height, width
        context = stream.codec_context
        if self._timed:
            self._tick = TICK
        else:
            # Ticks of a frame each; finer ones where the first frame comes late.
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
    """Write a clip to a file; arguments and errors as of `VideoWriter`."""
    with VideoWriter(path, fps, lossless=lossless, overwrite=overwrite) as writer:
        writer.write(frames)


def check_output_video(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """`check_output_file` for a video file, whose suffix must be one that is written."""
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise KinemaError(f"`output` (={str(path)!r}) must end in one of {', '.join(VIDEO_SUFFIXES)}")
    check_output_file(path, overwrite=overwrite)
