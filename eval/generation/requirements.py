"""Which metrics of generated clips are measured by default, and what each of them needs."""

from collections.abc import Sequence

from kinema.errors import KinemaError
from kinema.eval.metrics import GENERATION_METRICS as METRICS

STREAM_FRAMES = 16
"""Frames of a clip that STREAM uses, as in its paper."""

DEFAULT_METRICS = ("frame_consistency", "dynamic_degree", "motion_smoothness", "temporal_flickering")
"""Those that need neither reference clips nor a CLIP."""


def check_metrics(
    names: Sequence[str],
    *,
    clip: bool,
    reference: bool,
    num_clips: int | None = None,
    num_reference: int | None = None,
    num_frames: int | None = None,
    stream_frames: int | None = None,
) -> None:
    """Raises `KinemaError` unless the metrics exist, are named once, and have what they need.

    Args:
        names: The metrics.
        clip: Whether a CLIP was named.
        reference: Whether there are reference clips.
        num_clips: Number of generated clips; None: unknown.
        num_reference: Number of reference clips; None: unknown.
        num_frames: Frames of each generated clip; None: unknown.
        stream_frames: Frames that STREAM uses; None: `STREAM_FRAMES`.
    """
    METRICS.check(names)
    for name in names:
        if METRICS[name].network == "clip" and not clip:
            raise KinemaError(f"`clip` (=None) must name a CLIP, by hub id or folder, for the metric {name!r}")
        if METRICS[name].inputs == "clip sets" and not reference:
            raise KinemaError(f"`reference` (=None) must be clips to compare with, for the metric {name!r}")
        reason = too_little(name, num_clips, num_reference, num_frames, stream_frames)
        if reason is not None:
            raise KinemaError(f"{reason}, for the metric {name!r}")


def too_little(
    name: str,
    num_clips: int | None = None,
    num_reference: int | None = None,
    num_frames: int | None = None,
    stream_frames: int | None = None,
) -> str | None:
    """Returns why there are too few clips or frames for a metric of sets; None if there are enough, or it is unknown.

    Args:
        name: The metric.
        num_clips: As in `check_metrics`.
        num_reference: As in `check_metrics`.
        num_frames: As in `check_metrics`.
        stream_frames: As in `check_metrics`.
    """
    metric = METRICS[name]
    if metric.inputs != "clip sets":
        return None
    for side, count in (("clips", num_clips), ("reference", num_reference)):
        if count is not None and count < metric.min_clips:
            return f"`{side}` (={count} clips) must be at least {metric.min_clips} clips"
    min_frames = stream_frames or STREAM_FRAMES
    if "stream_frames" in metric.settings and num_frames is not None and num_frames < min_frames:
        return f"`num_frames` (={num_frames}) must be at least {min_frames}, the frames that STREAM looks at"
    return None
