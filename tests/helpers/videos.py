"""Small video files of every kind, made for the tests that read them."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CLOCK = 90000
"""Ticks a second of the times that encoders get."""


def gray_ramp(count: int, height: int = 32, width: int = 32) -> list[np.ndarray]:
    """Frames that tell their number: level 5 k."""
    return [np.full((height, width, 3), 5 * index % 256, np.uint8) for index in range(count)]


def plane_frame(pixel_format: str, height: int, width: int, values: Sequence[Any]) -> Any:
    """A frame of a planar format with given samples, each plane a number or an array of its size."""
    frame = av.VideoFrame(width, height, pixel_format)
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    for plane, value in zip(frame.planes, values, strict=True):
        samples = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        samples[:, : plane.width] = value
        plane.update(samples.tobytes())
    return frame


def add_video(
    container: Any, codec: str, height: int, width: int, pixel_format: str, *, rate: Any = 24, clock: int = CLOCK,
    options: dict[str, str] | None = None, settings: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """A video stream of a container that is being written; `settings` are attributes of its codec context."""
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
    stream.codec_context.time_base = Fraction(1, clock)
    for key, value in (settings or {}).items():
        setattr(stream.codec_context, key, value)
    return stream


def encode(stream: Any, frames: Iterable[Any], times: Sequence[float]) -> list[Any]:
    """All packets of some frames (arrays in RGB, or PyAV's) at some times in seconds."""
    clock = stream.codec_context.time_base
    packets = []
    for pixels, time in zip(frames, times, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels) if isinstance(pixels, np.ndarray) else pixels
        frame.time_base, frame.pts = clock, round(Fraction(time) / clock)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def make_video(
    path: Path, frames: Sequence[Any], times: Sequence[float] | None = None, *, codec: str = "libx264",
    pixel_format: str = "yuv420p", rate: Any = 24, container_options: dict[str, str] | None = None,
    change: Callable[[Any], None] | None = None, **options: Any,
) -> Path:  # fmt: skip
    """A file with one video stream.

    Args:
        path: Its suffix says the container.
        frames: Arrays in RGB, or PyAV's frames of the stream's pixel format.
        times: Seconds; else they come at `rate`.
        codec: FFmpeg's name.
        pixel_format: FFmpeg's name.
        rate: What the header says.
        container_options: Of FFmpeg's muxer.
        change: Gets the stream before the first packet.
        options: As of `add_video`.
    """
    first = frames[0]
    height, width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
    if times is None:
        times = [float(index / Fraction(rate)) for index in range(len(frames))]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = add_video(container, codec, height, width, pixel_format, rate=rate, **options)
        if change is not None:
            change(stream)
        for packet in encode(stream, frames, times):
            container.mux(packet)
    return path


def tone(seconds: float, start: float = 0.0, rate: int = 48000, size: int = 1024) -> list[Any]:
    """Frames of sound: 440 Hz in stereo."""
    total = round(seconds * rate)
    wave = np.sin(np.arange(total) * (2 * np.pi * 440 / rate)).astype(np.float32) * 0.3
    frames = []
    for first in range(0, total, size):
        piece = wave[first : first + size]
        frame = av.AudioFrame.from_ndarray(np.stack([piece, piece]), format="fltp", layout="stereo")
        frame.rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = first + round(start * rate)
        frames.append(frame)
    return frames


def make_sounding_video(
    path: Path, count: int = 24, *, sound: str = "aac", video_start: float = 0.0, sound_start: float = 0.0,
    seconds: float = 1.0, codec: str = "libx264", rate: int = 24, clock: int = CLOCK,
) -> Path:  # fmt: skip
    """A file with `count` frames and a track of sound."""
    times = [video_start + index / rate for index in range(count)]
    with av.open(str(path), "w") as container:
        video = add_video(container, codec, 32, 32, "yuv420p", rate=rate, clock=clock)
        track: Any = container.add_stream(sound, rate=48000)
        track.layout = "stereo"
        packets = encode(video, gray_ramp(count), times)
        for frame in tone(seconds, sound_start, size=track.codec_context.frame_size or 1024):
            packets += track.encode(frame)
        packets += track.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def spans(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds at which the video and the sound of a file begin and end, by decoding all of it."""
    found = {}
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            if not getattr(container.streams, kind):
                continue
            frames: list[Any] = list(container.decode(getattr(container.streams, kind)[0]))
            last = frames[-1].samples / frames[-1].rate if kind == "audio" else 0.0
            found[kind] = (frames[0].time, frames[-1].time + last)
    return found
