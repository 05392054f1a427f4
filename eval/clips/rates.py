"""Frames a second of the clips of a side, and what must be said where they differ: motion is compared by frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from kinema.eval.clips.listing import ClipFile

TOLERANCE = 0.01
"""Rates that differ by less than this share are the same: 29.97 and 30."""


@dataclass(frozen=True)
class Rate:
    """The rate of a video file, from the times of its frames.

    Attributes:
        fps: Frames a second; their mean where the rate varies.
        is_variable: Whether frames are shown for different times.
    """

    fps: float
    is_variable: bool = False


def read_rate(clip: ClipFile) -> Rate | None:
    """The rate of a clip; None for pictures and tensors, which have no times.

    Raises:
        KinemaError: The file cannot be read.
    """
    from kinema.video import VideoReader

    if not clip.is_video:
        return None
    with VideoReader(clip.path, name="clip") as reader:
        return Rate(reader.fps, reader.is_variable)


def read_fps(clip: ClipFile, default: float = 24.0) -> float:
    """Frames a second that a clip is meant to be shown at; pictures and tensors do not say, and get `default`."""
    rate = read_rate(clip)
    return default if rate is None else rate.fps


def first_fps(clips: Iterable[ClipFile], default: float = 24.0) -> float:
    """`read_fps` of the first clip that can be read; `default` where none can."""
    for clip in clips:
        try:
            return read_fps(clip, default)
        except Exception:  # reported where the clip is read
            continue
    return default


@dataclass(frozen=True, kw_only=True)
class SideRates:
    """The rates of a set of clips.

    Attributes:
        median: Frames a second; None where no clip has a rate.
        lowest: Of all clips.
        highest: Of all clips.
        num_clips: Clips that could be read.
        num_variable: Of which frames are shown for different times.
        num_unknown: Pictures and tensors, which have no rate.
    """

    median: float | None
    lowest: float | None
    highest: float | None
    num_clips: int
    num_variable: int
    num_unknown: int

    @classmethod
    def of(cls, rates: Sequence[Rate | None]) -> "SideRates":
        """Of the rate of each clip."""
        known = [rate.fps for rate in rates if rate is not None]
        return cls(
            median=median(known) if known else None,
            lowest=min(known, default=None),
            highest=max(known, default=None),
            num_clips=len(rates),
            num_variable=sum(rate is not None and rate.is_variable for rate in rates),
            num_unknown=len(rates) - len(known),
        )

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.median is None or self.lowest is None or self.highest is None:
            return "none: pictures and tensors have no rate"
        text = f"{self.median:.4g} frames a second"
        if not _same(self.lowest, self.highest):
            text = f"{self.lowest:.4g} to {self.highest:.4g} frames a second, median {self.median:.4g}"
        notes = [f"{self.num_variable} variable"] if self.num_variable else []
        notes += [f"{self.num_unknown} without a rate"] if self.num_unknown else []
        return f"{text} ({', '.join(notes)})" if notes else text


def describe_rates(sides: Mapping[str, SideRates], fps: float | None) -> list[str]:
    """The rates as a line of text for the terminal; none where there is no clip."""
    known = {side: rates for side, rates in sides.items() if rates.num_clips}
    if not known:
        return []
    sampled = "" if fps is None else f"; sampled at {fps:g}"
    return ["rates: " + "; ".join(f"{side} {rates}" for side, rates in known.items()) + sampled]


def rate_notes(sides: Mapping[str, SideRates], fps: float | None) -> list[str]:
    """What must be known of the rates to read a figure.

    Args:
        sides: The rates of each set of clips, by what it is called.
        fps: The rate at which video files were sampled; None: frames were taken as they are stored.
    """
    sides = {side: rates for side, rates in sides.items() if rates.num_clips}
    if fps is not None:
        return [note for side, rates in sides.items() for note in _notes_of_sampled(side, rates, fps)]
    notes = [note for side, rates in sides.items() for note in _notes_of_side(side, rates)]
    medians = {side: rates.median for side, rates in sides.items() if rates.median is not None}
    slowest, fastest = min(medians.values(), default=0.0), max(medians.values(), default=0.0)
    if not _same(slowest, fastest):
        listed = " against ".join(f"{value:.4g} ({side})" for side, value in medians.items())
        notes.insert(0, f"rates differ: {listed} frames a second; motion is compared at different speeds: use"
                        f" `--fps {slowest:.4g}`")  # fmt: skip
    return notes


def _notes_of_side(side: str, rates: SideRates) -> list[str]:
    notes = []
    if rates.lowest is not None and rates.highest is not None and not _same(rates.lowest, rates.highest):
        notes.append(f"clips of {side} have rates from {rates.lowest:.4g} to {rates.highest:.4g} frames a second, and"
                     " are measured as they are stored: `--fps` samples them at one rate")  # fmt: skip
    if rates.num_variable:
        notes.append(f"{rates.num_variable} of {rates.num_clips} clips of {side} have a variable rate, and are measured"
                     " as they are stored: `--fps` samples them by their times")  # fmt: skip
    return notes


def _notes_of_sampled(side: str, rates: SideRates, fps: float) -> list[str]:
    notes = []
    if rates.lowest is not None and rates.lowest < fps * (1 - TOLERANCE):
        notes.append(f"clips of {side} have as few as {rates.lowest:.4g} frames a second: at {fps:g} a second some are"
                     " taken twice")  # fmt: skip
    if rates.num_unknown:
        notes.append(f"{rates.num_unknown} clips of {side} are pictures or tensors, which have no rate: they are taken"
                     f" as they are, as if at {fps:g} frames a second")  # fmt: skip
    return notes


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(one, other)
