"""The table of metrics of generated clips. A new one is one file with a function `make`, and one line here."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from kinema.errors import KinemaError


@dataclass(frozen=True, kw_only=True)
class GenerationMetric:
    """A row of the table.

    Attributes:
        module: Whose `make(networks)` gives the measure. Of a "clip" that is a `looks.ClipMeasure`; of a "set" an
            object with `update(look, real)` and `compute()`, which gives numbers by the metrics' names: several metrics
            may share one.
        kind: "clip" is a number for every clip; "set" one number for all clips, against reference clips.
        higher_is_better: Whether more is better; None where neither is.
        title: As in the head of a table.
        network: What it needs: "clip", which the user must name; "frames" for the frame network; a name in
            `kinema weights`; None: nothing.
        settings: Settings of `looks.Networks` on which its value depends: reports state them.
        least_clips: Clips that it needs on either side, of a "set".
    """

    module: str
    kind: Literal["clip", "set"] = "clip"
    higher_is_better: bool | None = True
    title: str
    network: str | None = None
    settings: tuple[str, ...] = ()
    least_clips: int = 1

    @property
    def make(self) -> Callable[[Any], Any]:
        """The measure's maker."""
        return importlib.import_module(self.module).make


METRICS: Mapping[str, GenerationMetric] = MappingProxyType(
    {
        "clip_score": GenerationMetric(module="kinema.eval.text.clip_score", title="CLIPScore", network="clip"),
        "frame_consistency": GenerationMetric(
            module="kinema.eval.text.frame_consistency", title="Frame consistency", network="frames"
        ),
        # A still clip has none, a wild one much: what is wanted depends on the prompt.
        "dynamic_degree": GenerationMetric(
            module="kinema.eval.motion.dynamic_degree",
            title="Dynamic degree",
            network="raft",
            higher_is_better=None,
            settings=("fps", "flow_side"),
        ),
        "motion_smoothness": GenerationMetric(
            module="kinema.eval.motion.motion_smoothness",
            title="Motion smoothness",
            network="raft",
            settings=("flow_side",),
        ),
        "temporal_flickering": GenerationMetric(
            module="kinema.eval.motion.temporal_flickering", title="Temporal flickering"
        ),
        "stream_t": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-T",
            network="frames",
            settings=("stream_frames",),
            least_clips=6,
        ),
        "stream_f": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-F",
            network="frames",
            settings=("stream_frames",),
            least_clips=6,
        ),
        "stream_d": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-D",
            network="frames",
            settings=("stream_frames",),
            least_clips=6,
        ),
    }
)
"""Every metric of generated clips by the name that commands, JSON files and reports use."""

STREAM_FRAMES = 16
"""Frames of a clip that STREAM looks at, as in its paper."""

DEFAULT_METRICS = ("frame_consistency", "dynamic_degree", "motion_smoothness", "temporal_flickering")
"""Those that need no reference clips and no network that the user must name."""


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
    """Raise `KinemaError` unless every name is in the table, once, at least one, and what they need is given.

    Args:
        names: The metrics.
        clip: Whether a CLIP was named.
        reference: Whether there are reference clips.
        num_clips: How many generated clips there will be; None: not known.
        num_reference: How many reference clips; likewise.
        num_frames: Of a generated clip; likewise.
        stream_frames: Frames that STREAM looks at; None: `STREAM_FRAMES`.
    """
    known = ", ".join(METRICS)
    if not names:
        raise KinemaError(f"`metrics` (={list(names)}) must be at least one of {known}")
    for name in names:
        if name not in METRICS:
            raise KinemaError(f"`metrics` (={name!r}) must be one of {known}")
        if METRICS[name].network == "clip" and not clip:
            raise KinemaError(f"`clip` (=None) must name a CLIP, by hub id or folder, for the metric {name!r}")
        if METRICS[name].kind == "set" and not reference:
            raise KinemaError(f"`reference` (=None) must be clips to compare with, for the metric {name!r}")
        reason = too_little(name, num_clips, num_reference, num_frames, stream_frames)
        if reason is not None:
            raise KinemaError(f"{reason}, for the metric {name!r}")
    if len(set(names)) < len(names):
        raise KinemaError(f"`metrics` (={list(names)}) must name every metric once")


def too_little(
    name: str,
    num_clips: int | None = None,
    num_reference: int | None = None,
    num_frames: int | None = None,
    stream_frames: int | None = None,
) -> str | None:
    """Why a metric of sets cannot be measured of so few clips or frames; None where it can, or it is not known.

    Args:
        name: The metric.
        num_clips: As of `check_metrics`, and so are the others.
        num_reference: Reference clips.
        num_frames: Of a generated clip.
        stream_frames: That STREAM looks at.
    """
    metric = METRICS[name]
    if metric.kind != "set":
        return None
    for side, count in (("clips", num_clips), ("reference", num_reference)):
        if count is not None and count < metric.least_clips:
            return f"`{side}` (={count} clips) must be at least {metric.least_clips} clips"
    least = stream_frames or STREAM_FRAMES
    if "stream_frames" in metric.settings and num_frames is not None and num_frames < least:
        return f"`num_frames` (={num_frames}) must be at least {least}, the frames that STREAM looks at"
    return None
