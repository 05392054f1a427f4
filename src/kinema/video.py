"""Video and image files to frames and back, and the two layouts of frames in memory.

Shapes: files and pictures are `t h w c` in uint8, models see `b c t h w` in [-1, 1].
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_input_file, check_output_file
from kinema.images import opaque as opaque
from kinema.images import read_image as read_image
from kinema.images import write_image as write_image

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
"""The containers that are written; any that PyAV knows is read."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded clip.

    Attributes:
        frames: RGB, `(t, h, w, 3)`.
        fps: Frames a second.
    """

    frames: UInt8[Tensor, "t h w 3"]
    fps: float


class VideoReader:
    """Frames of a video file, one after the other, so that a long file needs no memory for all of them.

    Frames come in display order and as they are displayed, turned where the file says so.

    Args:
        path: A video file of any kind PyAV decodes.
        allow_truncated: End quietly where a damaged or truncated file can be decoded no further.
        name: What errors call the argument.

    Raises:
        KinemaError: The file is missing, empty or no video; while iterating: it is truncated or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_truncated: bool = False, name: str = "path") -> None:
        self.path = Path(path)
        self.allow_truncated = allow_truncated
        self._argument = f"`{name}` (={str(path)!r})"
        check_input_file(self.path, name)
        try:
            # Names and comments in some files are not UTF-8: of no interest here, so never an error.
            self._container = av.open(str(self.path), metadata_errors="ignore")
        except (FFmpegError, UnicodeDecodeError) as error:
            raise KinemaError(f"{self._argument} must be a video file, complete and readable") from error
        if not self._container.streams.video:
            self.close()
            raise KinemaError(f"{self._argument} must have a video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self.close()
            raise KinemaError(f"{self._argument} must be a complete video file, of a kind that can be decoded")
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or 24
        self.fps = float(rate)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._container.close()

    def __iter__(self) -> Iterator[UInt8[Tensor, "h w 3"]]:
        damaged = False
        seconds = 0.0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.size and packet.pts is not None and packet.time_base is not None:
                    damaged = packet.is_corrupt
                    seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                frames = packet.decode()
            except FFmpegError:
                damaged = True
                packets = iter(())
                frames = []
                with suppress(FFmpegError):
                    frames = self._stream.codec_context.decode(None)
            for frame in frames:
                yield _frame_to_tensor(frame)
        # A cut Matroska file just ends, but says how long it should be; a cut MP4 file fails above.
        missing = _tagged_duration(self._stream.metadata.get("DURATION")) - seconds
        if (damaged or missing > 1.5 / self.fps) and not self.allow_truncated:
            raise KinemaError(f"{self._argument} must be a complete video file, and it is truncated or damaged")


def _tagged_duration(tag: str | None) -> float:
    """Seconds of a Matroska `DURATION` tag, `hours:minutes:seconds`; 0 without one."""
    try:
        hours, minutes, seconds = (tag or "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _frame_to_tensor(frame: Any) -> UInt8[Tensor, "h w 3"]:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns)))


def read_video(
    path: str | os.PathLike[str],
    *,
    max_frames: int | None = None,
    start: int = 0,
    allow_truncated: bool = False,
    name: str = "path",
) -> Video:
    """Decode a video file.

    Args:
        path: The file.
        max_frames: Stop after so many frames; None reads all.
        start: Frames to skip first.
        allow_truncated: Take what can be decoded of a damaged file.
        name: What errors call the argument `path`.

    Raises:
        KinemaError: The file is missing, empty, no video, truncated, or has no frame at `start`.
    """
    if start < 0:
        raise KinemaError(f"`start` (={start}) must be >= 0")
    if max_frames is not None and max_frames < 1:
        raise KinemaError(f"`max_frames` (={max_frames}) must be >= 1")
    frames: list[Tensor] = []
    with VideoReader(path, allow_truncated=allow_truncated, name=name) as reader:
        for index, frame in enumerate(reader):
            if index < start:
                continue
            frames.append(frame)
            if len(frames) == max_frames:
                break
        fps = reader.fps
    if not frames:
        raise KinemaError(f"`{name}` (={str(path)!r}) must have a decodable frame after the first {start}")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise KinemaError(f"`{name}` (={str(path)!r}) must have frames of one size")
    return Video(frames=torch.stack(frames), fps=fps)


class VideoWriter:
    """Writes frames to a video file that appears, complete, when the `with` block ends without an error.

    H.264 in a `.mp4`, `.mkv` or `.mov` file: yuv420p where the size is even (what every player plays), else yuv444p;
    RGB without any loss on request.

    Args:
        path: The file to make; missing folders above it are made too.
        fps: Frames a second.
        lossless: What is read back is bit for bit what was written.
        overwrite: Replace an existing file.

    Raises:
        KinemaError: The file exists and `overwrite` is not set, its suffix is none of `VIDEO_SUFFIXES`, or `fps` is not
            in [0.001, 1000].
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float, *, lossless: bool = False, overwrite: bool = False
    ) -> None:
        check_output_video(path, overwrite=overwrite)
        if not 0.001 <= fps <= 1000:
            raise KinemaError(f"`fps` (={fps}) must be >= 0.001 and <= 1000")
        self.path = Path(path)
        self.lossless = lossless
        # 1001 keeps the broadcast rates, 24000/1001 and its like, exact.
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "VideoWriter":
        # Left in this order: the last packets, the end of the container, then the file takes its place.
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            options = {"movflags": "+faststart"} if self.path.suffix.lower() != ".mkv" else {}
            self._container = stack.enter_context(av.open(str(temporary), "w", options=options))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self._stream is None:
            raise KinemaError("`frames` (=0 of them) must be at least one frame")
        for packet in self._stream.encode():
            self._container.mux(packet)

    def write(self, frames: UInt8[Tensor, "t h w 3"]) -> None:
        """Append frames, all of one size."""
        if self._stream is None:
            self._stream = self._open_stream(int(frames.shape[1]), int(frames.shape[2]))
        if (frames.shape[1], frames.shape[2]) != (self._stream.height, self._stream.width):
            wanted = f"{self._stream.height}x{self._stream.width}"
            raise KinemaError(f"`frames` (of {frames.shape[1]}x{frames.shape[2]}) must be {wanted} like those before")
        for pixels in frames.cpu().numpy():
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if not self.lossless:
                frame = frame.reformat(
                    format=self._stream.pix_fmt,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def _open_stream(self, height: int, width: int) -> Any:
        codec, options = ("libx264rgb", {"qp": "0"}) if self.lossless else ("libx264", {"crf": "17"})
        stream: Any = self._container.add_stream(codec, rate=self._rate, options=options)
        stream.height, stream.width = height, width
        if self.lossless:
            stream.pix_fmt = "rgb24"
        else:
            even = height % 2 == 0 and width % 2 == 0
            stream.pix_fmt = "yuv420p" if even else "yuv444p"
            context = stream.codec_context
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = context.color_trc = 1  # BT.709 in ITU-T H.273
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


def to_float(frames: UInt8[Tensor, "t h w c"]) -> Float[Tensor, "1 c t h w"]:
    """Frames of a file as a batch of one for a model: uint8 to [-1, 1]."""
    return rearrange(frames, "t h w c -> 1 c t h w").float() / 127.5 - 1


def to_uint8(video: Float[Tensor, "c t h w"]) -> UInt8[Tensor, "t h w c"]:
    """A clip of a model, in [-1, 1] (clipped to it), as the frames of a file; undoes `to_float`."""
    levels = ((video.float() + 1) * 127.5).round().clamp(0, 255)
    return rearrange(levels, "c t h w -> t h w c").to(torch.uint8).contiguous()


def contact_sheet(clips: Sequence[UInt8[Tensor, "_ _ _ 3"]], labels: Sequence[str], *, columns: int = 6) -> Image.Image:
    """A picture with a row for each clip: `columns` of its frames, evenly chosen, under its label.

    Args:
        clips: Clips `(t, h, w, 3)`, each of its own size and length; frames of a clip shorter than `columns` repeat.
        labels: One a clip; cut where it is too long.
        columns: Frames in a row.

    Raises:
        KinemaError: No clip, as many labels as clips missing, or `columns` < 1.
    """
    if not clips or len(clips) != len(labels):
        raise KinemaError(
            f"`labels` ({len(labels)} of them) must be one for each of the `clips` ({len(clips)}), at least one"
        )
    if columns < 1:
        raise KinemaError(f"`columns` (={columns}) must be >= 1")
    gap = 4
    font = ImageFont.load_default(size=14)
    line = 20
    width = gap + max(columns * (clip.shape[2] + gap) for clip in clips)
    height = gap + sum(clip.shape[1] + line + gap for clip in clips)
    sheet = Image.new("RGB", (int(width), int(height)), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for clip, label in zip(clips, labels, strict=True):
        draw.text((gap, top), _fit(label, width - 2 * gap, draw, font), fill="black", font=font)
        top += line
        chosen = torch.linspace(0, clip.shape[0] - 1, columns).round().long()
        for column, frame in enumerate(clip[chosen].cpu().numpy()):
            sheet.paste(Image.fromarray(frame), (gap + column * (clip.shape[2] + gap), top))
        top += clip.shape[1] + gap
    return sheet


def _fit(label: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    label = " ".join(label.split())
    if draw.textlength(label, font=font) <= width:
        return label
    while label and draw.textlength(label + "...", font=font) > width:
        label = label[:-1]
    return label + "..."


def check_output_video(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """`check_output_file` for a video file, whose suffix must be one that is written."""
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise KinemaError(f"`output` (={str(path)!r}) must end in one of {', '.join(VIDEO_SUFFIXES)}")
    check_output_file(path, overwrite=overwrite)
