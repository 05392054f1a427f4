"""Resampling by timestamps: the frames of a file that are on display at the times of a clip's frames."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

_MUCH_SLOWER = 0.67  # of the rate of clips: a third of the frames are repeated


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """Timestamps of a file's frames.

    Attributes:
        fps: frames per second, the mean if the rate varies.
        is_variable: whether the rate varies.
        last_duration: duration of the last frame in seconds.
        tick: resolution of the file's timestamps in seconds.
        is_cut: whether the file has more frames than these.
        times: seconds from the first frame to each, strictly increasing.
    """

    fps: float
    is_variable: bool
    last_duration: float
    tick: float
    is_cut: bool
    times: Float64[np.ndarray, " t"]

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.times[-1]) + self.last_duration

    def num_at_rate(self, rate: float) -> int:
        """Number of frames of the whole file at a rate, at least 1."""
        return max(1, int(np.ceil(self.duration * rate - 1e-6)))

    def shown_at(self, seconds: Float64[np.ndarray, " n"], rate: float) -> Int64[np.ndarray, " n"]:
        """Indices of the frames on display at times of a clip at a rate, as in `VideoReader.at_rate`."""
        # Stored times are rounded: a frame may be stated a tick later than it is meant.
        slack = min(self.tick, 0.25 / rate) + 1e-9
        index = np.searchsorted(self.times, seconds + slack, side="right") - 1
        return np.clip(index, 0, len(self.times) - 1)


def rate_without_repeats(times: FrameTimes, rate: float, num_frames: int) -> float:
    """The rate nearest to `rate` at which a clip of a file with a constant rate repeats no frame.

    It is lower than `rate` if the file has fewer frames per second, and higher if the file is too short.
    """
    span = float(times.times[-1])
    needed = (num_frames - 1) / span if span > 0 else times.fps
    return min(max(rate, needed), times.fps)


def clip_frames(
    times: FrameTimes, num_frames: int, rate: float, *, stride: int = 1, start: float = 0.0
) -> Int64[np.ndarray, " n"]:
    """Indices of the frames of a clip.

    A file shorter than the clip is played back and forth.

    Args:
        times: timestamps of the file.
        num_frames: number of frames of the clip.
        rate: frames per second of the clip, at a stride of 1.
        stride: step between frames of the clip, in units of 1 / rate; lower if the file is too short.
        start: start of the clip, in [0, 1), as a fraction of the frames at which it can start.
    """
    available = times.num_at_rate(rate)
    stride = min(stride, max(1, (available - 1) // max(1, num_frames - 1)))
    steps = stride * np.arange(num_frames)
    if steps[-1] >= available:
        return times.shown_at(bounce(steps, available) / rate, rate)
    latest = times.duration - steps[-1] / rate - 1e-6
    num_starts = max(1, int(np.searchsorted(times.times, latest)))
    return times.shown_at(times.times[int(start * num_starts)] + steps / rate, rate)


def bounce(index: np.ndarray, length: int) -> np.ndarray:
    """Reflects indices beyond the end, so that frames are played back and forth."""
    period = max(1, 2 * (length - 1))
    index = index % period
    return np.where(index < length, index, period - index)


def describe_rate(rate: float) -> str:
    """A rate as text: 30, 29.97."""
    return f"{rate:.5g}"


def slow_files(file_rates: Iterable[tuple[str, float]], rate: float) -> list[str]:
    """The files, with their rates, that have far fewer frames per second than clips at `rate`."""
    return [f"{name!r} ({describe_rate(fps)})" for name, fps in file_rates if fps < _MUCH_SLOWER * rate]
