"""Display times of the frames of a video, computed from packet times without decoding.

The frame rate in a file's header is often wrong: 1000 in WebM files with variable rate, the rate of empty packets in
AVI files, any rate in slide shows.
"""

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from kinema.video.cut import is_cut_matroska

LONGEST_STEP = 10.0
"""Maximum seconds between frames of a broadcast stream (MPEG-TS, MPEG-PS); a larger step is a clock reset, as in FFmpeg
(`-dts_delta_threshold`)."""

LONGEST_LEAD = 1.0
"""Seconds; a file whose first packet is later than this starts at that packet instead of 0."""

BROADCAST = frozenset({"mpegts", "mpeg"})
WITHOUT_DISPLAY_TIMES = frozenset({"avi"})
"""Formats without display times; the order of the packets is more reliable than FFmpeg's guesses."""

COMMON_RATES = tuple(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120, 240))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Display times of the frames of a video.

    Attributes:
        fps: Frames per second: the exact rate if times are regular, else the mean rate.
        is_variable: Whether frames have different durations.
        times: Seconds since the first frame, strictly increasing, in display order; `(t,)` float64. Empty if the file
            has no times.
        last_duration: Duration of the last frame in seconds.
        start: Seconds from the start of the file to the first frame.
        origin: Time of the file's clock at its start, in seconds; usually 0.
        tick: Resolution of stored times in seconds.
        by_position: Times of decoded frames are unreliable; use the k-th of `times` for the k-th frame.
    """

    fps: float
    is_variable: bool
    times: np.ndarray
    last_duration: float
    start: float
    origin: float
    tick: float
    by_position: bool

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last."""
        return (float(self.times[-1]) if len(self.times) else 0.0) + self.last_duration


@dataclass
class _Packets:
    """Times of the packets that contain a visible frame, in ticks and file order."""

    shown: array  # display times
    decoded: array  # decoding times
    keys: bytearray
    end: int | None = None  # end of the last packet, including empty ones


NONE = -(2**63)


def scan(container: Any, stream: Any, path: str | os.PathLike[str]) -> Timing:
    """Read the times of all packets of a stream, up to the first damage.

    Args:
        container: The PyAV container, at its beginning.
        stream: The stream to scan.
        path: The file of the container.
    """
    base = Fraction(stream.time_base) if stream.time_base else Fraction(1, 1000)  # PyAV 19 has its own rational type
    stated = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    fallback = stated[0] if stated else Fraction(24)
    without = container.format.name in WITHOUT_DISPLAY_TIMES
    broadcast = container.format.name in BROADCAST
    packets = _read_packets(container, stream, decoding_times=without)
    origin = _origin(container, broadcast)
    ticks, by_position = _display_order(packets, base, fallback, broadcast)
    if not len(ticks):
        # A raw stream: use its own rate instead of FFmpeg's default of 25.
        fallback = Fraction(stream.codec_context.framerate or fallback)
        return Timing(fps=float(fallback), is_variable=False, times=np.zeros(0), last_duration=float(1 / fallback),
                      start=0.0, origin=origin, tick=float(base), by_position=False)  # fmt: skip
    rate = regular_rate(ticks, base, stated)
    steps = len(ticks) - 1
    span = int(ticks[-1] - ticks[0]) * base
    fps = rate or (steps / span if span > 0 else fallback)
    end = packets.end if packets.end is not None and not by_position else None
    tag = _tagged_duration(stream.metadata.get("DURATION"))
    if tag and not is_cut_matroska(path):
        end = max(end or 0, round(tag / base))
    last = Fraction(0) if end is None else (end - int(ticks[-1])) * base
    # If the stated duration of the last frame is 0, or differs from the usual one only by rounding, use the usual one.
    usual = 1 / fps
    stays = last > Fraction(3, 2) * usual
    if (rate is not None and not stays) or last <= 0:
        last = usual
    times = _increasing((ticks - ticks[0]).astype(np.float64) * float(base), float(usual))
    if rate is not None:
        times = np.arange(len(ticks)) / float(rate)
    return Timing(
        fps=float(fps),
        is_variable=(rate is None and steps > 0) or stays,
        times=times,
        last_duration=float(last),
        start=max(0.0, float(int(ticks[0]) * base) - origin),
        origin=origin,
        tick=float(base),
        by_position=by_position or without,
    )


def _origin(container: Any, broadcast: bool) -> float:
    """Return the start of a file's clock: 0 if it starts slightly later, except in broadcast streams."""
    start = (container.start_time or 0) / av.time_base
    return start if broadcast or not 0 <= start <= LONGEST_LEAD else 0.0


def _read_packets(container: Any, stream: Any, *, decoding_times: bool) -> _Packets:
    shows = _SHOWS_A_FRAME.get(stream.codec_context.name, lambda _: True)
    packets = _Packets(array("q"), array("q"), bytearray())
    try:
        for packet in container.demux(stream):
            dts = NONE if packet.dts is None else packet.dts
            pts = dts if packet.pts is None or (decoding_times and dts != NONE) else packet.pts
            if pts != NONE and (packet.size or packet.duration):
                end = pts + (packet.duration or 0)
                packets.end = end if packets.end is None else max(end, packets.end)
            if not packet.size or packet.is_discard or not shows(memoryview(packet)):
                continue
            packets.shown.append(pts)
            packets.decoded.append(dts)
            packets.keys.append(packet.is_keyframe)
    except FFmpegError:
        pass  # reported where the frames are read
    return packets


def _vp8_shows(data: memoryview) -> bool:
    return bool(data[0] & 0x10)  # show_frame, RFC 6386 section 9.1


def _vp9_shows(data: memoryview) -> bool:
    """Whether a VP9 packet shows a frame; superframes (several frames, of which the last is shown) do."""
    if data[-1] & 0xE0 == 0xC0:
        return True
    bits = data[0]
    profile = (bits >> 5 & 1) | (bits >> 3 & 2)
    if profile == 3:
        return True
    show_existing, show = bits >> 3 & 1, bits >> 1 & 1  # after the marker (2 bits) and the profile (2 bits)
    return bool(show_existing or show)


_SHOWS_A_FRAME: dict[str, Callable[[memoryview], bool]] = {
    "vp8": _vp8_shows, "libvpx": _vp8_shows, "vp9": _vp9_shows, "libvpx-vp9": _vp9_shows,
}  # fmt: skip


def _display_order(packets: _Packets, base: Fraction, rate: Fraction, broadcast: bool) -> tuple[np.ndarray, bool]:
    """Return frame times in ticks in display order, and whether they differ from the packets' stored times."""
    shown, decoded = np.array(packets.shown), np.array(packets.decoded)
    keys = np.frombuffer(bytes(packets.keys), dtype=np.uint8)
    if keys.any():
        # Frames before the first key frame, in file or display order, depend on missing frames.
        first = int(keys.argmax())
        keep = (np.arange(len(shown)) >= first) & ((shown >= shown[first]) | (shown == NONE))
        shown, decoded = shown[keep], decoded[keep]
    if not len(shown) or (shown == NONE).all():
        return np.zeros(0, dtype=np.int64), False
    step = max(1, round(1 / (rate * base)))
    missing = bool((shown == NONE).any())
    if missing:
        known = int((shown != NONE).argmax())
        shown[:known] = shown[known] - np.round(np.arange(known, 0, -1) / float(rate * base)).astype(np.int64)
        for index in np.flatnonzero(shown == NONE):
            shown[index] = shown[index - 1] + step
    jumps = _jumps(shown, decoded, base, broadcast)
    parts = np.split(shown, jumps)
    offset = 0
    for index, part in enumerate(parts):
        part.sort()
        if index:
            offset = int(parts[index - 1][-1]) + step - int(part[0])
            part += offset
    return np.concatenate(parts), missing or len(parts) > 1


def _jumps(shown: np.ndarray, decoded: np.ndarray, base: Fraction, broadcast: bool) -> np.ndarray:
    """Return clock resets: backward by half a second, in broadcasts also forward by `LONGEST_STEP`."""
    clock = decoded if (decoded != NONE).all() else shown
    change = np.diff(clock) * float(base)
    found = change < (-0.5 if clock is decoded else -LONGEST_STEP)
    if broadcast:
        # At a reset, display and decoding times jump together; otherwise a frame has a long duration.
        shown_change = (shown[1:] - np.maximum.accumulate(shown)[:-1]) * float(base)
        found |= (change > LONGEST_STEP) & (shown_change > LONGEST_STEP)
    return np.flatnonzero(found) + 1


def regular_rate(ticks: np.ndarray, base: Fraction, stated: list[Fraction]) -> Fraction | None:
    """Return the frame rate if times are regular up to rounding, else None.

    Times are rounded to whole ticks, or in remuxed files to milliseconds.

    Args:
        ticks: Times in display order, `(t,)` int64.
        base: Duration of a tick in seconds.
        stated: Rates from the header, which are tried first.
    """
    steps, span = len(ticks) - 1, int(ticks[-1] - ticks[0])
    if steps < 1 or span <= 0:
        return None if steps else (stated[0] if stated else Fraction(24))
    mean = Fraction(steps, span) / base
    whole = Fraction(max(1, round(mean)))
    near = [rate for rate in COMMON_RATES if abs(rate / mean - 1) < 0.01]
    # Rates in headers are rounded too: 29.9697 for 30000/1001.
    stated = [next((rate for rate in (*near, whole) if abs(rate / s - 1) < 1e-4), s) for s in stated]
    for rate in (*stated, whole, *near, mean.limit_denominator(1001) or mean, mean):
        period = float(1 / (rate * base))
        error = (ticks - ticks[0]) - np.arange(steps + 1) * period
        if float(error.max() - error.min()) <= max(1.0, min(0.001 / float(base), 0.1 * period)) + 1e-6:
            return rate
    return None


def _increasing(times: np.ndarray, period: float) -> np.ndarray:
    """Make times strictly increasing: shift repeated or decreasing ones to half a period after the previous."""
    if len(times) < 2 or (np.diff(times) > 0).all():
        return times
    result = times.copy()
    for index in range(1, len(result)):
        if result[index] <= result[index - 1]:
            result[index] = result[index - 1] + period / 2
    return result


def _tagged_duration(tag: str | None) -> Fraction:
    """Parse a Matroska `DURATION` tag, `hours:minutes:seconds`, to seconds; 0 if missing or invalid."""
    try:
        hours, minutes, seconds = (tag or "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    except ValueError:
        return Fraction(0)
